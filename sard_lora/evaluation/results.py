"""The results of a benchmark: rows over the seeds, and tables in Markdown."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sard_lora.evaluation.cells import PACKAGES
from sard_lora.evaluation.page import EXPLANATION, benchmark_tables

FIDELITY = ("background_error", "mask_agreement", "kernel_distance", "diversity", "kid", "ic_lpips")
FIGURES = ("miou", "iou_defect", "pixel_acc", "ap", "auroc", "f1_max", "aupro")
"""In percent: means over the defect types, and `overall` of all images together (`sard_lora.evaluation.metrics`)."""


@dataclass(frozen=True)
class Outcome:
    """What came of one cell: its figures as `summarise` gives them, and the folder of its predictions."""

    dataset: str
    seed: int
    method: str
    segmenter: str
    result: dict[str, Any]
    predictions: Path


def build_report(outcomes: Sequence[Outcome], settings: Mapping[str, Any], command: str) -> dict[str, Any]:
    """What `benchmark.json` holds of `outcomes`: rows, how they were made, and on what."""
    groups: dict[tuple[str, str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.dataset, outcome.segmenter, outcome.method), []).append(outcome)
    rows = []
    for (dataset, segmenter, method), group in sorted(groups.items(), key=lambda item: item[0][:2]):
        row = {
            "dataset": dataset,
            "base": settings["base"],
            "method": method,
            "segmenter": segmenter,
            "seeds": len(group),
            "images": round(statistics.fmean(outcome.result["train_images"] for outcome in group)),
        }
        for figure in FIGURES:
            row[figure] = _spread([outcome.result["mean_of_defects"][figure] for outcome in group], 100)
        overall = [outcome.result["overall"] for outcome in group]
        row["overall"] = {f: _spread([figures[f] for figures in overall], 100) for f in FIGURES}
        row["false_alarms"] = _spread([figures["false_alarms"] for figures in overall])
        row["false_area"] = _spread([figures["false_area"] for figures in overall], 100)
        row["per_defect"] = {
            defect: {f: _spread([outcome.result["per_defect"][defect][f] for outcome in group], 100) for f in FIGURES}
            for defect in group[0].result["per_defect"]
        }
        rows.append(row)
    return {
        "command": command,
        "settings": dict(settings),
        "machine": "; ".join(sorted({outcome.result["machine"] for outcome in outcomes})),
        "versions": {
            name: "; ".join(sorted({outcome.result["versions"][name] for outcome in outcomes})) for name in PACKAGES
        },
        "rows": rows,
    }


def _spread(values: Sequence[float | None], scale: float = 1) -> dict[str, Any] | None:
    """Mean, standard deviation and values of the seeds, for methods to be compared seed by seed.

    None where a figure does not exist (no normal images).
    """
    if any(value is None for value in values):
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {
        "mean": round(scale * statistics.fmean(values), 3),
        "std": round(scale * deviation, 3),
        "values": [round(scale * value, 3) for value in values],
    }


def markdown(report: dict[str, Any]) -> str:
    """The tables in Markdown, what they show, and how they were made."""
    lines = [EXPLANATION, ""]
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
            figures = [figure for figure in figures if any(figure in row for row in report[name])]
            lines += [f"**{title}**", "", "| data set | method | " + " | ".join(figures) + " |"]
            lines.append("|---|---|" + "---:|" * len(figures))
            for row in report[name]:
                texts = [f"{row[figure]:.3g}" if figure in row else "–" for figure in figures]
                lines.append(f"| {row['dataset']} | {row['method']} | " + " | ".join(texts) + " |")
            lines.append("")
    lines += [f"Made by `{report['command']}` on {report['machine']}.", ""]
    return "\n".join(lines)
