"""The whole evaluation on a tiny category: what it writes, what it refuses, how it goes on after a kill."""

import json
import re

import pytest
from PIL import Image

from sard_lora.config import parse
from sard_lora.data import DataError, few_shot_split, open_category
from sard_lora.evaluation import cells
from sard_lora.evaluation.baselines import write_baseline
from sard_lora.evaluation.protocol import EvaluateConfig, choose_pictures, evaluate
from sard_lora.evaluation.segmenters import load_segmenter
from sard_lora.labelled import LabelledSet
from sard_lora.layouts import GOOD

TINY = {"steps": 2, "batch_size": 2, "crop": 32, "device": "cpu"}


@pytest.fixture
def synthetic(mvtec, tmp_path):
    """A labelled set as synthesis writes it: 3 holes and 2 scratches."""
    split = few_shot_split(open_category(mvtec))
    output = LabelledSet(tmp_path / "synthetic")
    write_baseline("paste", split.train, split.normals, output, {"hole": 3, "scratch": 2}, mvtec)
    return output.root


@pytest.fixture
def config(mvtec, synthetic, tmp_path):
    return EvaluateConfig(test=mvtec, train=synthetic, output=tmp_path / "report", **TINY)


def test_every_method_gets_figures_overall_and_per_defect(config):
    report = evaluate(config)
    assert json.loads((config.output / "report.json").read_text()) == report
    assert list(report["methods"]) == ["real", "paste", "sard"]
    for result in report["methods"].values():
        assert set(result["per_defect"]) == {"hole", "scratch"}
        for figures in (result["overall"], result["mean_of_defects"], *result["per_defect"].values()):
            assert {"miou", "iou_defect", "pixel_acc", "ap", "auroc", "f1_max"} <= set(figures)
            assert all(0 <= value <= 1 for name, value in figures.items() if name != "false_alarms")
        assert "false_area" in result["overall"]
    # 7 holes and 6 scratches, 2 of each to train on; the rest and 3 normal images are cut in two.
    assert report["test_images"] == sum(report["test_images_per_defect"].values())
    assert report["methods"]["real"]["train_images"] == 4
    assert report["methods"]["paste"]["train_images"] == report["methods"]["sard"]["train_images"] == 5
    assert (report["split"], report["segmenter"]) == ("test", "unet-small")
    assert report["config"]["steps"] == 2


def test_pasted_are_as_many_as_the_set_has_whatever_else_is_compared(config):
    config.methods = "real,paste"
    assert evaluate(config)["methods"]["paste"]["train_images"] == 5
    config.train, config.paste_count = None, 2
    assert evaluate(config)["methods"]["paste"]["train_images"] == 4


def test_good_parts_that_now_set_the_threshold_train_no_more(config, turn, trainings):
    """The same images on another side: what was kept was trained on those that the threshold is set on now."""
    config.methods = "real"
    for places in (0, 1):
        turn(places)
        evaluate(config)
    first, second = (threshold for *_, threshold in trainings)
    assert set(first) != set(second)


def test_the_page_needs_nothing_but_itself(config):
    evaluate(config)
    page = (config.output / "index.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page) and "url(" not in page and "<script" not in page
    assert page.count("<img") == 5 * len(choose_pictures(few_shot_split(open_category(config.test)).test))
    assert all(f">{name}<" in page for name in ("real", "paste", "sard", "hole", "scratch"))


def test_the_figures_are_printed_in_percent(config, capsys):
    config.methods = "real"
    figures = evaluate(config)["methods"]["real"]
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| real |"))
    assert f" {100 * figures['mean_of_defects']['miou']:.1f} |" in line
    assert line.endswith(f" {100 * figures['overall']['false_area']:.1f} |")


def test_dev_and_test_share_no_image(config, monkeypatch):
    tested, score = {}, cells.score_segmenter

    def record(segmenter, samples):
        tested[config.split] = list(samples)
        return score(segmenter, samples)

    monkeypatch.setattr(cells, "score_segmenter", record)
    for config.split in ("dev", "test"):
        config.methods = "real"
        evaluate(config)
    assert tested["dev"] and not set(tested["dev"]) & set(tested["test"])


def test_thresholds_are_set_on_parts_that_nothing_else_sees(config, trainings):
    evaluate(config)
    assert len(trainings) == 3
    for anomalies, normals, *_, threshold in trainings:
        assert threshold == few_shot_split(open_category(config.test)).threshold != ()
        assert {*anomalies, *normals}.isdisjoint(threshold)


def test_a_killed_evaluation_goes_on_where_it_stopped(config, monkeypatch):
    config.methods = "real,sard"
    train = cells.train_segmenter
    trained = []

    def killed_at_the_second(*arguments):
        trained.append(arguments)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train(*arguments)

    monkeypatch.setattr(cells, "train_segmenter", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        evaluate(config)
    finished = json.loads((config.output / "report.json").read_text())["methods"]
    assert list(finished) == ["real"]
    report = evaluate(config)
    assert len(trained) == 3 and report["methods"]["real"] == finished["real"]
    evaluate(config)
    assert len(trained) == 3
    config.seed = 1
    evaluate(config)
    assert len(trained) == 5


def test_a_changed_data_set_is_evaluated_anew(config, synthetic, monkeypatch):
    config.methods = "sard"
    evaluate(config)
    image = Image.open(synthetic / "test/hole/000000.png")
    image.putpixel((0, 0), (1, 2, 3))
    image.save(synthetic / "test/hole/000000.png")
    monkeypatch.setattr(cells, "train_segmenter", lambda *_: pytest.fail("trained again"))
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        evaluate(config)


def test_a_changed_test_image_is_tested_anew_and_nothing_is_trained(config, mvtec, monkeypatch):
    config.methods = "real"
    evaluate(config)
    monkeypatch.setattr(cells, "train_segmenter", lambda *_: pytest.fail("trained again"))
    scored, score = [], cells.score_segmenter
    monkeypatch.setattr(cells, "score_segmenter", lambda *arguments: scored.append(1) or score(*arguments))
    evaluate(config)
    assert not scored
    held = few_shot_split(open_category(mvtec)).test[0].image
    image = Image.open(held)
    image.putpixel((0, 0), (1, 2, 3))
    image.save(held)
    evaluate(config)
    assert len(scored) == 1


def test_other_people_s_sets_can_be_trained_on_too(config, mvtec, tmp_path):
    """A plain MVTec-AD folder: no records, no normal images, other file formats."""
    root = tmp_path / "others"
    for source, target in (
        (mvtec / "test/hole/000.png", "test/dent/a.bmp"),
        (mvtec / "ground_truth/hole/000_mask.png", "ground_truth/dent/a_mask.png"),
    ):
        (root / target).parent.mkdir(parents=True)
        Image.open(source).save(root / target)
    config.train, config.methods = root, "paste,sard,sard+real"
    report = evaluate(config)
    images = {name: result["train_images"] for name, result in report["methods"].items()}
    assert images == {"paste": 2, "sard": 1, "sard+real": 5}


def test_training_on_the_tested_images_is_refused(config, mvtec):
    config.train = mvtec
    with pytest.raises(ValueError, match="leak"):
        evaluate(config)
    assert not (config.output / "report.json").exists()


def test_a_set_that_carries_a_held_back_normal_image_is_refused(config, mvtec):
    held = next(sample for sample in few_shot_split(open_category(mvtec)).test if sample.defect == GOOD)
    LabelledSet(config.train).add_normal("mine.png", held.image.read_bytes())
    with pytest.raises(ValueError, match=r"mine\.png: is the held-back image"):
        evaluate(config)


def test_a_damaged_image_is_named_before_anything_is_trained(config, monkeypatch):
    monkeypatch.setattr(cells, "train_segmenter", lambda *_: pytest.fail("trained"))
    (config.train / "ground_truth/scratch/000001_mask.png").unlink()
    with pytest.raises(DataError, match=r"scratch/000001\.png"):
        evaluate(config)


def test_the_segmenters_are_kept(config):
    config.methods = "real"
    evaluate(config)
    assert load_segmenter(config.output / "methods/real/segmenter").settings["name"] == "unet"


def test_pictures_are_chosen_by_name_over_all_defects(mvtec):
    tested = few_shot_split(open_category(mvtec)).test
    chosen = choose_pictures(tested, 5)
    assert [sample.defect for sample in chosen] == ["hole", "hole", "scratch", "scratch", GOOD]
    holes = [sample for sample in tested if sample.defect == "hole"]
    assert chosen[:2] == holes[:2]
    assert len(choose_pictures(tested, 100)) == len(tested)


def test_flags_are_those_of_the_issue(tmp_path):
    argv = ["--test", str(tmp_path), "--train", "synthetic/C", "--segmenter", "segformer", "--methods", "real,sard"]
    config = parse(EvaluateConfig, "sard-lora evaluate", "", [*argv, "--split", "dev", "--output", "reports/C"])
    assert (config.segmenter, config.split, config.method_names) == ("segformer", "dev", ["real", "sard"])
    assert config.training.segmenter == "segformer" and config.training.peak_learning_rate == 5e-4


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"methods": "real,magic"}, "'magic' is not one of"),
        ({"methods": "sard"}, "sard needs a synthetic set"),
        ({"methods": " , "}, "methods is empty"),
        ({"methods": "real", "steps": 0}, "steps=0"),
    ],
)
def test_bad_settings_are_named(tmp_path, wrong, words):
    with pytest.raises(ValueError, match=words):
        EvaluateConfig(test=tmp_path, **wrong)
