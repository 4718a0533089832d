"""The pictures and pages that people look at: mask outlines, picture grids, contact sheets, the check of a data set."""

import base64
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy import ndimage

from sard_lora.atomic import atomic_file
from sard_lora.data import Category, Inspection, Split, few_shot_split
from sard_lora.images import DataError, load_image, load_mask
from sard_lora.layouts import GOOD, Sample

RED = (255, 40, 40)
GAP = 6


def outline(image: Image.Image, mask: np.ndarray, colour: tuple[int, int, int] = RED, distance: int = 0) -> Image.Image:
    """`image` as RGB with a line around the mask ((H, W) bool), `distance` pixels outside it.

    The line never covers the mask, so that the defect stays in sight; it is a 200th of the image's side wide.
    """
    width = max(1, round(min(image.size) / 200))
    away = ndimage.distance_transform_cdt(~mask, "chessboard") if mask.any() else np.zeros(mask.shape)
    pixels = np.array(image.convert("RGB"))
    pixels[(away > distance) & (away <= distance + width)] = colour
    return Image.fromarray(pixels)


def data_url(image: Image.Image, kind: str = "PNG", **options: Any) -> str:
    """A picture as the source of an `<img>`, for pages that need nothing but themselves; `options` as for saving."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def grid(rows: Sequence[Sequence[Image.Image]], headers: Sequence[str], path: Path | str, cell: int = 256) -> None:
    """Write rows of pictures under a header a column, on white, each fitted into a square of `cell` pixels."""
    wrong = [len(row) for row in rows if len(row) != len(headers)]
    if wrong or not rows:
        raise ValueError(f"{path}: rows of {wrong or 'no'} pictures under {len(headers)} headers cannot be drawn.")
    font = ImageFont.load_default(max(14, cell // 12))
    top = font.size + 2 * GAP
    sheet = Image.new("RGB", (len(headers) * (cell + GAP) + GAP, top + len(rows) * (cell + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, header in enumerate(headers):
        x = GAP + column * (cell + GAP)
        _text(draw, (x + cell / 2, top / 2), header, font, cell, anchor="mm")
        for row, pictures in enumerate(rows):
            sheet.paste(_fit(pictures[column], cell), (x, top + row * (cell + GAP)))
    _save(sheet, path)


def contact_sheet(
    samples: Iterable[Sample], path: Path | str, columns: int = 8, limit: int = 16, cell: int = 200
) -> None:
    """Write a picture of the samples: a section a defect, its masks outlined, file names underneath.

    Of each defect at most `limit` are shown, evenly spread. A file that cannot be read shows as a grey field that
    says so.
    """
    sections = defaultdict(list)
    for sample in samples:
        sections[sample.defect].append(sample)
    title_font, font = ImageFont.load_default(20), ImageFont.load_default(12)
    title, caption = title_font.size + 2 * GAP, font.size + GAP
    shown = {defect: _spread(sections[defect], limit) for defect in sorted(sections, key=lambda d: (d == GOOD, d))}
    lines = sum(-(-len(part) // columns) for part in shown.values())
    height = len(shown) * (title + GAP) + lines * (cell + caption + GAP) + GAP
    sheet = Image.new("RGB", (columns * (cell + GAP) + GAP, height), "white")
    draw = ImageDraw.Draw(sheet)
    y = GAP
    for defect, part in shown.items():
        total = len(sections[defect])
        count = f"{total} images" if total == len(part) else f"{len(part)} of {total} images"
        _text(draw, (GAP, y + title / 2), f"{defect}: {count}", title_font, sheet.width, anchor="lm")
        y += title
        for number, sample in enumerate(part):
            x = GAP + number % columns * (cell + GAP)
            if number and number % columns == 0:
                y += cell + caption + GAP
            sheet.paste(_thumbnail(sample, cell), (x, y))
            _text(draw, (x + cell / 2, y + cell + caption / 2), sample.image.name, font, cell, anchor="mm")
        y += cell + caption + 2 * GAP
    _save(sheet, path)


def check_report(category: Category, inspection: Inspection) -> str:
    """What is in a category, how it will be split, and how many problems it has, as text for a terminal."""
    groups = len({sample.group for sample in category.samples})
    lines = [
        f"{category.name} ({category.root}): {category.layout} layout, {len(category.samples)} images in "
        f"{groups} groups (images of one group show the same part)",
        "",
    ]
    try:
        split = few_shot_split(category)
    except DataError:  # one of the problems
        split = Split((), (), (), (), (), category.samples)
    parts = (*split.train, *split.normals), split.threshold, split.dev, split.test, split.unused
    counted = [Counter(sample.defect for sample in part) for part in parts]
    lines.append(
        f"{'':16}{'images':>8}{'groups':>8}{'train':>8}{'thresh.':>8}{'dev':>8}{'test':>8}{'unused':>8}"
        "   mask area, % of image"
    )
    for defect in (*category.defects, GOOD):
        samples = [sample for sample in category.samples if sample.defect == defect]
        numbers = [len(samples), len({sample.group for sample in samples}), *(part[defect] for part in counted)]
        row = f"{defect:16}" + "".join(f"{number:8}" for number in numbers)
        if areas := inspection.areas.get(defect):
            low, median, high = (100 * np.quantile(areas, q) for q in (0, 0.5, 1))
            row += f"   median {median:.2g} ({low:.2g} to {high:.2g})"
        lines.append(row)
    lines.append("")
    if split.normals and not split.threshold:
        lines.append("no good parts to set thresholds on: segmenters set them on those that they train on")
    if category.excluded:
        lines.append(f"excluded by manifest.csv, and so unused: {len(category.excluded)}")
    lines.append(f"image sizes: {_sizes(inspection.sizes)}")
    lines.append(f"problems: {len(inspection.problems)}" if inspection.problems else "no problems found")
    return "\n".join(lines)


def _sizes(sizes: Sequence[tuple[int, int]]) -> str:
    if not sizes:
        return "no readable image"
    common, count = Counter(sizes).most_common(1)[0]
    if count == len(sizes):
        return f"all {common[0]} × {common[1]}"
    (least_w, least_h), (most_w, most_h) = np.min(sizes, axis=0), np.max(sizes, axis=0)
    return (
        f"{least_w} to {most_w} × {least_h} to {most_h}, {len(set(sizes))} different; "
        f"most often {common[0]} × {common[1]} ({count})"
    )


def _spread(samples: Sequence[Sample], limit: int) -> list[Sample]:
    """At most `limit` samples at even distances."""
    if len(samples) <= limit:
        return list(samples)
    return [samples[round(i)] for i in np.linspace(0, len(samples) - 1, limit)]


def _fit(image: Image.Image, cell: int) -> Image.Image:
    """`image` enlarged or reduced to fit into a white square of `cell` pixels."""
    image = image.convert("RGB")
    # Nearest keeps masks and pixels of small images crisp; reducing by it would lose thin lines.
    method = Image.Resampling.NEAREST if max(image.size) * 2 <= cell else Image.Resampling.LANCZOS
    fitted = ImageOps.contain(image, (cell, cell), method)
    return ImageOps.pad(fitted, (cell, cell), method, color="white")


def _thumbnail(sample: Sample, cell: int) -> Image.Image:
    """A sample's picture with its mask outlined; unreadable files give a grey field with a word."""
    try:
        image = load_image(sample.image)
        mask = load_mask(sample.mask, image.size) if sample.mask else None
    except DataError as error:
        field = Image.new("RGB", (cell, cell), "lightgrey")
        font = ImageFont.load_default(12)
        _text(ImageDraw.Draw(field), (cell / 2, cell / 2), error.problems[0].what, font, cell, anchor="mm")
        return field
    image = ImageOps.contain(image, (cell, cell), Image.Resampling.LANCZOS)
    if mask is not None:
        # Any covered pixel counts: a defect of one pixel must still be outlined in its thumbnail.
        covered = mask.resize(image.size, Image.Resampling.BOX)
        image = outline(image, np.asarray(covered) > 0, distance=2)
    return _fit(image, cell)


def _text(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, font, width: float, anchor: str) -> None:
    """Draw `text`, shortened in its middle until it fits into `width` pixels."""
    keep = len(text)
    short = text
    while keep > 4 and draw.textlength(short, font) > width:
        keep -= 1
        short = f"{text[: keep // 2]}…{text[len(text) - (keep - keep // 2) :]}"
    draw.text(at, short, fill="black", font=font, anchor=anchor)


def _save(sheet: Image.Image, path: Path | str) -> None:
    if Path(path).suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"{path}: not a picture's name; choose one that ends in .png or .jpg")
    with atomic_file(path) as temporary:
        sheet.save(temporary)
