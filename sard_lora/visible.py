"""Where a defect can be seen: the label is what visibly changed, and not all that was open to change.

A mask says where a defect may go. What a diffusion model puts there fills it, or leaves a part of it as it was; a label
that says "defect" there would teach a segmenter to find nothing.
"""

import numpy as np
from scipy import ndimage

# In grey levels; less is lost in the noise of any camera.
_LEAST = 2.0
# Share of the strongest change of a part, below which the defect has faded out.
_SHARE = 0.15
_SMOOTHING = 1.0
_CLOSING = 2
# Specks of fewer pixels, or of less than this share of the largest piece, are no defect.
_SPECK, _SPECK_SHARE = 6, 0.02


def visible_region(before: np.ndarray, after: np.ndarray, part: np.ndarray) -> np.ndarray:
    """The pixels of `part` (H, W) bool where `before` and `after`, uint8 (H, W, 3), visibly differ, without gaps.

    Visible is a smoothed difference of more than two grey levels and of more than 15 % of the strongest one, as
    annotators outline it. All of `part` where nothing is visible.
    """
    difference = np.abs(after.astype(np.float32) - before).mean(-1)
    difference = ndimage.gaussian_filter(difference, _SMOOTHING)
    strong = difference > max(_LEAST, _SHARE * float(np.percentile(difference[part], 98)))
    closed = ndimage.binary_closing(np.pad(strong, _CLOSING + 1), iterations=_CLOSING)
    region = ndimage.binary_fill_holes(closed[_CLOSING + 1 : -_CLOSING - 1, _CLOSING + 1 : -_CLOSING - 1] & part) & part
    labels, _ = ndimage.label(region)
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    region = np.isin(labels, np.flatnonzero(areas >= max(_SPECK, _SPECK_SHARE * areas.max())))
    return region if region.any() else part
