"""`sard-lora benchmark`: methods side by side, from the same few defects to a segmenter's figures on held-back ones.

Every cell (data set, seed, method, segmenter) is kept on disk as soon as it is finished, so a killed benchmark goes on
where it stopped and ends with the same table. No figure is chosen on anything that is tested.
"""

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from sard_lora import bases
from sard_lora.atomic import make_folder, write_text
from sard_lora.data import Category, Split, few_shot_split, fingerprint, open_category, require_sound
from sard_lora.evaluation.cells import Cell, Side, finished, keep
from sard_lora.evaluation.fidelity import defect_features, exactness, feature_figures
from sard_lora.evaluation.methods import Part, SetMaker, parse_method, split_names
from sard_lora.evaluation.page import write_benchmark_page
from sard_lora.evaluation.protocol import choose_pictures
from sard_lora.evaluation.results import Outcome, build_report, markdown
from sard_lora.evaluation.segmenters import Segmenter, SegmenterName, SegmenterSize, load_segmenter
from sard_lora.evaluation.shortcut import shortcut_cell
from sard_lora.evaluation.start import common_start
from sard_lora.evaluation.tasks import Task, run_tasks
from sard_lora.layouts import GOOD
from sard_lora.train.adapt import AdaptConfig, adapt
from sard_lora.train.segmenter import SegmenterConfig

METHODS = "real,paste,cutpaste,draem,inpaint,sard,paste+real,sard+real"
_FEATURES = ("real", "unet")
"""Method and segmenter whose network gives the features of fidelity."""


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
    """Parts of each defect, other ones for every seed; by default a third of the groups, for all seeds."""
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
    workers: int = 1
    """Processes that make sets and train segmenters side by side, on the same GPU where there is one."""

    def __post_init__(self) -> None:
        for name in split_names(self.methods):
            parse_method(name)
        for name in split_names(self.segmenters):
            if name not in get_args(SegmenterName):
                raise ValueError(f"segmenters: {name!r} is not one of {', '.join(get_args(SegmenterName))}")
        if not split_names(self.methods) or not split_names(self.segmenters):
            raise ValueError("methods and segmenters have to name at least one each")
        for name in ("seeds", "count", "adapter_steps", "unet_steps", "segformer_steps", "bisenetv2_steps", "workers"):
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


def benchmark(config: BenchmarkConfig) -> dict[str, Any]:
    """Run what is not finished yet; returns what `benchmark.json` holds.

    Everything about the data is checked before the first step.
    """
    make_folder(config.output)
    categories = find_categories(config.data)
    for category in categories:
        require_sound(category)
    if config.workers > 1:
        run_tasks(_tasks(config, categories), config.workers, config.output / "logs")
    outcomes: list[Outcome] = []
    for cell in _cells(config, categories):
        outcomes.append(_outcome(config, *cell))
        _write_report(config, outcomes)
    extra = {"fidelity": [row for category in categories for row in _fidelity_rows(config, category)]}
    if config.fills:
        extra["shortcut"] = [
            _shortcut_row(config, category, method) for category in categories for method in _writing_methods(config)
        ]
    report = _write_report(config, outcomes, extra)
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


def _cells(config: BenchmarkConfig, categories: Sequence[Category]) -> Iterator[tuple[Category, int, str, str]]:
    """Seed by seed, so that a benchmark that was cut short has all methods with fewer seeds."""
    methods, segmenters = split_names(config.methods), split_names(config.segmenters)
    for seed, category, method, segmenter in product(range(config.seeds), categories, methods, segmenters):
        yield category, seed, method, segmenter


def _outcome(config: BenchmarkConfig, category: Category, seed: int, method: str, segmenter: str) -> Outcome:
    """Train and test a cell, as far as that was not done before."""
    split, side = few_shot_split(category, config.shots, seed), _side(category, config)
    cell = _cell(config, category, method, segmenter, seed, _shared_key(config, split))
    result = cell.tested(side)
    if result is None:
        if not cell.trained:
            sets, parts = _sets(config, category, seed), parse_method(method)
            cell.train(
                config.training(segmenter, seed),
                [sample for part in parts for sample in sets.samples(part)],
                split.normals,
                [sample for part in parts for sample in sets.decoys(part)],
                _start(config, segmenter),
            )
        result = cell.test(side, config.device)
    return Outcome(category.name, seed, method, segmenter, result, cell.predictions(side))


def _start(config: BenchmarkConfig, segmenter: str) -> Path | None:
    """Where the segmenter's weights come from; trained first, unless that was done before."""
    start = config.start(segmenter)
    return start and common_start(config.output / "start", start)


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


def _sets(config: BenchmarkConfig, category: Category, seed: int) -> SetMaker:
    work, base = config.output / category.name, config.base
    if config.adapt_steps:
        base = str(_adapted_base(config, category))
    return SetMaker(
        category, work / f"seed{seed}", base, seed, config.count, config.shots, {"steps": config.adapter_steps}, {}
    )


def _adapted_base(config: BenchmarkConfig, category: Category) -> Path:
    """The base that was adapted to the normal images; made first, unless that was done before."""
    folder = config.output / category.name / "base"
    if not folder.exists():
        adapt(AdaptConfig(category.root, folder, base=config.base, steps=config.adapt_steps, resume=True))
    return folder


def _train_adapter(config: BenchmarkConfig, category: Category, seed: int, part: Part) -> None:
    _sets(config, category, seed).adapter(part)


def _make_set(config: BenchmarkConfig, category: Category, seed: int, part: Part) -> None:
    """Make what segmenters are trained on, as far as that was not done before."""
    sets = _sets(config, category, seed)
    sets.samples(part)
    sets.decoys(part)


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
            samples = _sets(config, category, 0).samples(parts[0])
            segmenter, real = reference()
            figures = feature_figures(real, defect_features(segmenter, samples))
            if parts[0].kind != "real":
                figures = exactness(samples, category.root) | figures
            figures = {"images": len(samples)} | {name: round(value, 4) for name, value in figures.items()}
            keep(folder, key, figures)
        yield {"dataset": category.name, "method": method, **figures}


def _writing_methods(config: BenchmarkConfig) -> list[str]:
    """The methods that write into pictures."""
    parts = {method: parse_method(method) for method in split_names(config.methods)}
    return [method for method, made_of in parts.items() if len(made_of) == 1 and made_of[0].kind != "real"]


def _shortcut_row(config: BenchmarkConfig, category: Category, method: str) -> dict[str, Any]:
    """How well a method's fills are told from untouched normal images, in percent."""
    segmenter = split_names(config.segmenters)[0]
    start = config.start(segmenter)
    figures = shortcut_cell(
        config.output / category.name / "shortcut" / method / segmenter,
        {"method": method, "start": start and asdict(start)},
        f"{category.name}, {method}, shortcut",
        _sets(config, category, 0).fills(parse_method(method)[0], config.fills),
        few_shot_split(category, config.shots).normals,
        config.training(segmenter, 0),
        _start(config, segmenter),
    )
    row = {"dataset": category.name, "method": method, "segmenter": segmenter, "fills": config.fills}
    return row | {name: round(100 * value, 3) for name, value in figures.items()}


def _tasks(config: BenchmarkConfig, categories: Sequence[Category]) -> list[Task]:
    """All that several processes can do side by side, the sets before the segmenters that are trained on them."""
    methods, segmenters = split_names(config.methods), split_names(config.segmenters)
    tasks: dict[str, Task] = {}

    def add(name: str, function: Callable[..., Any], *arguments: Any, after: Sequence[str] = ()) -> str:
        tasks.setdefault(name, Task(name, function, (config, *arguments), tuple(after)))
        return name

    started: dict[str, list[str]] = {segmenter: [] for segmenter in segmenters}
    if config.start_steps:
        for segmenter in segmenters:  # one after the other: they share the drawn surfaces
            started[segmenter] = [add(f"start, {segmenter}", _start, segmenter, after=list(tasks))]
    adapted: dict[str, list[str]] = {category.name: [] for category in categories}
    if config.adapt_steps:
        adapted = {c.name: [add(f"{c.name}, adapted base", _adapted_base, c)] for c in categories}
    made: dict[tuple[str, int, str], list[str]] = {}
    for seed, category, method in product(range(config.seeds), categories, methods):
        place = f"{category.name}, seed {seed}"
        needed = made.setdefault((category.name, seed, method), [])
        for part in parse_method(method):
            after = []
            if part.adapter:
                title = f"{place}, adapter of {part.adapter}"
                after = [add(title, _train_adapter, category, seed, part, after=adapted[category.name])]
            needed.append(add(f"{place}, set of {part}", _make_set, category, seed, part, after=after))
    for category, seed, method, segmenter in _cells(config, categories):
        after = made[category.name, seed, method] + started[segmenter]
        add(
            f"{category.name}, seed {seed}, {method}, {segmenter}",
            _outcome,
            category,
            seed,
            method,
            segmenter,
            after=after,
        )
    for category, method in product(categories, _writing_methods(config) if config.fills else ()):
        after = made[category.name, 0, method] + started[segmenters[0]]
        add(f"{category.name}, {method}, shortcut", _shortcut_row, category, method, after=after)
    return list(tasks.values())


def _write_report(
    config: BenchmarkConfig, outcomes: Sequence[Outcome], extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write `benchmark.json`; returns what it holds."""
    settings = {name: v.name if isinstance(v, Path) else v for name, v in asdict(config).items()}
    report = build_report(outcomes, settings, _command(settings)) | dict(extra or {})
    write_text(config.output / "benchmark.json", json.dumps(report, indent=1) + "\n")
    return report


def _command(settings: dict[str, Any]) -> str:
    """The command with these settings; those that are the defaults are left out."""
    usual = asdict(BenchmarkConfig(Path()))
    given = {name: value for name, value in settings.items() if name != "output" and value != usual[name]}
    return " ".join(["sard-lora benchmark", *(f"--{name} {shlex.quote(str(value))}" for name, value in given.items())])
