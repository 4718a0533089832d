"""Synthesis: exact backgrounds and labels, visible defects only, resumable to the byte."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from synthesis_settings import settings

from sard_lora import synthesis
from sard_lora.adapter_config import SETTINGS_FILE
from sard_lora.data import find_problems, open_category
from sard_lora.images import DEFECT, FRINGE, load_image
from sard_lora.labelled import IN_PLACE, LabelledSet
from sard_lora.masks import Placement
from sard_lora.synthesis import synthesize, verify
from sard_lora.synthesizer import Synthesizer


def files(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*.png")}


def test_set_is_exact_complete_and_readable(adapter, mvtec, tmp_path):
    report = synthesize(settings(adapter, mvtec, tmp_path / "set"))
    assert report["synthesized"] == 5 and report["per_defect"] == {"hole": 3, "scratch": 2}
    assert verify(tmp_path / "set", mvtec) == {
        "pixels_changed_outside_mask": 0,
        "labels_equal_written_region": True,
    }
    for record in LabelledSet(tmp_path / "set").records():
        normal = load_image(mvtec / record["normal"])
        assert Image.open(tmp_path / "set" / record["file_name"]).size == normal.size
        assert record["prompt"] == adapter.prompt(record["defect"]) and record["method"] == "sard"
    assert len(list((tmp_path / "set/train/good").iterdir())) == 5  # one of six sets the threshold
    assert json.loads((tmp_path / "set/synthesis.json").read_text())["synthesized"] == 5


def test_verify_sees_a_changed_background_and_a_moved_label(adapter, mvtec, tmp_path):
    synthesize(settings(adapter, mvtec, tmp_path / "set", count=1))
    record = next(LabelledSet(tmp_path / "set").records())
    label_path = tmp_path / "set" / record["mask_file_name"]
    label = np.array(Image.open(label_path))
    Image.fromarray(np.roll(label, 3, axis=1)).save(label_path)
    found = verify(tmp_path / "set", mvtec)
    assert found["pixels_changed_outside_mask"] > 0 and not found["labels_equal_written_region"]


def test_killed_run_is_completed_with_the_same_bytes(adapter, mvtec, tmp_path, monkeypatch):
    synthesize(settings(adapter, mvtec, tmp_path / "whole"))
    add, added = LabelledSet.add, []

    def die_at_the_fourth(self, *arguments, **options):
        if len(added) == 3:
            raise KeyboardInterrupt
        added.append(arguments[:2])
        add(self, *arguments, **options)

    monkeypatch.setattr(LabelledSet, "add", die_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        synthesize(settings(adapter, mvtec, tmp_path / "killed"))
    monkeypatch.setattr(LabelledSet, "add", lambda self, *a, **o: (added.append(a[:2]), add(self, *a, **o))[1])
    report = synthesize(settings(adapter, mvtec, tmp_path / "killed"))
    assert report["synthesized"] == 5
    assert len(added) == len(set(added)) == 5, "nothing is made twice"
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_complete_set_needs_no_model_and_other_settings_are_refused(adapter, mvtec, tmp_path, monkeypatch):
    synthesize(settings(adapter, mvtec, tmp_path / "set"))
    monkeypatch.setattr(synthesis, "Synthesizer", None)
    assert synthesize(settings(adapter, mvtec, tmp_path / "set"))["synthesized"] == 5
    with pytest.raises(ValueError, match=r"set: holds a set made with another seed\. Choose another --output"):
        synthesize(settings(adapter, mvtec, tmp_path / "set", seed=1))
    (mvtec / "train/good/000.png").unlink()
    with pytest.raises(ValueError, match=r"made with another normals_sha256"):
        synthesize(settings(adapter, mvtec, tmp_path / "set"))
    with pytest.raises(ValueError, match=r"seed=-1 has to be at least 0"):
        settings(adapter, mvtec, tmp_path / "set", seed=-1)


def test_a_set_is_not_continued_from_other_defect_pictures_or_at_other_settings_of_the_adapter(
    adapter, mvtec, tmp_path
):
    def continued():
        return synthesize(settings(adapter, mvtec, tmp_path / "set", strength=0.5, count=2))

    continued()
    path = mvtec / "test/hole/000.png"
    before = path.read_bytes()
    Image.open(path).point(lambda level: level // 2).save(path)
    with pytest.raises(ValueError, match=r"made with another starts_sha256"):
        continued()
    path.write_bytes(before)
    assert continued()["synthesized"] == 2
    content = json.loads((adapter.folder / SETTINGS_FILE).read_text())
    content["sampling"]["num_inference_steps"] += 1
    (adapter.folder / SETTINGS_FILE).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"made with another sampling"):
        continued()


def test_the_way_out_of_an_error_is_open_as_long_as_no_image_was_made(adapter, mvtec, tiny_base, tmp_path):
    content = json.loads((adapter.folder / SETTINGS_FILE).read_text())
    content["base"]["id"] = str(tmp_path / "gone")
    (adapter.folder / SETTINGS_FILE).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"is not here\. Give it with --base"):
        synthesize(settings(adapter, mvtec, tmp_path / "set"))
    with pytest.raises(ValueError, match=r"Lower --min_visibility"):
        synthesize(settings(adapter, mvtec, tmp_path / "set", base=str(tiny_base), min_visibility=1e9, max_attempts=1))
    report = synthesize(settings(adapter, mvtec, tmp_path / "set", base=str(tiny_base), seed=1, count=2))
    assert report["settings"]["seed"] == 1
    shutil.copytree(tiny_base, tmp_path / "elsewhere")
    assert synthesize(settings(adapter, mvtec, tmp_path / "set", base=str(tmp_path / "elsewhere"), seed=1, count=3))


def test_invisible_candidates_are_rejected_counted_and_given_up(adapter, mvtec, tmp_path):
    with pytest.raises(ValueError, match=r"set: no image was made, for no defect could be seen\. Lower --min_visib"):
        synthesize(settings(adapter, mvtec, tmp_path / "set", count=2, min_visibility=1e9, max_attempts=3))
    report = json.loads((tmp_path / "set/synthesis.json").read_text())
    assert (report["synthesized"], report["rejected"], report["given_up"]) == (0, 12, 2)


def test_invisible_candidates_are_drawn_again(adapter, mvtec, tmp_path, monkeypatch, capsys):
    generate, seen = Synthesizer.generate, []

    def first_attempt_is_invisible(self, draws):
        seen.append([draw.mask.copy() for draw in draws])
        rows = generate(self, draws)
        if len(seen) > 1:
            return rows
        return [[[c._replace(visibility=0.0) for c in part] for part in row] for row in rows]

    monkeypatch.setattr(Synthesizer, "generate", first_attempt_is_invisible)
    report = synthesize(settings(adapter, mvtec, tmp_path / "set", count=2, min_visibility=1e-6))
    assert (report["synthesized"], report["rejected"]) == (2, 4)
    told = f"2 images in {tmp_path / 'set'}; 4 candidates rejected as invisible, 0 images given up after 6 masks each"
    assert capsys.readouterr().out.splitlines()[-1] == told
    assert not np.array_equal(seen[0][0], seen[1][0]), "another mask is tried"


def test_scattered_masks_are_written_part_by_part_and_the_unseen_parts_left_out(adapter, mvtec, tmp_path, monkeypatch):
    def two_spots(bank, foreground, rng, source, **options):
        mask = np.zeros_like(foreground)
        mask[3:9, 3:9] = mask[-6:-2, -6:-2] = True
        return Placement(mask, mask, "two spots")

    monkeypatch.setattr("sard_lora.synthesizer.sample_mask", two_spots)
    synthesize(settings(adapter, mvtec, tmp_path / "both", count=1))
    record = next(LabelledSet(tmp_path / "both").records())
    assert record["parts"] == 2
    assert np.array(Image.open(tmp_path / "both" / record["mask_file_name"])).astype(bool).sum() == 36 + 16

    generate = Synthesizer.generate

    def second_is_invisible(self, draws):
        return [[first, [c._replace(visibility=0.0) for c in second]] for first, second in generate(self, draws)]

    monkeypatch.setattr(Synthesizer, "generate", second_is_invisible)
    report = synthesize(settings(adapter, mvtec, tmp_path / "one", count=1, min_visibility=1e-6))
    assert (report["synthesized"], report["rejected"]) == (1, 2)
    record = next(LabelledSet(tmp_path / "one").records())
    assert np.array(Image.open(tmp_path / "one" / record["mask_file_name"])).astype(bool).sum() == 36
    assert verify(tmp_path / "one", mvtec) == {"pixels_changed_outside_mask": 0, "labels_equal_written_region": True}


def test_what_is_written_beyond_the_outline_is_labelled_as_its_fringe(adapter, mvtec, tmp_path):
    folder = shutil.copytree(adapter.folder, tmp_path / "wide")
    config = json.loads((folder / SETTINGS_FILE).read_text())
    config["sampling"]["margins"] = {"hole": 3, "scratch": 0}
    (folder / SETTINGS_FILE).write_text(json.dumps(config))
    synthesize(replace(settings(adapter, mvtec, tmp_path / "set", count=4, in_place=0.5), adapter=folder))
    assert verify(tmp_path / "set", mvtec) == {"pixels_changed_outside_mask": 0, "labels_equal_written_region": True}
    values = {
        (record["defect"], record["method"]): set(np.unique(Image.open(tmp_path / "set" / record["mask_file_name"])))
        for record in LabelledSet(tmp_path / "set").records()
    }
    assert values[("hole", "sard")] == {0, FRINGE, DEFECT}
    assert values[("hole", IN_PLACE)] == values[("scratch", "sard")] == {0, DEFECT}
    assert find_problems(open_category(tmp_path / "set")) == []
    fills = replace(settings(adapter, mvtec, tmp_path / "fills", count=4, fills=True), adapter=folder)
    synthesize(fills)
    for record in LabelledSet(tmp_path / "fills").records():
        label = np.unique(Image.open(tmp_path / "fills" / record["mask_file_name"]))
        assert label.tolist() == [0, DEFECT], "nothing fades out in a fill"


def test_fills_are_asked_for_without_a_defect_and_none_is_rejected(adapter, mvtec, tmp_path):
    report = synthesize(settings(adapter, mvtec, tmp_path / "set", fills=True, min_visibility=1e9))
    assert (report["synthesized"], report["rejected"]) == (5, 0)
    for record in LabelledSet(tmp_path / "set").records():
        assert (record["prompt"], record["method"]) == (adapter.prompt("good"), "fill")


def test_per_defect_chosen_defects_and_plain_folder(adapter, mvtec, tmp_path):
    plain = shutil.copytree(mvtec / "train/good", tmp_path / "photos")
    report = synthesize(
        settings(adapter, plain, tmp_path / "set", count=2, per_defect=True, defects=["scratch"], copy_normals=False)
    )
    assert report["per_defect"] == {"scratch": 2} and not (tmp_path / "set/train").exists()
    report = synthesize(settings(adapter, plain, tmp_path / "all", count=2, per_defect=True))
    assert report["per_defect"] == {"hole": 2, "scratch": 2}
    with pytest.raises(ValueError, match="knows no defect dent; it knows hole, scratch"):
        synthesize(settings(adapter, plain, tmp_path / "none", defects=["dent"]))


def test_grey_normals_give_grey_images(adapter, mvtec, tmp_path):
    plain = tmp_path / "grey"
    plain.mkdir()
    Image.open(mvtec / "train/good/000.png").convert("L").save(plain / "a.png")
    synthesize(settings(adapter, plain, tmp_path / "set", count=1))
    record = next(LabelledSet(tmp_path / "set").records())
    assert Image.open(tmp_path / "set" / record["file_name"]).mode == "L"
    assert verify(tmp_path / "set", plain)["pixels_changed_outside_mask"] == 0


def test_first_line_is_printed(adapter, mvtec, tmp_path, capsys):
    synthesize(settings(adapter, mvtec, tmp_path / "set", count=1))
    assert capsys.readouterr().out.splitlines()[0] == f"starts from the 4 real defects of {mvtec}"


def test_two_normal_images_of_one_name_are_refused_before_the_work(adapter, mvtec, tmp_path, monkeypatch):
    (mvtec / "train/normal").mkdir()
    shutil.copy(mvtec / "train/good/001.png", mvtec / "train/normal/000.png")
    monkeypatch.setattr(synthesis, "Synthesizer", None)
    with pytest.raises(ValueError, match=r"normal/000\.png: has the same file name as .*good/000\.png\. Rename one"):
        synthesize(settings(adapter, mvtec, tmp_path / "set"))
    assert list((tmp_path / "set").iterdir()) == [], "so that the renamed ones are not another set's"


def test_folder_that_only_has_the_name_of_the_category_is_not_its_data(adapter, mvtec, tmp_path):
    (mvtec / "plate").mkdir()
    synthesize(settings(adapter, mvtec, tmp_path / "set", count=1, category="plate"))
    assert next(LabelledSet(tmp_path / "set").records())["normal"].startswith("train/good/")


def test_nothing_is_written_among_what_was_not_made_here(adapter, mvtec, btad, paired, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (40, 32)).save(photos / "part.jpg")
    for folder, first in ((btad, "ground_truth"), (paired, "good"), (photos, r"part\.jpg")):
        before = sorted(folder.rglob("*"))
        with pytest.raises(ValueError, match=rf"{folder.name}: holds {first} but no synthesis\.json.* as --output"):
            synthesize(settings(adapter, mvtec, folder))
        assert sorted(folder.rglob("*")) == before
    (tmp_path / "new").mkdir()
    (tmp_path / "new/.DS_Store").write_text("hidden")
    assert synthesize(settings(adapter, mvtec, tmp_path / "new", count=1))["synthesized"] == 1


def test_output_that_cannot_be_written_is_refused_first(adapter, mvtec, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match=r"file.*another --output"):
        synthesize(settings(adapter, mvtec, tmp_path / "file" / "set"))


def test_masks_of_ones_own_serve_where_the_adapter_has_none(adapter, mvtec, tmp_path):
    (adapter.folder / "masks").rename(tmp_path / "mine")
    with pytest.raises(ValueError, match="--mask_bank"):
        synthesize(settings(adapter, mvtec, tmp_path / "set", count=1))
    synthesize(settings(adapter, mvtec, tmp_path / "set", count=2, mask_bank=tmp_path / "mine"))
    assert verify(tmp_path / "set", mvtec)["labels_equal_written_region"]
