"""`sard-lora benchmark`: methods side by side, from the same few defects to a segmenter's figures on held-back ones.

Every cell (data set, seed, method, segmenter) is kept on disk as soon as it is finished, so a killed benchmark goes on
where it stopped and ends with the same table. No figure is chosen on anything that is tested.
"""

import json
import os
import platform
import shlex
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from sard_lora import bases
from sard_lora.atomic import make_folder, write_text
from sard_lora.data import Category, Split, few_shot_split, fingerprint, open_category, require_sound
from sard_lora.evaluation.cells import Cell, Side, finished, keep
from sard_lora.evaluation.fidelity import defect_features, exactness, feature_figures
from sard_lora.evaluation.methods import SetMaker, parse_method, split_names
from sard_lora.evaluation.page import benchmark_tables, write_benchmark_page
from sard_lora.evaluation.protocol import choose_pictures
from sard_lora.evaluation.segmenters import Segmenter, SegmenterName, SegmenterSize, load_segmenter
from sard_lora.evaluation.shortcut import shortcut_cell
from sard_lora.evaluation.start import common_start
from sard_lora.layouts import GOOD
from sard_lora.train.adapt import AdaptConfig, adapt
from sard_lora.train.segmenter import SegmenterConfig

METHODS = "real,paste,cutpaste,draem,inpaint,sard,paste+real,sard+real"
FIDELITY = ("background_error", "mask_agreement", "kernel_distance", "diversity")
_FEATURES = ("real", "unet")
"""Method and segmenter whose network gives the features of fidelity."""
FIGURES = ("miou", "iou_defect", "pixel_acc", "ap", "auroc", "f1_max", "aupro")
"""Means over the defect types, in percent; `false_alarms` beside them is a count for each normal image."""


@dataclass
class BenchmarkConfig:
    """What is compared."""

    data: Path
    """A data set, or a folder of data sets."""
    output: Path = Path("runs/benchmark")
    """Where adapters, sets, finished cells and the results go."""
    base: str = "sard-tiny"
    """Base model of every diffusion method."""
    adapt_steps: int = 0
    """Steps of `sard-lora base adapt` on the normal images first, for every diffusion method alike; 0 leaves it out."""
    methods: str = METHODS
    """What to train segmenters on; settings may be changed for ablations, as in sard[guidance_scale=1,critic=false]."""
    segmenters: str = "unet,segformer"
    """Segmenters: unet, segformer, bisenetv2."""
    size: SegmenterSize = "small"
    """"small" segmenters train on a CPU; "full" ones are for a GPU, SegFormer with a pretrained encoder."""
    seeds: int = 3
    """Runs of everything: adapters, sets and segmenters."""
    count: int = 200
    """Synthetic images of each set, over all defects together."""
    shots: int | None = None
    """Real images a defect; by default a third of the groups."""
    adapter_steps: int = 500
    """Optimizer steps of every adapter."""
    start_steps: int = 3000
    """Steps that every segmenter first trains on drawn surfaces with drawn defects, once for all methods and seeds
    (`sard_lora.evaluation.start`); 0 starts from random weights."""
    unet_steps: int = 1500
    """Training steps of the U-Net, from there."""
    segformer_steps: int = 600
    """Training steps of SegFormer, from there."""
    bisenetv2_steps: int = 1500
    """Training steps of BiSeNet V2, from there."""
    fills: int = 0
    """Fills of every method for the shortcut test (`sard_lora.evaluation.shortcut`), with the first segmenter and
    seed; 0 leaves it out."""
    split: Literal["dev", "test"] = "test"
    """Which half of the held-back images: choices are made on dev, final figures on test."""
    device: str = "auto"
    """Where segmenters train: "cpu", "cuda", …; "auto" takes a GPU where there is one."""

    def __post_init__(self) -> None:
        for name in split_names(self.methods):
            parse_method(name)
        for name in split_names(self.segmenters):
            if name not in get_args(SegmenterName):
                raise ValueError(f"segmenters: {name!r} is not one of {', '.join(get_args(SegmenterName))}")
        if not split_names(self.methods) or not split_names(self.segmenters):
            raise ValueError("methods and segmenters have to name at least one each")
        for name in ("seeds", "count", "adapter_steps", "unet_steps", "segformer_steps", "bisenetv2_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} has to be at least 1")
        for name in ("adapt_steps", "start_steps", "fills"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} has to be at least 0")

    def training(self, segmenter: str, seed: int) -> SegmenterConfig:
        """How one segmenter is trained."""
        return self._training(segmenter, getattr(self, f"{segmenter}_steps"), seed)

    def start(self, segmenter: str) -> SegmenterConfig | None:
        """How it is trained on drawn surfaces before; None: not at all, from random weights."""
        return self._training(segmenter, self.start_steps, seed=0) if self.start_steps else None

    def _training(self, segmenter: str, steps: int, seed: int) -> SegmenterConfig:
        return SegmenterConfig(segmenter=segmenter, size=self.size, steps=steps, seed=seed, device=self.device)


@dataclass(frozen=True)
class Outcome:
    """What came of one cell: its figures as `summarise` gives them, and the folder of its predictions."""

    dataset: str
    seed: int
    method: str
    segmenter: str
    result: dict[str, Any]
    predictions: Path


def benchmark(config: BenchmarkConfig) -> dict[str, Any]:
    """Run what is not finished yet; returns what `benchmark.json` holds.

    Everything about the data is checked before the first step.
    """
    make_folder(config.output)
    categories = find_categories(config.data)
    for category in categories:
        require_sound(category)
    outcomes: list[Outcome] = []
    for outcome in _outcomes(config, categories):
        outcomes.append(outcome)
        write_text(config.output / "benchmark.json", json.dumps(_report(config, outcomes), indent=1) + "\n")
    report = _report(config, outcomes)
    report["fidelity"] = [row for category in categories for row in _fidelity_rows(config, category)]
    if config.fills:
        report["shortcut"] = [row for category in categories for row in _shortcut_rows(config, category)]
    write_text(config.output / "benchmark.json", json.dumps(report, indent=1) + "\n")
    write_text(config.output / "benchmark.md", markdown(report))
    shown = {category.name: _side(category, config).shown for category in categories}
    predictions = {
        category.name: {
            outcome.method: outcome.predictions
            for outcome in outcomes
            if (outcome.dataset, outcome.seed, outcome.segmenter) == (category.name, 0, outcomes[0].segmenter)
            and outcome.predictions.is_dir()  # figures may have been brought here alone
        }
        for category in categories
    }
    write_benchmark_page(config.output / "index.html", report, shown, predictions)
    print(markdown(report))
    print(f"look at {config.output / 'index.html'}")
    return report


def find_categories(data: Path) -> list[Category]:
    """The data set in `data`, or all data sets in its folders.

    Raises:
        ValueError: neither `data` nor any folder in it is a data set.
    """
    try:
        return [open_category(data)]
    except ValueError as error:
        found = []
        for folder in sorted(path for path in data.glob("*") if path.is_dir()):
            try:
                found.append(open_category(folder))
            except ValueError:
                continue
        if not found:
            raise error
        return found


def _side(category: Category, config: BenchmarkConfig) -> Side:
    split = few_shot_split(category, config.shots)
    tested = split.test if config.split == "test" else split.dev
    return Side(config.split, tested, choose_pictures(tested))


def _outcomes(config: BenchmarkConfig, categories: Sequence[Category]) -> Iterator[Outcome]:
    """Seed by seed, so that a benchmark that was cut short has all methods with fewer seeds."""
    for seed in range(config.seeds):
        for category in categories:
            yield from _category_outcomes(config, category, seed)


def _category_outcomes(config: BenchmarkConfig, category: Category, seed: int) -> Iterator[Outcome]:
    split, side = few_shot_split(category, config.shots), _side(category, config)
    work = config.output / category.name
    sets, shared = None, _shared_key(config, split)
    for method in split_names(config.methods):
        for segmenter in split_names(config.segmenters):
            cell = _cell(config, category, method, segmenter, seed, shared)
            result = cell.tested(side)
            if result is None:
                if not cell.trained:
                    sets = sets or _sets(config, category, split, work, seed)
                    parts, start = parse_method(method), config.start(segmenter)
                    cell.train(
                        config.training(segmenter, seed),
                        [sample for part in parts for sample in sets.samples(part)],
                        split.normals,
                        [sample for part in parts for sample in sets.decoys(part)],
                        start and common_start(config.output / "start", start),
                    )
                result = cell.test(side, config.device)
            yield Outcome(category.name, seed, method, segmenter, result, cell.predictions(side))


def _cell(
    config: BenchmarkConfig, category: Category, method: str, segmenter: str, seed: int, shared: dict[str, Any]
) -> Cell:
    start = config.start(segmenter)
    training = asdict(config.training(segmenter, seed))
    return Cell(
        config.output / category.name / "cells" / f"seed{seed}" / method / segmenter,
        f"{category.name}, seed {seed}, {method}, {segmenter}",
        {"method": method, "training": training, "start": start and asdict(start), **shared},
    )


def _shared_key(config: BenchmarkConfig, split: Split) -> dict[str, Any]:
    """What every segmenter of a data set depends on."""
    return {
        "base": bases.describe(config.base).revision,
        "train": fingerprint([*split.train, *split.normals]),
        **{name: getattr(config, name) for name in ("adapt_steps", "count", "shots", "adapter_steps")},
    }


def _sets(config: BenchmarkConfig, category: Category, split: Split, work: Path, seed: int) -> SetMaker:
    base = config.base
    if config.adapt_steps:
        folder = work / "base"
        if not folder.exists():
            adapt(AdaptConfig(category.root, folder, base=base, steps=config.adapt_steps, resume=True))
        base = str(folder)
    return SetMaker(
        category, work / f"seed{seed}", base, seed, config.count, config.shots, {"steps": config.adapter_steps}, {}
    )


def _fidelity_rows(config: BenchmarkConfig, category: Category) -> Iterator[dict[str, Any]]:
    """How exact and how real each set of the first seed is; nothing where no U-Net was trained on the real defects."""
    if _FEATURES[0] not in split_names(config.methods) or _FEATURES[1] not in split_names(config.segmenters):
        return
    split, side = few_shot_split(category, config.shots), _side(category, config)
    work = config.output / category.name
    features = _cell(config, category, *_FEATURES, 0, _shared_key(config, split))
    key = features.key | {"test": side.fingerprint}

    @cache
    def reference() -> tuple[Segmenter, torch.Tensor]:
        """The U-Net of the first seed that saw the real defects alone, and its features of the held-back ones."""
        segmenter = load_segmenter(features.segmenter)
        return segmenter, defect_features(segmenter, [sample for sample in side.samples if sample.defect != GOOD])

    for method in split_names(config.methods):
        parts = parse_method(method)
        if len(parts) > 1:
            continue
        folder = work / "fidelity" / method / side.name
        figures = finished(folder, key)
        if figures is None:
            samples = _sets(config, category, split, work, 0).samples(parts[0])
            segmenter, real = reference()
            figures = feature_figures(real, defect_features(segmenter, samples))
            if parts[0].kind != "real":
                figures = exactness(samples, category.root) | figures
            figures = {"images": len(samples)} | {name: round(value, 4) for name, value in figures.items()}
            keep(folder, key, figures)
        yield {"dataset": category.name, "method": method, **figures}


def _shortcut_rows(config: BenchmarkConfig, category: Category) -> Iterator[dict[str, Any]]:
    """How well fills are told from untouched normal images, in percent, for every method that writes."""
    split, segmenter = few_shot_split(category, config.shots), split_names(config.segmenters)[0]
    work = config.output / category.name
    sets, start = _sets(config, category, split, work, 0), config.start(segmenter)
    for method in split_names(config.methods):
        parts = parse_method(method)
        if len(parts) > 1 or parts[0].kind == "real":
            continue
        title = f"{category.name}, {method}, shortcut"
        figures = shortcut_cell(
            work / "shortcut" / method / segmenter,
            {"method": method, "start": start and asdict(start)},
            title,
            sets.fills(parts[0], config.fills),
            split.normals,
            config.training(segmenter, 0),
            start and common_start(config.output / "start", start),
        )
        row = {"dataset": category.name, "method": method, "segmenter": segmenter, "fills": config.fills}
        yield row | {name: round(100 * value, 3) for name, value in figures.items()}


def _report(config: BenchmarkConfig, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    groups: dict[tuple[str, str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.dataset, outcome.segmenter, outcome.method), []).append(outcome)
    rows = []
    for (dataset, segmenter, method), group in sorted(groups.items(), key=lambda item: item[0][:2]):
        row = {
            "dataset": dataset,
            "base": config.base,
            "method": method,
            "segmenter": segmenter,
            "seeds": len(group),
            "images": group[0].result["train_images"],
        }
        for figure in FIGURES:
            row[figure] = _spread([outcome.result["mean_of_defects"][figure] for outcome in group], 100)
        overall = [outcome.result["overall"] for outcome in group]
        row["false_alarms"] = _spread([figures["false_alarms"] for figures in overall])
        row["false_area"] = _spread([figures["false_area"] for figures in overall], 100)
        row["per_defect"] = {
            defect: {f: _spread([outcome.result["per_defect"][defect][f] for outcome in group], 100) for f in FIGURES}
            for defect in group[0].result["per_defect"]
        }
        rows.append(row)
    settings = {name: v.name if isinstance(v, Path) else v for name, v in asdict(config).items()}
    return {
        "command": _command(settings),
        "settings": settings,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
        "versions": {name: version(name) for name in ("sard-lora", "torch", "diffusers", "transformers", "monai")},
        "rows": rows,
    }


def _command(settings: dict[str, Any]) -> str:
    """The command with these settings; those that are the defaults are left out."""
    usual = asdict(BenchmarkConfig(Path()))
    given = {name: value for name, value in settings.items() if name != "output" and value != usual[name]}
    return " ".join(["sard-lora benchmark", *(f"--{name} {shlex.quote(str(value))}" for name, value in given.items())])


def _spread(values: Sequence[float | None], scale: float = 1) -> dict[str, float] | None:
    """Mean and standard deviation over the seeds; None where a figure does not exist (no normal images)."""
    if any(value is None for value in values):
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(scale * statistics.fmean(values), 3), "std": round(scale * deviation, 3)}


def markdown(report: dict[str, Any]) -> str:
    """The tables in Markdown: percentages, but for the false alarms, mean ± deviation over the seeds."""
    lines = []
    for table in benchmark_tables(report):
        heads = table["headings"]
        lines += [f"**{table['title']}, {report['settings']['split']} side**", ""]
        lines += ["| trained on | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
        for row in table["rows"]:
            texts = [f"**{cell['text']}**" if cell["best"] else cell["text"] for cell in row["cells"]]
            lines.append(f"| {row['method']} | " + " | ".join(texts) + " |")
        lines.append("")
    extra = (
        ("fidelity", "Fidelity of the sets, first seed", FIDELITY),
        ("shortcut", "Shortcut test: fills told from untouched images", ("ap", "chance", "auroc")),
    )
    for name, title, figures in extra:
        if report.get(name):
            lines += [f"**{title}**", "", "| data set | method | " + " | ".join(figures) + " |"]
            lines.append("|---|---|" + "---:|" * len(figures))
            for row in report[name]:
                texts = [f"{row[figure]:.3g}" if figure in row else "–" for figure in figures]
                lines.append(f"| {row['dataset']} | {row['method']} | " + " | ".join(texts) + " |")
            lines.append("")
    return "\n".join(lines)
