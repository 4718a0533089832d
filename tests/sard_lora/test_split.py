"""The few-shot split: no part on two sides, drawn, excluded, and kept apart on real data."""

import shutil
from collections import Counter
from pathlib import Path

import pytest
from manifest import manifest

from sard_lora import data
from sard_lora.data import (
    GOOD,
    DataError,
    Sample,
    Split,
    few_shot_split,
    find_problems,
    open_category,
)

REAL = Path(__file__).parents[3] / "shared" / "data"
needs_real_data = pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data is not here")


def sides(split: Split) -> dict[str, set[str]]:
    return {
        "train": {sample.group for sample in (*split.train, *split.normals)},
        "dev": {sample.group for sample in split.dev},
        "test": {sample.group for sample in split.test},
    }


def counts(samples: tuple[Sample, ...]) -> dict[str, int]:
    return dict(Counter(sample.defect for sample in samples))


def names(samples: tuple[Sample, ...], defect: str) -> list[str]:
    return [sample.image.stem for sample in samples if sample.defect == defect]


def test_a_third_of_each_defect_trains_and_the_rest_alternates_between_test_and_dev(mvtec: Path):
    split = few_shot_split(open_category(mvtec))
    assert names(split.train, "hole") == ["000", "001"]
    assert names(split.train, "scratch") == ["000", "001"]
    assert names(split.test, "hole") == ["002", "004", "006"]
    assert names(split.dev, "hole") == ["003", "005"]
    assert names(split.test, GOOD) == ["000", "002"]
    assert names(split.dev, GOOD) == ["001"]
    assert names(split.threshold, GOOD) == ["004"]
    assert len(split.normals) == 5 and split.unused == ()


def test_every_fifth_normal_group_sets_the_threshold_up_to_sixty_images(mvtec: Path):
    for number in range(6, 12):
        shutil.copy(mvtec / "train/good/000.png", mvtec / f"train/good/{number:03}.png")
    category = open_category(mvtec)
    assert names(few_shot_split(category).threshold, GOOD) == ["004", "009"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "THRESHOLD_IMAGES", 1)
        assert names(few_shot_split(category).threshold, GOOD) == ["004"]
        patch.setattr(data, "THRESHOLD_IMAGES", 0)
        assert few_shot_split(category).threshold == (), "none, where the first of them has more"
    manifest(mvtec, {"train/good/004.png": "part", "test/hole/000.png": "part"})
    split = few_shot_split(open_category(mvtec))
    assert "part" in {sample.group for sample in split.normals}, "what shows a part to train on sets none"


@pytest.mark.parametrize("shots", [1, 2, 9])
def test_what_is_held_back_does_not_depend_on_the_shots(mvtec: Path, shots: int):
    category = open_category(mvtec)
    full, few = few_shot_split(category), few_shot_split(category, shots)
    assert (few.dev, few.test, few.normals) == (full.dev, full.test, full.normals)
    assert names(few.train, "hole") == names(full.train, "hole")[:shots]
    assert len(few.train) + len(few.unused) == len(full.train)


def test_every_draw_takes_the_next_parts_and_holds_back_the_same(mvtec: Path):
    category = open_category(mvtec)
    draws = [few_shot_split(category, 1, draw) for draw in range(3)]
    assert [names(split.train, "hole") for split in draws] == [["000"], ["001"], ["000"]]
    assert len({(split.dev, split.test, split.normals) for split in draws}) == 1
    assert (
        few_shot_split(category, 2, 1).train
        == few_shot_split(category).train
        == few_shot_split(category, None, 1).train
    )


def test_shots_below_one_and_draws_below_zero_are_refused(mvtec: Path):
    with pytest.raises(ValueError, match="shots: 0"):
        few_shot_split(open_category(mvtec), 0)
    with pytest.raises(ValueError, match="draw: -1"):
        few_shot_split(open_category(mvtec), 1, -1)


def test_a_group_is_on_one_side_with_everything_it_has(mvtec: Path):
    manifest(
        mvtec,
        {
            "test/hole/000.png": "a",
            "test/hole/001.png": "a",
            "test/scratch/000.png": "a",
            "test/good/000.png": "a",  # a training group's image for testing
            "train/good/000.png": "a",
            "test/hole/006.png": "z",
            "train/good/001.png": "z",  # a held-back group's image for training
            "train/good/002.png": "normal in both",
            "test/good/001.png": "normal in both",
        },
    )
    category = open_category(mvtec)
    split = few_shot_split(category)
    assert sum(sample.group == "a" for sample in split.train) == 3
    assert [str(sample.image.relative_to(mvtec)) for sample in split.unused] == [
        "train/good/001.png",
        "train/good/002.png",
        "test/good/000.png",
    ]
    assert "normal in both" in sides(split)["dev"] | sides(split)["test"]
    assert_sound_split(category, split)


def test_a_group_that_would_overfill_one_of_its_defects_is_held_back(mvtec: Path):
    # Six groups of each: two holes fill the quota, so the third group is held back although its scratch would fit.
    manifest(mvtec, {"test/hole/002.png": "test/hole/001b", "test/scratch/000.png": "test/hole/001b"})
    split = few_shot_split(open_category(mvtec))
    assert names(split.train, "hole") == ["000", "001"]
    assert names(split.train, "scratch") == ["001", "002"]


def test_a_defect_of_one_group_is_refused(mvtec: Path):
    manifest(mvtec, {f"test/hole/{number:03}.png": "one part" for number in range(7)})
    with pytest.raises(ValueError, match=r"plate: hole: a single group"):
        few_shot_split(open_category(mvtec))


def test_a_defect_that_no_training_group_can_hold_is_refused(mvtec: Path):
    together = {f"test/{defect}/{n:03}.png": f"z{n}" for defect in ("hole", "scratch") for n in range(6)}
    manifest(mvtec, together | {"test/hole/006.png": "a"})
    for number in (1, 2, 3):  # two holes' quota of one is then filled by group a
        for folder in ("test", "ground_truth"):
            for defect in ("hole", "scratch"):
                for path in (mvtec / folder / defect).glob(f"{number:03}*"):
                    path.unlink()
    with pytest.raises(ValueError, match=r"every group with scratch also holds"):
        few_shot_split(open_category(mvtec))


def assert_sound_split(category, split: Split) -> None:
    groups = sides(split)
    assert not groups["train"] & groups["dev"]
    assert not groups["train"] & groups["test"]
    assert not groups["dev"] & groups["test"]
    alone = {sample.group for sample in split.threshold}
    assert not alone & {group for side in groups.values() for group in side}
    parts = [*split.train, *split.normals, *split.threshold, *split.dev, *split.test, *split.unused]
    assert sorted(parts, key=lambda s: s.image) == sorted(category.samples, key=lambda s: s.image)
    for defect in category.defects:
        assert names(split.train, defect) and names(split.test, defect)


@needs_real_data
@pytest.mark.parametrize(
    ("name", "train", "dev", "test", "normals"),
    [
        (
            "magnetic_tile",
            {"blowhole": 35, "break": 24, "crack": 21, "fray": 8, "uneven": 29},
            {"blowhole": 38, "break": 26, "crack": 16, "fray": 12, "uneven": 34, GOOD: 92},
            {"blowhole": 42, "break": 35, "crack": 20, "fray": 12, "uneven": 36, GOOD: 98},
            (702, 60),
        ),
        (
            "pv_cell_4bb",
            {"crack": 15, "crack_cross": 38, "cross": 16, "dark": 67},
            {"crack": 16, "crack_cross": 38, "cross": 14, "dark": 97, GOOD: 43},
            {"crack": 16, "crack_cross": 36, "cross": 14, "dark": 69, GOOD: 40},
            (222, 52),
        ),
    ],
)
def test_the_split_of_real_data_keeps_parts_apart(name: str, train: dict, dev: dict, test: dict, normals: tuple):
    category = open_category(REAL, name)
    assert find_problems(category) == []
    split = few_shot_split(category)
    assert_sound_split(category, split)
    assert (counts(split.train), counts(split.dev), counts(split.test)) == (train, dev, test)
    assert (len(split.normals), len(split.threshold)) == normals


def test_excluded_images_are_on_no_side_and_move_no_other(mvtec: Path):
    manifest(mvtec, {})
    whole = few_shot_split(open_category(mvtec))
    gone = [whole.train[0], whole.normals[0], whole.threshold[0], whole.dev[0], whole.test[-1]]
    manifest(mvtec, {}, [sample.image.relative_to(mvtec).as_posix() for sample in gone])
    split = few_shot_split(open_category(mvtec))
    for side in ("train", "normals", "threshold", "dev", "test"):
        before, after = getattr(whole, side), getattr(split, side)
        assert list(after) == [sample for sample in before if sample not in gone] and len(after) == len(before) - 1
    assert set(gone) <= set(split.unused)
    assert few_shot_split(open_category(mvtec), shots=1).train[0] == whole.train[1], "the next part takes its place"


def test_a_defect_needs_one_image_to_train_on_that_is_not_excluded(mvtec: Path):
    train = [sample for sample in few_shot_split(open_category(mvtec)).train if sample.defect == "hole"]
    manifest(mvtec, {}, [sample.image.relative_to(mvtec).as_posix() for sample in train])
    with pytest.raises(DataError, match=r"all images of hole on the training side are excluded"):
        few_shot_split(open_category(mvtec))
