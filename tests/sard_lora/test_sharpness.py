"""The blur of real defects is measured on them, and kept where they are made smaller."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from sard_lora.mask_bank import BankMask
from sard_lora.masks import sample_mask
from sard_lora.sharpness import edge_blur
from sard_lora.transplant import transplant


def spot(folder, blur: float, radius: int = 12, depth: int = 90, noise: float = 2) -> BankMask:
    """A dark disc on grey behind a Gaussian blur, with camera noise."""
    rows, columns = np.mgrid[:80, :80]
    mask = np.hypot(rows - 40, columns - 40) <= radius
    pixels = ndimage.gaussian_filter(160 - depth * mask.astype(float), blur)
    pixels += np.random.default_rng(0).normal(0, noise, mask.shape)
    path = folder / f"{blur}-{radius}.png"
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return BankMask(mask, "spot", f"spot/{path.stem}", path)


@pytest.mark.parametrize("blur", [1.0, 2.0])
def test_the_blur_of_edges_is_measured(tmp_path, blur):
    found = edge_blur([spot(tmp_path, blur, radius) for radius in (6, 9, 12)])
    assert found == pytest.approx(blur, rel=0.25)


def test_without_an_image_or_an_edge_there_is_no_blur(tmp_path):
    Image.new("L", (80, 80), 100).save(tmp_path / "flat.png")
    mask = spot(tmp_path, 1.0).mask
    assert edge_blur([BankMask(mask, "spot", "spot/0", None)]) == 0
    assert edge_blur([BankMask(mask, "spot", "spot/0", tmp_path / "flat.png")]) == 0


def test_what_is_made_smaller_gets_no_sharper(tmp_path):
    """As steep for its depth as the real spot is, and not in proportion to its scale."""
    real = spot(tmp_path, 2.0, noise=0)
    flat = Image.new("RGB", (200, 200), (160, 160, 160))

    def steepness(pixels: np.ndarray) -> float:
        return np.hypot(*np.gradient(pixels)).max() / (160 - pixels.min())

    own = steepness(np.asarray(Image.open(real.image), float))
    smaller = 0
    for seed in range(20):
        placement = sample_mask([real], np.ones((200, 200), bool), np.random.default_rng(seed), margin=5)
        if placement.source[2].max() > 0.7:
            continue
        smaller += 1
        sharp, kept = (
            steepness(np.asarray(transplant(flat, placement, 1.0, blur), float)[..., 0]) for blur in (0.0, 2.0)
        )
        assert sharp > 1.25 * own
        assert kept < 1.15 * own
    assert smaller > 3
