"""The evaluation page: figures and pictures in one HTML file that needs nothing else."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from sard_lora.atomic import write_text
from sard_lora.images import DEFECT, load_image, load_mask
from sard_lora.layouts import GOOD, Sample
from sard_lora.report import data_url, outline

# Columns of the table: key in report.json, heading, whether more is better, whether it is shown in percent.
COLUMNS = (
    ("miou", "mIoU", True, True),
    ("iou_defect", "defect IoU", True, True),
    ("pixel_acc", "pixel accuracy", True, True),
    ("ap", "AP", True, True),
    ("auroc", "AUROC", True, True),
    ("f1_max", "F1-max", True, True),
    ("aupro", "AUPRO", True, True),
    ("false_alarms", "false alarms per good image", False, False),
    ("false_area", "false area on good", False, True),
)

OVERALL_COLUMNS = (
    ("miou", "mIoU, all pixels", True, True),
    ("ap", "AP, all pixels", True, True),
)
"""Those of a benchmark that pool all test images, good ones included."""
EXPLANATION = (
    "Means over the defect types: IoUs and accuracy on the images of that defect, AP, AUROC, F1-max and AUPRO on these "
    "and all good ones; all pixels: of all test images at once, good ones included. In percent, but for false alarms, "
    "which are regions on a good image. ± is the deviation over the seeds. Every seed takes other real defects, where "
    "a defect has so many parts; images of one part count as one shot."
)
"""What a benchmark's tables show."""

_TRUTH = (0, 230, 255)
_PREDICTED = (255, 60, 30)
_LONG_SIDE = 448


def write_page(path: Path, report: Mapping[str, Any], shown: Sequence[Sample], predictions: Mapping[str, Path]) -> None:
    """Write the page of a finished `report` (see `sard_lora.evaluation.protocol.evaluate`) to `path`.

    `predictions` maps each method to the folder with its probabilities, 8-bit grey PNGs of the images' sizes, named
    00.png, 01.png … in the order of `shown`.
    """
    page = _render(
        "evaluation.html",
        report=report,
        headings=[heading for _, heading, _, _ in COLUMNS],
        groups=_table(report["methods"]),
        methods=list(report["methods"]),
        pictures=[_picture(index, sample, predictions) for index, sample in enumerate(shown)],
    )
    write_text(path, page)


def write_benchmark_page(
    path: Path,
    report: Mapping[str, Any],
    shown: Mapping[str, Sequence[Sample]],
    predictions: Mapping[str, Mapping[str, Path]],
) -> None:
    """Write the page of a benchmark's `report` (see `sard_lora.evaluation.results`) to `path`.

    `shown` and `predictions` are as for `write_page`, for each data set.
    """
    galleries = {
        name: [_picture(index, sample, predictions[name]) for index, sample in enumerate(samples)]
        for name, samples in shown.items()
    }
    columns = {name: list(methods) for name, methods in predictions.items()}
    page = _render(
        "benchmark.html",
        report=report,
        explanation=EXPLANATION,
        tables=benchmark_tables(report),
        galleries=galleries,
        columns=columns,
    )
    write_text(path, page)


def benchmark_tables(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A table for each data set and segmenter; cells are "mean ± deviation", of one seed its figure alone; the best
    mean of a column is marked."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in report["rows"]:
        groups.setdefault((row["dataset"], row["segmenter"]), []).append(row)
    tables = []
    for (dataset, segmenter), rows in groups.items():
        headings = ["images", "seeds"]
        columns = [[{"text": str(row[name]), "best": False} for row in rows] for name in headings]
        for figures, shown in ((rows, COLUMNS), ([row["overall"] for row in rows], OVERALL_COLUMNS)):
            for figure, heading, more_is_better, in_percent in shown:
                headings.append(heading)
                columns.append(_spread_cells([of[figure] for of in figures], more_is_better, in_percent))
        lines = [{"method": row["method"], "cells": cells} for row, *cells in zip(rows, *columns, strict=True)]
        tables.append({"title": f"{dataset}, {segmenter}", "headings": headings, "rows": lines})
    return tables


def _spread_cells(
    values: Sequence[Mapping[str, Any] | None], more_is_better: bool, in_percent: bool
) -> list[dict[str, Any]]:
    means = [value["mean"] for value in values if value]
    best = (max if more_is_better else min)(means) if len(means) > 1 else None
    digits = 1 if in_percent else 2
    shown = ("mean", "std") if any(value and len(value["values"]) > 1 for value in values) else ("mean",)
    return [
        {"text": " ± ".join(f"{value[name]:.{digits}f}" for name in shown), "best": value["mean"] == best}
        if value
        else {"text": "–", "best": False}
        for value in values
    ]


def _render(template: str, **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sard_lora"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def text_table(report: Mapping[str, Any]) -> str:
    """The mean over the defect types, one line a method, for the terminal and for Markdown; fractions in percent."""
    lines = ["| trained on | " + " | ".join(heading for _, heading, _, _ in COLUMNS) + " |"]
    lines.append("|---|" + "---|" * len(COLUMNS))
    for name, result in report["methods"].items():
        # What is found on normal images is no figure of a defect: it stands with all images together.
        row = result["overall"] | result["mean_of_defects"]
        values = [_written(row[figure], in_percent) or "–" for figure, _, _, in_percent in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def _table(methods: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Groups of rows: the mean of the defects, all pixels, every defect; the best value of a column is marked."""
    first = next(iter(methods.values()))
    scopes = [
        ("Mean of the defect types", lambda result: result["mean_of_defects"]),
        ("All test images together", lambda result: result["overall"]),
    ]
    scopes += [(defect, lambda result, defect=defect: result["per_defect"][defect]) for defect in first["per_defect"]]
    groups = []
    for title, read in scopes:
        values = {name: read(result) for name, result in methods.items()}
        rows = []
        for name in methods:
            cells = []
            for figure, _, more_is_better, in_percent in COLUMNS:
                column = [row[figure] for row in values.values() if row.get(figure) is not None]
                value = values[name].get(figure)
                best = column and value == (max(column) if more_is_better else min(column))
                cells.append({"text": _written(value, in_percent), "best": bool(best) and len(methods) > 1})
            rows.append({"method": name, "cells": cells})
        groups.append({"title": title, "rows": rows})
    return groups


def _written(value: float | None, in_percent: bool) -> str:
    """A figure as the tables show it; empty where there is none."""
    if value is None:
        return ""
    return f"{100 * value:.1f}" if in_percent else f"{value:.2f}"


def _picture(index: int, sample: Sample, predictions: Mapping[str, Path]) -> dict[str, Any]:
    """One row of pictures: the image, the truth, and each method's prediction with its IoU."""
    image = load_image(sample.image)
    truth = np.zeros((image.height, image.width), dtype=bool)
    if sample.mask is not None:
        truth = np.asarray(load_mask(sample.mask, image.size)) == DEFECT
    scale = _LONG_SIDE / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    shown, truth_shown = image.resize(size, Image.Resampling.BICUBIC), _resize(truth, size)
    cells = []
    for name, folder in predictions.items():
        with Image.open(folder / f"{index:02d}.png") as file:
            probability = np.asarray(file)
        predicted = probability >= 128
        overlap, union = (predicted & truth).sum(), (predicted | truth).sum()
        drawn = _tint(shown, np.asarray(Image.fromarray(probability).resize(size)) / 255)
        drawn = outline(drawn, _resize(predicted, size), _PREDICTED)
        cells.append(
            {
                "method": name,
                "source": _embedded(outline(drawn, truth_shown, _TRUTH)),
                "caption": f"IoU {100 * overlap / union:.0f} %"
                if truth.any()
                else f"false area {100 * predicted.mean():.2f} %",
            }
        )
    return {
        "title": "good" if sample.defect == GOOD else sample.defect,
        "name": f"{sample.image.parent.name}/{sample.image.name}",
        "image": _embedded(shown),
        "truth": _embedded(outline(shown, truth_shown, _TRUTH)),
        "cells": cells,
    }


def _tint(image: Image.Image, probability: np.ndarray) -> Image.Image:
    weight = 0.55 * probability[..., None]
    return Image.fromarray(np.rint(np.asarray(image) * (1 - weight) + weight * np.array(_PREDICTED)).astype(np.uint8))


def _resize(region: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a bool region so that a thin one does not vanish."""
    return np.asarray(Image.fromarray(region.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)) > 0


def _embedded(image: Image.Image) -> str:
    return data_url(image, "JPEG", quality=85)
