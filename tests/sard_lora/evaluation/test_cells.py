"""Cells: trained once, whole or to be continued, and tested on as many sides as wanted."""

import pytest

from sard_lora.data import few_shot_split, open_category
from sard_lora.evaluation import cells
from sard_lora.evaluation.cells import Cell
from sard_lora.train import segmenter
from sard_lora.train.segmenter import SegmenterConfig


def test_checkpoints_belong_to_their_key_and_are_gone_in_the_end(mvtec, tmp_path, monkeypatch):
    split = few_shot_split(open_category(mvtec))
    config = SegmenterConfig(steps=3, batch_size=2, crop=32, device="cpu")
    monkeypatch.setattr(segmenter, "_CHECKPOINT_EVERY", 1)
    train, begun = segmenter.train_segmenter, []

    def watched(*arguments):
        begun.append(len(list(arguments[-1].glob("checkpoint-*"))))
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
