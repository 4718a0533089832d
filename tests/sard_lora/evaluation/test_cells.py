"""Cells: trained once, whole or to be continued, and tested on as many sides as wanted."""

import os
import platform
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from sard_lora.data import few_shot_split, open_category
from sard_lora.evaluation import cells
from sard_lora.evaluation.cells import Cell, evenly
from sard_lora.images import FRINGE
from sard_lora.layouts import Sample
from sard_lora.train import segmenter
from sard_lora.train.segmenter import SegmenterConfig


def test_checkpoints_belong_to_their_key_and_are_gone_in_the_end(mvtec, tmp_path, monkeypatch):
    split = few_shot_split(open_category(mvtec))
    config = SegmenterConfig(steps=3, batch_size=2, crop=32, device="cpu")
    monkeypatch.setattr(segmenter, "_CHECKPOINT_EVERY", 1)
    train, begun = segmenter.train_segmenter, []

    def watched(*arguments):
        begun.append(len(list(arguments[-2].glob("checkpoint-*"))))
        return train(*arguments)

    def killed(*arguments):
        train(*arguments)
        raise KeyboardInterrupt

    one, other = (Cell(tmp_path / "cell", "cell", {"set": name}) for name in ("one", "other"))
    monkeypatch.setattr(cells, "train_segmenter", killed)
    with pytest.raises(KeyboardInterrupt):
        one.train(config, split.train, split.normals)
    assert not one.trained
    monkeypatch.setattr(cells, "train_segmenter", watched)
    for cell in (one, other):
        cell.train(config, split.train, split.normals)
        assert cell.trained
    assert begun == [1, 0]
    assert [path.name for path in (tmp_path / "cell").iterdir()] == ["segmenter"]


def test_sets_of_a_sum_are_seen_equally_often():
    def images(folder: str, **counts: int) -> list[Sample]:
        return [Sample(Path(folder, f"{n}"), None, name, "") for name, count in counts.items() for n in range(count)]

    made, real = images("made", hole=50, crack=4), images("real", hole=3, dent=2)
    joined = evenly([made, real])
    seen = Counter((sample.defect, sample.image.parent.name) for sample in joined)
    assert seen == {("hole", "made"): 50, ("hole", "real"): 50, ("crack", "made"): 4, ("dent", "real"): 2}
    assert {sample for sample in joined} == {*made, *real}
    repeats = Counter(sample for sample in joined if sample in real and sample.defect == "hole")
    assert sorted(repeats.values()) == [16, 17, 17]
    assert sorted(evenly([made]), key=str) == sorted(made, key=str)


def test_the_processor_is_named_where_the_system_tells(tmp_path, monkeypatch):
    told = tmp_path / "cpuinfo"
    told.write_text("processor\t: 0\nmodel name\t: Grinder 9000\nprocessor\t: 1\nmodel name\t: Grinder 9000\n")
    monkeypatch.setattr(cells, "_CPUINFO", told)
    assert cells.machine("cpu") == f"{os.cpu_count()} cores, Grinder 9000"
    told.unlink()
    assert cells.machine("cpu") == f"{os.cpu_count()} cores, {platform.machine()}"


def test_a_fringe_is_no_defect_where_it_is_tested_either(mvtec, tmp_path, monkeypatch):
    """As it is none in training."""
    sample = open_category(mvtec).anomalies[0]
    label = np.array(Image.open(sample.mask))
    fringed = replace(sample, mask=tmp_path / "fringed_mask.png")
    ring = ndimage.binary_dilation(label > 0, iterations=3) & (label == 0)
    Image.fromarray(np.where(ring, np.uint8(FRINGE), label)).save(fringed.mask)
    monkeypatch.setattr(cells, "predict", lambda segmenter, image: torch.from_numpy(np.where(label > 0, 9.0, -9.0)))
    assert cells.score_segmenter(None, [fringed]) == cells.score_segmenter(None, [sample])


def test_a_device_that_is_not_there_is_refused_with_the_settings():
    for name in ("gpu", "cuda:77"):
        with pytest.raises(ValueError, match=rf"device='{name}' cannot be used here .*Give cpu, cuda or auto"):
            SegmenterConfig(device=name)
    with pytest.raises(ValueError, match="pretrained='nvidia/mit-b0': only the full SegFormer"):
        SegmenterConfig(pretrained="nvidia/mit-b0")
