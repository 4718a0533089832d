"""How much a defect stands out of its product: the signal-to-noise ratio of the filter that is matched to its shape."""

import numpy as np
from PIL import Image
from scipy import ndimage, signal

from sard_lora.light import log_light
from sard_lora.mask_geometry import box_around

GAP = 2
"""Pixels beyond a defect's outline that are left out: it fades there."""
REACH = 8
"""Pixels beyond its outline that are its surroundings."""
_LEAST = 64
"""Places that the noise is measured over, at least."""


def matched_filter_snr(image: Image.Image, core: np.ndarray, normal: Image.Image) -> float:
    """How much `image` stands out in `core` (H, W) bool from `normal`, what it was before a defect was written.

    The filter is the difference of the mean logarithms of grey in a region of the core's shape and around it. Its value
    at the core's place in `image` is compared with the values at all places of `normal`: the distance from their
    median, or from the value at the same place where that is nearer, in robust standard deviations (1.4826 times the
    median distance). So a faint line counts as much as it would on smooth metal, but for little along the grooves of
    ground metal, and what was there before does not count. Infinite where the core is too large to be moved, or there
    is nothing around it.
    """
    box = box_around(core, REACH)
    inside = core[box]
    distance = ndimage.distance_transform_edt(~inside)
    around = (distance > GAP) & (distance <= REACH)
    if not around.any():
        return np.inf
    kernel = inside / inside.sum() - around / around.sum()
    values = signal.fftconvolve(_log_grey(normal), kernel[::-1, ::-1], mode="valid")
    if values.size < _LEAST:
        return np.inf
    median = np.median(values)
    noise = max(1.4826 * float(np.median(np.abs(values - median))), 1e-6)
    here, before = ((kernel * _log_grey(picture)[box]).sum() for picture in (image, normal))
    return float(min(abs(here - median), abs(here - before))) / noise


def _log_grey(image: Image.Image) -> np.ndarray:
    return log_light(np.asarray(image.convert("L"), np.float64))
