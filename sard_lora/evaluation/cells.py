"""Cells: one segmenter trained once on one set, and tested on as many sides of a split as wanted; both are kept."""

import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from sard_lora.atomic import atomic_folder, make_folder, write_text
from sard_lora.data import fingerprint
from sard_lora.evaluation.metrics import ScoreHistogram, summarise
from sard_lora.evaluation.segmenters import Segmenter, load_segmenter, predict, save_segmenter, to_tensor
from sard_lora.images import DEFECT, load_image, load_mask
from sard_lora.layouts import GOOD, Sample
from sard_lora.precision import choose_device, precision_name
from sard_lora.train.segmenter import SegmenterConfig, train_segmenter

REVISION = 4
"""Raised whenever the same settings give other images or other segmenters: what was kept before is then made anew."""
PREDICTION_REVISION = 3
"""Raised whenever the same weights give other predictions: what was trained and tested before is then made anew."""
SYNTHESIS_REVISION = 6
"""Raised whenever the same adapter and settings give other images: what was made with adapters is then made anew."""
PIXELS_REVISION = 7
"""The same, of images that decoded pixels are written into."""
PACKAGES = ("sard-lora", "torch", "diffusers", "transformers", "monai")
"""Whose versions are kept beside what was trained with them."""
_CHECKPOINTS = "training-"
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Side:
    """What segmenters are tested on: the name of the side of a split, its samples, and those to keep predictions of."""

    name: str
    samples: Sequence[Sample]
    shown: Sequence[Sample] = ()

    @cached_property
    def fingerprint(self) -> str:
        """As `sard_lora.data.fingerprint`; files that change while a side is in use do not change it."""
        return fingerprint(self.samples)


@dataclass(frozen=True)
class Cell:
    """The place of a segmenter and its tests: `folder` / segmenter, and a folder for each side that it is tested on.

    `title` is for progress; `key` is all that the training depends on. What an earlier run kept under the same key is
    not done again; what it kept under another one is replaced.
    """

    folder: Path
    title: str
    key: dict[str, Any]

    @property
    def segmenter(self) -> Path:
        """Where `load_segmenter` finds it."""
        return self.folder / "segmenter"

    def predictions(self, side: Side) -> Path:
        """The folder of its predictions of the shown images of a side: 00.png, 01.png …"""
        return self.folder / side.name / "predictions"

    @property
    def trained(self) -> bool:
        """Whether the segmenter is there."""
        return finished(self.segmenter, self.key) is not None

    def train(
        self,
        training: SegmenterConfig,
        anomalies: Sequence[Sample],
        normals: Sequence[Sample],
        decoys: Sequence[Sample] = (),
        start: Path | None = None,
        threshold: Sequence[Sample] = (),
    ) -> None:
        """Train the segmenter, unless it is there, and keep it, whole or not at all. As `train_segmenter`.

        A training that was killed goes on from its last checkpoint.
        """
        if self.trained:
            return
        begun = time.perf_counter()
        with tqdm(total=training.steps, desc=f"{self.title}: train", mininterval=1) as bar:

            def progress(step: int, loss: float) -> None:
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                bar.update(step - bar.n)

            segmenter = train_segmenter(
                anomalies, normals, training, progress, decoys, start, self._checkpoints, threshold
            )
        with atomic_folder(self.segmenter) as temporary:
            save_segmenter(segmenter, temporary)
            result = {
                "train_images": len(set(anomalies)),
                "train_seconds": round(time.perf_counter() - begun, 1),  # since it was last started
                "machine": f"{machine(training.device)}, {precision_name(choose_device(training.device))}",
                "versions": {name: version(name) for name in PACKAGES},
            }
            keep(temporary, self.key, result)
        for unfinished in self.folder.glob(f"{_CHECKPOINTS}*"):
            shutil.rmtree(unfinished)

    @property
    def _checkpoints(self) -> Path:
        """Where a training of this key goes on."""
        text = json.dumps(self.key, sort_keys=True)
        return self.folder / (_CHECKPOINTS + hashlib.sha256(text.encode()).hexdigest()[:10])

    def tested(self, side: Side) -> dict[str, Any] | None:
        """The figures that an earlier `test` kept, or None."""
        return finished(self.folder / side.name, self._test_key(side))

    def test(self, side: Side, device: str = "auto") -> dict[str, Any]:
        """The trained segmenter's figures on a side, as `summarise` gives them; kept, with its predictions."""
        kept = self.tested(side)
        if kept is not None:
            return kept
        segmenter = load_segmenter(self.segmenter).to(choose_device(device), memory_format=torch.channels_last)
        result = score_segmenter(segmenter, side.samples) | finished(self.segmenter, self.key)
        with atomic_folder(self.folder / side.name) as temporary:
            predictions = make_folder(temporary / "predictions")
            for index, sample in enumerate(side.shown):
                probability = predict(segmenter, to_tensor(load_image(sample.image))).sigmoid()
                Image.fromarray(probability.mul(255).byte().numpy()).save(predictions / f"{index:02d}.png")
            keep(temporary, self._test_key(side), result)
        return result

    def _test_key(self, side: Side) -> dict[str, Any]:
        return self.key | {"test": side.fingerprint}


def evenly(sets: Iterable[Sequence[Sample]]) -> list[Sample]:
    """The samples of several sets as one, each repeated until every set holds as many of a defect as the largest.

    So a few real defects beside many synthetic ones are half of what a segmenter sees, and not one in fifty.
    """
    by_defect: dict[str, list[list[Sample]]] = {}
    for samples in sets:
        own: dict[str, list[Sample]] = {}
        for sample in samples:
            own.setdefault(sample.defect, []).append(sample)
        for defect, found in own.items():
            by_defect.setdefault(defect, []).append(found)
    return [
        sample
        for _, found in sorted(by_defect.items())
        for samples in found
        for sample in islice(cycle(samples), max(map(len, found)))
    ]


def machine(device: str = "auto") -> str:
    """What trains on a device of that name: cores and processor, and the GPU where it is one."""
    chosen = choose_device(device)
    gpu = f", {torch.cuda.get_device_name(chosen)}" if chosen.type == "cuda" else ""
    return f"{os.cpu_count()} cores, {_processor()}{gpu}"


def _processor() -> str:
    """Its name where the system tells (Linux), else its kind."""
    told = _CPUINFO.read_text(encoding="utf-8") if _CPUINFO.is_file() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", told, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def score_segmenter(segmenter: Segmenter, tested: Sequence[Sample]) -> dict[str, Any]:
    """The figures of a segmenter on samples, each at its own resolution."""
    scores: dict[str, ScoreHistogram] = {}
    for sample in tqdm(tested, desc="test", leave=False, mininterval=1):
        image = load_image(sample.image)
        mask = np.zeros((image.height, image.width), dtype=bool)
        if sample.mask is not None:
            mask = np.asarray(load_mask(sample.mask, image.size)) == DEFECT
        logits = predict(segmenter, to_tensor(image))
        scores.setdefault(sample.defect, ScoreHistogram()).add(logits, torch.from_numpy(mask))
    normals = scores.pop(GOOD, ScoreHistogram())
    return summarise(scores, normals)


def keep(folder: Path, key: dict[str, Any], result: dict[str, Any]) -> None:
    """Write `result.json` for `finished` to find."""
    write_text(folder / "result.json", json.dumps({"key": key, "result": result}, indent=1))


def finished(folder: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """The result that an earlier run kept under the same key, or None."""
    path = folder / "result.json"
    if not path.is_file():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    return stored["result"] if stored["key"] == key else None
