"""Fidelity of a synthetic set, beside what a segmenter learns from it: is it exact, is it on its label, is it real?

No network is downloaded: features are those of the U-Net that was trained on the real defects, averaged over the
defect, so that a small one counts as much as a large one and the background does not count.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from monai.networks.layers.simplelayers import SkipConnection
from monai.networks.nets import UNet
from scipy import ndimage
from torch import Tensor, nn

from sard_lora.evaluation.segmenters import Segmenter, to_tensor
from sard_lora.images import DEFECT, load_image, load_mask
from sard_lora.labelled import records_by_image
from sard_lora.layouts import Sample
from sard_lora.synthesizer import IN_PLACE

CHANGED = 4.0
"""Grey levels, mean over 3 × 3 pixels, from which a change counts as seen."""


def exactness(samples: Sequence[Sample], root: Path) -> dict[str, float]:
    """How synthetic images differ from the pictures below `root` that they were written into; means over the images.

    - `background_error`: mean difference outside the label, in grey levels; 0 where nothing else was touched;
    - `mask_agreement`: IoU, as a fraction, of the label with the region that can be seen to have changed; of a defect's
      fringe only what is seen. Defects that were drawn anew in their place were there before and do not count.
    """
    records = records_by_image(sample.image for sample in samples)
    errors, agreements = [], []
    for sample in samples:
        record, image = records[sample.image], np.asarray(load_image(sample.image), np.float32)
        normal = np.asarray(load_image(root / record["normal"]), np.float32)
        values = np.asarray(load_mask(sample.mask, None))
        label, core = values > 0, values == DEFECT
        difference = np.abs(image - normal).mean(2)
        errors.append(float(difference[~label].mean()) if not label.all() else 0.0)
        if record.get("method") != IN_PLACE:
            seen = ndimage.uniform_filter(difference, 3) > CHANGED
            agreements.append(np.count_nonzero(seen & label) / np.count_nonzero(seen | core))
    figures = {"background_error": float(np.mean(errors))}
    return figures | {"mask_agreement": float(np.mean(agreements))} if agreements else figures


@torch.inference_mode()
def defect_features(segmenter: Segmenter, samples: Sequence[Sample]) -> Tensor:
    """Features (N, C) of the U-Net's four finest encoder levels, each the mean over a sample's defect, not its fringe.

    Raises:
        ValueError: the segmenter is no U-Net.
    """
    if segmenter.settings["name"] != "unet":
        raise ValueError(f"features come from a unet, not from a {segmenter.settings['name']}")
    seen = []
    hooks = [
        layer.register_forward_hook(lambda _module, _input, output: seen.append(output.float()))
        for layer in _encoder_levels(segmenter.network)[:4]
    ]
    device, rows = next(segmenter.parameters()).device, []
    try:
        for sample in samples:
            image = load_image(sample.image)
            defect = np.asarray(load_mask(sample.mask, image.size)) == DEFECT
            mask = torch.from_numpy(defect).float()[None, None].to(device)
            mask = nn.functional.pad(mask, segmenter.padding(*mask.shape[-2:]))
            seen.clear()
            segmenter(to_tensor(image)[None].to(device).float() / 255)
            means = []
            for features in seen:
                weight = nn.functional.adaptive_max_pool2d(mask, features.shape[-2:])
                means.append((features * weight).sum((2, 3)) / weight.sum())
            rows.append(torch.cat(means, 1).cpu())
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(rows)


def _encoder_levels(network: UNet) -> list[nn.Module]:
    """The down-sampling blocks of MONAI's U-Net, which nests them: block, skip around the next level, up again."""
    levels, inner = [], network.model
    while isinstance(inner, nn.Sequential) and isinstance(inner[1], SkipConnection):
        levels.append(inner[0])
        inner = inner[1].submodule
    return levels


def feature_figures(real: Tensor, synthetic: Tensor) -> dict[str, float]:
    """Distance and diversity of features (N, C) and (M, C), scaled so that every real channel has a deviation of 1.

    - `kernel_distance`: the squared maximum mean discrepancy under the cubic kernel of KID (Bińkowski et al. 2018, eq.
      4), on these features; 0 for the same distribution. It is unbiased, so it may fall below 0 by chance;
    - `diversity`: mean distance of two synthetic defects over that of two real ones; 1 is as diverse as real.

    Nothing is said of fewer than two defects on either side.
    """
    if min(len(real), len(synthetic)) < 2:
        return {}
    mean, deviation = real.mean(0), real.std(0) + 1e-6
    real, synthetic = ((features - mean) / deviation for features in (real, synthetic))

    def spread(features: Tensor) -> float:
        return torch.pdist(features).mean().item()

    return {
        "kernel_distance": squared_mmd(real, synthetic),
        "diversity": spread(synthetic) / spread(real),
    }


def squared_mmd(first: Tensor, second: Tensor) -> float:
    """The squared maximum mean discrepancy of samples (N, C) and (M, C), N and M at least 2, under KID's cubic kernel.

    The unbiased estimate (Bińkowski et al. 2018, eq. 4).
    """

    def kernel(one: Tensor, other: Tensor) -> Tensor:
        return (one @ other.T / one.shape[1] + 1) ** 3

    def within(features: Tensor) -> Tensor:
        values, count = kernel(features, features), len(features)
        return (values.sum() - values.diagonal().sum()) / (count * (count - 1))

    return (within(first) + within(second) - 2 * kernel(first, second).mean()).item()
