"""Labels are what visibly changed: tight around it, without gaps and specks, and never nothing."""

import numpy as np

from sard_lora.visible import visible_region


def spot(radius: float, depth: float, size: int = 60) -> np.ndarray:
    """A grey picture (H, W, 3) uint8 with a soft dark spot in its middle."""
    rows, columns = np.ogrid[:size, :size]
    distance = (rows - size / 2) ** 2 + (columns - size / 2) ** 2
    picture = 150 - depth * np.exp(-distance / (2 * radius**2))
    return np.repeat(picture[..., None], 3, axis=2).round().astype(np.uint8)


def everything(size: int = 60) -> np.ndarray:
    return np.ones((size, size), bool)


def test_the_label_ends_where_a_defect_has_faded_out():
    region = visible_region(spot(4, 0), spot(4, 80), everything())
    rows, columns = np.nonzero(region)
    radius = np.hypot(rows - 30, columns - 30).max()
    assert 7 < radius < 10  # 15 % of the depth is 1.95 standard deviations out
    assert region.sum() > 3.1 * (radius - 1) ** 2, "in one piece, without gaps"


def test_the_label_stays_inside_the_mask():
    part = everything()
    part[:, :30] = False
    region = visible_region(spot(4, 0), spot(4, 80), part)
    assert region.any() and not (region & ~part).any()


def test_changes_that_nobody_sees_are_no_label():
    before = spot(4, 0)
    after = before.copy()
    after[10:20, 10:20] -= 60
    after[40:50, 40:50] -= 1
    region = visible_region(before, after, everything())
    assert region[12:18, 12:18].all() and not region[38:52, 38:52].any()


def test_gaps_are_closed_and_specks_left_out():
    before = spot(4, 0, 100)
    after = before.copy()
    after[20:60, 20:60] -= 60
    after[35:45, 35:45] += 60
    after[90, 90] -= 100
    region = visible_region(before, after, everything(100))
    assert region[22:58, 22:58].all() and not region[80:].any()


def test_where_nothing_is_visible_all_of_the_mask_is_the_label():
    before = spot(4, 0)
    assert visible_region(before, before, everything()).all()
