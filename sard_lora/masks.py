"""Where the next defect goes: new masks made like those of the real defects, on the product's foreground.

A new mask is never empty and never leaves the foreground. It is as large as a real mask times a scale of 0.35 to
1.4 per axis, in pixels and not as a share of the image, because the camera's distance does not change; only a mask
that would take more of a smaller image than it took of its own, and much of it, is made smaller still. Lines are
as wide as real ones (0.7 to 1.4), and of any length: one crack says nothing of how long the next is, nor where it runs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from skimage.morphology import skeletonize

from sard_lora.mask_bank import BankMask
from sard_lora.mask_geometry import (
    at_border,
    axis_angle,
    bounding_box,
    folded,
    is_line,
    largest_part,
    overlap,
    parts_apart,
    principal_axes,
    widen,
)
from sard_lora.product import Grain
from sard_lora.shapes import highest, perlin, perlin_patch, stroke

SCALES = (0.35, 1.4)
"""Small ones teach most: with 0.5 to 2 a segmenter learnt no more than with 0.7 to 1.4 (`benchmarks/NOTES.md`)."""
LINE_SCALES = (0.7, 1.4)
"""Of a line's width; and, of small masks, the least one (`SMALL`)."""
SMALL = 6
"""Pixels of a side that no mask is scaled below, unless its real one is hardly larger."""
BEND = 0.06
"""How far a mask is bent, as a share of its longer side; over two fifths of it, so that thin ones keep their width."""
RIM = 12
"""Pixels of its surroundings that are known of a real defect that was moved."""
SOURCES = ("real", "perlin", "stroke", "mixed")


class Placement(NamedTuple):
    """A new mask ((H, W) bool), its origin and, where that is a real mask of a known image, how that was moved.

    `core` (H, W) bool is the mask before it was widened, as an annotator would draw it; never empty. `source` float
    (2, h, w): the (row, column) of that image which lies at each pixel of a box in the new one, whose upper left
    corner, maybe outside, is `corner`. The box holds the core and `RIM` pixels around it.
    """

    mask: np.ndarray
    core: np.ndarray
    origin: str
    image: Path | None = None
    source: np.ndarray | None = None
    corner: tuple[int, int] = (0, 0)


def sample_mask(
    bank: Sequence[BankMask],
    foreground: np.ndarray,
    rng: np.random.Generator,
    source: str = "real",
    keep_location: float = 0.5,
    margin: int = 0,
    grain: Grain = "none",
) -> Placement:
    """A new mask (as `foreground`, (H, W) bool) and its origin: the real mask's, or the name of the source.

    - `real`: a bank mask rotated, scaled, mirrored and bent; parts that lie apart each by itself, unless it stays near.
    - `perlin`: a patch of thresholded Perlin noise; `stroke`: a winding line. Both as large as a bank mask.
    - `mixed`: one of the three, half of the time `real`.

    With probability `keep_location` it lies near where the real one was, and is turned by little; else anywhere on the
    foreground. One that touches the image's border (edges chip at edges) goes on touching it, is never turned by more
    than a little, and else lies anywhere along it.
    On a product with a `grain` it is never turned by more than a little, unless it is a line.
    A line (`is_line`) that does not stay near lies anywhere and in any direction; it is from half as long as it was to
    as long as the image allows. With a grain none stays near, and half of them run along it: such ones are easily
    taken for the surface, and one example seldom shows them.
    The mask is widened by `margin` in the end; its `core` is not.
    Raises `ValueError` for an empty foreground, an empty bank, or an unknown source.
    """
    if source not in SOURCES:
        raise ValueError(f"mask source {source!r} is not known. Choose one of {', '.join(SOURCES)}.")
    if not foreground.any():
        raise ValueError("the foreground is empty: there is no place for a mask. Use the whole image instead.")
    if not bank:
        raise ValueError("the mask bank is empty. Give at least one real mask of the defect.")
    entry = bank[rng.integers(len(bank))]
    near = rng.random() < keep_location and (grain == "none" or not is_line(entry.mask))
    if source == "mixed":
        source = str(rng.choice(["real", "perlin", "stroke"], p=[0.5, 0.25, 0.25]))
    if source == "real":
        pieces = [entry.mask] if near else parts_apart(entry.mask, RIM // 2)
        mask, where, corner = _joined([_place_real(piece, foreground, near, grain, margin, rng) for piece in pieces])
        return Placement(widen(mask, margin) & foreground, mask, entry.origin, entry.image, where, corner)
    keep = near or at_border(bounding_box(entry.mask), entry.mask.shape)
    centre = _near(entry.mask, foreground, rng) if keep else _anywhere(foreground, rng)
    scale = np.exp(rng.uniform(*np.log(_scales(entry.mask, is_line(entry.mask)))))
    most = max(entry.mask.mean(), 0.2) * foreground.size
    area = max(1, round(min(np.count_nonzero(entry.mask), most) * scale**2))
    grow = perlin_patch if source == "perlin" else stroke
    mask = grow(foreground, centre, area, rng)
    return Placement(widen(mask, margin) & foreground, mask, source)


def _scales(mask: np.ndarray, line: bool) -> tuple[float, float]:
    """The least and the greatest scale of a mask, or of a `line`'s width."""
    if line:
        return LINE_SCALES
    low, high = SCALES
    return float(np.clip(SMALL / np.sqrt(np.count_nonzero(mask)), low, LINE_SCALES[0])), high


def _joined(
    pieces: Sequence[tuple[np.ndarray, np.ndarray, tuple[int, int]]],
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Mask, `source` and `corner` of several pieces; each pixel around them belongs to the nearest."""
    if len(pieces) == 1:
        return pieces[0]
    shape = pieces[0][0].shape
    nearest = np.full(shape, np.inf)
    everywhere = np.full((2, *shape), -1.0)
    for mask, source, corner in pieces:
        box, inner = overlap(corner, source.shape[1:], shape)
        distance = ndimage.distance_transform_edt(~mask[box])
        closer = distance < nearest[box]
        nearest[box][closer] = distance[closer]
        everywhere[:, *box][:, closer] = source[:, *inner][:, closer]
    return np.any([mask for mask, *_ in pieces], 0), everywhere, (0, 0)


def _anywhere(foreground: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    """(row, column) of a foreground pixel, each equally likely."""
    index = np.flatnonzero(foreground)
    return divmod(int(index[rng.integers(len(index))]), foreground.shape[1])


def _near(mask: np.ndarray, foreground: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    """(row, column) of the foreground pixel closest to the mask's relative centre, which is shifted a little."""
    box = bounding_box(mask)
    wanted = [
        (side.start + side.stop) / 2 / old * new + rng.normal(0, 0.03 * new)
        for side, old, new in zip(box, mask.shape, foreground.shape, strict=True)
    ]
    rows, columns = np.nonzero(foreground)
    nearest = np.argmin((rows - wanted[0]) ** 2 + (columns - wanted[1]) ** 2)
    return int(rows[nearest]), int(columns[nearest])


def _place_real(
    mask: np.ndarray,
    foreground: np.ndarray,
    near: bool,
    grain: Grain,
    margin: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """A changed copy of `mask` on the foreground: of several places the first that shows most of it, else the best.

    It stays `near` where it was, goes on touching the borders that it touched within its `margin` (beyond, nothing is
    known of it), or does neither. With it the `source` and `corner` of a `Placement`.
    """
    box, line = bounding_box(mask, margin), is_line(mask)
    keep = near or (at_border(box, mask.shape) and not line)
    cropped, most, before, spanning = mask[box], [], [0, 0], False
    least, greatest = _scales(mask, line)
    for axis, (side, old, new) in enumerate(zip(box, mask.shape, foreground.shape, strict=True)):
        spans = keep and side.start == 0 and side.stop == old
        if spans:  # What reaches across the whole image goes on doing so: enlarged if that is enough, else continued.
            enough = np.clip(1.1 * new / old, least, greatest)
            before[axis] = max(0, int(np.ceil(0.57 / enough * new)) - old // 2)
            index = folded(np.arange(-before[axis], old + before[axis]), old)
            cropped = np.take(cropped, index, axis=axis)
            spanning, least = True, max(least, enough)
        most.append(np.inf if spans else new if line else 1.2 * new * max((side.stop - side.start) / old, 0.5))
    best, found = np.zeros_like(foreground), None
    for attempt in range(9):
        if attempt % 3 == 0:
            shape, inside = _deform(cropped, keep, grain, line and not spanning, (least, greatest), most, rng)
            source = np.stack(
                [
                    side.start + (folded(index - extra, side.stop).clip(0, side.stop - 1) if extra else index)
                    for side, extra, index in zip(box, before, inside, strict=True)
                ]
            )
        if keep:
            corner = _kept_corner(box, mask.shape, shape.shape, foreground.shape, near, rng)
        else:
            centre = _anywhere(foreground, rng)
            # Shifted into the image where it fits, so that large masks are not cut at the image's edge.
            corner = [
                (length - side) // 2 if side > length else min(max(0, c - side // 2), length - side)
                for c, side, length in zip(centre, shape.shape, foreground.shape, strict=True)
            ]
        placed = _paste(shape, corner, foreground)
        if np.count_nonzero(placed) > np.count_nonzero(best):
            best, found = placed, (source, (corner[0] - RIM, corner[1] - RIM))
        if best.any() and (spanning or np.count_nonzero(best) >= 0.6 * np.count_nonzero(shape)):
            break
    if best.any():
        return best, *found
    # No place showed any of it (a foreground of a few pixels): put one of its pixels on a foreground pixel.
    row, column = _anywhere(foreground, rng)
    inside = np.argwhere(shape)[0]
    corner = row - int(inside[0]), column - int(inside[1])
    return _paste(shape, corner, foreground), source, (corner[0] - RIM, corner[1] - RIM)


def _kept_corner(
    box: tuple[slice, slice],
    old: tuple[int, int],
    shape: tuple[int, int],
    new: tuple[int, int],
    near: bool,
    rng: np.random.Generator,
) -> list[int]:
    """Upper left corner of a mask of size `shape` at the borders it touched, else at its relative place or anywhere."""
    corner = []
    for side, before, length, after in zip(box, old, shape, new, strict=True):
        middle = (side.start + side.stop) / 2 / before * after + rng.normal(0, 0.03 * after)
        place = round(middle - length / 2)
        if side.start == 0 and side.stop == before:
            place = (after - length) // 2
        elif side.start == 0:
            place = 0
        elif side.stop == before:
            place = after - length
        elif not near and length < after:
            place = int(rng.integers(after - length + 1))
        corner.append(place)
    return corner


def _deform(
    mask: np.ndarray,
    keep: bool,
    grain: Grain,
    line: bool,
    scales: tuple[float, float],
    most: Sequence[float],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Rotate, scale, mirror and bend a cropped mask, keeping area × scale²; cropped again.

    With it where each of its pixels, and of `RIM` around, lay in the given one: (2, h, w).

    A mask that keeps its place is turned by at most 12 degrees. Any other is mirrored half of the time and turned by
    any angle, or if it is large upside down, so that it need not shrink. With a grain it is turned by at most 5
    degrees, and upside down, unless it is a `line`: half of those are laid along the grain, but for 5 degrees. The
    scale is one of `scales`, but for a side that would become longer than `most` (height, width) before the bending.
    """
    scale = np.exp(rng.uniform(*np.log(scales)))
    slight = np.deg2rad(rng.uniform(-12, 12) if grain == "none" else rng.uniform(-5, 5))
    angle, mirrored = slight, False
    if not keep:
        small = line or (grain == "none" and max(mask.shape) <= 0.5 * min(most))
        angle += rng.uniform(0, 2 * np.pi) if small else rng.choice([0, np.pi])
        mirrored = rng.random() < 0.5
        if mirrored:
            mask = mask[:, ::-1]
        if line and grain != "none" and rng.random() < 0.5:
            angle = slight - axis_angle(mask) + (0 if grain == "down" else np.pi / 2)
    stretch = _lengthening(mask, 0.9 * min(most) / scale, rng) if line else np.eye(2)
    longer = np.linalg.det(stretch)
    mask = np.pad(mask, 1)  # so that pixels at the crop's edge fade out like any other
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    size = np.abs(rotation @ stretch) @ mask.shape
    scale = min(scale, *(np.maximum(most, 1) / size))
    length = max(largest_part(mask)) * max(1.0, longer)
    bend = BEND * length
    out = np.maximum(1, np.ceil(scale * (size + 2 * bend)).astype(int)) + 2 + 2 * RIM
    cell = max(3.0, scale * length / 2.5)
    y, x = (np.arange(side, dtype=np.float32) - (side - 1) / 2 for side in out)
    turned_back = [
        (to_y / scale * y[:, None] + to_x / scale * x[None]) + bend * perlin(tuple(out), cell, rng)
        for to_y, to_x in rotation.T
    ]
    source = [
        to_y * turned_back[0] + to_x * turned_back[1] + (side - 1) / 2
        for (to_y, to_x), side in zip(np.linalg.inv(stretch), mask.shape, strict=True)
    ]
    covered = ndimage.map_coordinates(mask.astype(np.float32), source, order=1)
    # The pixels that are covered most, and not those covered by half, keep a scratch of one pixel: it cannot become
    # thinner, so its area goes with the scale and not with its square, plus a little where it steps sideways.
    area = np.count_nonzero(mask) * scale**2 * longer
    thin = np.count_nonzero(ndimage.binary_erosion(mask, np.ones((3, 3)))) < 0.5 * np.count_nonzero(mask)
    if thin:
        area = max(area, 1.3 * scale * longer * np.count_nonzero(skeletonize(mask)))
    result = highest(covered, covered > 0, max(1, round(area)))
    if thin:  # where it is bent it may be covered less than elsewhere, and must not be torn there
        result = ndimage.binary_closing(result, np.ones((3, 3))) & (covered > 0)
    if not result.any():
        result[tuple(side // 2 for side in out)] = True
    box = bounding_box(result)
    rows, columns = (
        plane[box[0].start - RIM : box[0].stop + RIM, box[1].start - RIM : box[1].stop + RIM] - 1 for plane in source
    )
    return result[box], np.stack([rows, mask.shape[1] - 3 - columns if mirrored else columns])


def _lengthening(mask: np.ndarray, longest: float, rng: np.random.Generator) -> np.ndarray:
    """A matrix (2, 2) that stretches a line along its axis: to half of its length at least, at most to `longest`."""
    axes, lengths = principal_axes(mask)
    shortest = lengths[1] / 2
    wanted = np.exp(rng.uniform(np.log(shortest), np.log(max(shortest, longest))))
    return axes @ np.diag([1, wanted / lengths[1]]) @ axes.T


def _paste(shape: np.ndarray, corner: Sequence[int], foreground: np.ndarray) -> np.ndarray:
    """`shape` with its upper left corner at `corner` (which may lie outside), cut to the foreground."""
    result = np.zeros_like(foreground)
    target, source = overlap(corner, shape.shape, foreground.shape)
    result[target] = shape[source] & foreground[target]
    return result
