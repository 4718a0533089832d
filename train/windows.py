"""Training windows: square crops around masks, at the scales that sampling will use."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from sard_lora.caching import Kept
from sard_lora.data import GOOD, Sample
from sard_lora.images import load_image
from sard_lora.mask_bank import MaskBank
from sard_lora.mask_geometry import split_mask, widen
from sard_lora.masks import sample_mask
from sard_lora.pipelines.sard_inpaint import crop_mask, crop_window, window_box
from sard_lora.product import Grain, foreground


@dataclass(frozen=True)
class WindowSettings:
    """Scales and symmetries of the training windows.

    `margins`: the most pixels by which the masks of each defect are widened, as synthesis does; where it draws a defect
    anew in its place, it does not widen them at all.
    """

    resolution: int
    context_range: tuple[float, float]
    min_side: int
    margins: Mapping[str, int]
    flip_horizontal: bool
    flip_vertical: bool
    grain: Grain


class WindowSource:
    """Draws windows of the few anomalies, and of normal images under masks from the sampler."""

    def __init__(self, anomalies: Sequence[Sample], normals: Sequence[Sample], settings: WindowSettings) -> None:
        self.settings = settings
        self.defects = sorted({sample.defect for sample in anomalies})
        self.bank = MaskBank.from_samples(anomalies)
        self.by_defect = {
            defect: [(load_image(entry.image), entry.mask) for entry in self.bank.for_defect(defect)]
            for defect in self.defects
        }
        self.normals = list(normals)
        self._normal = Kept(_load_normal, lambda loaded: 3 * loaded[1].size + loaded[1].nbytes)

    def draw_anomaly(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, str]:
        """One window of a real defect, every defect type equally often: (3, R, R) in [-1, 1], (1, R, R), defect."""
        defect = self.defects[rng.integers(len(self.defects))]
        image, mask = self.by_defect[defect][rng.integers(len(self.by_defect[defect]))]
        return *self._window(image, widen(mask, self._margin(defect, rng)), rng), defect

    def draw_normal(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, str]:
        """One window of a normal image under a mask from the sampler."""
        sample = self.normals[rng.integers(len(self.normals))]
        image, product = self._normal(str(sample.image))
        defect = self.defects[rng.integers(len(self.defects))]
        bank, margin = self.bank.for_defect(defect), self._margin(defect, rng)
        placement = sample_mask(bank, product, rng, source="mixed", margin=margin, grain=self.settings.grain)
        return *self._window(image, placement.mask, rng), GOOD

    def _margin(self, defect: str, rng: np.random.Generator) -> int:
        return int(rng.integers(self.settings.margins[defect] + 1))

    def _window(
        self, image: Image.Image, mask: np.ndarray, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A window around one part of the mask, as synthesis cuts it, with all of the mask that lies in it."""
        settings, size = self.settings, (self.settings.resolution,) * 2
        context = rng.uniform(*settings.context_range)
        min_side = round(settings.min_side * rng.uniform(1.0, 1.5))
        parts = split_mask(mask, context, min_side)
        focus = parts[rng.integers(len(parts))]
        box = window_box(torch.from_numpy(focus)[None].float(), context, min_side, tuple(rng.uniform(0.2, 0.8, 2)))
        pixels = torch.from_numpy(np.asarray(image, np.float32) / 127.5 - 1).permute(2, 0, 1)
        x, m = crop_window(pixels, box, size), crop_mask(torch.from_numpy(mask)[None].float(), box, size)
        flips = [axis for axis, allowed in ((2, settings.flip_horizontal), (1, settings.flip_vertical)) if allowed]
        for axis in flips:
            if rng.random() < 0.5:
                x, m = x.flip(axis), m.flip(axis)
        if settings.grain == "none":
            turns = int(rng.integers(4))
            x, m = x.rot90(turns, (1, 2)), m.rot90(turns, (1, 2))
        return x, m


def _load_normal(path: str) -> tuple[Image.Image, np.ndarray]:
    image = load_image(path)
    return image, foreground(image)
