"""Training windows: around the mask, the defect inside, symmetries only where allowed."""

import numpy as np
import pytest
import torch

from sard_lora.data import few_shot_split, open_category
from sard_lora.layouts import GOOD
from sard_lora.train.windows import WindowSettings, WindowSource


@pytest.fixture
def split(mvtec):
    return few_shot_split(open_category(mvtec))


def settings(**changes):
    values = {
        "resolution": 32,
        "context_range": (1.6, 3.5),
        "min_side": 12,
        "margins": dict.fromkeys(("hole", "scratch"), 0),
    }
    values |= {"flip_horizontal": True, "flip_vertical": True, "grain": "none"}
    return WindowSettings(**(values | changes))


def test_windows_hold_the_defect_under_its_mask(split):
    source = WindowSource(split.train, split.normals, settings())
    seen = set()
    for seed in range(30):
        x, mask, defect = source.draw_anomaly(np.random.default_rng(seed))
        assert x.shape == (3, 32, 32) and mask.shape == (1, 32, 32)
        assert x[:, mask[0] > 0.5].mean() < -0.4 < x[:, mask[0] < 0.5].mean(), "the dark square is under its mask"
        assert x.abs().max() <= 1 and mask.unique().tolist() == [0.0, 1.0]
        seen.add(defect)
    assert seen == {"hole", "scratch"}


def test_normal_windows_are_masked_where_nothing_is(split):
    source = WindowSource(split.train, split.normals, settings())
    for seed in range(10):
        x, mask, defect = source.draw_normal(np.random.default_rng(seed))
        assert defect == GOOD and mask.any()
        assert x.min() > -0.6, "no dark square anywhere"


def test_windows_show_the_mask_with_and_without_its_margin(split):
    """A dark square lies under its mask, and around it under the margin is the part."""
    source = WindowSource(split.train, split.normals, settings(margins={"hole": 3, "scratch": 3}))
    wide = 0
    for seed in range(40):
        x, mask, _ = source.draw_anomaly(np.random.default_rng(seed))
        inside = x[0][mask[0] > 0.5]
        assert (inside < -0.4).any()
        wide += bool((inside > 0).any())
    assert 20 <= wide < 40  # margins of 0, 1, 2 and 3 pixels


def test_products_with_a_side_are_not_turned(split):
    fixed = settings(flip_horizontal=False, flip_vertical=False, grain="across")
    source = WindowSource(split.train, split.normals, fixed)
    turning = WindowSource(split.train, split.normals, settings())
    gradient = torch.linspace(-1, 1, 40).expand(3, 32, 40)
    image = ((gradient + 1) * 127.5).permute(1, 2, 0).numpy().astype(np.uint8)
    mask = np.zeros((32, 40), bool)
    mask[10:20, 10:20] = True
    rises = []
    for kind in (source, turning):
        windows = [kind._window(image, mask, np.random.default_rng(seed))[0] for seed in range(12)]
        rises.append([bool((x[0, :, -1] - x[0, :, 0]).mean() > 0.1) for x in windows])
    assert all(rises[0]) and not all(rises[1])
