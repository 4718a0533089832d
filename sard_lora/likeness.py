"""Which normal image a real defect is moved to: one that looks like the picture it comes from.

Products of one category differ in material, light and camera. A spot from an even solar cell is no sign of anything
among the dark grains of another kind of cell, and a patch of one grinding stands out on every other.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy import ndimage

from sard_lora.images import load_image
from sard_lora.layouts import Sample
from sard_lora.masks import foreground

AMONG = 24
"""How many normal images are compared; fewer would be less alike, more would leave fewer different ones."""
_SIDE = 512
_QUANTILES = np.linspace(0.05, 0.95, 10)
_GRADIENT = 4.0
"""Weight of gradients, which are that much smaller than differences of grey levels between pictures."""


def most_alike(picture: Path, normals: Sequence[Sample], rng: np.random.Generator) -> Sample:
    """Of `AMONG` normal images drawn at random the one that looks most like the image `picture`.

    Compared are quantiles of grey levels and of their gradients on the product, so neither place nor shape counts.
    """
    drawn = rng.choice(len(normals), min(AMONG, len(normals)), replace=False)
    wanted = look(picture)
    return min((normals[n] for n in drawn), key=lambda sample: float(np.abs(look(sample.image) - wanted).sum()))


@lru_cache(maxsize=8192)
def look(path: Path) -> np.ndarray:
    """Quantiles of an image's grey levels and of their gradients (20,) fp64, on its product, at 512 pixels at most."""
    image = load_image(path)
    image.thumbnail((_SIDE, _SIDE))
    grey, product = np.asarray(image.convert("L"), np.float32), foreground(image)
    gradients = _GRADIENT * ndimage.gaussian_gradient_magnitude(grey, 1.0)
    return np.concatenate([np.quantile(plane[product], _QUANTILES) for plane in (grey, gradients)])
