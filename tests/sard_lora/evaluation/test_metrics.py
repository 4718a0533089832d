"""The figures, read off a histogram, are those that torchmetrics or brute force computes from every single pixel."""

import pytest
import torch
from skimage.measure import label
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC, BinaryAveragePrecision, BinaryJaccardIndex

from sard_lora.evaluation.metrics import (
    ScoreHistogram,
    false_alarms,
    false_area,
    overlap_figures,
    peak_of_count,
    ranking_figures,
    summarise,
    without_faint_regions,
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


def _aupro_of_every_threshold(logits: torch.Tensor, masks: torch.Tensor, limit: float) -> float:
    """AUPRO with skimage's labels, at every distinct logit (N, H, W) as threshold, one trapezium after the other."""
    regions = []
    for image_logits, mask in zip(logits, masks, strict=True):
        labels = torch.from_numpy(label(mask.numpy(), connectivity=2))
        regions += [image_logits[labels == number] for number in range(1, int(labels.max()) + 1)]
    area, before, overlap_before = 0.0, 0.0, 0.0
    for threshold in logits.unique().flip(0):
        rate = (logits[~masks] >= threshold).double().mean().item()
        overlap = sum((region >= threshold).double().mean().item() for region in regions) / len(regions)
        if rate > limit:
            at_limit = overlap_before + (overlap - overlap_before) * (limit - before) / (rate - before)
            return (area + (limit - before) * (overlap_before + at_limit) / 2) / limit
        area += (rate - before) * (overlap_before + overlap) / 2
        before, overlap_before = rate, overlap
    raise AssertionError("the lowest threshold lets everything through")


@pytest.mark.parametrize("share", [0.003, 0.02, 0.2])
@pytest.mark.parametrize("step", [1 / 16, 4.0])
def test_aupro_is_that_of_every_threshold(share, step):
    """Rounded logits fall into a bin each, so that both are equal; the coarse ones leave a long way around 0.3."""
    logits, masks = _scores(4, share)
    logits = (logits / step).round() * step
    figure = ranking_figures(_histogram(logits, masks))["aupro"]
    assert figure == pytest.approx(_aupro_of_every_threshold(logits, masks, 0.3), abs=1e-9)
    assert 0.3 < figure < 0.99, "neither trivially bad nor trivially good, or the test tells nothing"


def test_a_perfect_segmenter_has_an_aupro_of_1():
    _, masks = _scores(5)
    figure = ranking_figures(_histogram(8.0 * masks - 4, masks))["aupro"]
    assert 1 - 1e-12 < figure <= 1


def test_a_missed_speck_costs_aupro_as_much_as_a_missed_blotch():
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[1:11, 1:11] = True
    mask[15, 15] = True
    for missed in (mask & (torch.arange(20) < 12), mask & (torch.arange(20) >= 12)):
        scores = ScoreHistogram()
        scores.add(torch.where(mask & ~missed, 4.0, torch.where(missed, -9.0, -4.0)), mask)
        # One region is found at once; the other comes with the last threshold, below all of the background.
        assert ranking_figures(scores)["aupro"] == pytest.approx(0.5)


def test_pixels_that_touch_by_a_corner_are_one_region():
    scores = ScoreHistogram()
    diagonal = torch.eye(6, dtype=torch.bool)
    scores.add(20.0 * diagonal - 10, diagonal)
    assert (scores.region_count, scores.predicted_regions) == (1, 1)
    assert scores.regions.sum().item() == pytest.approx(1)


def test_probabilities_next_to_zero_are_still_ranked():
    """A sure network puts background at 1e-7 and faint defects at 1e-5: bins over probabilities would lose that."""
    scores = ScoreHistogram()
    scores.add(torch.tensor([[-16.0, -16.1, -11.5]]), torch.tensor([[False, False, True]]))
    assert ranking_figures(scores)["auroc"] == 1.0


def test_images_added_one_by_one_equal_the_sum_of_their_histograms():
    logits, masks = _scores(3)
    together = _histogram(logits, masks)
    parts = _histogram(logits[:2], masks[:2]) + _histogram(logits[2:], masks[2:])
    assert torch.equal(together.positive, parts.positive)
    assert torch.equal(together.negative, parts.negative)
    assert torch.allclose(together.regions, parts.regions, rtol=0, atol=1e-9) and together.regions.any()
    assert together.region_count == parts.region_count == pytest.approx(together.regions.sum().item())
    assert together.predicted_regions == parts.predicted_regions > 0
    assert together.images == parts.images == len(logits)
    assert together.positive.sum() + together.negative.sum() == logits.numel()


def test_false_area_is_the_share_of_good_pixels_called_defect():
    scores = ScoreHistogram()
    scores.add(torch.tensor([[3.0, -3.0], [-3.0, -3.0]]), torch.zeros(2, 2, dtype=torch.bool))
    assert false_area(scores) == 0.25
    assert false_area(ScoreHistogram()) is None


def test_false_alarms_are_the_regions_called_defect_per_good_image():
    nothing = torch.zeros(4, 5, dtype=torch.bool)
    scores = ScoreHistogram()
    quiet = torch.full((4, 5), -3.0)
    scores.add(quiet, nothing)
    scores.add(quiet, nothing)
    noisy = quiet.clone()
    noisy[0, 0] = noisy[1, 1] = 3.0  # one region of two pixels
    noisy[3, 1] = 0.0  # a probability of 0.5
    noisy[0, 3:] = 1.0
    scores.add(noisy, nothing)
    assert false_alarms(scores) == 1.0
    assert false_alarms(ScoreHistogram()) is None


def test_regions_that_nowhere_reach_the_peak_are_left_out_and_the_others_stay_whole():
    logits = torch.full((6, 8), -2.0)
    logits[1, 1], logits[2, 2], logits[2, 3] = 0.5, 0.1, 3.0  # one region, sure in one pixel
    logits[4, 1:4] = 2.9
    logits[5, 7] = 0.0
    left = without_faint_regions(logits, 3.0)
    wanted = logits.clone()
    wanted[4, 1:4] = wanted[5, 7] = left[4, 1]
    assert torch.equal(left, wanted) and -0.01 < left[4, 1] < 0, "still above all that is not marked"
    assert torch.equal(without_faint_regions(logits, 0.0), logits)
    assert torch.equal(without_faint_regions(logits - 9, 3.0), logits - 9), "nothing is marked"


@pytest.mark.parametrize("most, left", [(0, 0), (0.5, 1), (0.9, 1), (1, 2), (1.5, 3), (9, 3)])
def test_the_peak_leaves_as_many_regions_as_it_may(most, left):
    logits = torch.full((2, 5, 9), -1.0)
    logits[0, 1, 1], logits[0, 3, 3:6], logits[1, 2, 7] = 4.0, 2.0, 3.0
    peak = peak_of_count(logits, most)
    regions = _histogram(torch.stack([without_faint_regions(image, peak) for image in logits]), logits < -9)
    assert regions.predicted_regions == left
    assert peak == 0 or left < 3


def test_a_defect_counts_the_same_in_the_mean_whatever_its_area():
    large, small = ScoreHistogram(), ScoreHistogram()
    large.add(torch.full((10, 10), 4.0), torch.ones(10, 10, dtype=torch.bool))  # found
    small.add(torch.tensor([[-4.0, -5.0]]), torch.tensor([[True, False]]))  # missed
    normals = ScoreHistogram()
    normals.add(torch.full((10, 100), -6.0), torch.zeros(10, 100, dtype=torch.bool))
    figures = summarise({"large": large, "small": small}, normals)

    assert figures["per_defect"]["large"]["iou_defect"] == 1.0
    assert figures["per_defect"]["small"]["iou_defect"] == 0.0
    assert figures["mean_of_defects"]["iou_defect"] == 0.5
    assert figures["overall"]["iou_defect"] == pytest.approx(100 / 101)
    assert figures["overall"]["false_area"] == 0.0
    assert figures["overall"]["false_alarms"] == 0.0
    assert figures["per_defect"]["large"]["auroc"] == 1.0  # against the normal images
    for row in (figures["overall"], figures["mean_of_defects"], *figures["per_defect"].values()):
        assert row["aupro"] == pytest.approx(1.0)  # every defect above all of the background


def test_without_normal_images_there_is_nothing_to_say_of_them():
    logits, masks = _scores(6)
    overall = summarise({"hole": _histogram(logits, masks)}, ScoreHistogram())["overall"]
    assert overall["false_area"] is None and overall["false_alarms"] is None


def test_scores_that_cannot_be_counted_are_refused():
    scores = ScoreHistogram()
    with pytest.raises(ValueError, match="NaN"):
        scores.add(torch.tensor([[float("nan")]]), torch.tensor([[True]]))
    with pytest.raises(ValueError, match="shape"):
        scores.add(torch.zeros(2, 2), torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"not \(H, W\)"):
        scores.add(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="only one kind"):
        ranking_figures(scores)
