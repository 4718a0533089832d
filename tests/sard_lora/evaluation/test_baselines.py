"""Baselines: only the label is written, the same call gives the same bytes, nothing held back is used."""

import numpy as np
import pytest
from PIL import Image

from sard_lora.data import few_shot_split, load_image, load_mask, open_category
from sard_lora.evaluation.baselines import BASELINES, write_baseline
from sard_lora.images import DEFECT, FRINGE
from sard_lora.labelled import LabelledSet
from sard_lora.mask_bank import MaskBank
from sard_lora.masks import sample_mask
from sard_lora.transplant import borrowed, transplant


@pytest.fixture
def split(mvtec):
    return few_shot_split(open_category(mvtec))


def _written(root):
    return {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("method", BASELINES)
def test_outside_the_label_every_pixel_is_the_normal_images(method, split, mvtec, tmp_path):
    output = LabelledSet(tmp_path / "set")
    write_baseline(method, split.train, split.normals, output, 6, mvtec)
    for record in output.records():
        normal = np.asarray(load_image(mvtec / record["normal"]))
        image = load_image(output.root / record["file_name"])
        mask = np.asarray(load_mask(output.root / record["mask_file_name"], image.size)) > 0
        changed = (np.asarray(image) != normal).any(-1)
        assert not changed[~mask].any()
        assert changed[mask].mean() > 0.5


@pytest.mark.parametrize("method", BASELINES)
def test_records_name_training_images_only(method, split, mvtec, tmp_path):
    output = LabelledSet(tmp_path / "set")
    write_baseline(method, split.train, split.normals, output, 4, mvtec)
    records = list(output.records())
    assert len(records) == output.count == 8
    assert {record["method"] for record in records} == {method}
    assert {record["normal"] for record in records} <= {
        sample.image.relative_to(mvtec).as_posix() for sample in split.normals
    }
    if method == "paste":
        assert {record["mask_origin"] for record in records} <= {f"{s.defect}/{s.image.stem}" for s in split.train}
    assert (output.root / "metadata.jsonl").is_file()


def test_records_name_the_images_of_any_layout(paired, tmp_path):
    split, output = few_shot_split(open_category(paired)), LabelledSet(tmp_path / "set")
    write_baseline("paste", split.train, split.normals, output, 2, paired)
    assert all((paired / record["normal"]).is_file() for record in output.records())


@pytest.mark.parametrize("method", BASELINES)
def test_the_same_call_completes_a_killed_set_with_the_same_bytes(method, split, mvtec, tmp_path):
    whole, killed = LabelledSet(tmp_path / "whole"), LabelledSet(tmp_path / "killed")
    write_baseline(method, split.train, split.normals, whole, {"hole": 3, "scratch": 2}, mvtec, seed=5)
    write_baseline(method, split.train, split.normals, killed, {"hole": 1}, mvtec, seed=5)
    write_baseline(method, split.train, split.normals, killed, {"hole": 3, "scratch": 2}, mvtec, seed=5)
    assert _written(whole.root) == _written(killed.root)
    other = LabelledSet(tmp_path / "other")
    write_baseline(method, split.train, split.normals, other, {"hole": 3, "scratch": 2}, mvtec, seed=6)
    assert _written(other.root) != _written(whole.root)


def test_what_cannot_be_drawn_is_named(split, mvtec, tmp_path):
    output = LabelledSet(tmp_path / "paste")
    with pytest.raises(ValueError, match="no normal images"):
        write_baseline("paste", split.train, [], output, 1, mvtec)
    with pytest.raises(ValueError, match=r"no real dent.*hole, scratch"):
        write_baseline("paste", split.train, split.normals, output, {"dent": 1}, mvtec)
    with pytest.raises(ValueError, match=r"baseline 'nsa' is not known.*draem"):
        write_baseline("nsa", split.train, split.normals, output, 1, mvtec)


@pytest.mark.parametrize("method", BASELINES)
def test_areas_are_those_of_the_real_masks(method, split, mvtec, tmp_path):
    """What is labelled a defect, not the fringe of what is pasted: the real ones are squares of 36 pixels."""
    output = LabelledSet(tmp_path / "set")
    write_baseline(method, split.train, split.normals, output, 20, mvtec, margin=4)
    labels = [np.asarray(load_mask(output.root / record["mask_file_name"], (40, 32))) for record in output.records()]
    assert 20 < np.median([(label == DEFECT).sum() for label in labels]) < 60
    assert any((label == FRINGE).any() for label in labels) is (method == "paste")


def test_grey_parts_get_grey_textures(split, mvtec, tmp_path):
    output = LabelledSet(tmp_path / "set")
    write_baseline("draem", split.train, split.normals, output, 5, mvtec)
    for record in output.records():
        assert np.ptp(np.asarray(load_image(output.root / record["file_name"])), axis=2).max() == 0


@pytest.mark.parametrize("method", BASELINES)
def test_fills_hold_nothing_that_is_a_defect(method, split, mvtec, tmp_path):
    """The real defects are squares of brightness 20 on a grey surface around 120."""
    output = LabelledSet(tmp_path / "set")
    write_baseline(method, split.train, split.normals, output, 4, mvtec, fills=True)
    for record in output.records():
        image = load_image(output.root / record["file_name"])
        mask = np.asarray(load_mask(output.root / record["mask_file_name"], image.size)) > 0
        assert np.asarray(image)[mask].min() > 60
        assert record["method"] == f"{method} fill"


def test_paste_fills_are_written_all_over_whatever_the_size_of_the_piece(split, mvtec, tmp_path):
    """A piece of a picture half as large goes on mirrored; the defect lay beyond its border."""
    small = tmp_path / "small.png"
    pixels = np.random.default_rng(0).integers(0, 256, (16, 12), np.uint8)
    Image.fromarray(pixels).save(small)
    place, rng = np.ones((64, 64), bool), np.random.default_rng(1)
    bank = MaskBank.from_samples(split.train).for_defect("hole")
    flat = Image.new("RGB", (64, 64), (128, 128, 128))
    for _ in range(5):
        placement = sample_mask(bank, place, rng, keep_location=0.0)
        written = np.asarray(transplant(flat, borrowed(placement, small)))[..., 0] != 128
        assert written[placement.mask].mean() > 0.9 and not written[~placement.mask].any()
