"""A real defect moved along with its mask: where diffusion starts from when it is to keep what real ones look like."""

import numpy as np
from PIL import Image
from scipy import ndimage

from sard_lora.images import load_image
from sard_lora.masks import RIM, Placement


def transplant(image: Image.Image, placement: Placement) -> Image.Image:
    """`image` with the real defect of a placement in its mask, turned, bent and moved as the mask was.

    Its brightness is moved, place by place, by what its surroundings and the new ones differ. Where a placement has no
    real image, or that ends, the image stays as it is.
    """
    if placement.image is None:
        return image
    pixels = np.array(image, np.float32)
    height, width = placement.source.shape[1:]
    target, inner = [], []
    for start, length, bound in zip(placement.corner, (height, width), pixels.shape, strict=False):
        low, high = max(0, start), min(bound, start + length)
        target.append(slice(low, high))
        inner.append(slice(low - start, high - start))
    target, inner = tuple(target), tuple(inner)
    real = np.asarray(load_image(placement.image), np.float32)
    where = placement.source[:, *inner]
    moved = np.stack(
        [ndimage.map_coordinates(plane, where, order=3, mode="nearest") for plane in np.moveaxis(real, 2, 0)], 2
    )
    known = ((where >= 0) & (where <= np.array(real.shape[:2])[:, None, None] - 1)).all(0)
    mask = placement.mask[target]
    ring = ndimage.binary_dilation(mask, iterations=RIM - 1) & ~mask & known
    patch = pixels[target]
    if ring.any():
        moved = moved + spread(patch - moved, ring, RIM)
    patch[mask & known] = moved[mask & known]
    return Image.fromarray(np.rint(pixels.clip(0, 255)).astype(np.uint8))


def spread(values: np.ndarray, known: np.ndarray, reach: float) -> np.ndarray:
    """`values` (h, w, 3) where they are `known` (h, w) bool, carried smoothly into the rest.

    Far from them, many times `reach` pixels, it is their median.
    """
    weight = known.astype(np.float32)[..., None]
    total, share = (
        ndimage.gaussian_filter(plane, (reach, reach, 0), mode="constant", truncate=8)
        for plane in (values * weight, weight)
    )
    return ((total + 0.02 * np.median(values[known], 0)) / (share + 0.02)).astype(np.float32)
