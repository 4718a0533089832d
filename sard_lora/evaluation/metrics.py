"""Pixel metrics over a whole test set in constant memory: every figure is read off a histogram of the logits.

All figures are fractions in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

# Bins of equal width over logits in [-LIMIT, LIMIT]: unlike bins over probabilities they keep apart the pixels that a
# sure network puts at 1e-6 and 1e-5, which the AUROC is made of. A bin edge lies at 0, where the probability is 0.5.
BINS = 8192
LIMIT = 20.0


def _no_pixels() -> Tensor:
    return torch.zeros(BINS, dtype=torch.int64)


@dataclass
class ScoreHistogram:
    """How many defect (`positive`) and background (`negative`) pixels had a logit in each bin: two (BINS,) int64."""

    positive: Tensor = field(default_factory=_no_pixels)
    negative: Tensor = field(default_factory=_no_pixels)

    def add(self, logits: Tensor, mask: Tensor) -> None:
        """Count one image: `logits` of any shape, `mask` bool of the same shape, True = defect."""
        if logits.shape != mask.shape:
            raise ValueError(f"logits {tuple(logits.shape)} and mask {tuple(mask.shape)} differ in shape")
        if not torch.isfinite(logits).all():
            raise ValueError("logits hold NaN or infinity: the segmenter's training diverged; lower learning_rate")
        scaled = (logits.double() + LIMIT) * (BINS / (2 * LIMIT))
        bins = scaled.floor().long().clamp(0, BINS - 1).flatten()
        mask = mask.flatten()
        self.positive = self.positive + torch.bincount(bins[mask], minlength=BINS)
        self.negative = self.negative + torch.bincount(bins[~mask], minlength=BINS)

    def __add__(self, other: ScoreHistogram) -> ScoreHistogram:
        return ScoreHistogram(self.positive + other.positive, self.negative + other.negative)


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
    """Figures over all thresholds: `ap` (average precision), `auroc`, `f1_max`.

    `f1_max` is the F1 at the best threshold, which only someone who knows the truth can pick: it bounds what a
    threshold tuned on other data can reach. Raises `ValueError` without both defect and background pixels.
    """
    if not scores.positive.any() or not scores.negative.any():
        raise ValueError("AP and AUROC need defect and background pixels: the test set holds only one kind")
    tp = scores.positive.flip(0).cumsum(0).double()
    fp = scores.negative.flip(0).cumsum(0).double()
    seen = tp + fp > 0
    tp, fp = tp[seen], fp[seen]
    precision, recall, fallout = tp / (tp + fp), tp / tp[-1], fp / fp[-1]
    zero = torch.zeros(1, dtype=torch.float64)
    ap = (torch.diff(recall, prepend=zero) * precision).sum()
    auroc = torch.trapezoid(torch.cat([zero, recall]), torch.cat([zero, fallout]))
    f1 = 2 * tp / (tp + fp + tp[-1])
    return {"ap": ap.item(), "auroc": auroc.item(), "f1_max": f1.max().item()}


def false_area(normals: ScoreHistogram) -> float | None:
    """The share of pixels of normal images whose probability is 0.5 or more; None without normal images."""
    above, below = _above_half(normals.negative)
    return above / (above + below) if above + below else None


def summarise(defects: dict[str, ScoreHistogram], normals: ScoreHistogram) -> dict[str, dict]:
    """The figures of one test set: `overall`, `mean_of_defects` and `per_defect`.

    `defects` maps each defect type to the scores of its images, `normals` holds those of the normal images.

    - per defect: IoUs and accuracy on the images of that defect alone; AP, AUROC and F1-max on these together with
      all normal images, as is usual on MVTec-AD;
    - `mean_of_defects`: the plain mean of these over the defect types, so that a type with large areas counts no more
      than one with small ones;
    - `overall`: over the pixels of all images, normal ones included, and `false_area`.
    """
    per_defect = {
        name: overlap_figures(scores) | ranking_figures(scores + normals) for name, scores in sorted(defects.items())
    }
    everything = sum(defects.values(), normals)
    first = next(iter(per_defect.values()))
    return {
        "overall": overlap_figures(everything) | ranking_figures(everything) | {"false_area": false_area(normals)},
        "mean_of_defects": {
            figure: sum(row[figure] for row in per_defect.values()) / len(per_defect) for figure in first
        },
        "per_defect": per_defect,
    }


def _above_half(counts: Tensor) -> tuple[int, int]:
    return counts[BINS // 2 :].sum().item(), counts[: BINS // 2].sum().item()


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 1.0
