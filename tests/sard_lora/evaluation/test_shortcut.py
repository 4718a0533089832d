"""The shortcut test: a visible fingerprint is found, an invisible one is not, and no part is on both sides."""

import numpy as np
import pytest
from PIL import Image

from sard_lora.evaluation import shortcut as module
from sard_lora.evaluation.shortcut import shortcut_cell
from sard_lora.labelled import LabelledSet
from sard_lora.layouts import GOOD, Sample
from sard_lora.train.segmenter import SegmenterConfig

TRAINING = SegmenterConfig(steps=60, batch_size=4, crop=32)


@pytest.fixture
def normals(tmp_path) -> list[Sample]:
    found = []
    for number in range(8):
        path = tmp_path / "train/good" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grain = np.random.default_rng(number).normal(120, 12, (48, 48, 1)).clip(0, 255).astype(np.uint8)
        Image.fromarray(grain.repeat(3, 2)).save(path)
        found.append(Sample(path, None, GOOD, f"part{number // 2}"))
    return found


def fills(root, normals, strength: float) -> list[Sample]:
    """Smoothed squares (strength 1) or squares left as they were (0)."""
    made, samples = LabelledSet(root), []
    for number in range(24):
        normal = normals[number % len(normals)]
        pixels = np.array(Image.open(normal.image)).astype(float)
        mask = np.zeros((48, 48), bool)
        top, left = np.random.default_rng(number).integers(0, 34, 2)
        mask[top : top + 14, left : left + 14] = True
        pixels[mask] += strength * (pixels[mask].mean() - pixels[mask])
        name = f"{number:06d}"
        record = {"normal": f"train/good/{normal.image.name}"}
        made.add("spot", name, Image.fromarray(pixels.astype(np.uint8)), mask, record)
        samples.append(
            Sample(root / f"test/spot/{name}.png", root / f"ground_truth/spot/{name}_mask.png", "spot", name)
        )
    return samples


def test_a_smooth_fill_is_found_and_an_untouched_one_is_not(normals, tmp_path):
    smooth = shortcut_cell(tmp_path / "a", {}, "smooth", fills(tmp_path / "smooth", normals, 1), normals, TRAINING)
    none = shortcut_cell(tmp_path / "b", {}, "none", fills(tmp_path / "none", normals, 0), normals, TRAINING)
    assert smooth["ap"] > 0.6 > 0.3 > none["ap"]
    assert smooth["chance"] == pytest.approx(12 * 196 / (16 * 48 * 48))


def test_no_part_is_on_both_sides_and_a_finished_cell_is_kept(normals, tmp_path, monkeypatch):
    sides = []

    def train(cell, training, trained, kept, start=None):
        sides.append((trained, kept))

    def test(cell, side, device):
        (trained, kept), tested = sides.pop(), side.samples
        parts = {sample.image.name: sample.group for sample in normals}
        own = [{parts[f"{int(s.image.stem) % 8}.png"] for s in side if s.defect != GOOD} for side in (trained, tested)]
        good = [{s.group for s in side if s.defect == GOOD} for side in (kept, tested)]
        sides.append((own[0] | good[0], own[1] | good[1]))
        return {"overall": {"ap": 0.5, "auroc": 0.5}}

    monkeypatch.setattr(module.Cell, "train", train)
    monkeypatch.setattr(module.Cell, "test", test)
    shortcut_cell(tmp_path / "a", {}, "t", fills(tmp_path / "set", normals, 1), normals, TRAINING)
    ((first, second),) = sides
    assert first and second and not first & second
    with pytest.raises(ValueError, match="cannot be divided"):
        shortcut_cell(tmp_path / "a", {}, "t", fills(tmp_path / "set", normals, 1)[:1], normals, TRAINING)
