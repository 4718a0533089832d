"""Fidelity: what was touched outside the label, what of the label can be seen, how far features are."""

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


def one_sample(root, mvtec, change: int, outside: int, method: str = "sard") -> Sample:
    normal = mvtec / "train/good/000.png"
    pixels = np.array(Image.open(normal).convert("RGB")).astype(int).clip(0, 200)
    Image.fromarray(pixels.astype(np.uint8)).save(normal)
    mask = np.zeros(pixels.shape[:2], bool)
    mask[4:14, 4:24] = True
    pixels[4:14, 4:14] += change
    pixels[-1, -1] += outside
    record = {"normal": "train/good/000.png", "method": method}
    LabelledSet(root).add("spot", "000", Image.fromarray(pixels.astype(np.uint8)), mask, record)
    return Sample(root / "test/spot/000.png", root / "ground_truth/spot/000_mask.png", "spot", "000")


def test_a_label_of_which_half_is_seen_agrees_by_about_half(mvtec, tmp_path):
    figures = exactness([one_sample(tmp_path / "set", mvtec, 40, 0)], mvtec)
    assert figures["background_error"] == 0
    assert figures["mask_agreement"] == pytest.approx(0.5, abs=0.1)


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


def test_the_same_distribution_is_near_and_as_diverse():
    generator = torch.Generator().manual_seed(0)
    real, same = (torch.randn(200, 8, generator=generator) for _ in range(2))
    near, far, alike = (feature_figures(real, x) for x in (same, same + 2, same * 0.1))
    assert near["kernel_distance"] < 0.2 < far["kernel_distance"]
    assert near["diversity"] == pytest.approx(1, abs=0.1) and alike["diversity"] < 0.2
