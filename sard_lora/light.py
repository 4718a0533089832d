"""Brightness on a logarithmic scale: light multiplies what a surface is, so there it adds."""

import numpy as np

DARK = 8.0
"""Grey levels added before logarithms and ratios, so that the noise of what is black does not count."""


def log_light(pixels: np.ndarray) -> np.ndarray:
    """The logarithm of grey levels (0 to 255, any shape and float type)."""
    return np.log(pixels.clip(0) + DARK)
