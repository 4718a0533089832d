"""What is held back never teaches: by its pixels or by its record, a leaking image is named and refused."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from sard_lora.data import few_shot_split, open_category
from sard_lora.evaluation.leaks import held_back, read_record, refuse_leaks
from sard_lora.labelled import LabelledSet


@pytest.fixture
def category(mvtec):
    return open_category(mvtec)


@pytest.fixture
def split(category):
    return few_shot_split(category)


@pytest.fixture
def samples_with(tmp_path, mvtec):
    """Samples of a synthetic set of one image with the given record."""

    def make(**record):
        output = LabelledSet(tmp_path / "synthetic")
        image = Image.open(mvtec / "train/good/000.png").transpose(Image.Transpose.ROTATE_180)
        output.add("hole", "000000", image, np.ones((image.height, image.width), dtype=bool), record)
        return open_category(output.root).anomalies

    return make


def test_what_a_manifest_excludes_is_held_back_unless_it_is_there_twice(mvtec, samples_with):
    shutil.copy(mvtec / "train/good/000.png", mvtec / "train/good/twice.png")
    names = [path.relative_to(mvtec).as_posix() for path in sorted(mvtec.glob("t*/*/*.png"))]
    left_out = {"train/good/001.png", "train/good/twice.png"}
    rows = [f"{name},{name},{'elsewhere' if name in left_out else ''}" for name in names]
    (mvtec / "manifest.csv").write_text("\n".join(["path,group,exclude", *rows]))
    category = open_category(mvtec)
    split = few_shot_split(category)
    by_name = {sample.image.relative_to(mvtec).as_posix(): sample for sample in category.samples}
    refuse_leaks([by_name["train/good/000.png"]], category, split)
    with pytest.raises(ValueError, match=r"held-back image .*001.png"):
        refuse_leaks([by_name["train/good/001.png"]], category, split)
    with pytest.raises(ValueError, match=r"made from the held-back normal image train/good/001.png"):
        refuse_leaks(samples_with(normal="train/good/001.png"), category, split)


def test_another_picture_of_a_held_back_ones_name_is_no_leak_where_the_set_carries_it(
    mvtec, category, split, samples_with, tmp_path
):
    name = split.threshold[0].image.relative_to(mvtec).as_posix()
    with pytest.raises(ValueError, match=rf"made from the held-back normal image {name}"):
        refuse_leaks(samples_with(normal=name), category, split)
    carried = tmp_path / "synthetic" / name
    carried.parent.mkdir(parents=True)
    Image.open(mvtec / name).transpose(Image.Transpose.ROTATE_180).save(carried)
    refuse_leaks(samples_with(normal=name), category, split)
    shutil.copy(mvtec / name, carried)
    with pytest.raises(ValueError, match=rf"made from the held-back normal image {name}"):
        refuse_leaks(samples_with(normal=name), category, split)


def test_an_excluded_picture_of_a_held_back_part_is_held_back_though_it_is_there_twice(mvtec, category, split):
    tested = next(sample for sample in split.test if sample.defect == "hole")
    for name in ("test/hole/again.png", "train/good/twice.png"):
        shutil.copy(mvtec / "test/scratch/000.png", mvtec / name)
    shutil.copy(tested.mask, mvtec / "ground_truth/hole/again_mask.png")
    names = [path.relative_to(mvtec).as_posix() for path in sorted(mvtec.glob("t*/*/*.png"))]
    part = tested.image.relative_to(mvtec).as_posix()
    rows = [f"{n},{part if n.endswith('again.png') else n},{'x' if n.endswith('again.png') else ''}" for n in names]
    (mvtec / "manifest.csv").write_text("\n".join(["path,group,exclude", *rows]))
    category = open_category(mvtec)
    (twice,) = (sample for sample in category.samples if sample.image.name == "twice.png")
    with pytest.raises(ValueError, match=r"held-back image .*again.png"):
        refuse_leaks([twice], category, few_shot_split(category))


@pytest.mark.parametrize(
    "record",
    [
        {"normal": "train/good/003.png", "mask_origin": "hole/000"},
        {"normal": "003.png", "mask_origin": "perlin"},
        {"normal": "001.png"},  # both sides have a 001.png: the training side's is meant
        {},
    ],
)
def test_sets_made_from_the_training_side_pass(category, split, samples_with, record):
    refuse_leaks(samples_with(**record), category, split)


@pytest.mark.parametrize(
    "normal", ["test/good/001.png", "good_parts/../test/good/001.png", "D:\\tiles\\test\\good\\001.png"]
)
def test_a_held_back_normal_image_is_named(category, split, samples_with, normal):
    with pytest.raises(ValueError, match=r"(?s)1 training images leak.*000000\.png.*held-back normal image.*001\.png"):
        refuse_leaks(samples_with(normal=normal), category, split)


def test_what_the_threshold_is_set_on_is_held_back(category, split, samples_with):
    (sample,) = split.threshold
    with pytest.raises(ValueError, match=r"held-back normal image train/good/004\.png"):
        refuse_leaks(samples_with(normal=f"train/good/{sample.image.name}"), category, split)


@pytest.mark.parametrize("origin", ["hole/006", "006", "ground_truth/hole/006_mask.png", "perlin(hole/006)"])
def test_a_mask_of_a_held_back_defect_is_named(category, split, samples_with, origin):
    with pytest.raises(ValueError, match="held-back defect hole/006"):
        refuse_leaks(samples_with(normal="train/good/000.png", mask_origin=origin), category, split)


def test_names_with_spaces_and_brackets_are_told_apart(mvtec, samples_with):
    for folder, suffix in (("test", ""), ("ground_truth", "_mask")):
        for name in ("000", "006"):
            (mvtec / folder / f"hole/{name}{suffix}.png").rename(mvtec / folder / f"hole/{name} (1){suffix}.png")
    category = open_category(mvtec)
    split = few_shot_split(category)
    refuse_leaks(samples_with(mask_origin="hole/000 (1)"), category, split)
    with pytest.raises(ValueError, match=r"held-back defect hole/006 \(1\)"):
        refuse_leaks(samples_with(mask_origin="hole/006 (1)"), category, split)


def test_the_dev_side_is_held_back_as_well_as_the_test_side(category, split, samples_with):
    for side in (split.dev, split.test):
        held = next(sample for sample in side if sample.defect == "hole")
        with pytest.raises(ValueError, match="held-back defect"):
            refuse_leaks(samples_with(mask_origin=f"hole/{held.image.stem}"), category, split)


def test_normal_images_of_held_back_parts_are_held_back(category, split, samples_with):
    """A train/good image that shows the same part as a tested defect is no training image."""
    group = next(sample.group for sample in split.test if sample.defect == "hole")
    normals = tuple(
        replace(sample, group=group) if sample.image.name == "003.png" else sample for sample in category.train_normals
    )
    category = replace(category, train_normals=normals)
    split = few_shot_split(category)
    assert any(
        sample.image.name == "003.png" and sample in category.train_normals for sample in held_back(category, split)
    )
    with pytest.raises(ValueError, match=r"held-back normal image train/good/003\.png"):
        refuse_leaks(samples_with(normal="train/good/003.png"), category, split)


def test_a_copy_of_a_held_back_image_is_found_by_its_pixels(category, split, tmp_path):
    held = next(sample for sample in split.test if sample.mask is not None)
    root = tmp_path / "others"
    for source, target in ((held.image, "test/x/copy.bmp"), (held.mask, "ground_truth/x/copy_mask.png")):
        (root / target).parent.mkdir(parents=True)
        Image.open(source).save(root / target)
    with pytest.raises(ValueError, match=rf"copy\.bmp: is the held-back image .*{held.image.name}"):
        refuse_leaks(open_category(root).anomalies, category, split)


def test_images_of_other_programs_carry_no_record_and_pass(category, split, mvtec, tmp_path):
    shutil.copytree(mvtec / "test/hole", tmp_path / "copy")
    assert read_record(tmp_path / "copy/000.png") is None
    refuse_leaks(split.train, category, split)
