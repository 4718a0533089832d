"""Fidelity: what was touched outside the label, what of the label can be seen, how far features are."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sard_lora.data import few_shot_split, open_category
from sard_lora.evaluation.fidelity import defect_features, exactness, feature_figures
from sard_lora.evaluation.segmenters import build_segmenter
from sard_lora.labelled import LabelledSet
from sard_lora.layouts import Sample
from sard_lora.synthesizer import IN_PLACE


def one_sample(root, mvtec, change: int, outside: int, method: str = "sard", core: slice | None = None) -> Sample:
    normal = mvtec / "train/good/000.png"
    pixels = np.array(Image.open(normal).convert("RGB")).astype(int).clip(0, 200)
    Image.fromarray(pixels.astype(np.uint8)).save(normal)
    mask = np.zeros(pixels.shape[:2], bool)
    mask[4:14, 4:24] = True
    pixels[4:14, 4:14] += change
    pixels[-1, -1] += outside
    seen = None
    if core is not None:
        seen = np.zeros_like(mask)
        seen[4:14, core] = True
    record = {"normal": "train/good/000.png", "method": method}
    LabelledSet(root).add("spot", "000", Image.fromarray(pixels.astype(np.uint8)), mask, record, seen)
    return Sample(root / "test/spot/000.png", root / "ground_truth/spot/000_mask.png", "spot", "000")


def test_a_label_of_which_half_is_seen_agrees_by_about_half(mvtec, tmp_path):
    figures = exactness([one_sample(tmp_path / "set", mvtec, 40, 0)], mvtec)
    assert figures["background_error"] == 0
    assert figures["mask_agreement"] == pytest.approx(0.5, abs=0.1)


def test_a_fringe_that_is_not_seen_disagrees_with_nothing(mvtec, tmp_path):
    figures = exactness([one_sample(tmp_path / "set", mvtec, 40, 0, core=slice(4, 14))], mvtec)
    assert figures["background_error"] == 0 and figures["mask_agreement"] > 0.7, "0.47 with it"


def test_one_changed_pixel_outside_the_label_is_an_error(mvtec, tmp_path):
    assert exactness([one_sample(tmp_path / "set", mvtec, 40, 9)], mvtec)["background_error"] > 0


def test_a_defect_that_was_there_before_has_no_agreement_to_measure(mvtec, tmp_path):
    figures = exactness([one_sample(tmp_path / "set", mvtec, 1, 0, method=IN_PLACE)], mvtec)
    assert figures == {"background_error": 0}


def test_features_look_at_the_defect(mvtec):
    torch.manual_seed(0)
    unet = build_segmenter("unet").eval()
    samples = few_shot_split(open_category(mvtec)).train
    features = defect_features(unet, samples)
    assert features.shape == (len(samples), 16 + 32 + 64 + 128) and features.isfinite().all()
    assert not torch.allclose(features[0], features[1])
    with pytest.raises(ValueError, match="segformer"):
        defect_features(build_segmenter("segformer"), samples)


def test_features_of_a_defect_are_not_those_of_its_fringe(mvtec, tmp_path):
    torch.manual_seed(0)
    unet = build_segmenter("unet").eval()
    fringed = one_sample(tmp_path / "fringed", mvtec, 40, 0, core=slice(4, 14))
    label = np.array(Image.open(fringed.mask))
    Image.fromarray(np.where(label == 255, label, 0)).save(tmp_path / "core_mask.png")
    features = defect_features(unet, [fringed, replace(fringed, mask=tmp_path / "core_mask.png")])
    assert torch.equal(features[0], features[1])


def test_the_same_distribution_is_near_and_as_diverse():
    generator = torch.Generator().manual_seed(0)
    real, same = (torch.randn(200, 8, generator=generator) for _ in range(2))
    near, far, alike = (feature_figures(real, x) for x in (same, same + 2, same * 0.1))
    assert near["kernel_distance"] < 0.2 < far["kernel_distance"]
    assert near["diversity"] == pytest.approx(1, abs=0.1) and alike["diversity"] < 0.2


@pytest.mark.parametrize("counts", [(20, 400), (400, 20)])
def test_the_kernel_distance_does_not_depend_on_how_many_there_are(counts):
    generator = torch.Generator().manual_seed(0)
    distances = [
        feature_figures(*(torch.randn(count, 8, generator=generator) for count in counts))["kernel_distance"]
        for _ in range(50)
    ]
    # Scaled by the deviation of 20 real ones, the others look a little wider than they are.
    assert abs(np.mean(distances)) < 0.1


def test_one_defect_says_nothing_of_a_distribution():
    assert feature_figures(torch.zeros(1, 8), torch.zeros(5, 8)) == {}


def test_features_look_at_the_defect_in_pictures_of_any_size(tmp_path):
    """The network sees pictures continued to a multiple of 16 pixels; the defect lies at the bottom of one of 33."""
    torch.manual_seed(0)
    unet, samples = build_segmenter("unet").eval(), []
    for height in (33, 48):  # the same picture, once continued by hand
        pixels, mask = np.full((height, 32, 3), 120, np.uint8), np.zeros((height, 32), bool)
        pixels[:31] = 30
        mask[32, 8:24] = True
        LabelledSet(tmp_path).add("spot", f"{height}", Image.fromarray(pixels), mask, {})
        folder = tmp_path / "ground_truth/spot"
        samples.append(Sample(tmp_path / f"test/spot/{height}.png", folder / f"{height}_mask.png", "spot", str(height)))
    torch.testing.assert_close(*defect_features(unet, samples))
