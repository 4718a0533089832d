"""The main job through the command line with the embedded base: on the demo's product, and on real data when there."""

import json
from pathlib import Path

import pytest

from sard_lora.cli import main
from sard_lora.demo import DemoConfig, demo
from sard_lora.synthesis import verify

REAL = Path(__file__).parents[2] / "shared" / "data"


def test_demo_leaves_its_report_page_and_grid(tmp_path):
    config = DemoConfig(output=tmp_path / "demo", steps=2, count=3, segmenter_steps=2, normals=8, shots=3, candidates=1)
    report = demo(config)
    assert report["pixels_changed_outside_mask"] == 0 and report["labels_equal_written_region"] is True
    assert report["synthesized"] + report["given_up"] == 3 and report["rejected"] >= 0
    assert report["train_seconds"] > 0 and report["synthesize_seconds"] > 0
    assert set(report["segmentation"]) == {"real", "paste", "sard"}
    for figures in report["segmentation"].values():
        assert set(figures) == {"miou", "iou_defect", "ap", "auroc", "f1_max"}
        assert all(0 <= value <= 1 for value in figures.values())
    assert json.loads((tmp_path / "demo/report.json").read_text()) == report
    page = (tmp_path / "demo/index.html").read_text()
    assert 'src="grid.png"' in page and (tmp_path / "demo/grid.png").is_file()
    again = demo(config)
    assert again["segmentation"] == report["segmentation"], "started again it goes on where it was"


def test_demo_of_other_settings_is_refused(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("sard_lora.demo.write_category", stop)
    for _ in range(2):  # the same settings go on
        with pytest.raises(KeyboardInterrupt):
            demo(DemoConfig(output=tmp_path / "demo"))
    with pytest.raises(ValueError, match=r"demo: holds a demo with another normals, seed\. Choose another --output"):
        demo(DemoConfig(output=tmp_path / "demo", normals=8, seed=1))


@pytest.mark.skipif(not REAL.is_dir(), reason="needs real data beside the project")
@pytest.mark.parametrize("category", ["magnetic_tile", "pv_cell_4bb"])
def test_short_run_on_real_data(category, tmp_path, capsys):
    data, adapter, synthetic, report = (str(path) for path in (REAL / category, *(tmp_path / n for n in "asr")))
    assert main(["check", data, "--output", str(tmp_path / "sheet.png")]) == 0
    assert "no problems found" in capsys.readouterr().out
    options = ["--steps", "2", "--batch_size", "2", "--samples", "1"]
    assert main(["train", "--data", data, "--output", adapter, *options]) == 0
    options = ["--count", "2", "--candidates", "1", "--num_inference_steps", "4", "--min_visibility", "0"]
    assert main(["synthesize", "--adapter", adapter, "--data", data, "--output", synthetic, *options]) == 0
    assert verify(Path(synthetic), Path(data)) == {
        "pixels_changed_outside_mask": 0,
        "labels_equal_written_region": True,
    }
    options = ["--methods", "sard", "--steps", "2", "--split", "dev"]
    assert main(["evaluate", "--train", synthetic, "--test", data, "--output", report, *options]) == 0
    figures = json.loads((tmp_path / "r/report.json").read_text())["methods"]["sard"]["overall"]
    assert 0 <= figures["miou"] <= 1
