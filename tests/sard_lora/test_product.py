"""Where the product is, whether it has a grain, and whether parts are aligned."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from sard_lora.product import are_aligned, foreground, grain_of
from sard_lora.surfaces import write_category


def test_the_grain_of_a_surface_is_known(tmp_path):
    def saved(name: str, pixels: np.ndarray) -> list[Path]:
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{name}.png")
        return [tmp_path / f"{name}.png"] * 3

    grains = np.random.default_rng(0).uniform(0, 250, (60, 80, 3))
    brushed = 0.9 * grains.mean(1, keepdims=True) + 0.1 * grains
    assert grain_of(saved("grains", grains)) == grain_of(saved("plain", np.zeros((8, 8, 3)))) == "none"
    assert grain_of(saved("lying", brushed)) == "across"
    assert grain_of(saved("standing", brushed.swapaxes(0, 1))) == "down"


def test_objects_in_one_pose_are_aligned_and_surfaces_are_not(tmp_path):
    for product in ("washer", "printed_tile", "leather", "brushed_steel"):
        write_category(product, tmp_path / product, normals=12, anomalies_per_defect=3, seed=0, size=64)
        paths = sorted((tmp_path / product / "train/good").iterdir())
        assert are_aligned(paths) is (product in ("washer", "printed_tile")), product
        assert are_aligned(paths[:1]) is are_aligned([]) is False


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
