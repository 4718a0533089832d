import numpy as np
import pytest
from PIL import Image

from sard_lora.detectability import matched_filter_snr


def ground(grooves=0.0, side=96):
    """A picture of noise around 120, with vertical grooves."""
    rng = np.random.default_rng(0)
    return (120 + rng.normal(0, 4, (side, side)) + grooves * rng.normal(0, 1, side)).clip(0, 255)


def picture(values):
    return Image.fromarray(np.rint(values).astype(np.uint8))


@pytest.fixture
def line():
    core = np.zeros((96, 96), bool)
    core[30:70, 40:43] = True
    return core


def snr(values, core, before):
    return matched_filter_snr(picture(values), core, picture(before))


def test_a_line_stands_out_as_far_as_its_product_is_smooth(line):
    smooth, grooved = ground(), ground(grooves=12)
    strong, faint = (snr(smooth - depth * line, line, smooth) for depth in (20, 5))
    assert strong > 3 * faint > 9
    assert snr(grooved - 5 * line, line, grooved) < 1 < faint / 3, "lost among the grooves"
    across = line.T.copy()
    assert snr(grooved - 5 * across, across, grooved) > 3 * snr(grooved - 5 * line, line, grooved)


def test_what_was_there_before_does_not_count(line):
    marked = ground() - 40 * line
    assert snr(marked, line, marked) == 0
    wiped = ground()
    assert snr(wiped, line, marked) < 3, "and what is no different from elsewhere neither"
    assert snr(wiped - 40 * line, line, wiped) > 20


def test_defects_with_nothing_to_compare_them_with_are_taken_as_they_are(line):
    image = picture(ground())
    assert matched_filter_snr(image, np.ones((96, 96), bool), image) == np.inf
    wide = np.zeros((96, 96), bool)
    wide[4:-4, 4:-4] = True
    assert matched_filter_snr(image, wide, image) == np.inf
