"""Teach an autoencoder's decoder the grain of one's own pictures.

An autoencoder that was trained on differences of pixels decodes the mean of all pictures that a latent may stand for:
grain, which no latent of 8 × 8 pixels can hold, is gone. Here the decoder learns to draw grain of the right strength at
every scale and direction, wherever it lies; the encoder, and so the UNet's world, stays as it was.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from sard_lora.train.inpainting import to_tensor
from sard_lora.train.loop import load_average, train

PATCH = 32
"""Side of the patches whose spectra are averaged, in pixels."""
FLOOR = PATCH**2 * (3 / 8) ** 2 / 12 / 127.5**2
"""Power that rounding to 8 bits has in a patch under a Hann window: what lies below cannot be seen."""
COARSE = 4
"""Pixels, squared, whose mean has to be right and not only its spectrum."""


def power_spectrum(x: Tensor) -> Tensor:
    """Pictures (B, C, H, W) in [-1, 1] → power (B, C, 32, 17), mean over half-overlapping Hann-windowed patches."""
    patches = x.float().unfold(2, PATCH, PATCH // 2).unfold(3, PATCH, PATCH // 2)
    line = torch.hann_window(PATCH, periodic=True, device=x.device)
    return torch.fft.rfft2(patches * line[:, None] * line).abs().square().mean((2, 3))


def grain_loss(reconstruction: Tensor, target: Tensor) -> Tensor:
    """How wrong the coarse picture is, and how far each picture's spectrum is from its target's, in nats.

    Both (B, C, H, W) in [-1, 1], at least 64 pixels wide. A spectrum in two dimensions has a peak where there is a
    lattice; the strength of the grain alone would not show it.
    """
    coarse = F.l1_loss(F.avg_pool2d(reconstruction, COARSE), F.avg_pool2d(target, COARSE))
    fine = F.l1_loss(reconstruction, target)
    spectra = [(power_spectrum(x) + FLOOR).log() for x in (reconstruction, target)]
    return 20 * coarse + 4 * fine + F.l1_loss(*spectra)


def train_decoder(
    folder: Path,
    vae: AutoencoderKL,
    draw: Callable[[np.random.Generator], np.ndarray],
    steps: int,
    batch_size: int,
    learning_rate: float,
    bf16: bool,
    checkpoint_every: int,
    seed: int,
) -> tuple[int, float]:
    """Train the decoder on crops that `draw` makes, (H, W, 3) uint8; answers its steps and minutes.

    Resumable and seeded as `sard_lora.train.loop.train` is; the weights that `vae` ends with are averages.
    """
    vae.requires_grad_(False)
    for part in (vae.decoder, vae.post_quant_conv):
        if part is not None:
            part.requires_grad_(True)

    def loss(model: AutoencoderKL, step: int) -> Tensor:
        rng = np.random.default_rng([seed, 4, step])
        target = to_tensor([draw(rng) for _ in range(batch_size)]).to(model.device)
        with torch.no_grad():
            latents = model.encode(target).latent_dist.mode()
        return grain_loss(model.decode(latents).sample.float(), target)

    train(folder, vae, loss, steps, learning_rate, bf16, checkpoint_every, warmup=min(20, steps))
    done = load_average(folder, vae)
    vae.eval().requires_grad_(False)
    return done
