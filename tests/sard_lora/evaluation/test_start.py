"""The common start: trained once, kept, and what every segmenter goes on from."""

import pytest
import torch

from sard_lora.data import open_category
from sard_lora.defects import DEFECTS
from sard_lora.evaluation import cells
from sard_lora.evaluation import start as module
from sard_lora.evaluation.benchmark_config import BenchmarkConfig
from sard_lora.evaluation.segmenters import load_segmenter
from sard_lora.evaluation.start import common_start, draw_surfaces
from sard_lora.train.segmenter import SegmenterConfig, train_segmenter

TINY = SegmenterConfig(steps=2, batch_size=2, crop=32)


def few(root):
    draw_surfaces(root, per_defect=1, normals=2)


def test_drawn_products_show_every_defect_and_can_be_continued(tmp_path):
    few(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    draw_surfaces(tmp_path, per_defect=1, normals=3)
    drawn = open_category(tmp_path)
    assert {sample.defect for sample in drawn.anomalies} == set(DEFECTS) and len(drawn.train_normals) == 3
    assert all(path.read_bytes() == data for path, data in before.items())


def test_a_start_is_trained_once_and_training_goes_on_from_it(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "draw_surfaces", few)
    folder = common_start(tmp_path / "start", TINY)
    monkeypatch.setattr(cells, "train_segmenter", None)  # it is there: nothing is trained again
    assert common_start(tmp_path / "start", TINY) == folder
    monkeypatch.setattr(module, "REVISION", cells.REVISION + 1)  # but not by this code
    with pytest.raises(TypeError, match="NoneType"):
        common_start(tmp_path / "start", TINY)
    drawn = open_category(min((tmp_path / "start").glob("drawn-*")))
    slow = SegmenterConfig(steps=1, batch_size=2, crop=32, learning_rate=1e-9)
    moved = train_segmenter(drawn.anomalies, drawn.train_normals, slow, start=folder)
    for name, value in load_segmenter(folder).named_parameters():
        assert torch.allclose(value, moved.get_parameter(name), atol=1e-6), name


def test_every_segmenter_has_a_start_and_its_steps_can_be_left_out(tmp_path):
    config = BenchmarkConfig(tmp_path, tmp_path, start_steps=7)
    assert config.start("unet").steps == config.start("segformer").steps == 7
    assert BenchmarkConfig(tmp_path, tmp_path, start_steps=0).start("unet") is None
