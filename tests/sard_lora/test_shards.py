"""Parquet shards: the bytes of a set, in pieces of bounded size, and no file outside the set."""

import io
import json

import datasets
import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sard_lora.labelled import LabelledSet
from sard_lora.shards import DEFECTS, read_shards, shards, write_shards


@pytest.fixture
def labelled(tmp_path) -> LabelledSet:
    """Seven images whose records have not all the same keys."""
    labelled = LabelledSet(tmp_path / "set")
    for number in range(7):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 40, 3), dtype=np.uint8)
        record = {"seed": number, "visibility": number / 3} | ({"parts": 2} if number == 3 else {})
        labelled.add("hole", f"{number:06d}", Image.fromarray(pixels), pixels[..., 0] > 250, record)
    labelled.write_metadata()
    return labelled


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_set_comes_back_byte_for_byte_from_many_shards(labelled, tmp_path):
    assert write_shards(labelled.root, tmp_path / "data", shard_bytes=10_000) == {"defects": 7, "normal": 0}
    written = shards(tmp_path / "data", DEFECTS)
    assert len(written) == 4 and written[-1].name == "defects-00003-of-00004.parquet"
    assert [len(Dataset.from_parquet(str(shard), cache_dir=str(tmp_path / "cache"))) for shard in written] == [
        2,
        2,
        2,
        1,
    ]
    assert read_shards(tmp_path / "data", tmp_path / "back") == 7
    assert files(tmp_path / "back") == files(labelled.root)


def test_records_that_make_no_table_are_named(labelled, tmp_path):
    mask = np.ones((4, 4), bool)
    labelled.add("hole", "a", Image.new("RGB", (4, 4)), mask, {"seed": "seven"})
    with pytest.raises(ValueError, match=r"set: its records do not make a table"):
        write_shards(labelled.root, tmp_path / "data")
    labelled.add("hole", "a", Image.new("RGB", (4, 4)), mask, {"mask": "x"})
    with pytest.raises(ValueError, match=r"set: a record has the key 'mask'"):
        write_shards(labelled.root, tmp_path / "data")
    with pytest.raises(ValueError, match=r"empty: holds no synthesized images"):
        write_shards(tmp_path / "empty", tmp_path / "data")


@pytest.mark.parametrize(
    "name",
    [
        "../../a/b.png",
        "/etc/test/b.png",
        "test/../b.png",
        "test/hole/../../../b.png",
        "test/good/b.png",
        "train/a/b.png",
    ],
)
def test_a_strangers_shard_writes_nothing_outside_the_set(labelled, tmp_path, name):
    write_shards(labelled.root, tmp_path / "data")
    shard = shards(tmp_path / "data", DEFECTS)[0]
    rows = Dataset.from_parquet(str(shard), cache_dir=str(tmp_path / "cache"))
    rows.map(lambda row: {"file_name": name}).to_parquet(shard)
    before = files(tmp_path).keys()
    with pytest.raises(ValueError, match=r"no place in a labelled set|plain names"):
        read_shards(tmp_path / "data", tmp_path / "inner/back")
    assert files(tmp_path).keys() == before


def test_a_strangers_record_makes_nobody_push_other_files(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("token")
    info = PngInfo()
    info.add_text("sard", json.dumps({"mask_file_name": str(secret), "file_name": "../secret", "defect": "hole"}))
    theirs, mask = io.BytesIO(), io.BytesIO()
    Image.new("L", (8, 8)).save(theirs, "PNG", pnginfo=info)
    Image.new("L", (8, 8), 255).save(mask, "PNG")
    labelled = LabelledSet(tmp_path / "set")
    labelled.add_files("hole", "a", theirs.getvalue(), mask.getvalue())
    write_shards(labelled.root, tmp_path / "data")
    (shard,) = shards(tmp_path / "data", DEFECTS)
    rows = Dataset.from_parquet(str(shard), cache_dir=str(tmp_path / "cache"))
    row = rows.cast_column("mask", datasets.Image(decode=False))[0]
    assert row["mask"]["bytes"] == mask.getvalue() and row["file_name"] == "test/hole/a.png"
    assert row["mask_file_name"] == "ground_truth/hole/a_mask.png"


def test_a_shard_of_something_else_is_named(tmp_path):
    (tmp_path / "data").mkdir()
    Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "data/defects-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"defects-00000-of-00001.parquet: has no column file_name, image, mask"):
        read_shards(tmp_path / "data", tmp_path / "back")
