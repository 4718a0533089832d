"""KID and IC-LPIPS: the figures of fidelity that papers give, with the networks that they give them with.

Both look at windows around defects, for of a whole picture hardly anything was written. The networks, Inception v3 and
LPIPS on VGG-16, come from the package torch-fidelity and are downloaded by it once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from sard_lora.evaluation.fidelity import squared_mmd
from sard_lora.images import DEFECT, load_image, load_mask
from sard_lora.layouts import Sample
from sard_lora.pipelines.sard_inpaint import crop_window, window_box
from sard_lora.precision import choose_device

SIDE = 256
"""Pixels of a window, as most papers compare."""
CONTEXT = 2.0
"""Side of a window over the longer side of its defect."""
MIN_SIDE = 64
"""Smallest window, in pixels of the image."""
_BATCH = 16


@dataclass(frozen=True)
class PerceptualNetworks:
    """`features` maps windows (N, 3, S, S) uint8 to (N, C), `distance` two such stacks to (N,)."""

    features: Callable[[Tensor], Tensor]
    distance: Callable[[Tensor, Tensor], Tensor]


def load_networks(device: str = "auto") -> PerceptualNetworks:
    """Inception v3 as KID knows it (2,048 features), and LPIPS.

    Raises:
        ValueError: the package torch-fidelity cannot be imported, or its weights cannot be downloaded.
    """
    try:
        from torch_fidelity import FeatureExtractorInceptionV3, SampleSimilarityLPIPS
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was built for another torch
        raise ValueError(
            f"perceptual: KID and IC-LPIPS need torch-fidelity, which cannot be imported ({error}). Install it with "
            "`pip install torch-fidelity`, beside a torchvision that fits your torch, or leave --perceptual out"
        ) from error
    try:
        inception = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
        lpips = SampleSimilarityLPIPS("lpips-vgg16")
    except OSError as error:
        raise ValueError(
            f"perceptual: the networks of KID and IC-LPIPS could not be downloaded ({error}). Check the connection, or "
            "leave --perceptual out"
        ) from error
    place = choose_device(device)
    inception, lpips = inception.to(place), lpips.to(place)
    return PerceptualNetworks(
        lambda windows: inception(windows.to(place))[0].cpu(),
        lambda first, second: lpips(first.to(place), second.to(place)).cpu(),
    )


@torch.inference_mode()
def perceptual_figures(
    networks: PerceptualNetworks, few: Sequence[Sample], held_back: Sequence[Sample], synthetic: Sequence[Sample]
) -> dict[str, float]:
    """How far synthetic defects are from held-back ones, and how different they are from each other.

    - `kid`: the kernel inception distance (Bińkowski et al. 2018, eq. 4) of all windows, unbiased, so that it may fall
      below 0 by chance;
    - `ic_lpips`: LPIPS between synthetic defects that have the same one as the nearest of the `few` that were trained
      on, the mean over these (Ojha et al. 2021): 0 where a generator makes copies.

    A figure that takes more defects than there are is left out.
    """
    figures = {}
    written = defect_windows(synthetic)
    if min(len(held_back), len(synthetic)) > 1:
        real, made = (
            torch.cat([networks.features(batch) for batch in windows.split(_BATCH)])
            for windows in (defect_windows(held_back), written)
        )
        figures["kid"] = squared_mmd(real, made)
    spread = intra_cluster_distance(defect_windows(few), written, networks.distance)
    return figures if spread is None else figures | {"ic_lpips": spread}


def intra_cluster_distance(
    centres: Tensor, windows: Tensor, distance: Callable[[Tensor, Tensor], Tensor]
) -> float | None:
    """Mean distance of windows (N, 3, S, S) with the same nearest centre (K, 3, S, S), over the centres.

    None where no centre has two.
    """
    pairs = [(number, centre) for number in range(len(windows)) for centre in range(len(centres))]
    nearest = _distances(windows, centres, pairs, distance).view(len(windows), len(centres)).argmin(1)
    means = []
    for centre in range(len(centres)):
        members = torch.nonzero(nearest == centre).flatten().tolist()
        if len(members) > 1:
            means.append(_distances(windows, windows, list(combinations(members, 2)), distance).mean())
    return torch.stack(means).mean().item() if means else None


def _distances(
    first: Tensor, second: Tensor, pairs: Sequence[tuple[int, int]], distance: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Distances (len(pairs),) of the pairs of rows of two stacks."""
    one, other = torch.tensor(pairs).T
    batches = zip(one.split(_BATCH), other.split(_BATCH), strict=True)
    return torch.cat([distance(first[rows], second[columns]) for rows, columns in batches])


def defect_windows(samples: Sequence[Sample]) -> Tensor:
    """Square windows (N, 3, 256, 256) uint8 around the defects of samples, without their fringes."""
    windows = []
    for sample in samples:
        image = load_image(sample.image)
        defect = np.asarray(load_mask(sample.mask, image.size)) == DEFECT
        box = window_box(torch.from_numpy(defect)[None].float(), CONTEXT, MIN_SIDE)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        windows.append(crop_window(pixels, box, (SIDE, SIDE)).round().clamp(0, 255).byte())
    return torch.stack(windows)
