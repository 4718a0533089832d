"""How sharp real defects are, measured on the few of them.

What the camera (or the diffusion of light or charge in the product) blurs, it blurs alike in small defects and in
large ones. A defect that is made smaller, pixel by pixel, has edges as no real one has.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from scipy import ndimage

from sard_lora.images import load_image
from sard_lora.mask_bank import BankMask

_BAND = 3
"""Pixels on both sides of an outline where the edge of a defect may lie."""
_REACH = 5
"""Pixels around a point of an edge in which both of its sides are seen."""
_SMOOTHING = 0.6
"""Pixels of a Gaussian under which slopes are measured."""
_LEAST_SLOPES = 3
"""Points of an edge that its blur is measured on at least."""


def edge_blur(entries: Iterable[BankMask]) -> float:
    """The standard deviation, in pixels, of the blur of the edges of real defects; 0 where none shows an edge.

    A step of height h behind a Gaussian blur of σ has a slope of at most h / (σ √(2π)). Around every part of a mask
    this gives σ where the slope is steepest; the blur is the median over the parts of the median of each. Entries
    without an image are passed over.
    Raises `DataError` for files that `load_image` refuses.
    """
    found = [blur for entry in entries if entry.image is not None for blur in _blurs(entry)]
    return float(np.median(found)) if found else 0.0


def _blurs(entry: BankMask) -> Iterator[float]:
    """That of each part of a mask that is large enough to have an edge."""
    pixels = np.asarray(load_image(entry.image), np.float64).mean(2)
    slope = ndimage.gaussian_gradient_magnitude(pixels, _SMOOTHING)
    around = 2 * _REACH + 1
    height = ndimage.maximum_filter(pixels, around) - ndimage.minimum_filter(pixels, around)
    steepest = (slope == ndimage.maximum_filter(slope, _REACH)) & (slope > 0)
    labels, count = ndimage.label(entry.mask, np.ones((3, 3)))
    for number in range(1, count + 1):
        part = labels == number
        band = ndimage.binary_dilation(part, iterations=_BAND) & ~ndimage.binary_erosion(part, iterations=_BAND)
        points = band & steepest
        if points.sum() >= _LEAST_SLOPES:
            blur = np.median(height[points] / slope[points]) / np.sqrt(2 * np.pi)
            yield float(np.sqrt(max(blur**2 - _SMOOTHING**2, 0)))
