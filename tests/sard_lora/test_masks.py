import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.morphology import skeletonize

from sard_lora.mask_bank import BankMask
from sard_lora.masks import SOURCES, sample_mask
from sard_lora.shapes import perlin

sides = st.integers(1, 70)
sources = st.sampled_from(SOURCES)
locations = st.sampled_from([0.0, 0.5, 1.0])


@st.composite
def masks(draw) -> np.ndarray:
    """Anything from one pixel to the whole image, connected or not."""
    shape = draw(sides), draw(sides)
    mask = np.zeros(shape, bool)
    for _ in range(draw(st.integers(1, 3))):
        y, x = draw(st.integers(0, shape[0] - 1)), draw(st.integers(0, shape[1] - 1))
        mask[y : y + draw(sides), x : x + draw(sides)] = True
    return mask


def bank_of(*found: np.ndarray) -> list[BankMask]:
    return [BankMask(mask, "crack", f"crack/{number:03}") for number, mask in enumerate(found)]


def square(shape=(64, 64), at=(10, 12), side=8) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[at[0] : at[0] + side, at[1] : at[1] + side] = True
    return mask


# Sampling


@settings(max_examples=300, deadline=None)
@given(masks(), masks(), sources, locations, st.integers(0, 2**32))
def test_a_mask_is_never_empty_and_never_leaves_the_foreground(real, place, source, keep_location, seed):
    mask, _, origin, *_ = sample_mask(bank_of(real), place, np.random.default_rng(seed), source, keep_location)
    assert mask.shape == place.shape and mask.dtype == bool
    assert mask.any()
    assert not (mask & ~place).any()
    assert origin in {"crack/000", "perlin", "stroke"}


@settings(max_examples=30, deadline=None)
@given(masks(), sources, locations, st.integers(0, 2**32))
def test_the_same_seed_gives_the_same_mask(real, source, keep_location, seed):
    place = np.ones((50, 40), bool)
    one, two = (sample_mask(bank_of(real), place, np.random.default_rng(seed), source, keep_location) for _ in range(2))
    assert np.array_equal(one[0], two[0]) and one.origin == two.origin


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("keep_location", [0.0, 1.0])
def test_new_masks_are_a_little_larger_than_the_real_ones_or_much_smaller(source: str, keep_location: float):
    bank = bank_of(*(square((120, 100), side=side) for side in (14, 16, 18)))
    rng = np.random.default_rng(0)
    areas = [sample_mask(bank, np.ones((120, 100), bool), rng, source, keep_location)[0].sum() for _ in range(600)]
    assert 0.4 * 256 < np.median(areas) < 0.7 * 256, "scales of 0.4 to 1.4, one as likely as another"
    assert min(areas) >= 0.7 * 6**2 - 1 and max(areas) <= 18**2 * 1.4**2 * 1.1
    assert np.quantile(areas, 0.1) < 0.3 * 256 and np.quantile(areas, 0.9) > 1.2 * 256


def test_what_is_small_does_not_become_much_smaller():
    place, rng = np.ones((64, 64), bool), np.random.default_rng(0)
    areas = [sample_mask(bank_of(square(side=6)), place, rng).mask.sum() for _ in range(60)]
    assert 0.7 * 0.7**2 * 36 < min(areas) < 0.7 * 36 and max(areas) > 1.5 * 36


def test_a_scratch_of_one_pixel_stays_in_one_piece():
    scratch = np.zeros((64, 64), bool)
    scratch[20, 10:50] = True
    rng = np.random.default_rng(0)
    for keep_location in (0.0, 1.0):
        for _ in range(50):
            mask = sample_mask(bank_of(scratch), np.ones((200, 200), bool), rng, "real", keep_location).mask
            pieces, count = ndimage.label(mask, np.ones((3, 3)))
            assert np.bincount(pieces.ravel())[1:].max() >= 0.8 * mask.sum(), count
            assert 0.6 * 40 * 0.5 * 0.7 <= mask.sum() <= 0.9 * 200 * 1.4**2 + 1
            assert mask.sum() <= 1.4**2 * skeletonize(mask).sum() + 3, "as thin as it was"


def test_a_blob_without_holes_stays_without_holes():
    rng = np.random.default_rng(0)
    for _ in range(40):
        mask = sample_mask(bank_of(square(side=40)), np.ones((128, 128), bool), rng, "real").mask
        assert np.array_equal(mask, ndimage.binary_fill_holes(mask))


def test_real_masks_change_their_shape_and_say_where_they_are_from():
    rng = np.random.default_rng(0)
    bank = bank_of(square(), square(side=5))
    drawn = [sample_mask(bank, np.ones((64, 64), bool), rng, "real") for _ in range(40)]
    assert {placement.origin for placement in drawn} == {"crack/000", "crack/001"}
    assert len({mask.tobytes() for mask, *_ in drawn}) == 40


def test_kept_masks_lie_where_the_real_one_was_and_moved_ones_everywhere():
    rng = np.random.default_rng(0)
    bank = bank_of(square(shape=(100, 100), at=(16, 66)))
    centres = {
        keep: np.array(
            [
                ndimage.center_of_mass(sample_mask(bank, np.ones((200, 100), bool), rng, source, keep)[0])
                for source in ("real", "perlin", "stroke")
                for _ in range(40)
            ]
        )
        for keep in (0.0, 1.0)
    }
    assert np.abs(np.median(centres[1.0], axis=0) - (40, 70)).max() < 6
    assert centres[1.0].std(axis=0).max() < 15 < centres[0.0].std(axis=0).min()


def test_chips_stay_at_the_edge_and_bands_stay_across_the_image():
    chip, band = square(at=(56, 30)), np.zeros((64, 64), bool)
    band[20:30] = True
    rng = np.random.default_rng(0)
    for size in (40, 64, 128):
        place = np.ones((size, size), bool)
        for _ in range(20):
            assert sample_mask(bank_of(chip), place, rng, keep_location=0.0)[0][-1].any()
            across = sample_mask(bank_of(band), place, rng, keep_location=0.0).mask
            assert across[:, 0].any() and across[:, -1].any() and not across.all()


def test_what_is_continued_by_mirroring_has_no_gap_at_the_seam():
    """Every pixel of it lies in the image that it is from, whose outermost ones are the last that are known."""
    band = np.zeros((64, 64), bool)
    band[20:30] = True
    for seed in range(10):
        placement = sample_mask(bank_of(band), np.ones((160, 160), bool), np.random.default_rng(seed))
        columns = placement.source[1]
        assert columns.min() >= 0 and columns.max() <= 63


def test_what_spans_a_larger_image_is_enlarged_before_it_is_continued():
    """A stain from edge to edge of 64 pixels, on an image of 84: its ends must not be mirrored into it."""
    band = np.zeros((64, 64), bool)
    band[20:40] = True
    for seed in range(20):
        placement = sample_mask(bank_of(band), np.ones((84, 84), bool), np.random.default_rng(seed), grain="across")
        start = -placement.corner[1]
        columns = placement.source[1, placement.source.shape[1] // 2, start : start + 84]
        mirrored = np.sign(np.diff(columns)) != np.sign(columns[-1] - columns[0])
        assert np.isfinite(columns).all() and mirrored.mean() < 0.1


def test_masks_of_products_with_a_direction_are_hardly_turned():
    bar = np.zeros((400, 400), bool)
    bar[191:209, 160:240] = True
    for grain in ("across", "none"):
        drawn = [sample_mask(bank_of(bar), ~bar | bar, np.random.default_rng(n), grain=grain).mask for n in range(20)]
        lying = [np.ptp(np.nonzero(mask)[0]) < np.ptp(np.nonzero(mask)[1]) / 3 for mask in drawn]
        assert all(lying) is (grain == "across")


def test_a_margin_widens_the_mask_on_the_foreground():
    bank = (BankMask(np.eye(60, dtype=bool), "crack", "crack/0"),)
    part = np.zeros((60, 60), bool)
    part[:, :40] = True
    tight, (wide, core, *_) = (sample_mask(bank, part, np.random.default_rng(0), margin=margin) for margin in (0, 3))
    tight = tight.mask
    assert np.array_equal(core, tight)
    distance = ndimage.distance_transform_edt(~tight)
    assert ((distance <= 3) & part == wide).all() and wide.sum() > tight.sum()


def test_scattered_spots_stay_round():
    """Spots far apart are bent by their own size, not by that of the whole mask."""
    spots = np.zeros((300, 300), bool)
    rows, columns = np.ogrid[:300, :300]
    for row, column in ((20, 20), (20, 280), (280, 150), (150, 30)):
        spots |= (rows - row) ** 2 + (columns - column) ** 2 <= 49
    for seed in range(20):
        mask = sample_mask((BankMask(spots, "spot", "spot/0"),), np.ones_like(spots), np.random.default_rng(seed)).mask
        boxes = ndimage.find_objects(ndimage.label(mask)[0])
        inside = [box for box in boxes if all(side.start > 0 and side.stop < 300 for side in box)]
        assert all(
            max(lengths) <= 1.35 * min(lengths) + 2 for lengths in ([s.stop - s.start for s in b] for b in inside)
        )


def test_masks_that_cannot_be_drawn_are_refused():
    rng, place = np.random.default_rng(0), np.ones((8, 8), bool)
    with pytest.raises(ValueError, match="foreground is empty"):
        sample_mask(bank_of(square()), ~place, rng)
    with pytest.raises(ValueError, match="bank is empty"):
        sample_mask([], place, rng)
    with pytest.raises(ValueError, match=r"'blob'.*real, perlin, stroke, mixed"):
        sample_mask(bank_of(square()), place, rng, "blob")


def test_perlin_noise_is_smooth_zero_at_the_grid_and_bounded():
    noise = perlin((65, 33), 16, np.random.default_rng(0))
    assert noise.shape == (65, 33)
    assert np.allclose(noise[::16, ::16], 0)
    assert 0.2 < np.abs(noise).max() < 0.8
    assert np.abs(np.diff(noise, axis=0)).max() < 0.15


def test_what_touches_a_border_lies_anywhere_along_it():
    """And where the product chips at its corner, it goes on doing so."""
    chip, corner = square(at=(56, 20)), square(at=(56, 0))
    place = np.ones((64, 200), bool)
    found = [
        [
            ndimage.center_of_mass(sample_mask(bank_of(mask), place, np.random.default_rng(n), keep_location=keep).mask)
            for n in range(40)
        ]
        for mask, keep in ((chip, 0.0), (chip, 1.0), (corner, 0.0))
    ]
    anywhere, near, chipped = (np.array(places)[:, 1] for places in found)
    assert anywhere.std() > 40 and np.abs(near - 75).max() < 25 and chipped.max() < 12


def test_thin_masks_are_bent_and_keep_their_width():
    line = np.zeros((100, 300), bool)
    line[50:54, 60:240] = True
    for seed in range(5):
        mask = sample_mask(bank_of(line), np.ones((100, 400), bool), np.random.default_rng(seed), grain="across").mask
        rows, columns = np.nonzero(mask)
        straight = np.polyval(np.polyfit(columns, rows, 1), columns)
        assert np.abs(rows - straight).max() > 3 and 2 * ndimage.distance_transform_edt(mask).max() < 11


def test_a_line_is_of_any_length_and_direction_and_keeps_its_width():
    bar = np.zeros((200, 200), bool)
    bar[100:104, 80:110] = True
    lengths, angles, widths = [], [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        mask = sample_mask(bank_of(bar), np.ones((200, 200), bool), rng, grain="across").mask
        where = np.argwhere(mask)
        moments, axes = np.linalg.eigh(np.cov(where.T))
        lengths.append(np.sqrt(12 * moments[1]))
        angles.append(np.rad2deg(np.arctan2(*axes[:, 1])) % 180)
        widths.append(mask.sum() / lengths[-1])
        assert ndimage.distance_transform_edt(np.pad(mask, 1)).max() <= 5, "2 in the bar, times 1.4, where it is bent"
        assert ndimage.label(mask, np.ones((3, 3)))[1] == 1
    assert min(lengths) < 25 and max(lengths) > 120 and min(widths) > 0.6 * 4
    assert all(np.histogram(angles, 4, (0, 180))[0] >= 5)


def test_parts_that_lie_apart_are_moved_each_by_itself():
    """Two spots; and the pixels in each of them are its own, also where both come to lie side by side."""
    spots = np.zeros((60, 120), bool)
    spots[20:26, 20:26] = spots[20:28, 90:98] = True
    away = ndimage.distance_transform_edt(~spots)
    gaps = []
    for seed in range(80):
        rng = np.random.default_rng(seed)
        placement = sample_mask(bank_of(spots), np.ones((60, 120), bool), rng, keep_location=0.0)
        assert placement.corner == (0, 0) and placement.source.shape == (2, 60, 120)
        assert ndimage.map_coordinates(away, placement.source[:, placement.core], order=1, mode="nearest").max() < 3
        labels, count = ndimage.label(placement.mask)
        if count == 2:  # else one lies on the other
            centres = np.array(ndimage.center_of_mass(placement.mask, labels, [1, 2]))
            gaps.append(np.hypot(*(centres[0] - centres[1])))
    assert len(gaps) > 60 and min(gaps) < 20 and max(gaps) > 85
    near = sample_mask(bank_of(spots), np.ones((60, 120), bool), np.random.default_rng(0), keep_location=1.0).mask
    assert np.ptp(np.nonzero(near)[1]) > 45, "near its place it keeps its shape as a whole"


def test_what_ends_at_the_border_within_its_margin_stays_there():
    """Three pixels from the border, nothing is known of what it does beyond them."""
    spot = square(at=(20, 3))
    for margin, at_border in ((4, True), (0, False)):
        left = [
            np.nonzero(sample_mask(bank_of(spot), np.ones((64, 64), bool), rng, "real", 0.0, margin).core)[1].min()
            for rng in map(np.random.default_rng, range(10))
        ]
        assert (max(left) == 0) == at_border


def test_half_of_all_lines_run_along_the_grain_and_none_stays_near():
    bar = np.zeros((200, 200), bool)
    np.fill_diagonal(bar[20:60, 20:60], True)
    bar = ndimage.binary_dilation(bar)
    for grain, wanted in (("down", 0), ("across", 90)):
        off, places = [], []
        for seed in range(60):
            mask = sample_mask(
                bank_of(bar), ~bar | bar, np.random.default_rng(seed), keep_location=1.0, grain=grain
            ).mask
            where = np.argwhere(mask)
            _, axes = np.linalg.eigh(np.cov(where.T))
            angle = np.rad2deg(np.arctan2(axes[1, 1], axes[0, 1]))
            off.append(abs((angle - wanted + 90) % 180 - 90))
            places.append(where.mean(0))
        assert 20 < np.count_nonzero(np.array(off) < 10) < 45
        assert np.std(places, axis=0).min() > 25
