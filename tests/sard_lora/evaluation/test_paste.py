"""Real defects cut out and pasted: blended inwards, as bright as their new surroundings, on the part, never lost."""

import numpy as np
import pytest
from PIL import Image

from sard_lora.data import few_shot_split, open_category
from sard_lora.evaluation.paste import Cutout, cut_out, paste, transform


@pytest.fixture
def split(mvtec):
    return few_shot_split(open_category(mvtec))


def test_a_defect_takes_on_the_brightness_of_its_new_surroundings():
    """A defect a fifth darker than its surroundings stays so, on a darker part as well."""
    mask = np.zeros((30, 30), dtype=bool)
    mask[10:20, 10:20] = True
    cutout = Cutout(np.where(mask[..., None], 160.0, 200.0) * np.ones(3), mask, np.ones_like(mask), (0.5, 0.5))
    image = np.full((60, 60, 3), 100, dtype=np.uint8)
    result, written = paste(image, np.ones((60, 60), dtype=bool), cutout, np.random.default_rng(0))
    assert result[written].min() == 79  # the eight levels that are added to both take a little of it
    assert written.sum() == 100
    assert (result[~written] == 100).all()


def test_the_edge_is_blended_inwards_and_the_core_is_the_defect():
    mask = np.zeros((30, 30), dtype=bool)
    mask[5:25, 5:25] = True
    cutout = Cutout(np.where(mask[..., None], 0.0, 100.0) * np.ones(3), mask, np.ones_like(mask), (0.5, 0.5))
    image = np.full((90, 90, 3), 100, dtype=np.uint8)
    result, written = paste(image, np.ones((90, 90), dtype=bool), cutout, np.random.default_rng(0))
    assert np.unique(result[written]).tolist() == [0, 50]


def test_brightness_follows_the_place():
    """On a part that is brighter to the right a long defect stays a fifth darker all along."""
    mask = np.zeros((30, 200), dtype=bool)
    mask[12:18, 10:190] = True
    cutout = Cutout(np.where(mask[..., None], 160.0, 200.0) * np.ones(3), mask, np.ones_like(mask), (0.5, 0.5))
    ramp = np.broadcast_to(np.linspace(60, 200, 240), (60, 240))
    image = np.repeat(ramp[..., None], 3, axis=2).round().astype(np.uint8)
    result, written = paste(image, np.ones((60, 240), dtype=bool), cutout, np.random.default_rng(0), feather=1)
    share = result[written] / image[written]
    assert np.abs(share - 0.8).max() < 0.05


def test_defects_stay_on_the_part():
    mask = np.ones((9, 9), dtype=bool)
    cutout = Cutout(np.zeros((9, 9, 3)), mask, mask, (0.1, 0.9))
    part = np.zeros((50, 50), dtype=bool)
    part[10:40, 10:30] = True
    image = np.full((50, 50, 3), 200, dtype=np.uint8)
    places = [paste(image, part, cutout, np.random.default_rng(seed)) for seed in range(50)]
    found = [written for result in places if result is not None for written in [result[1]]]
    assert found and all(not (written & ~part).any() and written.sum() >= 41 for written in found)


def test_one_pixel_scratches_survive_turning():
    mask = np.zeros((40, 12), dtype=bool)
    mask[4:36, 6] = True
    cutout = Cutout(np.zeros((40, 12, 3)), mask, np.ones_like(mask), (0.5, 0.5))
    for seed in range(50):
        assert transform(cutout, np.random.default_rng(seed)).mask.sum() >= 12


def test_a_cut_out_at_the_edge_of_its_image_keeps_its_place(split):
    sample = split.train[0]
    truth = np.asarray(Image.open(sample.mask)) > 0
    cutout = cut_out(np.asarray(Image.open(sample.image)), truth)
    rows, columns = np.nonzero(truth)
    assert cutout.mask.sum() == truth.sum()
    assert cutout.centre == pytest.approx(
        ((rows.mean() + 0.5) / truth.shape[0], (columns.mean() + 0.5) / truth.shape[1])
    )
