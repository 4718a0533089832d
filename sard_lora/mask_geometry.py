"""What a mask is like: its box, its parts, its axes, whether it is a line, and what lies around it."""

import numpy as np
from scipy import ndimage

THIN = 8
"""Pixels from its middle to its outline that a thin defect has at most."""
_LONG = 10
"""Pixels that a line is long at least: no direction can be told of less."""
_SCATTERED = 16
"""Parts of a mask that are seen each by itself; more are a cloud of specks."""
_MANY = 100


def bounding_box(mask: np.ndarray, reach: int = 0) -> tuple[slice, slice]:
    """The box around a mask; sides that lie within `reach` pixels of the image's border go to it."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    return tuple(
        slice(0 if side.start <= reach else side.start, length if side.stop >= length - reach else side.stop)
        for side, length in zip(box, mask.shape, strict=True)
    )


def box_around(mask: np.ndarray, reach: int) -> tuple[slice, slice]:
    """The box around a mask, `reach` pixels wider on every side, as far as the image goes."""
    return tuple(slice(max(0, side.start - reach), side.stop + reach) for side in bounding_box(mask))


def at_border(box: tuple[slice, slice], shape: tuple[int, int]) -> bool:
    """Whether a box ends at a border of the image of that shape."""
    return any(side.start == 0 or side.stop == length for side, length in zip(box, shape, strict=True))


def widen(mask: np.ndarray, margin: int) -> np.ndarray:
    """`mask` (H, W) bool, not empty, with everything that is at most `margin` pixels away from it."""
    if not margin:
        return mask
    wide, box = mask.copy(), box_around(mask, margin)
    wide[box] = ndimage.distance_transform_edt(~mask[box]) <= margin
    return wide


def overlap(
    corner: tuple[int, int], size: tuple[int, int], bounds: tuple[int, int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a patch of `size` at `corner` lies in an image of `bounds`, as slices of the image and of the patch."""
    target, source = [], []
    for start, length, bound in zip(corner, size, bounds, strict=True):
        low, high = max(0, start), max(0, start, min(bound, start + length))
        target.append(slice(low, high))
        source.append(slice(low - start, high - start))
    return tuple(target), tuple(source)


def folded(index: np.ndarray, length: int) -> np.ndarray:
    """Positions beyond a line of `length` pixels, mirrored back into it."""
    index = index % (2 * length)
    return np.where(index > length - 0.5, 2 * length - 1 - index, index)


def split_mask(mask: np.ndarray, context: float, min_side: int, limit: int = 12) -> list[np.ndarray]:
    """The parts of a scattered mask (H, W) bool that want windows of their own, largest first; together the mask.

    A window is a square of `context` times its part's longer side, at least `min_side` pixels. Parts share one as long
    as none of them is then seen at less than two thirds of its size. At most `limit` parts remain.
    """
    reach, count = 0, _MANY + 1
    while count > _MANY:  # a cloud of specks: near ones first hang together
        wide = ndimage.binary_dilation(mask, np.ones((3, 3)), iterations=reach) if reach else mask
        labels, count = ndimage.label(wide, np.ones((3, 3)))
        reach = max(2, 2 * reach)
    labels = np.where(mask, labels, 0)
    boxes = np.array([[b[0].start, b[1].start, b[0].stop, b[1].stop] for b in ndimage.find_objects(labels)])
    members = [[number] for number in range(1, count + 1)]
    while len(boxes) > 1:
        both = np.concatenate(
            [np.minimum(boxes[:, None, :2], boxes[None, :, :2]), np.maximum(boxes[:, None, 2:], boxes[None, :, 2:])], 2
        )
        own, shared = (np.maximum(context * (b[..., 2:] - b[..., :2]).max(-1), min_side) for b in (boxes, both))
        shrinks = shared / np.minimum(own[:, None], own[None])
        np.fill_diagonal(shrinks, np.inf)
        first, second = sorted(np.unravel_index(shrinks.argmin(), shrinks.shape))
        if shrinks[first, second] > 1.5 and len(boxes) <= limit:
            break
        boxes[first] = both[first, second]
        boxes = np.delete(boxes, second, 0)
        members[first] += members.pop(second)
    parts = [np.isin(labels, group) for group in members]
    return sorted(parts, key=np.count_nonzero, reverse=True)


def parts_apart(mask: np.ndarray, margin: int) -> list[np.ndarray]:
    """The parts of a mask that lie apart even when widened by `margin`; all as one where they are very many."""
    labels, count = ndimage.label(widen(mask, margin), np.ones((3, 3)))
    if count > _SCATTERED:
        return [mask]
    return [mask & (labels == number) for number in range(1, count + 1)]


def is_line(mask: np.ndarray) -> bool:
    """Whether a mask (H, W) bool is in one piece, thin, and much longer than wide, as cracks and scratches are."""
    box = bounding_box(mask)
    shape = mask[box]
    _, lengths = principal_axes(shape)
    one_piece = ndimage.label(shape, np.ones((3, 3)))[1] == 1
    thin = ndimage.distance_transform_edt(np.pad(shape, 1)).max() <= THIN
    spans = any(side == slice(0, length) for side, length in zip(box, mask.shape, strict=True))
    return bool(one_piece and thin and not spans and lengths[1] >= max(_LONG, 2.5 * lengths[0]))


def principal_axes(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The principal axes of a mask, columns (row, column) of length 1, and how long it is along them, the longer last.

    As long as a rectangle with the same moments.
    """
    moments, axes = np.linalg.eigh(np.cov(np.argwhere(mask).T, bias=True) + np.eye(2) / 12)
    return axes, np.sqrt(12 * moments)


def axis_angle(mask: np.ndarray) -> float:
    """From the downward direction to a mask's longer axis."""
    axes, _ = principal_axes(mask)
    return float(np.arctan2(axes[1, 1], axes[0, 1]))


def largest_part(mask: np.ndarray) -> tuple[int, int]:
    """Height and width of the largest part of a mask, with a rim of one pixel."""
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    part = ndimage.find_objects(labels)[np.bincount(labels.ravel())[1:].argmax()]
    return tuple(side.stop - side.start + 2 for side in part)
