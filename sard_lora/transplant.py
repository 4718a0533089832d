"""A real defect moved along with its mask: where diffusion starts from when it is to keep what real ones look like."""

from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from sard_lora.images import load_image
from sard_lora.light import DARK, log_light
from sard_lora.margins import MOST
from sard_lora.mask_geometry import THIN, folded, overlap
from sard_lora.masks import RIM, Placement

_EDGE = 1.5
"""Pixels over which a moved defect follows the brightness at its outline."""
_FADE = 2.0
"""Pixels over which a change fades in from its outline."""
_ONE_SIDED = 0.8
"""Share of a defect's pixels from which on it counts as dark (or bright) all over."""
_SPLINE = 48
"""Pixels over which what a pixel adds to a cubic spline has fallen below what float64 tells from nothing."""


def borrowed(placement: Placement, image: Path) -> Placement:
    """The same, but of what lies there in another image of any size, which goes on mirrored beyond its borders."""
    bounds = load_image(image).size[::-1]
    source = [folded(plane, side).clip(0, side - 1) for plane, side in zip(placement.source, bounds, strict=True)]
    return placement._replace(image=image, source=np.stack(source))


def transplant(image: Image.Image, placement: Placement, contrast: float | None = None) -> Image.Image:
    """`image` with the real defect of a placement in its mask, turned, bent and moved as the mask was.

    Its pixels, relit (`relit`); or with a `contrast`, if it is thin, the change that it makes, that many times as
    strong (`changed`). For a thin one has no surface of its own, and on a wide one that of its new place must not show.
    Where a placement has no real image, or that ends, the image stays as it is.
    """
    if placement.image is None:
        return image
    pixels = np.array(image)
    box, inner = overlap(placement.corner, placement.source.shape[1:], pixels.shape[:2])
    real, where = np.asarray(load_image(placement.image)), placement.source[:, *inner]
    moved = _interpolated(real, where)
    known = ((where >= 0) & (where <= np.array(real.shape[:2])[:, None, None] - 1)).all(0)
    mask, core, patch = placement.mask[*box], placement.core[*box], pixels[*box].astype(np.float32)
    inside = mask & known
    ring, beyond = _around(mask, core, known)
    if contrast is None or ndimage.distance_transform_edt(core).max() > THIN:
        written = relit(moved, patch, ring, beyond)
    else:
        written = changed(moved, patch, inside, core & known, beyond, contrast)
    levels = np.rint(written[inside].astype(np.float32).clip(0, 255))
    pixels[*box][inside] = levels.astype(np.uint8)
    return Image.fromarray(pixels)


def _interpolated(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The pixels (h, w, 3) float of an image (H, W, 3) at positions (2, h, w), by cubic splines.

    Only that part of it is read: a spline has forgotten what is `_SPLINE` pixels away.
    """
    low, high = where.min((1, 2)).astype(int) - _SPLINE, where.max((1, 2)).astype(int) + _SPLINE
    low = low.clip(0, np.array(image.shape[:2]) - 1)
    part = image[low[0] : max(high[0], 1), low[1] : max(high[1], 1)].astype(np.float32)
    inside = where - low[:, None, None]
    planes = [ndimage.map_coordinates(part[..., channel], inside, order=3, mode="nearest") for channel in range(3)]
    return np.stack(planes, 2)


def relit(pixels: np.ndarray, surroundings: np.ndarray, ring: np.ndarray, beyond: np.ndarray) -> np.ndarray:
    """`pixels` (h, w, 3) of a defect within a `ring` (h, w) bool as bright as if lit like `surroundings`.

    Light multiplies: what is black stays black in a brighter place. Nowhere is it more than doubled or halved. The
    light is that of the surroundings `beyond` (h, w) bool what defects darken around them: close to its outline a
    defect often is not over, and what it takes there from its surroundings would be taken from the whole of it. Only
    the last pixels inside follow the ring's inner edge, so that nothing has an edge there.
    """
    if not ring.any():
        return pixels
    gain = (log_light(surroundings) - log_light(pixels)).clip(-np.log(2), np.log(2))
    light = _spread(gain, beyond)
    outline, weight = (_blurred(plane * ring[..., None], _EDGE) for plane in (gain - light, np.ones_like(gain)))
    return (pixels + DARK) * np.exp(light + outline / weight.clip(0.5)) - DARK


def changed(
    pixels: np.ndarray,
    surroundings: np.ndarray,
    mask: np.ndarray,
    core: np.ndarray,
    beyond: np.ndarray,
    contrast: float,
) -> np.ndarray:
    """`surroundings` (h, w, 3), changed in `mask` (h, w) bool as a defect's `pixels` differ from what is around them.

    What the defect changes is the ratio of its pixels to its own product, as that is `beyond` (h, w) bool its reach, to
    the power of `contrast`. So its new place keeps its grain, on which a faint scratch lies as it would, and not a
    patch of another surface. Where its `core` (h, w) bool, the annotated part, is dark, it darkens only: what is
    brighter there is an edge of the product beside it.
    """
    if not beyond.any() or not core.any():
        return surroundings
    light = log_light(pixels)
    change = light - _spread(light, beyond)
    darker = (change[core] < 0).mean()
    if max(darker, 1 - darker) > _ONE_SIDED:
        change = change.clip(max=0) if darker > 0.5 else change.clip(min=0)
    fade = (ndimage.distance_transform_edt(mask) / _FADE).clip(max=1)[..., None]
    return (surroundings + DARK) * np.exp(contrast * fade * change) - DARK


def _around(mask: np.ndarray, core: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is known around a mask, and of that what lies beyond the reach of its defect: all, where that is nothing."""
    distance = ndimage.distance_transform_edt(~core)
    ring = ~mask & (distance < RIM) & known
    beyond = ring & (distance > MOST)
    return ring, beyond if beyond.any() else ring


def _spread(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """`values` (h, w, 3) where they are `known` (h, w) bool, carried into the rest smoothly: far away, their median."""
    weight = known.astype(np.float32)[..., None]
    result = np.broadcast_to(np.median(values[known], 0), values.shape)
    for reach in (32, 16, 8):
        result = (_blurred(values * weight, reach) + 0.02 * result) / (_blurred(weight, reach) + 0.02)
    return result.astype(np.float32)


def _blurred(planes: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian blur of planes (h, w, C), zero beyond their border."""
    return ndimage.gaussian_filter(planes, (sigma, sigma, 0), mode="constant")
