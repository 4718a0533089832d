"""Batches: windows encoded once for several steps, the same for the same step, others for every process."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from sard_lora.data import few_shot_split, open_category
from sard_lora.layouts import GOOD
from sard_lora.pipelines.sard_inpaint import SardInpaintPipeline
from sard_lora.train.batches import Batches, BatchSettings, Windows
from sard_lora.train.windows import WindowSettings, WindowSource


@pytest.fixture
def batches(mvtec, tiny_base):
    """Of four windows, one of them normal; every window is drawn twice."""
    split = few_shot_split(open_category(mvtec))
    margins = dict.fromkeys(("hole", "scratch"), 0)
    source = WindowSource(
        split.train, split.normals, WindowSettings(64, (1.6, 3.5), 16, margins, True, True, grain="none")
    )
    pipe = SardInpaintPipeline.from_pretrained(tiny_base)
    return Batches(source, pipe, Accelerator(cpu=True), BatchSettings(4, 0.25, window_reuse=2, seed=0))


def test_processes_see_different_windows_and_steps_repeat(batches):
    first, again, later = (batches.batch(step).latents for step in (0, 0, 1))
    assert first.equal(again) and not first.equal(later)
    batches.accelerator.state._shared_state["process_index"] = 1
    batches._block = None
    assert not batches.batch(0).latents.equal(first)


def test_anomalies_come_first_and_every_window_is_encoded_once_for_several_steps(batches, monkeypatch):
    encoded = []
    encode = Batches._encode
    monkeypatch.setattr(Batches, "_encode", lambda self, windows: encoded.append(len(windows)) or encode(self, windows))
    for step in range(16):
        assert [defect == GOOD for defect in batches.batch(step).defects] == [False, False, False, True]
    assert encoded == [24, 8], "8 batches' worth, for 16 steps"
    batches.batch(16)
    assert encoded == [24, 8, 24, 8]


def test_windows_are_taken_and_joined_in_order():
    part = Windows(torch.arange(3.0).view(3, 1, 1, 1), torch.zeros(3, 1, 1, 1), torch.ones(3, 1, 1, 1), ["a", "b", "c"])
    joined = Windows.cat([part.take(np.array([2, 0])), part])
    assert joined.defects == ["c", "a", "a", "b", "c"]
    assert joined.latents.flatten().tolist() == [2, 0, 0, 1, 2]
