"""What is drawn for an image: what diffusion starts from, where, how strong, and what of it is labelled."""

import shutil

import numpy as np
import pytest
from PIL import Image
from synthesis_settings import settings

from sard_lora import synthesis
from sard_lora import synthesizer as synthesizer_module
from sard_lora.data import normal_images
from sard_lora.labelled import DRAWN, IN_PLACE, LabelledSet
from sard_lora.masks import sample_mask
from sard_lora.synthesis import synthesize, verify
from sard_lora.synthesize_config import CANDIDATES, STRENGTH, SynthesizeConfig, chosen_shares, starting_point
from sard_lora.synthesizer import PLACES, Job, Synthesizer, outlined


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
    open_ones = {"in_place": None, "drawn": None}
    for aligned, in_place, drawn in ((True, 0.5, 0.0), (False, 0.0, 0.25)):
        monkeypatch.setattr(looks_alike, lambda paths, answer=aligned: answer)
        by_itself = settings(adapter, mvtec, tmp_path / "own", **open_ones)
        assert chosen_shares(by_itself, half.bank, normals) == {"in_place": in_place, "drawn": drawn}
        some = settings(adapter, mvtec, tmp_path / "own", **open_ones, defects=["hole"])
        assert chosen_shares(some, half.bank, normals) == {"in_place": in_place, "drawn": 0.0}, "these and no others"
    monkeypatch.setattr(looks_alike, lambda paths: pytest.fail("reads pictures for nothing"))
    for asked, wanted in (({"in_place": 0.2, "drawn": 0.1}, (0.2, 0.1)), (open_ones | {"fills": True}, (0.0, 0.0))):
        given = settings(adapter, mvtec, tmp_path / "own", **asked)
        assert tuple(chosen_shares(given, half.bank, normals).values()) == wanted
    fills = Synthesizer(adapter, settings(adapter, mvtec, tmp_path / "fills", in_place=1.0, fills=True))
    assert not fills.draw(Job(0, "hole", ""), 0, normals).in_place


def test_a_share_shows_none_of_the_known_defects_but_a_drawn_texture(adapter, mvtec, tmp_path):
    config = settings(adapter, mvtec, tmp_path / "set", count=9, drawn=0.25, min_snr=0.0)
    report = synthesize(config)
    assert report["per_defect"] == {"hole": 4, "scratch": 3, DRAWN: 2}
    assert verify(tmp_path / "set", mvtec) == {"pixels_changed_outside_mask": 0, "labels_equal_written_region": True}
    drawn = [record for record in LabelledSet(tmp_path / "set").records() if record["defect"] == DRAWN]
    assert {record["prompt"] for record in drawn} == {adapter.prompt("hole"), adapter.prompt("scratch")}
    assert {(record["method"], record["mask_origin"]) for record in drawn} == {(DRAWN, "perlin")}
    synthesizer, normals = Synthesizer(adapter, config), normal_images(mvtec, None)
    jobs = synthesis._plan(config, adapter, 0.25)
    assert [job.drawn for job in jobs] == [False, False, False, True] * 2 + [False]
    draw = synthesizer.draw(jobs[3], 0, normals)
    changed = (np.asarray(draw.start) != np.asarray(draw.image)).any(2)
    assert changed[draw.mask].mean() > 0.5 and not changed[~draw.mask].any()
    assert np.array_equal(draw.core, draw.mask), "it does not fade out"
    config = settings(adapter, mvtec, tmp_path / "more", count=5, per_defect=True)
    assert sum(not job.drawn for job in synthesis._plan(config, adapter, 0.25)) == 10, "as many as were asked for"
    assert synthesis._plan(config, adapter, 0.25)[:9] == jobs, "a larger set begins with the smaller one"
    folder = tmp_path / "fills"
    assert synthesize(settings(adapter, mvtec, folder, drawn=0.5, fills=True))["per_defect"][DRAWN] == 0
    with pytest.raises(ValueError, match="drawn=1"):
        settings(adapter, mvtec, tmp_path / "set", drawn=1.0)
    # A data set may call a defect of its own so.
    config_file = adapter.folder / "sard_config.json"
    config_file.write_text(config_file.read_text().replace("hole", DRAWN))
    for folder in (mvtec / "test", mvtec / "ground_truth", adapter.folder / "masks"):
        (folder / "hole").rename(folder / DRAWN)
    with pytest.raises(ValueError, match=rf"{adapter.folder.name}: knows a defect 'drawn'.*--drawn 0"):
        synthesize(settings(adapter, mvtec, tmp_path / "own", drawn=0.25))


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


def test_first_line_says_what_is_started_from_and_what_is_without_effect(adapter, mvtec, tmp_path):
    plain = shutil.copytree(mvtec / "train/good", tmp_path / "good")
    adapter.masks().save(tmp_path / "mine")

    def line(data=mvtec, **changes):
        config = settings(adapter, data, tmp_path / "set", **changes)
        return starting_point(config, synthesizer_module.mask_bank(adapter, config))

    assert line() == f"starts from the 4 real defects of {mvtec}"
    assert line(drawn=0.25) == f"starts from the 4 real defects of {mvtec}, 25 % of the images from drawn textures"
    assert line(defects=["hole"], in_place=0.5) == f"starts from the 2 real defects of {mvtec}"
    assert line(plain) == f"from noise: {plain} does not hold the defects that the adapter was trained on"
    idle = line(plain, in_place=0.5, drawn=0.1, from_noise=0.1, contrast=None, min_snr=1.0)
    assert idle.endswith("trained on; without effect: in_place, drawn, from_noise, contrast, min_snr")
    assert line(mask_bank=tmp_path / "mine") == f"from noise: the masks in {tmp_path / 'mine'} come without images"
    assert line(masks="perlin") == "from noise: masks=perlin" and line(strength=1.0) == "from noise: strength=1"
    assert line(fills=True) == "fills masks with the product as it should be"


@pytest.mark.parametrize("name", ["guidance_scale", "num_inference_steps"])
def test_no_steps_and_less_than_no_guidance_are_refused(adapter, mvtec, tmp_path, name):
    for value in (0, -1):
        with pytest.raises(ValueError, match=f"{name}={value} has to be at least 1"):
            settings(adapter, mvtec, tmp_path / "set", **{name: value})
