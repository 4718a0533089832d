"""Training sets that need no generator, on the same normal images and under masks drawn as those of moved defects.

(Where parts look alike place by place, half of the generator's images are defective pictures, redrawn in place.)

- `paste`: real defects moved and relit (`sard_lora.transplant`), without diffusion, labelled as the generator's are;
- `cutpaste`: a patch or a scar of the normal image itself, moved (Li et al. 2021, CutPaste);
- `draem`: a foreign texture under a Perlin mask, half transparent (Zavrtanik et al. 2021, DRAEM; its textures are
  photographs, here they are drawn).

The other free baseline, `real`, is the few real defects themselves and needs no code.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from sard_lora.foreign import blended, drawn_texture
from sard_lora.images import load_image
from sard_lora.labelled import LabelledSet
from sard_lora.layouts import Sample
from sard_lora.margins import fade_margins
from sard_lora.mask_bank import BankMask, MaskBank
from sard_lora.masks import sample_mask
from sard_lora.product import Grain, foreground, grain_of
from sard_lora.transplant import borrowed, transplant

_ATTEMPTS = 50


@dataclass(frozen=True)
class Sources:
    """What the defects of one kind are made of.

    bank: the few real images of the defect and their masks; normals: the normal images; margin: by how many pixels real
    defects reach beyond their masks, as the generator has it; grain: that of the product, likewise. With `fills` the
    same is done with pieces of normal images only, under the same masks: nothing is a defect, and only the writing is
    left.
    """

    bank: Sequence[BankMask]
    normals: Sequence[Sample]
    margin: int
    grain: Grain
    fills: bool = False


class Drawing(NamedTuple):
    """A new image (H, W, 3) uint8, the region that was written (H, W) bool, and where its shape comes from.

    `core` (H, W) bool is what of the region is labelled a defect, where that is not all.
    """

    pixels: np.ndarray
    mask: np.ndarray
    origin: str
    core: np.ndarray | None = None


Draw = Callable[[Sources, np.ndarray, np.ndarray, np.random.Generator], Drawing | None]


def draw_paste(sources: Sources, image: np.ndarray, part: np.ndarray, rng: np.random.Generator) -> Drawing:
    """A real defect turned, bent, scaled, moved and relit (`transplant`), as SARD's diffusion starts from wide ones.

    `image` (H, W, 3) uint8, `part` (H, W) bool its foreground. What lies beyond the annotator's outline is its fringe.
    """
    placement = sample_mask(sources.bank, part, rng, margin=sources.margin, grain=sources.grain)
    if sources.fills:
        placement = borrowed(placement, sources.normals[rng.integers(len(sources.normals))].image)
    pasted = transplant(Image.fromarray(image), placement)
    return Drawing(np.asarray(pasted), placement.mask, placement.origin, None if sources.fills else placement.core)


def draw_cutpaste(sources: Sources, image: np.ndarray, part: np.ndarray, rng: np.random.Generator) -> Drawing | None:
    """A rectangle of the image itself put elsewhere, its colours jittered; half of them scars, thin and turned.

    As a fill, without the jitter.
    """
    height, width = part.shape
    area = sample_mask(sources.bank, part, rng).mask.sum()
    scar = rng.random() < 0.5
    aspect = np.exp(rng.uniform(np.log(4), np.log(16)) if scar else rng.uniform(-np.log(3), np.log(3)))
    size = np.clip(np.round([np.sqrt(area / aspect), np.sqrt(area * aspect)]), 1, [height, width]).astype(int)
    top, left = (rng.integers(bound - side + 1) for bound, side in zip((height, width), size, strict=True))
    patch = image[top : top + size[0], left : left + size[1]].astype(np.float32)
    if not sources.fills:
        patch = (patch - patch.mean()) * rng.uniform(0.9, 1.1) + patch.mean() * rng.uniform(0.9, 1.1)
    angle = rng.uniform(-45, 45) if scar else 0.0
    covered = ndimage.rotate(np.ones(size, np.float32), angle, order=1) > 0.5
    turned = ndimage.rotate(patch, angle, axes=(0, 1), order=1, mode="nearest")
    allowed = np.flatnonzero(part)
    row, column = divmod(int(allowed[rng.integers(len(allowed))]), width)
    canvas, region = image.astype(np.float32), np.zeros_like(part)
    rows, columns = (np.arange(side) - side // 2 for side in covered.shape)
    rows, columns = rows + row, columns + column
    inside_rows, inside_columns = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    target = np.ix_(rows[inside_rows], columns[inside_columns])
    source = np.ix_(inside_rows, inside_columns)
    region[target] = covered[source] & part[target]
    written = region[target]
    canvas[target] = np.where(written[..., None], turned[source], canvas[target])
    if not region.any():
        return None
    return Drawing(np.rint(np.clip(canvas, 0, 255)).astype(np.uint8), region, "scar" if scar else "patch")


def draw_draem(sources: Sources, image: np.ndarray, part: np.ndarray, rng: np.random.Generator) -> Drawing | None:
    """A foreign texture under a Perlin mask (`sard_lora.foreign`).

    As a fill, another normal image in place of the texture.
    """
    placement = sample_mask(sources.bank, part, rng, source="perlin")
    mask = placement.mask
    if sources.fills:
        other = load_image(sources.normals[rng.integers(len(sources.normals))].image)
        texture = np.asarray(other.resize(part.shape[::-1]), np.float32)
    else:
        texture = drawn_texture(part.shape, rng)
    return Drawing(blended(image, texture, mask, rng), mask, placement.origin)


BASELINES: dict[str, Draw] = {"paste": draw_paste, "cutpaste": draw_cutpaste, "draem": draw_draem}


def write_baseline(
    method: str,
    train_samples: Sequence[Sample],
    normals: Sequence[Sample],
    output: LabelledSet,
    counts: int | Mapping[str, int],
    root: Path,
    seed: int = 0,
    progress: Callable[[str, int], None] | None = None,
    fills: bool = False,
    margin: int | None = None,
) -> None:
    """Fill `output` with normal images that `method` wrote defects into, `counts` of each defect.

    Records name the normal images by their paths below `root`, the folder of their category.

    With `fills` it writes pieces of normal images in their place. `margin` is that of `Sources`, by default as
    `fade_margins` says; only `paste` has one.

    The label is the region that was written; outside it the pixels are those of the normal image. Images that `output`
    already has are kept, so the same call after a kill completes the set; image number i of a defect depends on `seed`
    and i alone. `progress` is called with the defect and the number of its images so far.
    Raises `ValueError` for an unknown method, without normal images, for a defect without samples, and where no part
    is found to write on.
    """
    if method not in BASELINES:
        raise ValueError(f"baseline {method!r} is not known; choose one of {', '.join(BASELINES)}")
    if not normals:
        raise ValueError("no normal images to write defects on: give at least one")
    by_defect: dict[str, list[Sample]] = {}
    for sample in train_samples:
        by_defect.setdefault(sample.defect, []).append(sample)
    margins = fade_margins(train_samples) if margin is None else dict.fromkeys(by_defect, margin)
    grain = grain_of([sample.image for sample in normals])
    if not isinstance(counts, Mapping):
        counts = dict.fromkeys(by_defect, counts)
    if strangers := sorted(set(counts) - set(by_defect)):
        raise ValueError(
            f"no real {', '.join(strangers)} to draw from: the training side has {', '.join(sorted(by_defect))}"
        )
    for number, (defect, samples) in enumerate(sorted(by_defect.items())):
        bank = MaskBank.from_samples(samples).for_defect(defect)
        sources = Sources(bank, normals, margins[defect], grain, fills)
        for index in range(counts.get(defect, 0)):
            name = f"{index:06d}"
            if not output.has(defect, name):
                _add_one(method, sources, output, name, root, seed, np.random.default_rng([seed, number, index]))
            if progress is not None:
                progress(defect, index + 1)
    output.write_metadata()


def _add_one(
    method: str,
    sources: Sources,
    output: LabelledSet,
    name: str,
    root: Path,
    seed: int,
    rng: np.random.Generator,
) -> None:
    defect = sources.bank[0].defect
    for _ in range(_ATTEMPTS):
        normal = sources.normals[rng.integers(len(sources.normals))]
        image = load_image(normal.image)
        before = np.asarray(image)
        drawing = BASELINES[method](sources, before, foreground(image), rng)
        if drawing is None:
            continue
        record = {
            "normal": normal.image.relative_to(root).as_posix(),
            "mask_origin": drawing.origin,
            "defect": defect,
            "prompt": "",
            "seed": seed,
            "critic_score": None,
            "visibility": float(np.abs(drawing.pixels.astype(float) - before)[drawing.mask].mean()),
            "method": f"{method} fill" if sources.fills else method,
        }
        output.add(defect, name, Image.fromarray(drawing.pixels), drawing.mask, record, drawing.core)
        return
    raise ValueError(
        f"{sources.normals[0].image.parent}: found no place for a {defect} in {_ATTEMPTS} attempts; "
        "check that the part fills a fair share of these images"
    )
