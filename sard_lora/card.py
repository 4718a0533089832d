"""The model card of an adapter: what it makes, of which product, how to load it, what it was trained on and is worth.

The card says nothing that is not in the adapter's folder; its figures are those that `sard-lora evaluate --adapter` put
there. Its metadata are the Hub's.
"""

import json
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from sard_lora import bases
from sard_lora.adapter_config import AdapterConfig
from sard_lora.atomic import write_text

EVALUATION_FILE = "evaluation.json"
"""In an adapter folder: what segmenters learned from its images, as `evaluation_summary` gives it."""

ADAPTER_FOLDER = "ADAPTER_FOLDER"
"""Stands for a Hub id in the lines of code of a card, as long as there is none."""

TAGS = ["lora", "inpainting", "anomaly-synthesis", "defect-detection", "sard"]
FEW = 5
"""Below so many images of a defect the card warns of little variety."""

_METHODS = {
    "real": "the few real defects",
    "paste": "the real defects, cut out and pasted",
    "sard": "**images of this adapter**",
    "paste+real": "pasted and real defects",
    "sard+real": "**images of this adapter** and the real defects",
}


def evaluation_summary(report: dict[str, Any]) -> dict[str, Any]:
    """What a card needs of the report of `sard_lora.evaluation.protocol.evaluate`; figures are fractions."""
    rows = {}
    for method, result in report["methods"].items():
        means = {name: result["mean_of_defects"][name] for name in ("miou", "iou_defect", "ap")}
        rows[method] = {
            "train_images": result["train_images"],
            "false_alarms": result["overall"]["false_alarms"],
            **means,
        }
    told = {name: report[name] for name in ("category", "split", "segmenter", "test_images", "test_images_per_defect")}
    return told | {"steps": report["config"]["steps"], "methods": rows}


def write_card(folder: Path) -> None:
    """Write README.md of an adapter folder."""
    write_text(folder / "README.md", card_of(folder))


def card_of(folder: Path, name: str = ADAPTER_FOLDER, license: str | None = None) -> str:
    """The card of an adapter folder: `name` is its Hub id, `license` as the Hub spells it ("apache-2.0")."""
    held = {path.name for path in folder.iterdir()}
    evaluation = None
    if EVALUATION_FILE in held:
        evaluation = json.loads((folder / EVALUATION_FILE).read_text(encoding="utf-8"))
    return adapter_card(AdapterConfig.read(folder), held, evaluation, name, license)


def adapter_card(
    config: AdapterConfig,
    held: set[str],
    evaluation: dict[str, Any] | None = None,
    name: str = ADAPTER_FOLDER,
    license: str | None = None,
) -> str:
    """The text of a card; `held` are the names of what the adapter's folder holds."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sard_lora"), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    environment.filters |= {"listed": _listed, "percent": lambda value: f"{100 * value:.1f}"}
    shots = config.data["shots"]
    base = bases.hub_id(config.base.id, config.base.revision)
    counts = evaluation["test_images_per_defect"].items() if evaluation else ()
    return environment.get_template("adapter_card.md").render(
        metadata=_metadata(base, evaluation, name, license).to_yaml(),
        config=config,
        training=config.training,
        product=config.category.replace("_", " ").replace("-", " "),
        held=held,
        shots=shots,
        few=[defect for defect in config.defects if shots.get(defect, 0) < FEW],
        base=base or config.base.id,
        named=config.base.id in bases.BASES and base is None,
        evaluation=evaluation,
        counts=[f"{count} {defect}" for defect, count in counts],
        methods=_METHODS,
        name=name,
        license=license,
    )


def _metadata(base: str | None, evaluation: dict[str, Any] | None, name: str, license: str | None) -> ModelCardData:
    """The Hub's metadata; measured figures of the adapter's own images are in its model index."""
    results = []
    for method, row in evaluation["methods"].items() if evaluation else ():
        if "sard" not in method.split("+"):
            continue
        for figure, metric in (("miou", "mean_iou"), ("ap", "average_precision")):
            results.append(
                EvalResult(
                    task_type="image-segmentation",
                    task_name=f"{evaluation['segmenter']} trained on {method}",
                    dataset_type=evaluation["category"],
                    dataset_name=f"{evaluation['category']}, held-back real defects ({evaluation['split']} half)",
                    metric_type=metric,
                    metric_value=round(100 * row[figure], 1),
                )
            )
    return ModelCardData(
        base_model=base,
        base_model_relation="adapter" if base else None,
        library_name="diffusers",
        pipeline_tag="image-to-image",
        license=license,
        tags=TAGS,
        model_name=name.split("/")[-1] if results else None,
        eval_results=results or None,
    )


def _listed(words: list[str]) -> str:
    words = [word.replace("_", " ") for word in words]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
