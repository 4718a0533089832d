"""Synthesis: exact backgrounds and labels, visible defects only, resumable to the byte."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from sard_lora import synthesis
from sard_lora import synthesizer as synthesizer_module
from sard_lora.adapter_config import SETTINGS_FILE
from sard_lora.data import find_problems, normal_images, open_category
from sard_lora.images import DEFECT, FRINGE, load_image
from sard_lora.labelled import LabelledSet
from sard_lora.masks import Placement, sample_mask
from sard_lora.synthesis import synthesize, verify
from sard_lora.synthesize_config import CANDIDATES, STRENGTH, SynthesizeConfig, chosen_in_place, starting_point
from sard_lora.synthesizer import IN_PLACE, PLACES, Job, Synthesizer, outlined


def settings(adapter, mvtec, output, **changes) -> SynthesizeConfig:
    values = {"count": 5, "candidates": 2, "batch_size": 4, "num_inference_steps": 2}
    values |= {"min_visibility": 0.0, "in_place": 0.0}
    return SynthesizeConfig(adapter=adapter.folder, data=mvtec, output=output, **(values | changes))


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


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_masks_have_the_margins_that_the_adapter_was_trained_with(adapter, mvtec, tmp_path, strength):
    synthesizer = Synthesizer(adapter, settings(adapter, mvtec, tmp_path / "set", strength=strength))
    job, normals = synthesis._plan(synthesizer.config, adapter)[0], normal_images(mvtec, None)
    sampling = adapter.config.sampling
    assert sampling.margins == {"hole": 0, "scratch": 0}, "the drawn squares end at their masks"
    tight = synthesizer.draw(job, 0, normals)
    sampling.margins[job.defect] = 3
    wide = synthesizer.draw(job, 0, normals)
    assert not (tight.mask & ~wide.mask).any() and tight.mask.sum() < wide.mask.sum()
    assert np.array_equal(wide.core, tight.core) and np.array_equal(tight.core, tight.mask)


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


def test_real_defects_are_where_diffusion_starts_from(adapter, mvtec, tmp_path):
    """Where the data hold them; a little diffusion leaves them as they were, and the label what was written."""
    report = synthesize(settings(adapter, mvtec, tmp_path / "set", strength=0.5, guidance_scale=1.0))
    assert report["settings"]["strength"] == 0.5
    assert verify(tmp_path / "set", mvtec) == {"pixels_changed_outside_mask": 0, "labels_equal_written_region": True}
    synthesizer = Synthesizer(adapter, settings(adapter, mvtec, tmp_path / "set"))
    assert synthesizer.strength == STRENGTH
    draw = synthesizer.draw(synthesis._plan(synthesizer.config, adapter)[0], 0, normal_images(mvtec, None))
    started = np.asarray(draw.start)
    assert (started[draw.mask] < 60).mean() > 0.5, "a dark square, as on the real parts"
    assert np.array_equal(started[~draw.mask], np.asarray(draw.image)[~draw.mask])
    fill = Synthesizer(adapter, settings(adapter, mvtec, tmp_path / "set", fills=True))
    draw = fill.draw(synthesis._plan(fill.config, adapter)[0], 0, normal_images(mvtec, None))
    assert np.asarray(draw.start)[draw.mask].min() > 60, "a piece of a normal part"


def test_moved_defects_are_as_strong_as_asked_for(adapter, mvtec, tmp_path):
    normals = normal_images(mvtec, None)

    def depth(contrast):
        synthesizer = Synthesizer(adapter, settings(adapter, mvtec, tmp_path / "set", contrast=contrast))
        draw = synthesizer.draw(synthesis._plan(synthesizer.config, adapter)[0], 0, normals)
        return (np.asarray(draw.image, float) - np.asarray(draw.start, float))[draw.mask].mean()

    assert 0 < 1.5 * depth((0.3, 0.3)) < depth((1.0, 1.0))
    assert depth((0.3, 0.3)) < depth((0.3, 1.0)) < depth((1.0, 1.0))
    assert depth(None) > 1.5 * depth((0.3, 0.3)), "its pixels"
    assert depth((0.4, 1.2)) < depth(SynthesizeConfig.contrast) < depth((1.0, 1.4)), "by default about as it was"
    for wrong in ((0.0, 1.0), (1.2, 0.4)):
        with pytest.raises(ValueError, match="contrast="):
            settings(adapter, mvtec, tmp_path / "set", contrast=wrong)
    for count in (1, 2):  # the settings that were kept are read as the same ones
        report = synthesize(settings(adapter, mvtec, tmp_path / "resumed", contrast=(0.5, 1.0), count=count))
    assert (report["synthesized"], report["rejected"]) == (2, 0)


def test_moved_defects_are_tried_elsewhere_until_they_stand_out(adapter, mvtec, tmp_path, monkeypatch):
    normals = normal_images(mvtec, None)

    def tries(ratios, **options):
        """Which of the places tried was taken, and how many were."""
        cores, left = [], iter(ratios)
        monkeypatch.setattr(
            synthesizer_module, "matched_filter_snr", lambda start, core, image: cores.append(core) or next(left)
        )
        made = Synthesizer(adapter, settings(adapter, mvtec, tmp_path / "set", **options))
        draw = made.draw(synthesis._plan(made.config, adapter)[0], 0, normals)
        return [core is draw.core for core in cores].index(True), len(cores)

    assert tries([1.0, 3.9, 4.0, 9.0]) == (2, 3)
    assert tries([1.0, 3.9, *[2.0] * (PLACES - 2)]) == (1, PLACES), "the best, where none does"
    assert tries([1.0], min_snr=0.0) == (0, 1)
    assert tries([0.5, 1.0], min_snr=1.0) == (1, 2)
    with pytest.raises(ValueError, match="min_snr="):
        settings(adapter, mvtec, tmp_path / "set", min_snr=-1.0)


def test_defects_drawn_anew_in_place_keep_their_picture_and_their_label(adapter, mvtec, tmp_path, monkeypatch):
    """Their own change is small, for the defect was there: it counts as seen."""
    report = synthesize(settings(adapter, mvtec, tmp_path / "set", in_place=1.0, min_visibility=1e9))
    assert (report["synthesized"], report["rejected"]) == (5, 0)
    assert verify(tmp_path / "set", mvtec) == {"pixels_changed_outside_mask": 0, "labels_equal_written_region": True}
    for record in LabelledSet(tmp_path / "set").records():
        assert record["method"] == IN_PLACE
        assert record["normal"] in adapter.config.data["images"]
        mask = mvtec / record["normal"].replace("test/", "ground_truth/").replace(".png", "_mask.png")
        label = np.array(Image.open(tmp_path / "set" / record["mask_file_name"]))
        assert np.array_equal(label > 0, np.array(Image.open(mask)) > 0)
    half = Synthesizer(adapter, settings(adapter, mvtec, tmp_path / "half", in_place=0.5))
    normals = normal_images(mvtec, None)
    bank = half.bank.for_defect("hole")
    draws = [half.draw(Job(0, "hole", "", turn), 0, normals) for turn in range(4 * len(bank))]
    for lap in (draws[: 2 * len(bank)], draws[2 * len(bank) :]):  # every picture once before one comes again
        assert sorted(draw.source for draw in lap if draw.in_place) == sorted(entry.image for entry in bank)
    looks_alike = "sard_lora.synthesize_config.are_aligned"
    for aligned, share in ((True, 0.5), (False, 0.0)):
        monkeypatch.setattr(looks_alike, lambda paths, answer=aligned: answer)
        by_itself = settings(adapter, mvtec, tmp_path / "own", in_place=None)
        assert chosen_in_place(by_itself, half.bank, normals) == share
    monkeypatch.setattr(looks_alike, lambda paths: pytest.fail("reads pictures for nothing"))
    for asked, wanted in (({"in_place": 0.2}, 0.2), ({"in_place": None, "fills": True}, 0.0)):
        given = settings(adapter, mvtec, tmp_path / "own", **asked)
        assert chosen_in_place(given, half.bank, normals) == wanted
    fills = Synthesizer(adapter, settings(adapter, mvtec, tmp_path / "fills", in_place=1.0, fills=True))
    assert not fills.draw(Job(0, "hole", ""), 0, normals).in_place


def test_what_is_drawn_is_labelled_where_it_can_be_seen():
    normal = Image.new("RGB", (60, 40), (150, 150, 150))
    rows, columns = np.mgrid[:40, :60]
    distance = np.hypot(rows - 20, columns - 30)
    faded = Image.fromarray((150 - 100 * np.clip((14 - distance) / 8, 0, 1)).astype(np.uint8))
    mask = distance < 16
    core = outlined(faded, normal, mask)
    assert np.abs(distance[core].max() - 10) < 1.5 and (core == (distance <= distance[core].max())).all()
    assert np.array_equal(outlined(normal, normal, mask), mask), "where nothing is seen, all of it"


def test_decoded_pixels_from_noise_are_labelled_as_they_were_masked(adapter, mvtec, tmp_path):
    """Their change has no outline: all of the mask is another picture of the same surface."""
    labels = {}
    for composite in ("pixels", "change"):
        folder = tmp_path / composite
        synthesize(settings(adapter, mvtec, folder, strength=1.0, composite=composite, masks="perlin"))
        labels[composite] = [
            np.asarray(Image.open(folder / record["mask_file_name"])) for record in LabelledSet(folder).records()
        ]
    assert all(set(np.unique(label)) == {0, 255} for label in labels["pixels"]), "no margin, so no fringe"
    assert any((label == 127).any() for label in labels["change"])


def test_a_share_is_from_noise_under_masks_of_all_kinds(adapter, mvtec, tmp_path, monkeypatch):
    seen = []

    def sample(bank, foreground, rng, source, **options):
        seen.append(source)
        return sample_mask(bank, foreground, rng, source=source, **options)

    monkeypatch.setattr("sard_lora.synthesizer.sample_mask", sample)
    config = settings(adapter, mvtec, tmp_path / "set", count=16, in_place=0.5, from_noise=0.5, candidates=None)
    report = synthesize(config)
    assert (report["synthesized"], report["rejected"]) == (16, 0)
    assert verify(tmp_path / "set", mvtec) == {"pixels_changed_outside_mask": 0, "labels_equal_written_region": True}
    assert sorted(seen) == ["mixed"] * 4 + ["real"] * 4
    synthesizer, normals = Synthesizer(adapter, config), normal_images(mvtec, None)
    draws = [synthesizer.draw(job, 0, normals) for job in synthesis._plan(config, adapter)]
    assert [len(draw.seeds[0]) for draw in draws if not draw.in_place and draw.start is not None] == [1] * 4
    assert [len(draw.seeds[0]) for draw in draws if draw.start is None] == [CANDIDATES] * 4
    by_default = Synthesizer(adapter, settings(adapter, mvtec, tmp_path / "default", count=16))
    assert all(by_default.draw(Job(0, "hole", "", turn), 0, normals).start is not None for turn in range(16))
    with pytest.raises(ValueError, match="from_noise="):
        settings(adapter, mvtec, tmp_path / "set", from_noise=1.5)


def test_without_the_real_defects_diffusion_starts_from_noise(adapter, mvtec, tmp_path):
    plain = shutil.copytree(mvtec / "train/good", tmp_path / "good")
    from_noise = Synthesizer(adapter, settings(adapter, plain, tmp_path / "set", candidates=None))
    draw = from_noise.draw(Job(0, "hole", ""), 0, normal_images(plain, None))
    assert from_noise.strength == 1.0 and draw.start is None and {len(seeds) for seeds in draw.seeds} == {CANDIDATES}
    with pytest.raises(ValueError, match=r"strength=0.4 starts from the real defects.*good does not hold them all"):
        synthesize(settings(adapter, plain, tmp_path / "set", strength=0.4))
    assert Synthesizer(adapter, settings(adapter, mvtec, tmp_path / "set", masks="perlin")).strength == 1.0
    with pytest.raises(ValueError, match="above 0"):
        settings(adapter, mvtec, tmp_path / "set", strength=0.0)
    label = adapter.config.data["images"][0].replace("test/", "ground_truth/").replace(".png", "_mask.png")
    Image.fromarray(np.roll(np.array(Image.open(mvtec / label)), 1, axis=0)).save(mvtec / label)
    assert Synthesizer(adapter, settings(adapter, mvtec, tmp_path / "set")).strength == 1.0, "another data set's"


def test_fills_are_asked_for_without_a_defect_and_none_is_rejected(adapter, mvtec, tmp_path):
    report = synthesize(settings(adapter, mvtec, tmp_path / "set", fills=True, min_visibility=1e9))
    assert (report["synthesized"], report["rejected"]) == (5, 0)
    for record in LabelledSet(tmp_path / "set").records():
        assert (record["prompt"], record["method"]) == (adapter.prompt("good"), "fill")


def test_critic_ranks_the_candidates(adapter, mvtec, tmp_path, monkeypatch):
    monkeypatch.setattr("sard_lora.synthesizer.rank_score", lambda critic, z0, *rest: -z0.mean((1, 2, 3)))
    synthesize(settings(adapter, mvtec, tmp_path / "set", count=1, candidates=4))
    best = next(LabelledSet(tmp_path / "set").records())
    scores = []
    for seed_index in range(4):
        synthesizer = Synthesizer(adapter, settings(adapter, mvtec, tmp_path / "x", candidates=4))
        draw = synthesizer.draw(synthesis._plan(synthesizer.config, adapter)[0], 0, normal_images(mvtec, None))
        scores.append(synthesizer.generate([draw])[0][0][seed_index].score)
    assert best["critic_score"] == pytest.approx(max(scores), abs=1e-4) and len(set(scores)) == 4


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


def test_first_line_says_what_is_started_from_and_what_is_without_effect(adapter, mvtec, tmp_path):
    plain = shutil.copytree(mvtec / "train/good", tmp_path / "good")
    adapter.masks().save(tmp_path / "mine")

    def line(data=mvtec, **changes):
        config = settings(adapter, data, tmp_path / "set", **changes)
        return starting_point(config, synthesizer_module.mask_bank(adapter, config))

    assert line() == f"starts from the 4 real defects of {mvtec}"
    assert line(defects=["hole"], in_place=0.5) == f"starts from the 2 real defects of {mvtec}"
    assert line(plain) == f"from noise: {plain} does not hold the defects that the adapter was trained on"
    idle = line(plain, in_place=0.5, from_noise=0.1, contrast=None, min_snr=1.0)
    assert idle.endswith("trained on; without effect: in_place, from_noise, contrast, min_snr")
    assert line(mask_bank=tmp_path / "mine") == f"from noise: the masks in {tmp_path / 'mine'} come without images"
    assert line(masks="perlin") == "from noise: masks=perlin" and line(strength=1.0) == "from noise: strength=1"
    assert line(fills=True) == "fills masks with the product as it should be"


def test_first_line_is_printed(adapter, mvtec, tmp_path, capsys):
    synthesize(settings(adapter, mvtec, tmp_path / "set", count=1))
    assert capsys.readouterr().out.splitlines()[0] == f"starts from the 4 real defects of {mvtec}"


@pytest.mark.parametrize("name", ["guidance_scale", "num_inference_steps"])
def test_no_steps_and_less_than_no_guidance_are_refused(adapter, mvtec, tmp_path, name):
    for value in (0, -1):
        with pytest.raises(ValueError, match=f"{name}={value} has to be at least 1"):
            settings(adapter, mvtec, tmp_path / "set", **{name: value})


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
