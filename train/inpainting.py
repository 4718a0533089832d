"""The inpainting objective of base models: windows with a hole, encoded, and the loss of filling the hole."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from sard_lora.pipelines.sard_inpaint import latent_mask, prediction_target
from sard_lora.train.corpus import Window


@dataclass(frozen=True)
class EncodedWindow:
    """A window as the UNet sees it.

    latents, masked (4, h, w): of the picture, and of the picture with mid grey in the hole, scaled; mask (1, h, w).
    """

    latents: Tensor
    masked: Tensor
    mask: Tensor
    caption: str


def to_tensor(pictures: Sequence[np.ndarray]) -> Tensor:
    """uint8 pictures (H, W, 3) to one tensor (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def encode_window(vae: AutoencoderKL, window: Window) -> EncodedWindow:
    """Encode a window and its masked picture, the posterior's mean of both."""
    hole = torch.tensor(window.hole)[None, None].float()
    x = to_tensor([window.picture])
    pair = torch.cat([x, x * (1 - hole)]).to(vae.device, vae.dtype)  # hidden pixels are 0, as in diffusers
    latents, masked = vae.encode(pair).latent_dist.mode().float() * vae.config.scaling_factor
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    return EncodedWindow(latents, masked, latent_mask(hole, factor)[0].to(vae.device), window.caption)


def inpainting_loss(
    unet: UNet2DConditionModel,
    windows: Sequence[EncodedWindow],
    words: Tensor,
    alphas_cumprod: Tensor,
    prediction_type: str,
    rng: np.random.Generator,
) -> Tensor:
    """Mean squared error of the UNet's prediction at random timesteps, half of it over everything, half over the holes.

    The hole is what will be used; the rest is almost given away by the masked picture's latents. `words` (B, n, c)
    are the captions' embeddings.
    """
    z0, masked, m = (torch.stack([getattr(w, part) for w in windows]) for part in ("latents", "masked", "mask"))
    t = torch.from_numpy(rng.integers(0, len(alphas_cumprod), len(windows))).to(z0.device)
    noise = torch.randn(z0.shape, generator=torch.Generator().manual_seed(int(rng.integers(2**62)))).to(z0.device)
    alpha_bar = alphas_cumprod[t].view(-1, 1, 1, 1)
    model_input = alpha_bar.sqrt() * z0 + (1 - alpha_bar).sqrt() * noise
    if unet.config.in_channels == 9:
        model_input = torch.cat([model_input, m, masked], 1)
    output = unet(model_input.to(unet.dtype), t, words.to(unet.dtype)).sample.float()
    error = F.mse_loss(output, prediction_target(z0, noise, alpha_bar, prediction_type), reduction="none")
    inside = (error * m).mean(1).sum((1, 2)) / m.sum((1, 2, 3))
    return 0.5 * error.mean() + 0.5 * inside.mean()
