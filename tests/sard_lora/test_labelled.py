from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sard_lora.data import find_problems, open_category
from sard_lora.images import DEFECT, FRINGE, load_mask
from sard_lora.labelled import LabelledSet


def sample(seed: int, size=(20, 14)) -> tuple[Image.Image, np.ndarray]:
    """A (width, height) image and its (H, W) mask of one pixel or more."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(size[::-1], bool)
    mask[rng.integers(14), rng.integers(20)] = True
    return Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8)), mask


def fill(labelled: LabelledSet, defect: str = "crack", count: int = 3) -> None:
    for number in range(count):
        record = {"defect": defect, "seed": number, "critic_score": 0.5 if number else None, "prompt": "a crack"}
        labelled.add(defect, f"{number:06}", *sample(number), record)


def test_images_and_masks_come_back_to_the_bit_from_the_mvtec_layout(tmp_path: Path, mvtec: Path):
    labelled = LabelledSet(tmp_path / "set")
    fill(labelled)
    labelled.add_normals(open_category(mvtec).train_normals)
    labelled.write_metadata()
    category = open_category(tmp_path / "set")
    assert (category.layout, category.defects, len(category.train_normals)) == ("mvtec", ("crack",), 6)
    assert find_problems(category) == []
    for number, found in enumerate(category.anomalies):
        image, mask = sample(number)
        assert np.array_equal(np.asarray(Image.open(found.image)), np.asarray(image))
        assert np.array_equal(np.asarray(Image.open(found.mask)), mask * np.uint8(255))


def test_a_fringe_is_told_from_its_defect(tmp_path: Path):
    image, _ = sample(0)
    mask, core = np.zeros((2, 14, 20), bool)
    mask[2:12, 2:12] = core[5:8, 5:8] = True
    labelled = LabelledSet(tmp_path / "set")
    labelled.add("crack", "000000", image, mask, {"seed": 0}, core)
    category = open_category(tmp_path / "set")
    assert not [problem for problem in find_problems(category) if "mask" in str(problem)]
    label = np.asarray(load_mask(category.anomalies[0].mask, image.size))
    assert np.array_equal(label > 0, mask) and np.array_equal(label == DEFECT, core)
    labelled.add("crack", "000001", image, mask | True, {"seed": 1}, core)
    label = np.asarray(load_mask(labelled.root / "ground_truth/crack/000001_mask.png", image.size))
    assert np.array_equal(label == FRINGE, ~core), "also where nothing is left of the background"
    with pytest.raises(ValueError, match="the mask is empty"):
        labelled.add("crack", "000002", image, mask, {"seed": 2}, core & False)


def test_datasets_reads_images_and_masks_side_by_side(tmp_path: Path, mvtec: Path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from datasets import load_dataset

    labelled = LabelledSet(tmp_path / "set")
    fill(labelled)
    fill(labelled, "hole", 2)
    labelled.add_normals(open_category(mvtec).train_normals)
    labelled.write_metadata()
    rows = load_dataset(
        "imagefolder",
        data_dir=str(tmp_path / "set"),
        data_files="metadata.jsonl",
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert rows["defect"] == ["crack"] * 3 + ["hole"] * 2
    assert rows["critic_score"] == [None, 0.5, 0.5, None, 0.5]
    for row in rows:
        image, mask = sample(row["seed"])
        assert np.array_equal(np.asarray(row["image"]), np.asarray(image))
        assert np.array_equal(np.asarray(row["mask"]) > 0, mask)


def test_records_travel_inside_the_images(tmp_path: Path):
    labelled = LabelledSet(tmp_path)
    labelled.add("crack", "000007", *sample(0), {"seed": 7, "prompt": "größer\n“crack”"})
    (record,) = LabelledSet(tmp_path).records()
    assert record == {
        "file_name": "test/crack/000007.png",
        "mask_file_name": "ground_truth/crack/000007_mask.png",
        "seed": 7,
        "prompt": "größer\n“crack”",
    }


def test_names_and_counts_are_those_on_disk(tmp_path: Path):
    labelled = LabelledSet(tmp_path)
    assert (labelled.names("crack"), labelled.count, labelled.has("crack", "000000")) == ([], 0, False)
    fill(labelled)
    fill(labelled, "hole", 1)
    assert labelled.names("crack") == ["000000", "000001", "000002"]
    assert labelled.count == 4
    assert labelled.has("hole", "000000") and not labelled.has("hole", "000001")


def test_the_same_content_gives_the_same_bytes(tmp_path: Path):
    for name in ("a", "b"):
        fill(LabelledSet(tmp_path / name))
        LabelledSet(tmp_path / name).write_metadata()
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) == 7
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


@pytest.mark.parametrize("stage", ["mask", "image"])
def test_an_interrupted_write_leaves_nothing_half_made_and_the_set_goes_on(tmp_path: Path, monkeypatch, stage: str):
    labelled = LabelledSet(tmp_path)
    fill(labelled, count=1)
    whole_save = Image.Image.save

    def dying_save(image, path, **options):
        if ("_mask" in str(path)) == (stage == "mask"):
            Path(path).write_bytes(b"\x89PNG half of it")
            raise KeyboardInterrupt
        whole_save(image, path, **options)

    monkeypatch.setattr(Image.Image, "save", dying_save)
    with pytest.raises(KeyboardInterrupt):
        labelled.add("crack", "000001", *sample(1), {"seed": 1})
    monkeypatch.undo()
    assert labelled.names("crack") == ["000000"] and not labelled.has("crack", "000001")
    assert not list(tmp_path.rglob("*.partial*"))

    fill(labelled)
    assert labelled.names("crack") == ["000000", "000001", "000002"]
    assert find_problems(open_category(tmp_path))[0].what == "no normal images"  # and nothing else
    assert len(find_problems(open_category(tmp_path))) == 1


def test_what_a_killed_run_left_behind_is_ignored_and_cleared(tmp_path: Path):
    labelled = LabelledSet(tmp_path)
    fill(labelled, count=1)
    left = tmp_path / "test/crack/.000001.99.partial.png"
    left.write_bytes(b"half")
    assert (labelled.names("crack"), labelled.count) == (["000000"], 1)
    labelled.write_metadata()
    assert not left.exists()
    assert len((tmp_path / "metadata.jsonl").read_text().splitlines()) == 1


def test_normal_images_are_copied_byte_for_byte_and_once(tmp_path: Path, mvtec: Path, btad: Path):
    labelled = LabelledSet(tmp_path / "set")
    normals = open_category(mvtec).train_normals
    labelled.add_normals(normals[:2])
    first = tmp_path / "set/train/good/000.png"
    before = first.stat().st_mtime_ns
    labelled.add_normals(normals)
    assert first.stat().st_mtime_ns == before
    assert first.read_bytes() == (mvtec / "train/good/000.png").read_bytes()
    assert len(list(first.parent.iterdir())) == 6
    with pytest.raises(ValueError, match=r"test/good/000.png: has the same file name"):
        labelled.add_normals([*normals, *open_category(mvtec).test_normals])
    with pytest.raises(ValueError, match=r"test/good/000.png: another picture of this name is in .*train/good already"):
        labelled.missing_normals(open_category(mvtec).test_normals)


def test_labels_that_no_reader_could_use_are_refused(tmp_path: Path):
    labelled = LabelledSet(tmp_path)
    image, mask = sample(0)
    with pytest.raises(ValueError, match="empty"):
        labelled.add("crack", "000000", image, np.zeros_like(mask), {})
    with pytest.raises(ValueError, match="shape"):
        labelled.add("crack", "000000", image, mask.T, {})
    with pytest.raises(ValueError, match="bool"):
        labelled.add("crack", "000000", image, mask.astype(np.uint8), {})
    with pytest.raises(ValueError, match="good"):
        labelled.add("good", "000000", image, mask, {})
    with pytest.raises(ValueError, match="plain names"):
        labelled.add("../crack", "000000", image, mask, {})
    with pytest.raises(ValueError, match="file_name"):
        labelled.add("crack", "000000", image, mask, {"normal_file_name": "x.png"})
    with pytest.raises(ValueError, match=r"000000.png: the record cannot be stored"):
        labelled.add("crack", "000000", image, mask, {"critic_score": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_image_in_the_set_is_named(tmp_path: Path):
    labelled = LabelledSet(tmp_path)
    fill(labelled)
    sample(9)[0].save(tmp_path / "test/crack/photo.png")
    with pytest.raises(ValueError, match=r"photo.png: carries no record"):
        labelled.write_metadata()
