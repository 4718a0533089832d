"""What pictures of good parts show: where the product is, whether it has a grain, whether parts are aligned."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from scipy import ndimage

from sard_lora.images import load_image

Grain = Literal["none", "down", "across"]
"""The direction along which a product's surface changes least: brushed metal, woven cloth, cells with bars have one."""
_ALIGNED = 0.55
"""Share of the variance that the mean picture explains, from which parts are aligned."""
_DIRECTED = 1.25
"""Ratio of the grey steps along one axis to those along the other from which images have a grain."""


def foreground(image: Image.Image) -> np.ndarray:
    """(H, W) bool: the product. Everything for a texture, the object where it lies on a plain background.

    A background is plain when nine tenths of the image's border have one colour. What has that colour and hangs
    together with the border, or fills at least a hundredth of the image (a nut's hole), is background.
    """
    small = image.convert("RGB")
    small.thumbnail((256, 256))
    pixels = ndimage.gaussian_filter(np.asarray(small, np.float32), sigma=(1, 1, 0))
    everything = np.ones((image.height, image.width), bool)
    if min(pixels.shape[:2]) < 16:
        return everything
    rim = np.ones(pixels.shape[:2], bool)
    rim[2:-2, 2:-2] = False
    distance = np.abs(pixels - np.median(pixels[rim], axis=0)).max(axis=2)
    # The 90th percentile: an object may touch the border with a tenth of it.
    spread = float(np.percentile(distance[rim], 90))
    if spread > 15:
        return everything
    regions, _ = ndimage.label(distance <= max(12.0, 2 * spread))
    sizes = np.bincount(regions.ravel())
    background = np.isin(regions, [r for r in range(1, len(sizes)) if sizes[r] >= 0.01 * regions.size])
    background |= np.isin(regions, np.setdiff1d(regions[rim], 0))
    found = ndimage.binary_opening(~background, iterations=2)
    # Blur makes the object larger than it is: near its outline the contrast decides.
    inside = ndimage.binary_erosion(found, iterations=3, border_value=1)
    if found.any():
        found = inside | found & (distance > 0.4 * np.median(distance[found]))
    if not 0.04 <= found.mean() <= 0.95:  # specks, or hardly any background: a texture
        return everything
    return np.asarray(Image.fromarray(found).resize(image.size, Image.Resampling.NEAREST))


def grain_of(paths: Sequence[Path]) -> Grain:
    """The direction of a product of which these are good parts: images change much more across it than along it.

    At most 32 of them are looked at. Raises `DataError` as `load_image`.
    """
    ratios = []
    for path in _spread_out(paths, 32):
        pixels = np.asarray(load_image(path), np.float32)
        down, across = (np.abs(np.diff(pixels, axis=axis)).mean() + 1e-3 for axis in (0, 1))
        ratios.append(down / across)
    ratio = float(np.median(ratios))
    if ratio > _DIRECTED:
        return "across"
    return "down" if ratio < 1 / _DIRECTED else "none"


def are_aligned(paths: Sequence[Path]) -> bool:
    """Whether pictures of good parts look alike place by place: objects in one pose do, surfaces do not.

    What counts is the share of their variance that their mean picture explains, each 32 pixels a side and standardised:
    0.7 to 0.8 for solar cells, drawn washers and printed tiles, 0.4 for magnetic tiles (their shading), 0.2 for leather
    and brushed steel. At most 64 are looked at, and a single one is not aligned. Raises `DataError` as `load_image`.
    """
    chosen = _spread_out(paths, 64)
    if len(chosen) < 2:
        return False
    pictures = []
    for path in chosen:
        small = load_image(path).convert("L").resize((32, 32), Image.Resampling.BOX)
        pixels = np.asarray(small, np.float64)
        pictures.append((pixels - pixels.mean()) / (pixels.std() + 1e-6))
    explained = float((np.mean(pictures, axis=0) ** 2).mean())
    count = len(pictures)
    return (count * explained - 1) / (count - 1) > _ALIGNED  # pictures of noise alone explain 1 / count


def _spread_out(paths: Sequence[Path], most: int) -> Sequence[Path]:
    """At most so many of them, evenly spaced."""
    return paths[:: max(1, -(-len(paths) // most))]
