"""Real defects cut out along their masks, transformed, and blended into normal images."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from sard_lora.masks import RIM
from sard_lora.transplant import overlap, relit

_SCALE = (0.7, 1.4)
# Half of the defects go where the real one was: chipped edges are at edges.
_KEEP_LOCATION = 0.5
# A defect that would lose more than this share beyond the part or the image is put elsewhere.
_MAX_LOSS = 0.5


@dataclass(frozen=True)
class Cutout:
    """A real defect with its surroundings.

    `pixels` fp32 (h, w, 3) in [0, 255]; `mask` bool (h, w); `valid` bool (h, w), False where the cut-out reaches
    beyond its image; `centre` (row, column) in [0, 1] of the image it was cut from.
    """

    pixels: np.ndarray
    mask: np.ndarray
    valid: np.ndarray
    centre: tuple[float, float]


def cut_out(image: np.ndarray, mask: np.ndarray) -> Cutout:
    """What is under `mask` (H, W) bool in `image` (H, W, 3) uint8, with a ring of its surroundings."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = tuple(slice(max(0, line[0] - RIM), line[-1] + RIM + 1) for line in (rows, columns))
    centre = tuple(
        float((line[0] + line[-1] + 1) / 2 / length) for line, length in zip((rows, columns), mask.shape, strict=True)
    )
    pixels = np.asarray(image, dtype=np.float32)[box]
    return Cutout(pixels, mask[box], np.ones_like(mask[box]), centre)


def transform(cutout: Cutout, rng: np.random.Generator, rotate: bool = True) -> Cutout:
    """Flip and turn at random; half of the cut-outs by quarter turns, the others by any angle, scaled by 0.7 … 1.4.

    Without `rotate`, for products with a direction, half of them stay upright, the others turn by at most 5 degrees.

    Interpolated pixels are smoother than a camera's, and a segmenter would learn that instead of the defect: so half
    of them are moved without being touched, and the others are interpolated by cubic splines.
    """
    planes = [*np.moveaxis(cutout.pixels, -1, 0), cutout.mask, cutout.valid]
    for axis in (0, 1):
        if rng.random() < 0.5:
            planes = [np.flip(plane, axis) for plane in planes]
    if rng.random() < 0.5:
        turns = rng.integers(4) if rotate else 0
        *pixels, mask, valid = (np.rot90(plane, turns) for plane in planes)
    else:
        angle = rng.uniform(0, 2 * np.pi) if rotate else np.deg2rad(rng.uniform(-5, 5))
        scale = np.exp(rng.uniform(*np.log(_SCALE)))
        *pixels, mask, valid = planes
        pixels = [_turn(plane, angle, scale, order=3, mode="nearest") for plane in pixels]
        # Below one half, so that lines of one pixel survive.
        mask = _turn(mask, angle, scale, order=1, mode="constant") >= 0.4
        valid = _turn(valid, angle, scale, order=1, mode="constant") > 0.99
    return Cutout(np.stack(pixels, axis=-1), mask, valid, cutout.centre)


def _turn(plane: np.ndarray, angle: float, scale: float, order: int, mode: str) -> np.ndarray:
    """Rotate and scale a plane (h, w) about its centre into one that holds it whole."""
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    size = np.ceil(scale * np.abs(rotation) @ np.array(plane.shape)).astype(int) + 2
    inverse = rotation.T / scale
    offset = (np.array(plane.shape) - 1) / 2 - inverse @ ((size - 1) / 2)
    return ndimage.affine_transform(
        plane.astype(np.float32), inverse, offset, output_shape=tuple(size), order=order, mode=mode
    )


def paste(
    image: np.ndarray, foreground: np.ndarray, cutout: Cutout, rng: np.random.Generator, feather: int = 2
) -> tuple[np.ndarray, np.ndarray] | None:
    """Blend `cutout` into `image` uint8 (H, W, 3), on the part only (`foreground` bool (H, W)).

    It fades in over `feather` pixels inside its mask, and is moved in brightness, place by place, by what its own
    surroundings and the new ones differ.
    Returns the new image and the written region bool (H, W), or None where the drawn place has too little room.
    """
    target, source = overlap(_place(foreground, cutout, rng), cutout.mask.shape, foreground.shape)
    mask = cutout.mask[source] & cutout.valid[source] & foreground[target]
    if mask.sum() < max(1, (1 - _MAX_LOSS) * cutout.mask.sum()):
        return None
    patch = image[target].astype(np.float32)
    pixels = relit(cutout.pixels[source], patch, cutout.mask[source], cutout.valid[source] & foreground[target])
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    weight = np.clip(depth / min(feather, depth.max()), 0, 1)[..., None]
    blended = np.rint(np.clip(patch + weight * (pixels - patch), 0, 255)).astype(np.uint8)
    result, written = image.copy(), np.zeros_like(foreground)
    result[target][mask] = blended[mask]
    written[target] = mask
    return result, written


def _place(foreground: np.ndarray, cutout: Cutout, rng: np.random.Generator) -> tuple[int, int]:
    """Row and column of the cut-out's upper left corner in the image; may lie outside."""
    if rng.random() < _KEEP_LOCATION:
        centre = [share * length for share, length in zip(cutout.centre, foreground.shape, strict=True)]
    else:
        on_part = np.flatnonzero(foreground)
        if not on_part.size:
            raise ValueError("no part was found in the image: its foreground is empty")
        centre = np.unravel_index(on_part[rng.integers(on_part.size)], foreground.shape)
    return tuple(int(c - length / 2) for c, length in zip(centre, cutout.mask.shape, strict=True))
