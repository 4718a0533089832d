"""The shortcut test: can a segmenter tell what a method wrote, where what it wrote is no defect?

Normal regions are filled as the method fills them, with nothing that is a defect, and labelled as defects. A segmenter
trained on that has only the writing itself to go by: its average precision on fresh fills, among untouched normal
images, is the strength of the method's fingerprint. Chance is the share of filled pixels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sard_lora.data import fingerprint
from sard_lora.evaluation.cells import Cell, Side
from sard_lora.labelled import records_by_image
from sard_lora.layouts import GOOD, Sample
from sard_lora.train.segmenter import SegmenterConfig


def shortcut_cell(
    folder: Path,
    key: dict[str, Any],
    title: str,
    fills: Sequence[Sample],
    normals: Sequence[Sample],
    training: SegmenterConfig,
    start: Path | None = None,
) -> dict[str, float]:
    """Train on one half of the fills, test on the other; what is found already is kept in `folder` under `key`.

    Normal images, and the fills written into them, are divided by group, so that none is on both sides; what is written
    may come from any of them. `key` is as for `Cell`, but for the fills; `start` is as for `train_segmenter`. Answers
    fractions: `ap`, `auroc`, and the `chance` that `ap` has to be compared with.

    Raises:
        ValueError: too few normal images or fills to divide.
    """
    groups = sorted({sample.group for sample in normals})
    first = set(groups[: len(groups) // 2])
    side_of = {sample.image.name: sample.group in first for sample in normals}
    records = records_by_image(sample.image for sample in fills)
    trained, tested = [], []
    for sample in fills:
        (trained if side_of[Path(records[sample.image]["normal"]).name] else tested).append(sample)
    if not trained or not tested:
        raise ValueError(f"{title}: {len(fills)} fills on {len(groups)} groups of normal images cannot be divided")
    tested += [sample for sample in normals if sample.group not in first][: len(tested)]
    kept = [sample for sample in normals if sample.group in first]
    cell = Cell(folder, title, key | {"filled": fingerprint(fills)})
    cell.train(training, trained, kept, start=start)
    found = cell.test(Side("test", tested), training.device)
    return {"ap": found["overall"]["ap"], "auroc": found["overall"]["auroc"], "chance": _filled_share(tested)}


def _filled_share(samples: Sequence[Sample]) -> float:
    filled = total = 0
    for sample in samples:
        with Image.open(sample.image) as image:
            total += image.width * image.height
        if sample.defect != GOOD:
            filled += int(np.count_nonzero(Image.open(sample.mask)))
    return filled / total
