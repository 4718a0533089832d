import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

from sard_lora.mask_bank import BankMask
from sard_lora.masks import SOURCES, foreground, perlin, sample_mask, split_mask

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
def test_new_masks_are_as_large_as_the_real_ones(source: str, keep_location: float):
    bank = bank_of(*(square(side=side) for side in (5, 8, 11)))
    rng = np.random.default_rng(0)
    areas = [sample_mask(bank, np.ones((96, 80), bool), rng, source, keep_location)[0].sum() for _ in range(600)]
    assert 0.8 * 64 < np.median(areas) < 1.25 * 64
    assert min(areas) >= 25 * 0.7**2 * 0.7 - 1 and max(areas) <= 121 * 1.4**2 * 1.1
    assert np.std(areas) > 20


def test_a_scratch_of_one_pixel_stays_in_one_piece():
    scratch = np.zeros((64, 64), bool)
    scratch[20, 10:50] = True
    rng = np.random.default_rng(0)
    for keep_location in (0.0, 1.0):
        for _ in range(50):
            mask = sample_mask(bank_of(scratch), np.ones((200, 200), bool), rng, "real", keep_location).mask
            pieces, count = ndimage.label(mask, np.ones((3, 3)))
            assert np.bincount(pieces.ravel())[1:].max() >= 0.8 * mask.sum(), count
            assert 0.6 * 40 * 0.7 <= mask.sum() <= 40 * 1.4**2 + 1


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


def test_what_spans_a_larger_image_is_enlarged_before_it_is_continued():
    """A stain from edge to edge of 64 pixels, on an image of 84: its ends must not be mirrored into it."""
    band = np.zeros((64, 64), bool)
    band[20:40] = True
    for seed in range(20):
        placement = sample_mask(bank_of(band), np.ones((84, 84), bool), np.random.default_rng(seed), rotate=False)
        start = -placement.corner[1]
        columns = placement.source[1, placement.source.shape[1] // 2, start : start + 84]
        mirrored = np.sign(np.diff(columns)) != np.sign(columns[-1] - columns[0])
        assert np.isfinite(columns).all() and mirrored.mean() < 0.1


def test_masks_of_products_with_a_direction_are_hardly_turned():
    bar = np.zeros((120, 120), bool)
    bar[58:61, 45:75] = True
    for rotate in (False, True):
        drawn = [sample_mask(bank_of(bar), ~bar | bar, np.random.default_rng(n), rotate=rotate).mask for n in range(20)]
        lying = [np.ptp(np.nonzero(mask)[0]) < np.ptp(np.nonzero(mask)[1]) / 3 for mask in drawn]
        assert all(lying) is not rotate


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


# The foreground


def noisy(image: Image.Image) -> Image.Image:
    grain = np.random.default_rng(0).normal(0, 3, (image.height, image.width, 1))
    return Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))


def overlap(found: np.ndarray, truth: np.ndarray) -> float:
    return (found & truth).sum() / (found | truth).sum()


@pytest.mark.parametrize("size", [(300, 200), (90, 90), (1000, 800)])
@pytest.mark.parametrize("colours", [((240, 240, 240), (120, 80, 40)), ((20, 22, 20), (150, 150, 160))])
def test_the_foreground_of_an_object_on_a_plain_background_is_the_object(size, colours):
    image, truth = Image.new("RGB", size, colours[0]), Image.new("1", size)
    width, height = size
    for canvas, fill in ((image, colours[1]), (truth, 1)):
        ImageDraw.Draw(canvas).ellipse((width * 0.2, height * 0.3, width * 0.7, height * 0.9), fill=fill)
    found = foreground(noisy(image.filter(ImageFilter.GaussianBlur(1))))
    assert found.shape == (height, width) and found.dtype == bool
    assert overlap(found, np.asarray(truth)) > 0.93


def test_the_hole_of_a_nut_is_background():
    image = Image.new("RGB", (200, 200), (230, 230, 230))
    draw = ImageDraw.Draw(image)
    draw.ellipse((30, 30, 170, 170), fill=(90, 90, 90))
    draw.ellipse((70, 70, 130, 130), fill=(230, 230, 230))
    found = foreground(noisy(image))
    assert found[100, 40] and not found[100, 100] and not found[5, 5]


def test_a_small_piece_of_background_in_a_corner_is_background():
    image = Image.new("RGB", (200, 200), (230, 230, 230))
    draw = ImageDraw.Draw(image)
    draw.line((0, 24, 24, 0), fill=(90, 90, 90), width=8)
    draw.polygon((12, 12, 150, 60, 60, 150), fill=(90, 90, 90))
    found = foreground(noisy(image))
    assert found[90, 90] and not found[4, 4]


def test_the_foreground_of_a_texture_is_everything():
    grain = np.random.default_rng(0).normal(128, 25, (120, 160, 3))
    stripes = np.broadcast_to(128 + 60 * np.sin(np.arange(160) / 3)[:, None], (120, 160, 3))
    for texture in (grain, stripes, np.full((120, 160, 3), 100), np.full((3, 2, 3), 100)):
        image = Image.fromarray(texture.clip(0, 255).astype(np.uint8))
        assert foreground(image).shape == texture.shape[:2]
        assert foreground(image).all()


def test_a_speck_on_a_plain_surface_is_no_object():
    image = Image.new("RGB", (200, 200), (150, 150, 150))
    ImageDraw.Draw(image).ellipse((90, 90, 110, 110), fill=(20, 20, 20))
    assert foreground(noisy(image)).all()


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
        mask = sample_mask(bank_of(line), np.ones((100, 400), bool), np.random.default_rng(seed), rotate=False).mask
        rows, columns = np.nonzero(mask)
        straight = np.polyval(np.polyfit(columns, rows, 1), columns)
        assert np.abs(rows - straight).max() > 3 and 2 * ndimage.distance_transform_edt(mask).max() < 11
