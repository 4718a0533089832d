"""Base training sees holes as diffusers and as RCD will show them, small windows first."""

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from sard_lora.train.corpus import Window
from sard_lora.train.inpainting import Batches, encode_window


def autoencoder() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4,
        norm_num_groups=2,
    )


def window(side: int, rng: np.random.Generator) -> Window:
    hole = np.zeros((side, side), bool)
    top, left = rng.integers(1, side // 2, 2)
    hole[top : top + side // 3, left : left + side // 3] = True
    return Window(rng.integers(0, 256, (side, side, 3), np.uint8), hole, "a part")


def test_masks_are_those_of_diffusers_or_any_covered_cell():
    example = window(64, np.random.default_rng(1))
    hole = torch.tensor(example.hole)[None, None].float()
    nearest = encode_window(autoencoder(), example, any_covered=False).mask
    assert torch.equal(nearest, F.interpolate(hole, size=(8, 8))[0])
    covered = encode_window(autoencoder(), example).mask
    assert torch.equal(covered, F.max_pool2d(hole, 8)[0]) and (covered > nearest).any()


def test_batches_are_small_first_and_of_both_kinds_of_masks():
    batches = Batches(window, autoencoder(), 64, 4, pool=8, fresh=1, small_steps=2, seed=0)
    steps = [batches.at(step, np.random.default_rng(step)) for step in range(4)]
    assert [len(step) for step in steps] == [16, 16, 4, 4]
    assert [step[0].latents.shape[-1] for step in steps] == [4, 4, 8, 8]
    again = Batches(window, autoencoder(), 64, 4, pool=8, fresh=1, small_steps=2, seed=0)
    assert all(
        torch.equal(a.mask, b.mask) for a, b in zip(again.at(3, np.random.default_rng(3)), steps[3], strict=True)
    )
    one = window(64, np.random.default_rng(1))
    masks = Batches(lambda side, rng: one, autoencoder(), 64, 1, pool=12, fresh=1, small_steps=0, seed=0).whole.at(0)
    assert len({item.mask.sum().item() for item in masks}) == 2
