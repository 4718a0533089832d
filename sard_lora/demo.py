"""`sard-lora demo`: the main job from end to end on an embedded product and base, and the page that shows it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sard_lora.atomic import make_folder, write_text
from sard_lora.evaluation.protocol import EvaluateConfig, evaluate
from sard_lora.images import load_image
from sard_lora.labelled import LabelledSet
from sard_lora.report import grid
from sard_lora.surfaces import PRODUCTS, write_category
from sard_lora.synthesis import synthesize, verify
from sard_lora.synthesize_config import SynthesizeConfig
from sard_lora.train.adapter import train_adapter
from sard_lora.train.adapter_train_config import AdapterTrainConfig

SETTINGS = "demo.json"
FIGURES = ("miou", "iou_defect", "ap", "auroc", "f1_max")


@dataclass
class DemoConfig:
    """Sizes of the demo; the defaults take about eight minutes on two CPU cores."""

    output: Path = Path("runs/demo")
    """Folder for the data, the adapter, the synthetic set and the report."""
    product: str = "brushed_steel"
    """Which embedded product."""
    steps: int = 300
    """Training steps of the adapter."""
    count: int = 64
    """Labelled images to synthesize."""
    candidates: int = 2
    """Candidates for each of them; the critic keeps the best."""
    segmenter_steps: int = 300
    """Training steps of each segmenter."""
    normals: int = 60
    """Normal images to draw for training; a quarter as many are drawn for testing."""
    anomalies_per_defect: int = 18
    """Defective images of each defect; a third of them train, the others test."""
    shots: int | None = None
    """Defective images of each defect that may be trained on; default: the first third."""
    seed: int = 0
    """Seed of everything random."""

    def __post_init__(self) -> None:
        if self.product not in PRODUCTS:
            raise ValueError(f"product={self.product!r} is not one of {', '.join(PRODUCTS)}")


def demo(config: DemoConfig) -> dict[str, Any]:
    """Run the main job; leaves `report.json`, `index.html` and `grid.png` in the output folder.

    Started again it goes on where it was stopped. Raises ValueError for a folder with a demo of other settings.
    """
    output = make_folder(config.output)
    _require_same_settings(config)
    data = output / "data" / config.product
    print(f"1/4 drawing {config.product}: normal parts, and a few defective ones with masks")
    if not data.is_dir():
        write_category(config.product, data, config.normals, config.anomalies_per_defect, config.seed)
    print("2/4 training the adapter: LoRA and critic")
    adapter = train_adapter(
        AdapterTrainConfig(
            data=data,
            output=output / "adapter",
            shots=config.shots,
            steps=config.steps,
            seed=config.seed,
            sample_every=0,
            resume=True,
        )
    )
    print("3/4 synthesizing labelled images")
    synthetic = output / "synthetic"
    synthesis = synthesize(
        SynthesizeConfig(
            adapter=adapter.folder,
            data=data,
            output=synthetic,
            count=config.count,
            candidates=config.candidates,
            seed=config.seed,
        )
    )
    print("4/4 training segmenters on the real few, on pasted defects and on the synthetic set; testing on other parts")
    evaluation = evaluate(
        EvaluateConfig(
            train=synthetic,
            test=data,
            output=output / "evaluation",
            shots=config.shots,
            steps=config.segmenter_steps,
            crop=128,
            seed=config.seed,
        )
    )
    draw_grid(synthetic, data, output / "grid.png")
    report = verify(synthetic, data) | {
        "product": config.product,
        "synthesized": synthesis["synthesized"],
        "rejected": synthesis["rejected"],
        "given_up": synthesis["given_up"],
        "train_seconds": adapter.config.training["seconds"],
        "synthesize_seconds": synthesis["seconds"],
        "segmentation": {
            name: {figure: result["mean_of_defects"][figure] for figure in FIGURES}
            for name, result in evaluation["methods"].items()
        },
    }
    write_text(output / "report.json", json.dumps(report, indent=2) + "\n")
    write_text(output / "index.html", _page(report))
    print(json.dumps(report, indent=2))
    print(f"look at {output / 'index.html'} and {output / 'grid.png'}")
    return report


def draw_grid(synthetic: Path, data: Path, path: Path, per_defect: int = 3) -> None:
    """Rows of the picture that was written into, mask and result: the first few of every defect of a synthetic set."""
    rows, shown = [], {}
    for record in LabelledSet(synthetic).records():
        shown[record["defect"]] = shown.get(record["defect"], 0) + 1
        if shown[record["defect"]] <= per_defect:
            mask = np.asarray(Image.open(synthetic / record["mask_file_name"]))
            result = load_image(synthetic / record["file_name"])
            rows.append([load_image(data / record["normal"]), Image.fromarray(mask), result])
    grid(rows, ["before", "mask", "result"], path)


def _require_same_settings(config: DemoConfig) -> None:
    """Keep the settings in the output folder, or raise ValueError where a demo with others was begun there."""
    path = config.output / SETTINGS
    settings = {name: value for name, value in asdict(config).items() if name != "output"}
    begun = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else settings
    if different := [name for name, value in settings.items() if begun.get(name) != value]:
        raise ValueError(
            f"{config.output}: holds a demo with another {', '.join(different)}. Choose another --output, or delete it"
        )
    write_text(path, json.dumps(settings, indent=2) + "\n")


def _page(report: dict[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader

    template = Environment(loader=PackageLoader("sard_lora"), autoescape=True).get_template("demo.html")
    return template.render(report=report, figures=FIGURES)
