"""The picture of what an adapter makes, drawn while it is trained and kept beside its weights."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sard_lora.adapter_config import AdapterConfig
from sard_lora.images import load_image
from sard_lora.layouts import GOOD, Sample
from sard_lora.mask_bank import MaskBank
from sard_lora.masks import sample_mask
from sard_lora.pipelines.sard_inpaint import SardInpaintPipeline
from sard_lora.product import foreground
from sard_lora.report import grid


def sample_grid(
    pipe: SardInpaintPipeline,
    config: AdapterConfig,
    bank: MaskBank,
    normals: Sequence[Sample],
    rng: np.random.Generator,
    path: Path,
    per_defect: int,
) -> None:
    """Save a picture of what a pipeline makes now: normal image, mask and result in rows, some of every defect."""
    sampling, prompts = config.sampling, config.prompts
    rows = []
    for defect in config.defects:
        for _ in range(per_defect):
            image = load_image(normals[rng.integers(len(normals))].image)
            options = sampling.mask_options(defect)
            mask = sample_mask(bank.for_defect(defect), foreground(image), rng, **options).mask
            result = pipe(
                prompts[defect],
                image=image,
                mask_image=Image.fromarray(mask),
                negative_prompt=prompts[GOOD],
                generator=torch.Generator().manual_seed(int(rng.integers(2**31))),
                feather_width=sampling.feather_width(defect),
                **sampling.arguments(config.base.resolution),
            ).images[0]
            rows.append([image, Image.fromarray(mask), result])
    grid(rows, ["normal", "mask", "result"], path)
