"""How `sard-tiny` is made: a small Stable Diffusion inpainting base, trained on procedural surfaces only.

    python -m sard_lora.train.base --output runs/base --stage all

Three parts, each resumable and seeded step by step: an f8 autoencoder (`vae`), a text encoder with a 9-channel UNet
(`unet`), and the export that `diffusers.StableDiffusionInpaintPipeline.from_pretrained` reads (`export`).
"""

import copy
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPTokenizer

from sard_lora.atomic import make_folder
from sard_lora.config import parse
from sard_lora.train.checkpoint import load_optimizer_tensors, load_state, optimizer_tensors, save_state
from sard_lora.train.corpus import Pool, all_captions, draw_crop, draw_picture, draw_window
from sard_lora.train.tiny import (
    RESOLUTION,
    card,
    make_scheduler,
    make_text_encoder,
    make_tokenizer,
    make_unet,
    make_vae,
    save_pipeline,
    tokenise,
)

STAGES = ("all", "vae", "unet", "export")


@dataclass
class BaseConfig:
    """Train a small inpainting base on procedural surfaces."""

    output: Path = Path("runs/base")
    """Where checkpoints, logs and the finished base go."""
    stage: str = "all"
    """all, vae, unet or export; export makes a base of the newest checkpoints as they are."""
    export: Path | None = None
    """Where the finished base goes; OUTPUT/sard-tiny when left out."""
    vae_steps: int = 2000
    """Optimizer steps of the autoencoder."""
    unet_steps: int = 3000
    """Optimizer steps of the UNet and the text encoder."""
    vae_batch: int = 8
    """128-px crops a step."""
    unet_batch: int = 16
    """256-px windows a step."""
    vae_learning_rate: float = 8e-4
    """Peak learning rate of the autoencoder."""
    unet_learning_rate: float = 1e-3
    """Peak learning rate of the UNet and the text encoder."""
    pool: int = 512
    """Pictures held in memory, of which batches are drawn."""
    fresh: int = 2
    """New pictures drawn a step."""
    seed: int = 0
    """The same seed and settings give the same losses."""
    precision: str = "bf16"
    """bf16 (autocast) or fp32."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """cpu or cuda."""
    threads: int = 2
    """CPU threads."""
    checkpoint_every: int = 250
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise ValueError(f"stage={self.stage!r}: choose one of {', '.join(STAGES)}")
        if self.precision not in ("bf16", "fp32"):
            raise ValueError(f"precision={self.precision!r}: choose bf16 or fp32")
        for name in ("vae_batch", "unet_batch", "pool", "fresh", "checkpoint_every", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.export is None:
            self.export = self.output / "sard-tiny"


def edge_loss(reconstruction: Tensor, target: Tensor, scales: int = 3) -> Tensor:
    """Mean absolute difference of the gradients at `scales` scales, each half as fine as the one before."""
    difference = reconstruction - target
    loss = difference.new_zeros(())
    for _ in range(scales):
        loss = loss + difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
        difference = F.avg_pool2d(difference, 2)
    return loss


def to_tensor(pictures: Sequence[np.ndarray]) -> Tensor:
    """uint8 pictures (H, W, 3) to one tensor (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_vae(config: BaseConfig) -> None:
    """Train the autoencoder with L1, edges and a trace of KL."""
    torch.manual_seed(config.seed)
    vae = make_vae().to(config.device)
    pool = Pool(lambda rng: draw_picture(RESOLUTION, rng), config.pool, config.fresh, config.seed)

    def loss(model: nn.Module, step: int) -> Tensor:
        rng = np.random.default_rng([config.seed, 1, step])
        pictures = pool.at(step)
        crops = [draw_crop(pictures[i], 128, rng) for i in rng.integers(0, len(pictures), config.vae_batch)]
        x = to_tensor(crops).to(config.device)
        posterior = model.encode(x).latent_dist
        latents = posterior.sample(torch.Generator(config.device).manual_seed(config.seed + step))
        reconstruction = model.decode(latents).sample.float()
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).float().mean()
        return F.l1_loss(reconstruction, x) + edge_loss(reconstruction, x) + 2e-4 * kl

    train("vae", vae, loss, config.vae_steps, config.vae_learning_rate, config)


def load_vae(config: BaseConfig) -> tuple[AutoencoderKL, tuple[int, float]]:
    """The averaged autoencoder of the newest checkpoint, its scaling factor set; its step and minutes of training."""
    vae = make_vae().to(config.device)
    run = load_average("vae", vae, config)
    return set_scaling_factor(vae, config), run


@torch.no_grad()
def set_scaling_factor(vae: AutoencoderKL, config: BaseConfig) -> AutoencoderKL:
    """Set `vae.config.scaling_factor` so that latents of the corpus have a standard deviation of 1."""
    vae.eval().requires_grad_(False)
    pictures = [
        draw_picture(RESOLUTION, np.random.default_rng([config.seed, 2, n])) for n in range(min(64, config.pool))
    ]
    latents = torch.cat([vae.encode(x.to(config.device)).latent_dist.mode() for x in to_tensor(pictures).split(8)])
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    print(f"vae: latent std by channel {[round(s, 3) for s in latents.std((0, 2, 3)).tolist()]}", flush=True)
    return vae


def make_denoiser(config: BaseConfig) -> tuple[nn.ModuleDict, CLIPTokenizer]:
    """The UNet and the text encoder, which are trained as one, and the tokenizer."""
    torch.manual_seed(config.seed)
    tokenizer = make_tokenizer(all_captions())
    return nn.ModuleDict({"unet": make_unet(), "text": make_text_encoder(tokenizer)}).to(config.device), tokenizer


def train_unet(config: BaseConfig, vae: AutoencoderKL) -> None:
    """Train the UNet and the text encoder to fill holes, as `StableDiffusionInpaintPipeline` will ask them to."""
    denoiser, tokenizer = make_denoiser(config)
    alphas_cumprod = make_scheduler().alphas_cumprod.to(config.device)

    @torch.no_grad()
    def encode(rng: np.random.Generator) -> dict[str, Tensor]:
        window = draw_window(RESOLUTION, rng)
        hole = torch.tensor(window.hole)[None, None].float()
        x = to_tensor([window.picture])
        pair = torch.cat([x, x * (1 - hole)]).to(config.device)  # hidden pixels are 0: mid grey, as in diffusers
        latents, masked = vae.encode(pair).latent_dist.mode().float() * vae.config.scaling_factor
        return {
            "latents": latents,
            # Any covered pixel counts: a nearest-neighbour resize loses thin scratches.
            "mask": F.max_pool2d(hole, 8)[0].to(config.device),
            "masked": masked,
            "tokens": tokenise(tokenizer, [window.caption])[0].to(config.device),
        }

    pool = Pool(encode, config.pool, config.fresh, config.seed + 1)
    nothing = tokenise(tokenizer, [""])[0].to(config.device)

    def loss(model: nn.Module, step: int) -> Tensor:
        generator = torch.Generator(config.device).manual_seed(config.seed + 1_000_000 + step)
        rng = np.random.default_rng([config.seed, 3, step])
        items = pool.at(step)
        chosen = [items[i] for i in rng.integers(0, len(items), config.unet_batch)]
        latents, mask, masked, tokens = (
            torch.stack([item[key] for item in chosen]) for key in ("latents", "mask", "masked", "tokens")
        )
        # Without words now and then, so that classifier-free guidance has something to compare with.
        silent = torch.from_numpy(rng.random(len(chosen)) < 0.1).to(config.device)
        tokens = torch.where(silent[:, None], nothing, tokens)
        timesteps = torch.from_numpy(rng.integers(0, 1000, len(chosen))).to(config.device)
        noise = torch.randn(latents.shape, generator=generator, device=config.device)
        alpha = alphas_cumprod[timesteps][:, None, None, None]
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        words = model["text"](tokens).last_hidden_state
        velocity_pred = model["unet"](torch.cat([noisy, mask, masked], 1), timesteps, words).sample
        # Velocity (Salimans & Ho 2022), not noise: where nearly all is noise the noise tells nothing about the hole,
        # and a short training on it never learns to match the surroundings' brightness.
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        error = (velocity_pred.float() - velocity) ** 2
        # The hole is what will be used; the rest is almost given away by the masked image's latents.
        inside = (error * mask).sum((1, 2, 3)) / (4 * mask.sum((1, 2, 3)))
        return 0.5 * error.mean() + 0.5 * inside.mean()

    train("unet", denoiser, loss, config.unet_steps, config.unet_learning_rate, config)


def train(
    stage: str,
    model: nn.Module,
    loss_of: Callable[[nn.Module, int], Tensor],
    steps: int,
    learning_rate: float,
    config: BaseConfig,
) -> None:
    """The loop of both stages: AdamW, warm-up and cosine decay, averaged weights, checkpoints, a log.

    `loss_of(model, step)` must depend on nothing else, so that a resumed run goes on as if it had not stopped.
    """
    folder = make_folder(config.output / stage)
    averaged = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    start, seconds = 0, 0.0
    if (state := load_state(folder)) is not None:
        start, tensors = state
        part = lambda name: {k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)}  # noqa: E731
        model.load_state_dict(part("model."))
        averaged.load_state_dict(part("average."))
        load_optimizer_tensors(optimizer, part("optimizer."))
        seconds = tensors["seconds"].item()
        print(f"{stage}: resumed at step {start} of {steps}", flush=True)

    model.train()
    began, recent = time.monotonic() - seconds, []
    for step in range(start, steps):
        warmup = min(1.0, (step + 1) / 200)
        rate = learning_rate * warmup * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        optimizer.param_groups[0]["lr"] = rate
        with torch.autocast(config.device, torch.bfloat16, enabled=config.precision == "bf16"):
            loss = loss_of(model, step)
        if not torch.isfinite(loss):
            raise RuntimeError(f"{stage}: the loss is {loss.item()} at step {step}; the last checkpoint is in {folder}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(0.995, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - decay)

        done, recent = step + 1, [*recent[-99:], loss.item()]
        with (folder / "log.jsonl").open("a") as log:
            log.write(json.dumps({"step": done, "loss": recent[-1], "seconds": time.monotonic() - began}) + "\n")
        if done % 50 == 0 or done == steps:
            elapsed = time.monotonic() - began
            print(
                f"{stage}: step {done}/{steps}  loss {np.mean(recent):.4f}  {elapsed:.0f} s, "
                f"{elapsed / done * (steps - done):.0f} s to go",
                flush=True,
            )
        if done % config.checkpoint_every == 0 or done == steps:
            tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
            tensors |= {f"average.{k}": v for k, v in averaged.state_dict().items()}
            tensors |= {f"optimizer.{k}": v for k, v in optimizer_tensors(optimizer).items()}
            tensors["seconds"] = torch.tensor(time.monotonic() - began)
            save_state(folder, done, tensors)


def load_average(stage: str, model: nn.Module, config: BaseConfig) -> tuple[int, float]:
    """Put the averaged weights of a stage's newest checkpoint into `model`; answer its step and minutes of training."""
    state = load_state(config.output / stage)
    if state is None:
        raise FileNotFoundError(f"{config.output / stage}: no checkpoint. Run --stage {stage} first.")
    step, tensors = state
    prefix = "average."
    model.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    model.eval().requires_grad_(False)
    return step, tensors["seconds"].item() / 60


def export(config: BaseConfig) -> Path:
    """Write the newest averaged weights as a diffusers pipeline folder to `config.export`."""
    vae, vae_run = load_vae(config)
    denoiser, tokenizer = make_denoiser(config)
    unet_run = load_average("unet", denoiser, config)
    text = card(vae_run, unet_run, f"{config.threads} threads of one {config.device}")
    return save_pipeline(config.export, vae.cpu(), tokenizer, denoiser["text"].cpu(), denoiser["unet"].cpu(), text)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stages that the command line asks for."""
    config = parse(BaseConfig, "python -m sard_lora.train.base", __doc__, argv)
    torch.set_num_threads(config.threads)
    if config.stage in ("all", "vae"):
        train_vae(config)
    if config.stage in ("all", "unet"):
        train_unet(config, load_vae(config)[0])
    if config.stage in ("all", "unet", "export"):
        print(f"sard-tiny: {export(config)}", flush=True)


if __name__ == "__main__":
    main()
