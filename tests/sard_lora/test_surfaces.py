"""Procedural products: one seed one picture, masks that are exactly what was written, a layout that others read."""

import numpy as np
import pytest
from PIL import Image

from sard_lora.defects import DEFECTS, add_defect
from sard_lora.surfaces import PRODUCTS, draw_anomaly, draw_normal, write_category
from sard_lora.textures import SURFACES, photograph, random_surface


@pytest.mark.parametrize("name", SURFACES)
def test_every_surface_is_drawn_from_its_seed(name):
    first, again, other = (SURFACES[name](48, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == (48, 48)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.isfinite(first).all()
    assert first.std() > 0.003


def test_random_surfaces_differ_and_stay_in_range():
    names, means = set(), []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        image, name = random_surface(32, rng)
        shot = photograph(image, rng)
        assert image.shape == shot.shape == (32, 32, 3)
        assert shot.dtype == np.float32
        assert 0 <= shot.min() <= shot.max() <= 1
        names.add(name)
        means.append(shot.mean())
    assert len(names) > 10
    assert min(means) < 0.25
    assert max(means) > 0.65


@pytest.mark.parametrize("name", DEFECTS)
def test_mask_is_exactly_what_was_written(name):
    for seed in range(12):
        rng = np.random.default_rng(seed)
        image, _ = random_surface(96, rng)
        damaged, mask = add_defect(image, name, rng, 96 * rng.uniform(0.1, 0.6))
        changed = np.abs(damaged - image).max(2)
        assert mask.any()
        assert not changed[~mask].any()
        assert 0 <= damaged.min() <= damaged.max() <= 1
        # Hardly a pixel of the label is left as it was; a smear of a plain patch may keep some.
        assert (changed[mask] > 1 / 255).mean() > (0.3 if name in ("smear", "dent") else 0.7)


def test_defects_can_be_seen():
    for name in DEFECTS:
        visible = []
        for seed in range(10):
            rng = np.random.default_rng(seed)
            image, _ = random_surface(96, rng)
            damaged, mask = add_defect(image, name, rng, 40)
            visible.append(np.abs(damaged - image)[mask].mean())
        assert np.median(visible) > 0.06, name


def test_defect_stays_on_the_foreground_however_thin():
    image = np.full((64, 64, 3), 0.5, np.float32)
    thin = np.zeros((64, 64), bool)
    thin[31, 5:9] = True
    for name in DEFECTS:
        _, mask = add_defect(image, name, np.random.default_rng(0), 30, thin)
        assert mask.any()
        assert not (mask & ~thin).any()


def test_unknown_defect_and_empty_foreground_are_named():
    image = np.full((16, 16, 3), 0.5, np.float32)
    with pytest.raises(ValueError, match=r"'rot'.*scratch"):
        add_defect(image, "rot", np.random.default_rng(0), 5)
    with pytest.raises(ValueError, match="foreground is empty"):
        add_defect(image, "pit", np.random.default_rng(0), 5, np.zeros((16, 16), bool))


def test_three_products_with_two_defects_each():
    assert len(PRODUCTS) >= 3
    assert all(len(product.defects) >= 2 for product in PRODUCTS.values())
    assert all(set(product.defects) <= set(DEFECTS) for product in PRODUCTS.values())


@pytest.mark.parametrize("product", PRODUCTS)
def test_product_looks_alike_from_picture_to_picture_but_never_the_same(product):
    pictures = [draw_normal(product, np.random.default_rng(seed), 96).astype(float) for seed in range(3)]
    means = [picture.mean((0, 1)) for picture in pictures]
    assert np.abs(means[0] - means[1]).max() < 25
    assert np.abs(pictures[0] - pictures[1]).mean() > 1


def test_defects_of_a_washer_lie_on_the_washer():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        for defect in PRODUCTS["washer"].defects:
            picture, mask = draw_anomaly("washer", defect, rng, 128)
            assert picture.shape == (128, 128, 3)
            rows, columns = np.nonzero(mask)
            radius = np.hypot(rows - 63.5, columns - 63.5) / 64
            assert radius.max() < 0.95
            assert radius.min() > 0.2


def test_other_products_defect_is_refused():
    with pytest.raises(ValueError, match=r"leather has no defect 'stain'.*hole"):
        draw_anomaly("leather", "stain", np.random.default_rng(0))


def test_category_is_mvtec_layout_and_reproducible(tmp_path):
    first = write_category("washer", tmp_path / "a", normals=3, anomalies_per_defect=2, size=64)
    again = write_category("washer", tmp_path / "b", normals=2, anomalies_per_defect=1, size=64)
    assert first == tmp_path / "a"
    assert sorted(path.name for path in (first / "train/good").iterdir()) == ["000.png", "001.png", "002.png"]
    assert len(list((first / "test/good").iterdir())) == 1
    for defect in PRODUCTS["washer"].defects:
        for name in ("000", "001"):
            image = Image.open(first / "test" / defect / f"{name}.png")
            mask = np.asarray(Image.open(first / "ground_truth" / defect / f"{name}_mask.png"))
            assert image.mode == "RGB"
            assert image.size == (64, 64) == mask.shape
            assert set(np.unique(mask)) == {0, 255}
    # A picture depends on its number and the seed alone: a smaller set is the beginning of a larger one.
    for path in again.rglob("*.png"):
        assert path.read_bytes() == (first / path.relative_to(again)).read_bytes()


def test_unknown_product_and_counts_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'gear'.*leather"):
        write_category("gear", tmp_path)
    with pytest.raises(ValueError, match="normals=0"):
        write_category("washer", tmp_path, normals=0)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=rf"{tmp_path}: is not empty.*another folder"):
        write_category("washer", tmp_path, normals=1, anomalies_per_defect=1, size=32)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
