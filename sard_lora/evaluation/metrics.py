"""Pixel metrics over a whole test set in constant memory: every figure is read off a histogram of the logits.

All figures are fractions in [0, 1], except `false_alarms`, a mean count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

# Bins of equal width over logits in [-LIMIT, LIMIT]: unlike bins over probabilities they keep apart the pixels that a
# sure network puts at 1e-6 and 1e-5, which the AUROC is made of. A bin edge lies at 0, where the probability is 0.5.
BINS = 8192
LIMIT = 20.0

# AUPRO looks at false positive rates up to this, as on MVTec-AD: beyond it no segmentation is of use.
AUPRO_LIMIT = 0.3

# The logit of a region that is left out, in the bin below 0; and by how much a peak lies above what it leaves out.
_FAINT = -1e-3
_ABOVE = 1e-3

# Pixels that touch by a corner are one region, as in MVTec-AD's evaluation: a thin slanted scratch is one defect.
_NEIGHBOURS = np.ones((3, 3), dtype=bool)


def _no_pixels() -> Tensor:
    return torch.zeros(BINS, dtype=torch.int64)


def _no_regions() -> Tensor:
    return torch.zeros(BINS, dtype=torch.float64)


@dataclass
class ScoreHistogram:
    """What the figures need to know of any number of images; histograms of different images add up.

    A region is a set of 8-connected pixels.
    """

    positive: Tensor = field(default_factory=_no_pixels)
    """Defect pixels by the bin of their logit: (BINS,) int64."""
    negative: Tensor = field(default_factory=_no_pixels)
    """Background pixels by the bin of their logit: (BINS,) int64."""
    regions: Tensor = field(default_factory=_no_regions)
    """Sum over the true regions of the share of their pixels in each bin: (BINS,) float64, total `region_count`."""
    region_count: int = 0
    """True regions."""
    predicted_regions: int = 0
    """Regions with a probability of 0.5 or more, true or not."""
    images: int = 0
    """Images, with or without a defect."""

    def add(self, logits: Tensor, mask: Tensor) -> None:
        """Count one image: `logits` (H, W), `mask` (H, W) bool, True = defect.

        Raises `ValueError` for other shapes and for logits that are not finite.
        """
        if logits.shape != mask.shape:
            raise ValueError(f"logits {tuple(logits.shape)} and mask {tuple(mask.shape)} differ in shape")
        if logits.ndim != 2:
            raise ValueError(f"logits {tuple(logits.shape)} are not (H, W): add the images one by one")
        if not torch.isfinite(logits).all():
            raise ValueError("logits hold NaN or infinity: the segmenter's training diverged; lower learning_rate")
        scaled = (logits.double() + LIMIT) * (BINS / (2 * LIMIT))
        bins = scaled.floor().long().clamp(0, BINS - 1)
        self.positive = self.positive + torch.bincount(bins[mask], minlength=BINS)
        self.negative = self.negative + torch.bincount(bins[~mask], minlength=BINS)
        labels, count = _label(mask)
        region_of = labels[mask]
        share = 1 / torch.bincount(region_of).double()[region_of]
        self.regions = self.regions + torch.bincount(bins[mask], weights=share, minlength=BINS)
        self.region_count += count
        self.predicted_regions += _label(bins >= BINS // 2)[1]
        self.images += 1

    def __add__(self, other: ScoreHistogram) -> ScoreHistogram:
        return ScoreHistogram(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(self)))


def overlap_figures(scores: ScoreHistogram) -> dict[str, float]:
    """Figures at probability 0.5: `miou` (mean IoU of defect and background), `iou_defect`, `pixel_acc`.

    An IoU of a class that is neither present nor predicted is 1.
    """
    tp, fn = _above_half(scores.positive)
    fp, tn = _above_half(scores.negative)
    iou_defect = _ratio(tp, tp + fp + fn)
    iou_background = _ratio(tn, tn + fp + fn)
    accuracy = _ratio(tp + tn, tp + tn + fp + fn)
    return {"miou": (iou_defect + iou_background) / 2, "iou_defect": iou_defect, "pixel_acc": accuracy}


def ranking_figures(scores: ScoreHistogram) -> dict[str, float]:
    """Figures over all thresholds: `ap` (average precision), `auroc`, `f1_max`, `aupro`.

    - `f1_max` is the F1 at the best threshold, which only someone who knows the truth can pick: it bounds what a
      threshold tuned on other data can reach;
    - `aupro` is the area under the per-region overlap up to a false positive rate of `AUPRO_LIMIT`, divided by that
      limit (Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021): the overlap is the share
      found of a true region, averaged over the regions, so that a small one counts no less than a large one. The
      false positive rate is over all background pixels, the same as of `auroc`.

    Raises `ValueError` without both defect and background pixels.
    """
    if not scores.positive.any() or not scores.negative.any():
        raise ValueError("AP, AUROC and AUPRO need defect and background pixels: the test set holds only one kind")
    tp = scores.positive.flip(0).cumsum(0).double()
    fp = scores.negative.flip(0).cumsum(0).double()
    overlap = scores.regions.flip(0).cumsum(0) / scores.region_count
    seen = tp + fp > 0
    tp, fp, overlap = tp[seen], fp[seen], overlap[seen]
    precision, recall, fallout = tp / (tp + fp), tp / tp[-1], fp / fp[-1]
    zero = torch.zeros(1, dtype=torch.float64)
    ap = (torch.diff(recall, prepend=zero) * precision).sum()
    fallout_from_zero = torch.cat([zero, fallout])
    auroc = torch.trapezoid(torch.cat([zero, recall]), fallout_from_zero)
    f1 = 2 * tp / (tp + fp + tp[-1])
    aupro = _area_up_to(AUPRO_LIMIT, fallout_from_zero, torch.cat([zero, overlap])) / AUPRO_LIMIT
    # The shares of a region sum to 1 up to rounding only.
    return {"ap": ap.item(), "auroc": auroc.item(), "f1_max": f1.max().item(), "aupro": min(1.0, aupro)}


def logit_of_share(normals: ScoreHistogram, share: float) -> float:
    """The lowest logit, up to the width of a bin, that at most a `share` of the pixels without a defect lie above."""
    above = normals.negative.flip(0).cumsum(0).flip(0)
    few = (above <= share * normals.negative.sum()).nonzero()
    return LIMIT if not len(few) else few[0].item() * (2 * LIMIT / BINS) - LIMIT


def without_faint_regions(logits: Tensor, peak: float) -> Tensor:
    """Logits (H, W) in which regions above 0 that nowhere reach `peak` are put just below 0.

    Hysteresis thresholding (Canny, "A Computational Approach to Edge Detection", 1986): what is sure somewhere is
    outlined as far as it is likely, and what is nowhere sure is left out.
    """
    labels, peaks = _peaks(logits)
    faint = torch.cat([torch.tensor([False]), peaks < peak])
    return torch.where(faint[labels], _FAINT, logits)


def peak_of_count(normals: Iterable[Tensor], most: float) -> float:
    """The lowest `peak` of 0 and more that leaves at most `most` regions on a normal image, in the mean of all.

    `normals` are the logits (H, W) of each, as `without_faint_regions` takes them.
    """
    peaks = [_peaks(logits)[1] for logits in normals]
    allowed = int(most * len(peaks))
    highest = torch.cat(peaks).sort(descending=True).values
    return highest[allowed].item() + _ABOVE if allowed < len(highest) else 0.0


def false_area(normals: ScoreHistogram) -> float | None:
    """The share of pixels of normal images whose probability is 0.5 or more; None without normal images."""
    above, below = _above_half(normals.negative)
    return above / (above + below) if above + below else None


def false_alarms(normals: ScoreHistogram) -> float | None:
    """The mean number of regions of a normal image whose probability is 0.5 or more; None without normal images.

    It may exceed 1. What a person at the line has to look at in vain is a region, whatever its area.
    """
    return normals.predicted_regions / normals.images if normals.images else None


def summarise(defects: dict[str, ScoreHistogram], normals: ScoreHistogram) -> dict[str, dict]:
    """The figures of one test set: `overall`, `mean_of_defects` and `per_defect`.

    `defects` maps each defect type to the scores of its images, `normals` holds those of the normal images.

    - per defect: IoUs and accuracy on the images of that defect alone; AP, AUROC, F1-max and AUPRO on these together
      with all normal images, as is usual on MVTec-AD;
    - `mean_of_defects`: the plain mean of these over the defect types, so that a type with large areas counts no more
      than one with small ones;
    - `overall`: over the pixels of all images, normal ones included, with `false_area` and `false_alarms`.
    """
    per_defect = {
        name: overlap_figures(scores) | ranking_figures(scores + normals) for name, scores in sorted(defects.items())
    }
    everything = sum(defects.values(), normals)
    first = next(iter(per_defect.values()))
    on_normals = {"false_area": false_area(normals), "false_alarms": false_alarms(normals)}
    return {
        "overall": overlap_figures(everything) | ranking_figures(everything) | on_normals,
        "mean_of_defects": {
            figure: sum(row[figure] for row in per_defect.values()) / len(per_defect) for figure in first
        },
        "per_defect": per_defect,
    }


def _label(region: Tensor) -> tuple[Tensor, int]:
    """The 8-connected regions of a (H, W) bool tensor: (H, W) int64, 0 outside and 1, 2 … inside, and their number."""
    labels, count = ndimage.label(region.numpy(), structure=_NEIGHBOURS)
    return torch.from_numpy(labels).long(), count


def _peaks(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The regions of logits (H, W) of 0 and more, labelled as by `_label`, and the highest logit of each."""
    labels, count = _label(logits >= 0)
    peaks = ndimage.maximum(logits.numpy(), labels.numpy(), np.arange(1, count + 1))
    return labels, torch.as_tensor(np.asarray(peaks, dtype=np.float32))


def _area_up_to(limit: float, x: Tensor, y: Tensor) -> float:
    """The area under the polyline through (x, y) from 0 to `limit`; `x` (N,) rises from 0 to beyond `limit`."""
    beyond = int(torch.searchsorted(x, limit, right=True))
    x0, x1, y0, y1 = x[beyond - 1], x[beyond], y[beyond - 1], y[beyond]
    at_limit = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
    end = torch.full((1,), limit, dtype=x.dtype)
    return torch.trapezoid(torch.cat([y[:beyond], at_limit.reshape(1)]), torch.cat([x[:beyond], end])).item()


def _above_half(counts: Tensor) -> tuple[int, int]:
    return counts[BINS // 2 :].sum().item(), counts[: BINS // 2].sum().item()


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 1.0
