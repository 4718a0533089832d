"""`sard-lora benchmark`: methods side by side, from the same few defects to a segmenter's figures on held-back ones.

Every cell (data set, seed, method, segmenter) is kept on disk as soon as it is finished, so a killed benchmark goes on
where it stopped and ends with the same table. No figure is chosen on anything that is tested.
"""

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from sard_lora.atomic import make_folder, write_text
from sard_lora.data import Category, open_category, require_sound
from sard_lora.evaluation.benchmark_config import BenchmarkConfig
from sard_lora.evaluation.category_benchmark import FIDELITY_NETWORK, CategoryBenchmark, segmenter_start
from sard_lora.evaluation.methods import Part, parse_method, split_names
from sard_lora.evaluation.page import write_benchmark_page
from sard_lora.evaluation.perceptual import load_networks
from sard_lora.evaluation.results import Outcome, build_report, markdown
from sard_lora.evaluation.tasks import Task, run_tasks
from sard_lora.layouts import GOOD, find_layout


def benchmark(config: BenchmarkConfig) -> dict[str, Any]:
    """Run what is not finished yet; returns what `benchmark.json` holds.

    Everything about the data is checked before the first step, and whether the networks of KID can be had.
    """
    make_folder(config.output)
    benches = [CategoryBenchmark(config, category) for category in find_categories(config.data)]
    for bench in benches:
        require_sound(bench.category)
        if all(sample.defect == GOOD for sample in bench.side.samples):
            raise ValueError(
                f"{bench.category.root}: no defects on the {config.split} side; add images of other parts, or take "
                "the other side (--split)"
            )
    if config.fidelity and config.perceptual:
        load_networks(config.device)  # downloads them, or says why not, before anything is trained
    if config.workers > 1:
        run_tasks(_tasks(config, benches), config.workers, config.output / "logs")
    outcomes: list[Outcome] = []
    for bench, *cell in _cells(config, benches):
        outcomes.append(bench.outcome(*cell))
        _write_report(config, outcomes)
    extra = {"fidelity": [row for bench in benches for row in bench.fidelity_rows()]}
    if config.fills:
        extra["shortcut"] = [bench.shortcut_row(method) for bench in benches for method in _writing_methods(config)]
    report = _write_report(config, outcomes, extra)
    write_text(config.output / "benchmark.md", markdown(report))
    predictions = {
        bench.name: {
            outcome.method: outcome.predictions
            for outcome in outcomes
            if (outcome.dataset, outcome.seed, outcome.segmenter) == (bench.name, 0, outcomes[0].segmenter)
            and outcome.predictions.is_dir()  # figures may have been brought here alone
        }
        for bench in benches
    }
    shown = {bench.name: bench.side.shown for bench in benches}
    write_benchmark_page(config.output / "index.html", report, shown, predictions)
    print(markdown(report))
    print(f"look at {config.output / 'index.html'}")
    return report


def find_categories(data: Path) -> list[Category]:
    """The data set in `data`, or all data sets in its folders.

    Raises:
        ValueError: neither `data` nor any folder in it is a data set, or one of them cannot be read.
    """
    folders = [] if find_layout(data) else sorted(path for path in data.glob("*") if path.is_dir())
    found = [open_category(folder) for folder in folders if find_layout(folder)]
    return found or [open_category(data)]


def _cells(
    config: BenchmarkConfig, benches: Sequence[CategoryBenchmark]
) -> Iterator[tuple[CategoryBenchmark, int, str, str]]:
    """Seed by seed, so that a benchmark that was cut short has all methods with fewer seeds."""
    methods, segmenters = split_names(config.methods), split_names(config.segmenters)
    for seed, bench, method, segmenter in product(range(config.seeds), benches, methods, segmenters):
        yield bench, seed, method, segmenter


def _writing_methods(config: BenchmarkConfig) -> list[str]:
    """The methods that write into pictures."""
    parts = {method: parse_method(method) for method in split_names(config.methods)}
    return [method for method, made_of in parts.items() if len(made_of) == 1 and made_of[0].kind != "real"]


def _tasks(config: BenchmarkConfig, benches: Sequence[CategoryBenchmark]) -> list[Task]:
    """What several processes can do side by side and no earlier run has kept, the sets before what is made of them."""
    tasks: dict[str, Task] = {}

    def add(name: str, function: Callable[..., Any], *arguments: Any, after: Sequence[str] = ()) -> str:
        tasks.setdefault(name, Task(name, function, arguments, tuple(after)))
        return name

    def add_start(segmenter: str) -> list[str]:
        if not config.start_steps:
            return []
        before = [name for name in tasks if name.startswith("start,")]  # they share the drawn surfaces
        return [add(f"start, {segmenter}", segmenter_start, config, segmenter, after=before)]

    def add_set(bench: CategoryBenchmark, seed: int, part: Part, fills: int = 0) -> str:
        place, after = f"{bench.name}, seed {seed}", []
        if part.generated:
            if config.adapt_steps:
                after = [add(f"{bench.name}, adapted base", bench.adapted_base)]
            adapter = f"{place}, adapter {bench.adapter_name(seed, part)}"
            after = [add(adapter, bench.train_adapter, seed, part, after=after)]
        name = f"{place}, set {bench.set_name(seed, part, fills)}"
        if fills:
            return add(name, bench.make_fills, seed, part, fills, after=after)
        return add(name, bench.make_set, seed, part, after=after)

    def add_sets(bench: CategoryBenchmark, seed: int, method: str) -> list[str]:
        parts = parse_method(method)
        sets = [add_set(bench, seed, part) for part in parts if part.kind != "real"]
        return sets + [add_set(bench, seed, part, part.decoys) for part in parts if part.decoys]

    cells = [cell for cell in _cells(config, benches) if not cell[0].is_tested(*cell[1:])]
    started = {segmenter: add_start(segmenter) for *_, segmenter in cells}
    made = {(bench.name, seed, method): add_sets(bench, seed, method) for bench, seed, method, _ in cells}
    for bench, seed, method, segmenter in cells:
        title = f"{bench.name}, seed {seed}, {method}, {segmenter}"
        after = made[bench.name, seed, method] + started[segmenter]
        add(title, bench.outcome, seed, method, segmenter, after=after)
    for bench in benches:
        if not bench.has_fidelity_rows():
            sets = [name for method in bench.fidelity_methods() for name in add_sets(bench, 0, method)]
            seen = [name for name in tasks if name.startswith(f"{bench.name}, seed 0, real, ")]
            needed = [] if bench.has_fidelity_network() else add_start(FIDELITY_NETWORK[1])
            add(f"{bench.name}, fidelity", bench.fidelity_rows, after=[*sets, *seen, *needed])
    for bench, method in product(benches, _writing_methods(config) if config.fills else ()):
        if bench.has_shortcut_row(method):
            continue
        segmenter = split_names(config.segmenters)[0]
        after = [add_set(bench, 0, parse_method(method)[0], config.fills), *add_start(segmenter)]
        add(f"{bench.name}, {method}, shortcut", bench.shortcut_row, method, after=after)
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
