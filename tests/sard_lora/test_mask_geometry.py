import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from sard_lora.mask_geometry import is_line, split_mask, widen


@given(st.integers(0, 2**32 - 1), st.integers(0, 9))
def test_widening_looks_at_the_masks_surroundings_alone_and_finds_the_same(seed, margin):
    mask = np.random.default_rng(seed).random((40, 50)) < 0.003
    mask[11, 7] = True
    assert np.array_equal(widen(mask, margin), ndimage.distance_transform_edt(~mask) <= margin)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_parts_of_a_mask_are_the_mask(seed, dots):
    rng = np.random.default_rng(seed)
    mask = np.zeros((90, 120), bool)
    for _ in range(dots):
        top, left, height, width = *rng.integers(0, (85, 115)), *rng.integers(1, 30, 2)
        mask[top : top + height, left : left + width] = True
    parts = split_mask(mask, 2.0, 16)
    assert np.array_equal(np.sum(parts, 0), mask.astype(int)), "each pixel lies in one part"
    assert 1 <= len(parts) <= 12 and all(part.any() for part in parts)


def test_far_spots_get_windows_of_their_own_and_near_ones_share():
    mask = np.zeros((400, 400), bool)
    for row, column in ((20, 20), (28, 26), (200, 300), (380, 40)):
        mask[row : row + 5, column : column + 5] = True
    mask[100, 20:380] = True
    parts = split_mask(mask, 2.0, 64)
    assert [part.sum() for part in parts] == [360, 50, 25, 25]


def test_a_cloud_of_specks_is_split_into_few_parts():
    mask = np.random.default_rng(0).random((300, 300)) < 0.02
    assert len(split_mask(mask, 2.0, 64)) <= 12


def test_what_is_wide_or_short_or_scattered_or_across_the_image_is_no_line():
    for *boxes, expected in (
        (np.s_[20:24, 5:35], True),
        (np.s_[10:40, 10:40], False),
        (np.s_[5:30, :], False),
        (np.s_[10:12, 10:16], False),
        (np.s_[20:24, :], False),
        (np.s_[20:24, 5:35], np.s_[40:44, 5:35], False),
    ):
        mask = np.zeros((64, 64), bool)
        for box in boxes:
            mask[box] = True
        assert is_line(mask) is expected, boxes
