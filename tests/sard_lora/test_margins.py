"""The margin is as wide as defects fade out beyond their masks, and none where masks are exact."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from sard_lora.layouts import Sample
from sard_lora.margins import MOST, fade_margins


def sample(folder: Path, blur: float, seed: int, depth: float = 90) -> Sample:
    """A dark spot of radius 6 on grain, blurred; its mask is the spot before the blur."""
    rows, columns = np.ogrid[:96, :96]
    mask = (rows - 48) ** 2 + (columns - 48) ** 2 <= 36
    soft = ndimage.gaussian_filter(mask.astype(float), blur) if blur else mask.astype(float)
    pixels = np.random.default_rng(seed).normal(150, 8, (96, 96)) - depth * soft
    image, label = folder / f"{blur}-{seed}.png", folder / f"{blur}-{seed}_mask.png"
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(image)
    Image.fromarray(mask).save(label)
    return Sample(image, label, f"blur {blur}", str(seed))


def test_margins_grow_with_how_far_defects_fade(tmp_path):
    samples = [sample(tmp_path, blur, seed) for blur in (0, 2, 4) for seed in range(3)]
    margins = fade_margins(samples)
    assert list(margins) == ["blur 0", "blur 2", "blur 4"]
    assert margins["blur 0"] == 0 < margins["blur 2"] < margins["blur 4"] <= MOST


def test_grain_around_faint_defects_is_no_margin(tmp_path):
    assert fade_margins([sample(tmp_path, 0, seed, depth=6) for seed in range(5)]) == {"blur 0": 0}


@pytest.mark.parametrize("whole", [True, False])
def test_defects_without_surroundings_have_no_margin(tmp_path, whole):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 20), np.uint8)
    mask = np.full((20, 20), whole)
    mask[10, 10] = True
    for name, plane in (("a", pixels), ("a_mask", mask)):
        Image.fromarray(plane).save(tmp_path / f"{name}.png")
    assert fade_margins([Sample(tmp_path / "a.png", tmp_path / "a_mask.png", "stain", "a")]) == {"stain": 0}
