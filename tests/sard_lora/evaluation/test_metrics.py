"""The figures, read off a histogram, are those that torchmetrics computes from every single pixel."""

import pytest
import torch
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC, BinaryAveragePrecision, BinaryJaccardIndex

from sard_lora.evaluation.metrics import (
    ScoreHistogram,
    false_area,
    overlap_figures,
    ranking_figures,
    summarise,
)


def _scores(seed: int, share: float = 0.02, images: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and masks (N, 40, 50) of a segmenter that is right more often than not."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(images, 40, 50, generator=generator) < share
    logits = 2 * torch.randn(masks.shape, generator=generator) - 4 + 5 * masks
    return logits, masks


def _histogram(logits: torch.Tensor, masks: torch.Tensor) -> ScoreHistogram:
    scores = ScoreHistogram()
    for image_logits, mask in zip(logits, masks, strict=True):
        scores.add(image_logits, mask)
    return scores


@pytest.mark.parametrize("share", [0.001, 0.02, 0.5])
def test_figures_equal_those_of_torchmetrics(share):
    logits, masks = _scores(1, share)
    scores = _histogram(logits, masks)
    probabilities, target = logits.double().sigmoid().flatten(), masks.long().flatten()
    overlap, ranking = overlap_figures(scores), ranking_figures(scores)

    assert ranking["ap"] == pytest.approx(BinaryAveragePrecision()(probabilities, target).item(), abs=2e-3)
    assert ranking["auroc"] == pytest.approx(BinaryAUROC()(probabilities, target).item(), abs=1e-4)
    iou = BinaryJaccardIndex()(probabilities, target).item()
    assert overlap["iou_defect"] == pytest.approx(iou, abs=1e-6)
    background = BinaryJaccardIndex()(1 - probabilities, 1 - target).item()
    assert overlap["miou"] == pytest.approx((iou + background) / 2, abs=1e-6)
    assert overlap["pixel_acc"] == pytest.approx(BinaryAccuracy()(probabilities, target).item(), abs=1e-6)


def test_f1_max_is_the_f1_at_the_best_threshold():
    logits, masks = _scores(2)
    best = 0.0
    for threshold in logits[masks].tolist():
        predicted = logits >= threshold
        tp = (predicted & masks).sum().item()
        best = max(best, 2 * tp / (predicted.sum().item() + masks.sum().item()))
    assert ranking_figures(_histogram(logits, masks))["f1_max"] == pytest.approx(best, abs=2e-3)


def test_probabilities_next_to_zero_are_still_ranked():
    """A sure network puts background at 1e-7 and faint defects at 1e-5: bins over probabilities would lose that."""
    scores = ScoreHistogram()
    scores.add(torch.tensor([-16.0, -16.1, -11.5]), torch.tensor([False, False, True]))
    assert ranking_figures(scores)["auroc"] == 1.0


def test_images_added_one_by_one_equal_the_sum_of_their_histograms():
    logits, masks = _scores(3)
    together = _histogram(logits, masks)
    parts = _histogram(logits[:2], masks[:2]) + _histogram(logits[2:], masks[2:])
    assert torch.equal(together.positive, parts.positive)
    assert torch.equal(together.negative, parts.negative)
    assert together.positive.sum() + together.negative.sum() == logits.numel()


def test_false_area_is_the_share_of_good_pixels_called_defect():
    scores = ScoreHistogram()
    scores.add(torch.tensor([[3.0, -3.0], [-3.0, -3.0]]), torch.zeros(2, 2, dtype=torch.bool))
    assert false_area(scores) == 0.25
    assert false_area(ScoreHistogram()) is None


def test_a_defect_counts_the_same_in_the_mean_whatever_its_area():
    large, small = ScoreHistogram(), ScoreHistogram()
    large.add(torch.full((100,), 4.0), torch.ones(100, dtype=torch.bool))  # found
    small.add(torch.tensor([-4.0, -5.0]), torch.tensor([True, False]))  # missed
    normals = ScoreHistogram()
    normals.add(torch.full((1000,), -6.0), torch.zeros(1000, dtype=torch.bool))
    figures = summarise({"large": large, "small": small}, normals)

    assert figures["per_defect"]["large"]["iou_defect"] == 1.0
    assert figures["per_defect"]["small"]["iou_defect"] == 0.0
    assert figures["mean_of_defects"]["iou_defect"] == 0.5
    assert figures["overall"]["iou_defect"] == pytest.approx(100 / 101)
    assert figures["overall"]["false_area"] == 0.0
    assert figures["per_defect"]["large"]["auroc"] == 1.0  # against the normal images


def test_scores_that_cannot_be_counted_are_refused():
    scores = ScoreHistogram()
    with pytest.raises(ValueError, match="NaN"):
        scores.add(torch.tensor([float("nan")]), torch.tensor([True]))
    with pytest.raises(ValueError, match="shape"):
        scores.add(torch.zeros(2, 2), torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="only one kind"):
        ranking_figures(scores)
