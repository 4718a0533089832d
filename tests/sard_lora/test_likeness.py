"""A real defect goes to a normal image that looks like its own."""

import numpy as np
import pytest
from PIL import Image

from sard_lora.layouts import GOOD, Sample
from sard_lora.likeness import AMONG, look, most_alike


@pytest.fixture
def pictures(tmp_path):
    """Even, mottled and dark pictures, eight of each."""
    rng, samples = np.random.default_rng(0), {}
    for kind, level, noise in (("even", 150, 2), ("mottled", 150, 40), ("dark", 40, 2)):
        for number in range(8):
            pixels = level + noise * rng.standard_normal((64, 64, 1))
            path = tmp_path / f"{kind}{number}.png"
            Image.fromarray(np.repeat(pixels, 3, 2).clip(0, 255).astype(np.uint8)).save(path)
            samples.setdefault(kind, []).append(Sample(path, None, GOOD, path.name))
    return samples


@pytest.mark.parametrize("kind", ["even", "mottled", "dark"])
def test_material_and_light_are_alike(pictures, kind):
    picture, *others = pictures[kind]
    normals = [sample for same in pictures.values() for sample in same if sample != picture]
    assert most_alike(picture.image, normals, np.random.default_rng(0)) in others


def test_only_some_are_compared_so_that_not_all_defects_go_to_one(pictures):
    picture, *_ = pictures["even"]
    many = [sample for same in pictures.values() for sample in same if sample != picture] * 4
    rng = np.random.default_rng(0)
    chosen = {most_alike(picture.image, many, rng).image for _ in range(20)}
    assert len(many) > AMONG and len(chosen) > 2


def test_large_pictures_are_compared_small(tmp_path):
    Image.fromarray(np.full((1200, 900, 3), 90, np.uint8)).save(tmp_path / "large.png")
    assert look(tmp_path / "large.png") == pytest.approx([90] * 10 + [0] * 10)
