"""A common start for segmenters: trained on drawn surfaces with drawn defects, once, before any method's images.

From scratch a segmenter needs many more steps than a benchmark on a CPU can pay for every cell. What it learns here, to
see that something is on a surface, is the same for every method and holds no picture of the product.
"""

from dataclasses import asdict
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from sard_lora.data import open_category
from sard_lora.defects import DEFECTS, add_defect
from sard_lora.evaluation.cells import REVISION, Cell
from sard_lora.labelled import LabelledSet
from sard_lora.textures import random_surface, shot
from sard_lora.train.segmenter import SegmenterConfig

_SIDE = 256
_EXTENTS = (0.04, 0.6)
"""Sizes of drawn defects, as shares of the picture's side; evenly drawn on a logarithmic scale."""


def draw_surfaces(root: Path, per_defect: int = 120, normals: int = 600, seed: int = 0) -> None:
    """Fill `root` with pictures (256, 256) of drawn surfaces: `per_defect` of each drawn defect, and `normals` without.

    Every picture shows another surface, and depends on the seed and its own number alone. What is there is kept.
    """
    drawn = LabelledSet(root)
    with tqdm(total=per_defect * len(DEFECTS) + normals, desc="draw", leave=False, mininterval=1) as bar:
        for kind, defect in enumerate(sorted(DEFECTS), 1):
            for number in range(per_defect):
                name, rng = f"{number:06d}", np.random.default_rng([seed, kind, number])
                if not drawn.has(defect, name):
                    surface, product = random_surface(_SIDE, rng)
                    extent = _SIDE * np.exp(rng.uniform(*np.log(_EXTENTS)))
                    damaged, mask = add_defect(surface, defect, rng, extent)
                    picture = Image.fromarray(shot(damaged, rng))
                    drawn.add(defect, name, picture, mask, {"defect": defect, "product": product})
                bar.update()
        there = {path.name for path in drawn.normals()}
        for number in range(normals):
            name, rng = f"{number:06d}.png", np.random.default_rng([seed, 0, number])
            if name not in there:
                surface, _ = random_surface(_SIDE, rng)
                file = BytesIO()
                Image.fromarray(shot(surface, rng)).save(file, "PNG")
                drawn.add_normal(name, file.getvalue())
            bar.update()


def common_start(root: Path, training: SegmenterConfig) -> Path:
    """Folder of a segmenter (for `load_segmenter`) trained as `training` says on `draw_surfaces`, kept below `root`."""
    cell = Cell(root / training.segmenter, f"start, {training.segmenter}", asdict(training) | {"revision": REVISION})
    if not cell.trained:
        surfaces = root / f"drawn-{REVISION}"
        draw_surfaces(surfaces)
        drawn = open_category(surfaces)
        cell.train(training, drawn.anomalies, drawn.train_normals)
    return cell.segmenter
