"""The inpainting objective of base models: windows with a hole, encoded, their batches, and the loss of filling it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from sard_lora.pipelines.sard_inpaint import latent_mask, prediction_target
from sard_lora.train.corpus import Pool, Window


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
def encode_window(vae: AutoencoderKL, window: Window, any_covered: bool = True) -> EncodedWindow:
    """Encode a window and its masked picture, the posterior's mean of both.

    A latent cell belongs to the mask where any pixel of it is covered, as RCD has it, or where its first pixel is, as
    diffusers has it (nearest-neighbour resize).
    """
    hole = torch.tensor(window.hole)[None, None].float()
    x = to_tensor([window.picture])
    pair = torch.cat([x, x * (1 - hole)]).to(vae.device, vae.dtype)  # hidden pixels are 0, as in diffusers
    latents, masked = vae.encode(pair).latent_dist.mode().float() * vae.config.scaling_factor
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    mask = latent_mask(hole, factor) if any_covered else hole[..., ::factor, ::factor]
    return EncodedWindow(latents, masked, mask[0].to(vae.device), window.caption)


class Batches:
    """The windows of every step: for the first `small_steps` steps of half the side and four times as many.

    A small window costs a quarter and teaches as much of how to go on with what is around a hole; whole ones then teach
    the scale that will be used. `draw(side, rng)` draws one window. What step k holds depends on nothing but k.

    Half of the masks are diffusers' own: a network that never saw them takes the grey of half-covered cells for the
    picture, and fills holes with grey blobs there.
    """

    def __init__(
        self,
        draw: Callable[[int, np.random.Generator], Window],
        vae: AutoencoderKL,
        side: int,
        batch_size: int,
        pool: int,
        fresh: int,
        small_steps: int,
        seed: int,
    ):
        def encoded(of_side: int, times: int) -> Pool[EncodedWindow]:
            def one(rng: np.random.Generator) -> EncodedWindow:
                return encode_window(vae, draw(of_side, rng), any_covered=rng.random() < 0.5)

            return Pool(one, times * pool, times * fresh, 2 * seed + times // 4)

        self.whole, self.small = encoded(side, 1), encoded(side // 2, 4)
        self.batch_size, self.small_steps = batch_size, small_steps

    def at(self, step: int, rng: np.random.Generator) -> list[EncodedWindow]:
        """The windows of one step; quick when the steps come in order."""
        if step >= self.small_steps:
            pool, count = self.whole, self.batch_size
            self.small.items.clear()
        else:
            pool, count = self.small, 4 * self.batch_size
        items = pool.at(step)
        return [items[i] for i in rng.integers(0, len(items), count)]


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
    inside = (error * m).mean(1).sum((1, 2)) / m.sum((1, 2, 3)).clamp(min=1)
    return 0.5 * error.mean() + 0.5 * inside.mean()
