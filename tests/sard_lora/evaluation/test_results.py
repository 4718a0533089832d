"""Rows and tables: means and deviations of known figures."""

import pytest

from sard_lora.evaluation.cells import PACKAGES
from sard_lora.evaluation.results import FIGURES, Outcome, build_report, markdown


def outcome(tmp_path, seed: int, method: str, miou: float, alarms: float | None = 1.5) -> Outcome:
    figures = dict.fromkeys(FIGURES, 0.5) | {"miou": miou}
    result = {
        "train_images": 10 + seed,
        "machine": "2 cores, a processor",
        "versions": dict.fromkeys(PACKAGES, "1"),
        "mean_of_defects": figures,
        "per_defect": {"crack": figures | {"miou": miou + 0.1}},
        "overall": figures | {"miou": miou - 0.1, "false_alarms": alarms, "false_area": alarms and alarms / 100},
    }
    return Outcome("plate", seed, method, "unet", result, tmp_path)


@pytest.fixture
def settings() -> dict:
    return {"base": "sard-tiny", "split": "dev"}


def test_a_row_holds_percent_and_the_deviation_of_a_sample(tmp_path, settings):
    outcomes = [outcome(tmp_path, seed, "real", miou) for seed, miou in enumerate((0.6, 0.7, 0.8))]
    (row,) = build_report(outcomes, settings, "the command")["rows"]
    assert (row["seeds"], row["images"], row["base"]) == (3, 11, "sard-tiny")
    assert row["miou"] == {"mean": 70.0, "std": 10.0, "values": [60.0, 70.0, 80.0]}
    assert row["per_defect"]["crack"]["miou"]["mean"] == 80.0 and row["overall"]["miou"]["mean"] == 60.0
    assert row["false_alarms"]["mean"] == 1.5 and row["false_area"]["mean"] == 1.5, "a count, and percent"


def test_without_good_images_there_are_no_alarms(tmp_path, settings):
    (row,) = build_report([outcome(tmp_path, 0, "real", 0.6, None)], settings, "the command")["rows"]
    assert row["false_alarms"] is None and row["miou"]["std"] == 0


def test_the_table_marks_the_best_of_a_column_and_says_what_it_shows(tmp_path, settings):
    outcomes = [outcome(tmp_path, seed, "real", 0.5 + seed / 5, 2.0) for seed in (0, 1)]
    outcomes += [outcome(tmp_path, seed, "sard", 0.75, 1.0) for seed in (0, 1)]
    text = markdown(build_report(outcomes, settings, "sard-lora benchmark --data plate"))
    table = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("| ")]
    heads, real, sard = table
    at = {head: number for number, head in enumerate(heads)}
    assert sard[at["mIoU"]] == "**75.0 ± 0.0**" and real[at["mIoU"]] == "60.0 ± 14.1"
    assert sard[at["mIoU, all pixels"]] == "**65.0 ± 0.0**"
    assert sard[at["false alarms per good image"]] == "**1.00 ± 0.00**", "fewer are better"
    assert "Means over the defect types" in text and "`sard-lora benchmark --data plate` on 2 cores" in text


def test_one_seed_has_no_deviation_in_the_table(tmp_path, settings):
    text = markdown(build_report([outcome(tmp_path, 0, "real", 0.6)], settings, "the command"))
    (row,) = (line for line in text.splitlines() if line.startswith("| real"))
    assert "| 60.0 |" in row and "| 1.50 |" in row and "±" not in row
