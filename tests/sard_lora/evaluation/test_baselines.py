"""Pasted defects: only the label is written, the same call gives the same bytes, nothing held back is used."""

import numpy as np
import pytest
from PIL import Image

from sard_lora.data import few_shot_split, load_image, load_mask, open_category
from sard_lora.evaluation.baselines import Cutout, cut_out, paste, transform, write_paste
from sard_lora.labelled import LabelledSet


@pytest.fixture
def split(mvtec):
    return few_shot_split(open_category(mvtec))


def _written(root):
    return {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_outside_the_label_every_pixel_is_the_normal_images(split, mvtec, tmp_path):
    output = LabelledSet(tmp_path / "paste")
    write_paste(split.train, split.normals, output, 6)
    for record in output.records():
        normal = np.asarray(load_image(mvtec / record["normal"]))
        image = load_image(output.root / record["file_name"])
        mask = np.asarray(load_mask(output.root / record["mask_file_name"], image.size)) > 0
        changed = (np.asarray(image) != normal).any(-1)
        assert not changed[~mask].any()
        assert changed[mask].mean() > 0.7  # a dark square on a grey surface


def test_records_name_training_images_only(split, mvtec, tmp_path):
    output = LabelledSet(tmp_path / "paste")
    write_paste(split.train, split.normals, output, 4)
    records = list(output.records())
    assert len(records) == output.count == 8
    assert {record["method"] for record in records} == {"paste"}
    assert {record["normal"] for record in records} <= {
        sample.image.relative_to(mvtec).as_posix() for sample in split.normals
    }
    assert {record["mask_origin"] for record in records} <= {f"{s.defect}/{s.image.stem}" for s in split.train}
    assert (output.root / "metadata.jsonl").is_file()


def test_the_same_call_completes_a_killed_set_with_the_same_bytes(split, tmp_path):
    whole, killed = LabelledSet(tmp_path / "whole"), LabelledSet(tmp_path / "killed")
    write_paste(split.train, split.normals, whole, {"hole": 3, "scratch": 2}, seed=5)
    write_paste(split.train, split.normals, killed, {"hole": 1}, seed=5)
    write_paste(split.train, split.normals, killed, {"hole": 3, "scratch": 2}, seed=5)
    assert _written(whole.root) == _written(killed.root)
    other = LabelledSet(tmp_path / "other")
    write_paste(split.train, split.normals, other, {"hole": 3, "scratch": 2}, seed=6)
    assert _written(other.root) != _written(whole.root)


def test_a_defect_takes_on_the_brightness_of_its_new_surroundings():
    """A defect 40 levels darker than its surroundings stays so, on a darker part as well."""
    mask = np.zeros((30, 30), dtype=bool)
    mask[10:20, 10:20] = True
    cutout = Cutout(np.where(mask[..., None], 160.0, 200.0) * np.ones(3), mask, np.ones_like(mask), (0.5, 0.5))
    image = np.full((60, 60, 3), 100, dtype=np.uint8)
    result, written = paste(image, np.ones((60, 60), dtype=bool), cutout, np.random.default_rng(0))
    assert result[written].min() == 60
    assert written.sum() == 100
    assert (result[~written] == 100).all()


def test_the_edge_is_blended_inwards_and_the_core_is_the_defect():
    mask = np.zeros((30, 30), dtype=bool)
    mask[5:25, 5:25] = True
    cutout = Cutout(np.where(mask[..., None], 0.0, 100.0) * np.ones(3), mask, np.ones_like(mask), (0.5, 0.5))
    image = np.full((90, 90, 3), 100, dtype=np.uint8)
    result, written = paste(image, np.ones((90, 90), dtype=bool), cutout, np.random.default_rng(0))
    assert np.unique(result[written]).tolist() == [0, 50]


def test_defects_stay_on_the_part():
    mask = np.ones((9, 9), dtype=bool)
    cutout = Cutout(np.zeros((9, 9, 3)), mask, mask, (0.1, 0.9))
    part = np.zeros((50, 50), dtype=bool)
    part[10:40, 10:30] = True
    image = np.full((50, 50, 3), 200, dtype=np.uint8)
    places = [paste(image, part, cutout, np.random.default_rng(seed)) for seed in range(50)]
    found = [written for result in places if result is not None for written in [result[1]]]
    assert found and all(not (written & ~part).any() and written.sum() >= 41 for written in found)


def test_one_pixel_scratches_survive_turning():
    mask = np.zeros((40, 12), dtype=bool)
    mask[4:36, 6] = True
    cutout = Cutout(np.zeros((40, 12, 3)), mask, np.ones_like(mask), (0.5, 0.5))
    for seed in range(50):
        assert transform(cutout, np.random.default_rng(seed)).mask.sum() >= 12


def test_a_cut_out_at_the_edge_of_its_image_keeps_its_place(split):
    sample = split.train[0]
    cutout = cut_out(sample)
    truth = np.asarray(Image.open(sample.mask)) > 0
    rows, columns = np.nonzero(truth)
    assert cutout.mask.sum() == truth.sum()
    assert cutout.centre == pytest.approx(
        ((rows.mean() + 0.5) / truth.shape[0], (columns.mean() + 0.5) / truth.shape[1])
    )


def test_what_cannot_be_pasted_is_named(split, tmp_path):
    output = LabelledSet(tmp_path / "paste")
    with pytest.raises(ValueError, match="no normal images"):
        write_paste(split.train, [], output, 1)
    with pytest.raises(ValueError, match=r"no real dent.*hole, scratch"):
        write_paste(split.train, split.normals, output, {"dent": 1})
