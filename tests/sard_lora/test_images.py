"""What is measured about images before anything is trained on them."""

from pathlib import Path

import numpy as np
from PIL import Image

from sard_lora.images import are_aligned, has_direction
from sard_lora.surfaces import write_category


def test_images_with_a_direction_are_known(tmp_path):
    def saved(name: str, pixels: np.ndarray) -> list[Path]:
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{name}.png")
        return [tmp_path / f"{name}.png"] * 3

    grain = np.random.default_rng(0).uniform(0, 250, (60, 80, 3))
    brushed = 0.9 * grain.mean(1, keepdims=True) + 0.1 * grain
    assert not has_direction(saved("grain", grain))
    assert has_direction(saved("lying", brushed)) and has_direction(saved("standing", brushed.swapaxes(0, 1)))
    assert not has_direction(saved("plain", np.zeros((8, 8, 3))))


def test_objects_in_one_pose_are_aligned_and_surfaces_are_not(tmp_path):
    for product in ("washer", "printed_tile", "leather", "brushed_steel"):
        write_category(product, tmp_path / product, normals=12, anomalies_per_defect=3, seed=0, size=64)
        paths = sorted((tmp_path / product / "train/good").iterdir())
        assert are_aligned(paths) is (product in ("washer", "printed_tile")), product
        assert are_aligned(paths[:1]) is are_aligned([]) is False
