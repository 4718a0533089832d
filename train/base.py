"""How `sard-tiny` is made: a small Stable Diffusion inpainting base, trained on procedural surfaces only.

    python -m sard_lora.train.base --output runs/base --stage all

Three parts, each resumable and seeded step by step: an f8 autoencoder (`vae`), a text encoder with a 9-channel UNet
(`unet`), and the export that `diffusers.StableDiffusionInpaintPipeline.from_pretrained` reads (`export`).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionInpaintPipeline
from torch import Tensor, nn
from transformers import CLIPTokenizer

from sard_lora.atomic import require_replaceable
from sard_lora.config import parse
from sard_lora.train.checkpoint import checkpoints
from sard_lora.train.corpus import Pool, all_captions, draw_crop, draw_picture, draw_window
from sard_lora.train.inpainting import Batches, inpainting_loss, to_tensor
from sard_lora.train.loop import load_average, train
from sard_lora.train.tiny import (
    KIND,
    RESOLUTION,
    TRAINING_FILE,
    Run,
    make_scheduler,
    make_text_encoder,
    make_tokenizer,
    make_unet,
    make_vae,
    save_pipeline,
    tokenise,
)

Loss = Callable[[nn.Module, int], Tensor]
STAGES = ("all", "vae", "unet", "export")


@dataclass
class BaseConfig:
    """Train a small inpainting base on procedural surfaces."""

    output: Path = Path("runs/base")
    """Where checkpoints, logs and the finished base go."""
    stage: str = "all"
    """all, vae, unet or export; export makes a base of the newest checkpoints as they are."""
    start: Path | None = None
    """Finished base to go on from, in place of random weights; its autoencoder stays unless --stage says vae."""
    export: Path | None = None
    """Where the finished base goes; OUTPUT/sard-tiny when left out."""
    vae_steps: int = 2000
    """Optimizer steps of the autoencoder."""
    unet_steps: int = 3000
    """Optimizer steps of the UNet and the text encoder."""
    vae_batch: int = 8
    """128-px crops a step."""
    mixed_channels: float = 0.5
    """Share of the first crops with mixed channels, which teach the autoencoder colour; 0 for one that knows it."""
    unet_batch: int = 16
    """256-px windows a step."""
    small_share: float = 0.75
    """Share of the UNet's steps, the first ones, on four times as many windows of half the side."""
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
        for name in ("mixed_channels", "small_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: has to lie in [0, 1]")
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


def colour_loss(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of what 8 × 8 pixels have of colour (their mean without their brightness).

    Tints are faint beside brightness and grain; without a loss of their own a small autoencoder leaves them out.
    """
    means = F.avg_pool2d(reconstruction - target, 8)
    return (means - means.mean(1, keepdim=True)).square().mean()


def mix_channels(x: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) whose red, green and blue each come from another picture of the batch.

    Real tints are faint: an autoencoder that starts by painting everything grey never finds its way out, not even with
    a loss on colour. Nothing grey fits these.
    """
    return torch.stack([x.roll(1, 0)[:, 1], x[:, 1], x.roll(2, 0)[:, 1]], 1)


def train_vae(config: BaseConfig) -> None:
    """Train the autoencoder with L1, edges, colour and a trace of KL.

    In the first quarter of the steps some crops have mixed channels, towards the middle ever fewer.
    """
    torch.manual_seed(config.seed)
    vae = make_vae()
    if config.start:
        vae = AutoencoderKL.from_pretrained(config.start, subfolder="vae", dtype=torch.float32)
    vae.to(config.device)
    pool = Pool(lambda rng: draw_picture(RESOLUTION, rng), config.pool, config.fresh, config.seed)

    def loss(model: nn.Module, step: int) -> Tensor:
        rng = np.random.default_rng([config.seed, 1, step])
        pictures = pool.at(step)
        crops = [draw_crop(pictures[i], 128, rng) for i in rng.integers(0, len(pictures), config.vae_batch)]
        x = to_tensor(crops).to(config.device)
        strange = round(config.vae_batch * config.mixed_channels * min(1.0, max(0.0, 2 - 4 * step / config.vae_steps)))
        x[:strange] = mix_channels(x)[:strange]
        posterior = model.encode(x).latent_dist
        latents = posterior.sample(torch.Generator(config.device).manual_seed(config.seed + step))
        reconstruction = model.decode(latents).sample.float()
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).float().mean()
        detail = F.l1_loss(reconstruction, x) + edge_loss(reconstruction, x)
        return detail + 10 * colour_loss(reconstruction, x) + 2e-4 * kl

    _train("vae", vae, loss, config.vae_steps, config.vae_learning_rate, config)


def load_vae(config: BaseConfig) -> tuple[AutoencoderKL, Run]:
    """The averaged autoencoder of the newest checkpoint, its scaling factor set, and how it was trained.

    Where there is no checkpoint but a base to start from, that base's autoencoder as it is.
    """
    if config.start and not checkpoints(config.output / "vae"):
        vae = AutoencoderKL.from_pretrained(config.start, subfolder="vae", dtype=torch.float32)
        return vae.to(config.device).eval().requires_grad_(False), _runs(config)["vae"]
    vae = make_vae().to(config.device)
    run = _runs(config)["vae"] + Run(*load_average(config.output / "vae", vae))
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
    if config.start:
        start = StableDiffusionInpaintPipeline.from_pretrained(config.start, dtype=torch.float32)
        unet, text_encoder, tokenizer = start.unet, start.text_encoder, start.tokenizer
    else:
        tokenizer = make_tokenizer(all_captions())
        unet, text_encoder = make_unet(), make_text_encoder(tokenizer)
    return nn.ModuleDict({"unet": unet, "text": text_encoder}).to(config.device), tokenizer


def train_unet(config: BaseConfig, vae: AutoencoderKL) -> None:
    """Train the UNet and the text encoder to fill holes, as `StableDiffusionInpaintPipeline` will ask them to.

    They predict velocity (Salimans & Ho 2022), not noise: where nearly all is noise, the noise tells nothing about the
    hole, and a short training on it never learns to match the surroundings' brightness.
    """
    denoiser, tokenizer = make_denoiser(config)
    alphas_cumprod = make_scheduler().alphas_cumprod.to(config.device)
    small_steps = round(config.small_share * config.unet_steps)
    batches = Batches(
        draw_window, vae, RESOLUTION, config.unet_batch, config.pool, config.fresh, small_steps, config.seed + 1
    )

    def loss(model: nn.Module, step: int) -> Tensor:
        rng = np.random.default_rng([config.seed, 3, step])
        chosen = batches.at(step, rng)
        # Without words now and then, so that classifier-free guidance has something to compare with.
        captions = ["" if rng.random() < 0.1 else window.caption for window in chosen]
        words = model["text"](tokenise(tokenizer, captions).to(config.device)).last_hidden_state
        return inpainting_loss(model["unet"], chosen, words, alphas_cumprod, "v_prediction", rng)

    _train("unet", denoiser, loss, config.unet_steps, config.unet_learning_rate, config)


def _train(stage: str, model: nn.Module, loss: Loss, steps: int, learning_rate: float, config: BaseConfig) -> None:
    bf16 = config.precision == "bf16"
    train(config.output / stage, model, loss, steps, learning_rate, bf16, config.checkpoint_every)


def export(config: BaseConfig) -> Path:
    """Write the newest averaged weights as a diffusers pipeline folder to `config.export`."""
    vae, vae_run = load_vae(config)
    denoiser, tokenizer = make_denoiser(config)
    unet_run = _runs(config)["unet"] + Run(*load_average(config.output / "unet", denoiser))
    runs = {"vae": vae_run, "unet": unet_run}
    machine = f"{config.threads} threads of one {config.device}"
    return save_pipeline(
        config.export, vae.cpu(), tokenizer, denoiser["text"].cpu(), denoiser["unet"].cpu(), runs, machine
    )


def _runs(config: BaseConfig) -> dict[str, Run]:
    """How long the base that training started from was trained; nothing where it started from random weights."""
    if config.start is None:
        return {"vae": Run(), "unet": Run()}
    return {part: Run(**run) for part, run in json.loads((config.start / TRAINING_FILE).read_text()).items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stages that the command line asks for."""
    config = parse(BaseConfig, "python -m sard_lora.train.base", __doc__, argv)
    require_replaceable(config.export, TRAINING_FILE, KIND)
    torch.set_num_threads(config.threads)
    if config.stage in ("all", "vae"):
        train_vae(config)
    if config.stage in ("all", "unet"):
        train_unet(config, load_vae(config)[0])
    if config.stage in ("all", "unet", "export"):
        print(f"sard-tiny: {export(config)}", flush=True)


if __name__ == "__main__":
    main()
