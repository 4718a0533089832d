"""Real defects are moved exactly as their masks are, and take on the brightness of their new place."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from sard_lora.mask_bank import BankMask
from sard_lora.mask_geometry import overlap
from sard_lora.masks import Placement, sample_mask
from sard_lora.transplant import _interpolated, transplant


@pytest.fixture
def wedge(tmp_path) -> BankMask:
    """A bright wedge with a dark tip on grey, and its mask."""
    rows, columns = np.mgrid[:80, :100]
    mask = (columns >= 30) & (columns < 70) & (abs(rows - 40) <= (columns - 30) / 3)
    pixels = np.where(mask, np.where(columns < 45, 20, 220), 120).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wedge.png")
    return BankMask(mask, "wedge", "wedge/0", tmp_path / "wedge.png")


@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_the_defect_lies_under_its_moved_mask(wedge, keep):
    """Turned, mirrored, scaled and bent: tip and body fill the new mask, and nothing else of the image changes."""
    place, normal = np.ones((90, 120), bool), Image.new("RGB", (120, 90), (120, 120, 120))
    for seed in range(12):
        placement = sample_mask([wedge], place, np.random.default_rng(seed), keep_location=keep)
        moved = np.asarray(transplant(normal, placement), float)[..., 0]
        assert (moved[~placement.mask] == 120).all()
        inside = moved[placement.mask]
        assert (abs(inside - 120) > 40).mean() > 0.8
        assert inside.min() < 60 and inside.max() > 180, "both ends of it"


def test_brightness_is_that_of_the_new_place(wedge):
    normal = Image.new("RGB", (120, 90), (60, 60, 60))
    placement = sample_mask([wedge], np.ones((90, 120), bool), np.random.default_rng(3))
    moved = np.asarray(transplant(normal, placement), float)[..., 0]
    assert abs(np.percentile(moved[placement.mask], 90) - 110) < 15, "twice as bright as its surroundings, as before"


def test_what_a_defect_darkens_around_it_does_not_brighten_it(tmp_path):
    """It has a halo beyond its mask; the light of its old place is that beyond the halo."""
    rows, columns = np.mgrid[:80, :80]
    distance = np.hypot(rows - 40, columns - 40)
    pixels = np.where(distance < 16, 60, np.where(distance < 21, 120, 180)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "spot.png")
    bank = [BankMask(distance < 16, "spot", "spot/0", tmp_path / "spot.png")]
    normal = Image.new("RGB", (80, 80), (180, 180, 180))
    for seed in range(6):
        placement = sample_mask(bank, np.ones((80, 80), bool), np.random.default_rng(seed))
        moved = np.asarray(transplant(normal, placement), float)[..., 0]
        assert abs(np.median(moved[placement.mask]) - 60) < 12


def test_the_change_keeps_the_grain_of_its_new_place(tmp_path):
    """A spot that takes half of the light takes half of every pixel's, to the power of its contrast."""
    rows, columns = np.mgrid[:80, :80]
    mask = np.hypot(rows - 40, columns - 40) < 6
    Image.fromarray(np.where(mask, 76, 160).astype(np.uint8)).save(tmp_path / "spot.png")
    bank = [BankMask(mask, "spot", "spot/0", tmp_path / "spot.png")]
    grain = np.random.default_rng(0).integers(80, 200, (80, 80), dtype=np.uint8)
    normal = Image.fromarray(grain).convert("RGB")
    placement = sample_mask(bank, np.ones((80, 80), bool), np.random.default_rng(1))
    for contrast in (0.5, 1.0):
        moved = np.asarray(transplant(normal, placement, contrast), float)[..., 0]
        assert (moved[~placement.mask] == grain[~placement.mask]).all()
        core = ndimage.binary_erosion(placement.mask, iterations=3)
        assert core.any() and abs(moved[core] - ((grain[core] + 8.0) * 0.5**contrast - 8)).max() < 4


def test_the_surface_of_a_wide_defect_comes_along(tmp_path):
    rows, columns = np.mgrid[:120, :120]
    mask = np.hypot(rows - 60, columns - 60) < 30
    stripes = np.where(columns % 16 < 8, 40, 80)
    Image.fromarray(np.where(mask, stripes, 160).astype(np.uint8)).save(tmp_path / "stain.png")
    bank = [BankMask(mask, "stain", "stain/0", tmp_path / "stain.png")]
    normal = Image.fromarray(np.where(rows % 16 < 8, 130, 190).astype(np.uint8)).convert("RGB")
    placement = sample_mask(bank, np.ones((120, 120), bool), np.random.default_rng(0), grain="across")
    moved = np.asarray(transplant(normal, placement, 1.0), float)[..., 0]
    core = ndimage.binary_erosion(placement.mask, iterations=12)
    along, across = (
        np.abs(np.diff(moved, axis=axis))[core[: 120 - (axis == 0), : 120 - (axis == 1)]] for axis in (0, 1)
    )
    assert across.mean() > 3 * along.mean(), "its own stripes, and not those of its new place"


def test_a_dark_defect_darkens_only(tmp_path):
    """Where a dark scratch crosses a dark bar, the bright product beside the bar is not written over the new place."""
    rows, columns = np.mgrid[:80, :80]
    mask = abs(rows - columns) <= 2
    pixels = np.where((rows >= 36) & (rows < 46), 30, np.where(mask, 100, 150)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "scratch.png")
    bank = [BankMask(mask, "scratch", "scratch/0", tmp_path / "scratch.png")]
    normal = Image.new("RGB", (100, 100), (150, 150, 150))
    for seed in range(4):
        placement = sample_mask(bank, np.ones((100, 100), bool), np.random.default_rng(seed), grain="across")
        moved = np.asarray(transplant(normal, placement, 1.0))[..., 0]
        assert moved.max() <= 150 and moved[placement.mask].min() < 110


@pytest.mark.parametrize("contrast", [None, 1.0])
def test_a_defect_brings_its_halo_where_there_is_room_for_it(tmp_path, contrast):
    """A black spot in a shadow that ends 6 pixels beyond its label."""
    rows, columns = np.mgrid[:80, :80]
    distance = np.hypot(rows - 40, columns - 40)
    shadow = 150 - 100 * np.clip((12 - distance) / 6, 0, 1)
    Image.fromarray(shadow.astype(np.uint8)).save(tmp_path / "spot.png")
    bank = [BankMask(distance <= 6, "spot", "spot/0", tmp_path / "spot.png")]
    normal = Image.new("RGB", (100, 100), (150, 150, 150))
    placement = sample_mask(bank, np.ones((100, 100), bool), np.random.default_rng(0), margin=6)
    moved = np.asarray(transplant(normal, placement, contrast), float)[..., 0]
    beyond = ndimage.distance_transform_edt(~placement.core)
    assert moved[placement.core].max() < 80 < moved[(beyond > 1) & (beyond < 4)].mean() < 135
    assert abs(moved[(beyond > 5) & placement.mask].mean() - 150) < 8


def test_bands_across_the_image_are_moved_too(tmp_path):
    mask = np.zeros((40, 60), bool)
    mask[18:24] = True
    Image.fromarray(np.where(mask, 30, 150).astype(np.uint8)).save(tmp_path / "band.png")
    bank = [BankMask(mask, "band", "band/0", tmp_path / "band.png")]
    normal = Image.new("RGB", (90, 50), (150, 150, 150))
    for seed in range(6):
        placement = sample_mask(bank, np.ones((50, 90), bool), np.random.default_rng(seed), keep_location=1.0)
        moved = np.asarray(transplant(normal, placement), float)[..., 0]
        assert (moved[placement.mask] < 100).mean() > 0.6


def test_without_a_real_image_nothing_changes(wedge):
    normal = Image.new("RGB", (100, 80), (90, 90, 90))
    assert transplant(normal, Placement(wedge.mask, wedge.mask, "stroke")) is normal
    place = np.ones((80, 100), bool)
    assert sample_mask([wedge], place, np.random.default_rng(0), "perlin").source is None


def test_a_change_fades_out_where_its_picture_ends(tmp_path):
    """A stripe that runs out of its picture has no hard end where it is moved into the middle of another."""
    stripe = np.zeros((80, 80), bool)
    stripe[38:42, :40] = True
    Image.fromarray(np.where(stripe, 76, 160).astype(np.uint8)).save(tmp_path / "stripe.png")
    bank = [BankMask(stripe, "scratch", "scratch/0", tmp_path / "stripe.png")]
    flat = Image.new("RGB", (200, 200), (160, 160, 160))
    for seed in range(10):
        placement = sample_mask(
            bank, np.ones((200, 200), bool), np.random.default_rng(seed), keep_location=0.0, margin=3
        )
        known = ((placement.source >= 0) & (placement.source <= 79)).all(0)
        box, inner = overlap(placement.corner, known.shape, (200, 200))
        moved = 160 - np.asarray(transplant(flat, placement, 1.0), float)[..., 0][box]
        end = known[inner] & ~ndimage.binary_erosion(known[inner], border_value=1) & placement.mask[box]
        assert moved.max() > 60 and moved[end].max(initial=0) < 0.65 * moved.max()


@pytest.mark.parametrize("corner", [(-3, 5), (180, 250), (388, 470)])
def test_of_a_large_picture_a_part_is_read_as_if_it_were_the_whole(corner):
    picture = np.random.default_rng(0).integers(0, 256, (400, 500, 3), dtype=np.uint8)
    where = np.mgrid[0:20, 0:30] * 0.9 + np.array(corner)[:, None, None] + 0.3
    planes = np.moveaxis(np.float32(picture), 2, 0)
    whole = [ndimage.map_coordinates(plane, where, order=3, mode="nearest") for plane in planes]
    assert np.array_equal(_interpolated(picture, where), np.stack(whole, 2))
