"""Synthetic data sets on a Hub on the loopback address: the same bytes back, and what the viewer shows."""

import json

import numpy as np
from loopback_people import files, metadata, pushed
from PIL import Image

from sard_lora.labelled import DRAWN, IN_PLACE, LabelledSet


def test_data_set_comes_back_byte_for_byte(hub, anna, stranger, synthetic, tmp_path):
    before = files(synthetic)
    anna.run("push", synthetic, "anna/nut")
    assert files(synthetic) == before
    assert len(hub.repository("dataset", "anna/nut").commits) == 2
    stranger.run("pull", "anna/nut", tmp_path / "pulled")
    pulled = files(tmp_path / "pulled")
    assert pulled.pop("README.md").decode().count('load_dataset("anna/nut"') == 1
    assert pulled == {name: content for name, content in before.items() if name != "notes.pkl"}


def test_hub_viewer_columns(hub, anna, stranger, synthetic):
    anna.run("push", synthetic, "anna/nut")
    card = metadata(pushed(hub, "dataset")["README.md"])
    assert card["task_categories"] == ["image-segmentation"] and card["size_categories"] == ["n<1K"]
    assert "license" not in card, "whoever publishes it chooses"
    printed = stranger.python(
        """
from datasets import get_dataset_config_names, load_dataset
data = load_dataset("anna/nut", split="train")
print({name: type(feature).__name__ for name, feature in data.features.items()}, len(data))
row = data[1]
print(row["image"].size, row["mask"].getextrema(), row["defect"], row["seed"], row["normal"])
print(get_dataset_config_names("anna/nut"), len(load_dataset("anna/nut", "normal", split="train")))
"""
    )
    columns, row, configs = printed.splitlines()
    assert columns.startswith("{'image': 'Image', 'mask': 'Image', 'defect': 'Value', 'prompt': 'Value', 'seed': ")
    assert all(f"'{name}': 'Value'" in columns for name in ("normal", "critic_score", "visibility", "file_name"))
    assert columns.endswith(" 5") and row == "(40, 32) (0, 255) bent 3 train/good/000.png"
    assert configs == "['default', 'normal'] 2"


def test_no_path_of_this_machine_is_in_a_pushed_report(hub, anna, synthetic):
    report = {"settings": {"base": "/home/anna/acme/bases/tile", "seed": 0}, "synthesized": 5}
    (synthetic / "synthesis.json").write_text(json.dumps(report))
    anna.run("push", synthetic, "anna/nut")
    shown = json.loads(pushed(hub, "dataset")["synthesis.json"])
    assert shown == {"settings": {"base": "tile", "seed": 0}, "synthesized": 5}


def test_card_says_how_many_pictures_are_of_defective_parts(hub, anna, synthetic):
    anna.run("push", synthetic, "anna/nut")
    assert b"The pictures are normal images." in pushed(hub, "dataset")["README.md"]
    labelled = LabelledSet(synthetic)
    mask = np.zeros((32, 40), bool)
    mask[5, 3] = True
    record = next(labelled.records()) | {"method": IN_PLACE}
    record = {key: value for key, value in record.items() if not key.endswith("file_name")}
    labelled.add("bent", "000009", Image.new("RGB", (40, 32)), mask, record)
    labelled.add("drawn", "000000", Image.new("RGB", (40, 32)), mask, record | {"method": DRAWN})
    anna.run("push", synthetic, "anna/nut")
    card = pushed(hub, "dataset")["README.md"]
    assert b"**1 of the pictures are real ones of\ndefective parts**" in card
    assert b"1 images show none of the known defects\nbut a drawn texture" in card


def test_own_card_of_a_data_set_keeps_its_text_and_licence(hub, anna, synthetic):
    (synthetic / "README.md").write_text("---\nlicense: cc-by-4.0\n---\nMy nuts.\n")
    anna.run("push", synthetic, "anna/nut")
    card = pushed(hub, "dataset")["README.md"]
    assert b"My nuts." in card and metadata(card)["license"] == "cc-by-4.0"
    assert [config["config_name"] for config in metadata(card)["configs"]] == ["default", "normal"]


def test_smaller_data_set_leaves_nothing_of_the_larger_one(hub, anna, synthetic):
    anna.run("push", synthetic, "anna/nut")
    for path in (synthetic / "train/good").iterdir():
        path.unlink()
    anna.run("push", synthetic, "anna/nut")
    there = pushed(hub, "dataset")
    assert not any("normal-" in name for name in there)
    assert [config["config_name"] for config in metadata(there["README.md"])["configs"]] == ["default"]
