"""Discriminative Mask Guidance (DMG): the mask-guided, time-conditioned critic and its losses (SARD, arXiv 2508.03143).

The critic reads a reverse-diffusion transition (z_t → z_{t'}), as in denoising-diffusion GANs (Xiao et al. 2022): the
noise keeps it from memorising a handful of images. Its global branch judges realism everywhere; its mask branch judges,
inside the mask and on its border, whether there is a defect and whether it fits the mask.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from sard_lora.atomic import atomic_file
from sard_lora.pipelines.sard_inpaint import fuse, noise_latents, posterior


@dataclass
class CriticConfig:
    """The critic's architecture; it travels with its weights."""

    latent_channels: int = 4
    """Channels of the base's latents."""
    channels: int = 64
    """Channels of the first level; the two coarser ones have twice and four times as many."""
    spectral_norm: bool = True
    """Spectral normalisation of all convolutions (Miyato et al. 2018)."""
    mask_branch: bool = True
    """Whether there is a mask branch; without, its logits are 0 everywhere and the global branch judges alone."""


class _Block(nn.Module):
    """Residual block with the timestep added, optionally halving the grid."""

    def __init__(self, channels_in: int, channels_out: int, time_dim: int, stride: int, norm) -> None:
        super().__init__()
        self.conv1 = norm(nn.Conv2d(channels_in, channels_out, 3, padding=1))
        self.conv2 = norm(nn.Conv2d(channels_out, channels_out, 3, stride=stride, padding=1))
        self.skip = norm(nn.Conv2d(channels_in, channels_out, 1))
        self.time = nn.Linear(time_dim, channels_out)
        self.stride = stride

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.leaky_relu(x, 0.2)) + self.time(time)[:, :, None, None]
        h = self.conv2(F.leaky_relu(h, 0.2))
        skip = self.skip(F.avg_pool2d(x, 2, ceil_mode=True) if self.stride == 2 else x)
        return (h + skip) * 0.5**0.5


class MaskGuidedCritic(nn.Module):
    """D(z_{t'}, z_t, t, m) → global logits (B, 1, ⌈h/4⌉, ⌈w/4⌉) and mask logits (B, 1, h, w).

    The mask gates the features of the mask branch, so that its logits read the defect and its border, at full latent
    resolution: a defect of one latent cell still has a logit of its own.
    """

    def __init__(self, config: CriticConfig | None = None) -> None:
        super().__init__()
        self.config = config or CriticConfig()
        norm = spectral_norm if self.config.spectral_norm else (lambda layer: layer)
        c, time_dim = self.config.channels, 4 * self.config.channels
        self.time_features = Timesteps(c, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(c, time_dim)
        self.conv_in = norm(nn.Conv2d(2 * self.config.latent_channels + 1, c, 3, padding=1))
        self.fine = _Block(c, c, time_dim, 1, norm)
        self.middle = _Block(c, 2 * c, time_dim, 2, norm)
        self.coarse = _Block(2 * c, 4 * c, time_dim, 2, norm)
        self.global_head = norm(nn.Conv2d(4 * c, 1, 3, padding=1))
        if self.config.mask_branch:
            self.mask_mix = norm(nn.Conv2d(3 * c + 1, c, 1))
            self.mask_block = _Block(c, c, time_dim, 1, norm)
            self.mask_head = norm(nn.Conv2d(c, 1, 1))

    def forward(
        self, z_prev: torch.Tensor, z_t: torch.Tensor, t: torch.Tensor, m: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """z_prev, z_t (B, 4, h, w); t (B,) integer timesteps; m (B, 1, h, w) in {0, 1}."""
        time = F.silu(self.time_embedding(self.time_features(t).to(z_t.dtype)))
        fine = self.fine(self.conv_in(torch.cat([z_prev, z_t, m], dim=1)), time)
        middle = self.middle(fine, time)
        global_logits = self.global_head(F.leaky_relu(self.coarse(middle, time), 0.2))
        if not self.config.mask_branch:
            return global_logits, torch.zeros_like(m)
        wide = F.interpolate(middle, size=fine.shape[-2:], mode="nearest")
        near = border(m)
        guided = self.mask_mix(torch.cat([fine * near, wide * near, m], dim=1))
        mask_logits = self.mask_head(F.leaky_relu(self.mask_block(guided, time), 0.2))
        return global_logits, mask_logits

    def save(self, path: Path | str) -> None:
        """Write weights and architecture into one safetensors file, atomically."""
        with atomic_file(path) as temporary:
            tensors = {name: tensor.detach().float().contiguous().cpu() for name, tensor in self.state_dict().items()}
            save_file(tensors, temporary, metadata={"config": json.dumps(asdict(self.config))})

    @classmethod
    def load(cls, path: Path | str) -> "MaskGuidedCritic":
        """The critic of an adapter folder, ready to score. Raises ValueError for a file that holds no critic."""
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
        except SafetensorError as error:
            raise ValueError(f"{path}: damaged ({error}). Get the adapter again, or train it") from error
        if "config" not in metadata:
            raise ValueError(f"{path}: not a sard-lora critic (its header has no config)")
        critic = cls(CriticConfig(**json.loads(metadata["config"])))
        critic.load_state_dict(load_file(path))
        return critic.eval()


def border(m: torch.Tensor) -> torch.Tensor:
    """The mask (B, 1, h, w) and one latent cell around it: where the mask branch's logits count."""
    return F.max_pool2d(m, 3, stride=1, padding=1)


def _masked_mean(values: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """Mean over the mask and its border, for each sample: (B,). Small defects count as much as large ones."""
    weight = border(m)
    return (values * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3)).clamp(min=1)


# --- losses: hinge, as in SAGAN ---------------------------------------------------------------------------------------


def critic_loss(
    real: tuple[torch.Tensor, torch.Tensor],
    fake: tuple[torch.Tensor, torch.Tensor],
    m: torch.Tensor,
    mismatched: Sequence[tuple[torch.Tensor, torch.Tensor]] = (),
    global_weight: float = 1.0,
    mask_weight: float = 1.0,
) -> torch.Tensor:
    """Hinge loss of the critic over both branches.

    real, fake: (global, mask) logits for the same masks `m`. mismatched: pairs (mask logits, mask) that are fakes for
    the mask branch alone: a real defect under another sample's mask, a normal image under a mask.
    """
    loss = global_weight * (F.relu(1 - real[0]).mean() + F.relu(1 + fake[0]).mean())
    fakes = [_masked_mean(F.relu(1 + fake[1]), m).mean()]
    fakes += [_masked_mean(F.relu(1 + logits), mask).mean() for logits, mask in mismatched]
    return loss + mask_weight * (_masked_mean(F.relu(1 - real[1]), m).mean() + sum(fakes) / len(fakes))


def generator_loss(
    fake: tuple[torch.Tensor, torch.Tensor],
    m: torch.Tensor,
    global_weight: float = 1.0,
    mask_weight: float = 1.0,
) -> torch.Tensor:
    """Hinge loss of the generator: both branches should call its transitions real."""
    return -global_weight * fake[0].mean() - mask_weight * _masked_mean(fake[1], m).mean()


def r1_penalty(logits: tuple[torch.Tensor, torch.Tensor], z_prev: torch.Tensor) -> torch.Tensor:
    """R1 (Mescheder et al. 2018): squared gradient of the logits on real transitions; `z_prev` must require grad."""
    total = logits[0].sum() + logits[1].sum()
    (gradient,) = torch.autograd.grad(total, z_prev, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


# --- transitions: what the critic is shown ----------------------------------------------------------------------------


def timestep_grid(num_train_timesteps: int, points: int) -> torch.Tensor:
    """The critic's coarse grid of timesteps, "trailing" (Lin et al. 2024): descending, the last train step first.

    Raises ValueError for more points than timesteps.
    """
    if points > num_train_timesteps:
        raise ValueError(f"critic_grid={points}: the base has {num_train_timesteps} timesteps only")
    # rounding may give one too many
    return torch.arange(num_train_timesteps, 0, -num_train_timesteps / points)[:points].round().long() - 1


def grid_step(grid: torch.Tensor, index: torch.Tensor, alphas_cumprod: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """t (B,), ᾱ_t and ᾱ_{t'} (B, 1, 1, 1) at grid positions `index`; t' of the last one is the clean image, ᾱ = 1."""
    t = grid[index]
    last = torch.ones(1, dtype=alphas_cumprod.dtype, device=alphas_cumprod.device)
    on_grid = torch.cat([alphas_cumprod[grid], last])
    return t, on_grid[index].view(-1, 1, 1, 1), on_grid[index + 1].view(-1, 1, 1, 1)


def transition(
    z0: torch.Tensor,
    z_t: torch.Tensor,
    background_z0: torch.Tensor,
    m: torch.Tensor,
    alpha_bars: tuple[torch.Tensor, torch.Tensor],
    noises: tuple[torch.Tensor, torch.Tensor],
    background: str,
) -> torch.Tensor:
    """z_{t'} ~ q(z_{t'} | z_t, z0) inside the mask, fused with the background as sampling does.

    Real and fake differ in `z0` alone: true latents or the generator's ẑ0. The background is the same known image for
    both, with the same noise, else the critic reads the noise level and not the defect. `noises` are ε of the
    posterior and of the background.
    """
    alpha_bar_t, alpha_bar_prev = alpha_bars
    mean, variance = posterior(z0, z_t, alpha_bar_t, alpha_bar_prev)
    inside = mean + variance.clamp(min=0).sqrt() * noises[0]
    if background == "off":
        return inside
    return fuse(inside, noise_latents(background_z0, noises[1], m, alpha_bar_prev, background), m)


@torch.no_grad()
def rank_score(
    critic: MaskGuidedCritic,
    z0: torch.Tensor,
    m: torch.Tensor,
    alphas_cumprod: torch.Tensor,
    background: str,
    grid_points: int,
    seed: int = 0,
) -> torch.Tensor:
    """How real each finished latent looks to the critic (B,): higher is better; used for best-of-k.

    The last transition of the grid (to the clean image) is rebuilt with one fixed noise for all candidates, so that
    scores of candidates for one mask can be compared.
    """
    grid = timestep_grid(len(alphas_cumprod), grid_points)
    noise = torch.randn(z0.shape[1:], generator=torch.Generator().manual_seed(seed))
    noise = noise.to(z0.device, z0.dtype).expand_as(z0)
    index = torch.full((len(z0),), len(grid) - 1, device="cpu")
    t, alpha_bar_t, _ = grid_step(grid, index, alphas_cumprod.cpu())
    z_t = noise_latents(z0, noise, m, alpha_bar_t.to(z0), background)
    global_logits, mask_logits = critic(z0, z_t, t.to(z0.device), m)
    return global_logits.mean((1, 2, 3)) + _masked_mean(mask_logits, m)
