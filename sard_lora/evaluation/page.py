"""The evaluation page: figures and pictures in one HTML file that needs nothing else."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from sard_lora.atomic import write_text
from sard_lora.images import load_image, load_mask
from sard_lora.layouts import GOOD, Sample
from sard_lora.report import outline

# Columns of the table: key in report.json, heading, whether more is better.
FIGURES = (
    ("miou", "mIoU", True),
    ("iou_defect", "defect IoU", True),
    ("pixel_acc", "pixel accuracy", True),
    ("ap", "AP", True),
    ("auroc", "AUROC", True),
    ("f1_max", "F1-max", True),
    ("false_area", "false area on good", False),
)

_TRUTH = (0, 230, 255)
_PREDICTED = (255, 60, 30)
_LONG_SIDE = 448


def write_page(path: Path, report: Mapping[str, Any], shown: Sequence[Sample], predictions: Mapping[str, Path]) -> None:
    """Write the page of a finished `report` (see `sard_lora.evaluation.protocol.evaluate`) to `path`.

    `predictions` maps each method to the folder with its probabilities, 8-bit grey PNGs of the images' sizes, named
    00.png, 01.png … in the order of `shown`.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sard_lora"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("evaluation.html").render(
        report=report,
        figures=FIGURES,
        groups=_table(report["methods"]),
        methods=list(report["methods"]),
        pictures=[_picture(index, sample, predictions) for index, sample in enumerate(shown)],
    )
    write_text(path, page)


def text_table(report: Mapping[str, Any]) -> str:
    """The mean over the defect types, one line a method, in percent, for the terminal and for Markdown."""
    columns = [(figure, heading) for figure, heading, _ in FIGURES]
    lines = ["| trained on | " + " | ".join(heading for _, heading in columns) + " |"]
    lines.append("|---|" + "---|" * len(columns))
    for name, result in report["methods"].items():
        # The false area is no figure of a defect: it stands with all images together.
        row = result["overall"] | result["mean_of_defects"]
        values = ["–" if row[figure] is None else f"{100 * row[figure]:.1f}" for figure, _ in columns]
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
            for figure, _, more_is_better in FIGURES:
                column = [row[figure] for row in values.values() if row.get(figure) is not None]
                value = values[name].get(figure)
                best = column and value == (max(column) if more_is_better else min(column))
                cells.append({"value": value, "best": bool(best) and len(methods) > 1})
            rows.append({"method": name, "cells": cells})
        groups.append({"title": title, "rows": rows})
    return groups


def _picture(index: int, sample: Sample, predictions: Mapping[str, Path]) -> dict[str, Any]:
    """One row of pictures: the image, the truth, and each method's prediction with its IoU."""
    image = load_image(sample.image)
    truth = np.zeros((image.height, image.width), dtype=bool)
    if sample.mask is not None:
        truth = np.asarray(load_mask(sample.mask, image.size)) > 0
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
                "source": _data_uri(outline(drawn, truth_shown, _TRUTH)),
                "caption": f"IoU {100 * overlap / union:.0f} %"
                if truth.any()
                else f"false area {100 * predicted.mean():.2f} %",
            }
        )
    return {
        "title": "good" if sample.defect == GOOD else sample.defect,
        "name": f"{sample.image.parent.name}/{sample.image.name}",
        "image": _data_uri(shown),
        "truth": _data_uri(outline(shown, truth_shown, _TRUTH)),
        "cells": cells,
    }


def _tint(image: Image.Image, probability: np.ndarray) -> Image.Image:
    weight = 0.55 * probability[..., None]
    return Image.fromarray(np.rint(np.asarray(image) * (1 - weight) + weight * np.array(_PREDICTED)).astype(np.uint8))


def _resize(region: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a bool region so that a thin one does not vanish."""
    return np.asarray(Image.fromarray(region.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)) > 64


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
