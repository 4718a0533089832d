"""Continue a base on one's own normal images, which are plenty and need no labels.

sard-lora base adapt --base sard-tiny --data DIR --output bases/tile
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from diffusers import StableDiffusionInpaintPipeline
from diffusers.training_utils import cast_training_params
from peft import LoraConfig

from sard_lora import bases
from sard_lora.adapter_config import product_name
from sard_lora.atomic import atomic_folder, make_folder, require_free, require_replaceable
from sard_lora.caching import Kept
from sard_lora.data import fingerprint, normal_images
from sard_lora.images import load_image
from sard_lora.layouts import Sample
from sard_lora.pipelines.sard_inpaint import Box, crop_window
from sard_lora.precision import bf16_is_fast
from sard_lora.product import Grain, grain_of
from sard_lora.train.checkpoint import begin
from sard_lora.train.corpus import Window, open_hole
from sard_lora.train.decoder import train_decoder
from sard_lora.train.inpainting import Batches, inpainting_loss
from sard_lora.train.loop import load_average, train

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "conv1", "conv2", "conv_shortcut")
LOG = "log.jsonl"
SMALL = 100_000_000
"""Up to so many parameters the whole UNet is trained."""


@dataclass
class AdaptConfig:
    """Settings of one base's adaptation."""

    data: Path
    """Normal images: a data set (its training side is used) or a plain folder of images."""
    output: Path
    """Where the adapted base goes; logs and checkpoints go to OUTPUT.training."""
    category: str | None = None
    """Category inside the data set; default: the folder itself."""
    product: str | None = None
    """What the prompts call it; default: the category's or the folder's name."""
    base: str = "sard-tiny"
    """Base model: sard-tiny (embedded), a named one, a folder, or a Hub id."""
    revision: str | None = None
    """Revision of a base from the Hub."""
    method: Literal["auto", "unet", "lora"] = "auto"
    """Train the whole UNet, or a LoRA that is then folded into it; auto: the whole of a UNet below 100 M parameters."""
    rank: int = 32
    """Rank of the LoRA."""
    steps: int = 700
    """Optimizer steps."""
    batch_size: int = 16
    """Windows per step."""
    small_share: float = 0.2
    """Share of the steps, the first ones, on four times as many windows of half the side."""
    decoder_steps: int | None = None
    """Steps of the autoencoder's decoder, which learns the grain of the pictures; by default 200 where the whole UNet
    is trained, 0 where a LoRA is: large autoencoders have learnt grain."""
    learning_rate: float | None = None
    """Peak learning rate of the UNet; by default 7e-4 for the whole UNet, 1e-4 for a LoRA."""
    drawn_defects: float = 0.3
    """Share of windows with a procedural defect, so that the base does not forget what a defect is."""
    min_side: int = 64
    """Smallest window, in image pixels; the largest is the image's shorter side."""
    whole_share: float = 0.5
    """Share of windows of that largest size: what a product looks like as a whole is learnt from them."""
    flip_horizontal: bool = True
    """Mirror windows left to right; off for products with a side."""
    flip_vertical: bool = True
    """Mirror windows top to bottom."""
    grain: Grain | None = None
    """Direction of the product's surface, as `sard-lora train` has it; windows are turned by quarter turns only without
    one."""
    pool: int = 256
    """Encoded windows held in memory, of which batches are drawn."""
    fresh: int = 1
    """New windows drawn a step."""
    mixed_precision: Literal["auto", "bf16", "no"] = "auto"
    """bf16, no (fp32), or auto: bf16 where it is fast."""
    gradient_checkpointing: bool = False
    """Trade speed for memory in the UNet."""
    seed: int = 0
    """Seed of everything random."""
    cpu: bool = False
    """Train on the CPU even where there is a GPU."""
    checkpoint_every: int = 250
    """Steps between checkpoints."""
    resume: bool = False
    """Go on from the newest checkpoint in OUTPUT.training."""
    overwrite: bool = False
    """Replace an adapted base at OUTPUT, and what a run that was stopped left in OUTPUT.training."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "rank", "min_side", "pool", "fresh", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} has to be at least 1")
        for name in ("drawn_defects", "small_share", "whole_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} has to lie in [0, 1]")
        if self.grain not in (None, *get_args(Grain)):
            raise ValueError(f"grain={self.grain!r} is not one of {', '.join(get_args(Grain))}")


def adapt(config: AdaptConfig) -> Path:
    """Write the adapted base, a pipeline folder that `--base` and plain diffusers take; returns its path.

    Raises ValueError naming what is wrong with the data, the base or the settings before the first step, and
    FloatingPointError with the last checkpoint when the loss is no longer finite.
    """
    require_free(config.output, config.overwrite)
    require_replaceable(config.output, bases.HISTORY, "a base that `sard-lora base adapt` wrote")
    normals = normal_images(config.data, config.category)
    base = bases.describe(config.base, config.revision)
    device = torch.device("cuda" if torch.cuda.is_available() and not config.cpu else "cpu")
    work = make_folder(config.output.with_name(config.output.name + ".training"))
    bf16 = config.mixed_precision == "bf16" or (config.mixed_precision == "auto" and bf16_is_fast(device))

    pipe = StableDiffusionInpaintPipeline.from_pretrained(base.path, revision=config.revision, dtype=torch.float32)
    pipe.to(device)
    begin(work, _settings(config), LOG, config.resume, config.overwrite)
    if not config.resume:
        shutil.rmtree(work / "decoder", ignore_errors=True)
    lora = _choose_weights(pipe, config, bf16)
    product = config.product or product_name(config.category or config.data.resolve().name)
    windows = WindowsOfNormals(normals, product, base.resolution, config)
    rate = config.learning_rate or (1e-4 if lora else 7e-4)
    loss = _loss(pipe, windows, config)
    train(work, pipe.unet, loss, config.steps, rate, bf16, config.checkpoint_every, warmup=min(50, config.steps))
    steps, minutes = load_average(work, pipe.unet)
    if lora:
        _unround(pipe, base.path, config.revision)
    decoder_steps = config.decoder_steps if config.decoder_steps is not None else 0 if lora else 200
    if decoder_steps:
        _, more = _train_decoder(pipe, windows, decoder_steps, bf16, work / "decoder", config)
        minutes += more
    if lora:
        pipe.unet.fuse_lora()
        pipe.unet.unload_lora()
    history = {
        "adapted_from": config.base,
        "revision": base.revision,
        "product": product,
        "images": len(normals),
        "data": fingerprint(normals),
        "method": "lora" if lora else "unet",
        "steps": steps,
        "decoder_steps": decoder_steps,
        "grain": windows.grain,
        "minutes": round(minutes, 1),
        "settings": _settings(config),
    }
    with atomic_folder(config.output) as temporary:
        bases.save_half(pipe, temporary)
        (temporary / bases.HISTORY).write_text(json.dumps(history, indent=2, default=str) + "\n", encoding="utf-8")
        (temporary / "README.md").write_text(card(history), encoding="utf-8")
    print(f"base: {config.output}")
    return config.output


def _choose_weights(pipe: StableDiffusionInpaintPipeline, config: AdaptConfig, bf16: bool) -> bool:
    """Let the whole UNet train, or a new LoRA on it, and nothing else; answers whether it is a LoRA.

    On a GPU the frozen weights around a LoRA are in bf16 where training is, until `_unround`.
    """
    for part in (pipe.vae, pipe.text_encoder, pipe.unet):
        part.requires_grad_(False)
    parameters = sum(parameter.numel() for parameter in pipe.unet.parameters())
    lora = config.method == "lora" or (config.method == "auto" and parameters > SMALL)
    if lora:
        torch.manual_seed(config.seed)
        if bf16 and pipe.device.type == "cuda":
            pipe.to(dtype=torch.bfloat16)
        pipe.unet.add_adapter(LoraConfig(r=config.rank, lora_alpha=config.rank, target_modules=list(TARGETS)))
        cast_training_params(pipe.unet, torch.float32)
    else:
        pipe.unet.requires_grad_(True)
    if config.gradient_checkpointing:
        pipe.unet.enable_gradient_checkpointing()
    return lora


def _unround(pipe: StableDiffusionInpaintPipeline, path: str, revision: str | None) -> None:
    """Make the frozen weights again what they are in the base, to the bit, in fp32, where they were rounded."""
    if pipe.text_encoder.dtype == torch.float32:
        return
    whole = StableDiffusionInpaintPipeline.from_pretrained(path, revision=revision, dtype=torch.float32)
    for part in ("vae", "text_encoder", "unet"):
        own = getattr(whole, part).state_dict()
        for name, parameter in getattr(pipe, part).named_parameters():
            if not parameter.requires_grad:
                parameter.data = own[name.replace(".base_layer", "")].to(parameter.device)


def _loss(
    pipe: StableDiffusionInpaintPipeline, windows: "WindowsOfNormals", config: AdaptConfig
) -> Callable[[torch.nn.Module, int], torch.Tensor]:
    """The loss of step k, which depends on the seed and k alone."""
    small_steps = round(config.small_share * config.steps)
    batches = Batches(
        windows.draw,
        pipe.vae,
        windows.resolution,
        config.batch_size,
        config.pool,
        config.fresh,
        small_steps,
        config.seed,
    )
    alphas_cumprod = pipe.scheduler.alphas_cumprod.to(pipe.device)

    @lru_cache(maxsize=1024)
    def words(caption: str) -> torch.Tensor:
        with torch.no_grad():
            return pipe.encode_prompt(caption, pipe.device, 1, False)[0][0]

    def loss(unet: torch.nn.Module, step: int) -> torch.Tensor:
        rng = np.random.default_rng([config.seed, 3, step])
        chosen = batches.at(step, rng)
        # Without words now and then, so that classifier-free guidance keeps something to compare with.
        embeds = torch.stack([words("" if rng.random() < 0.1 else window.caption) for window in chosen])
        return inpainting_loss(unet, chosen, embeds, alphas_cumprod, pipe.scheduler.config.prediction_type, rng)

    return loss


def _train_decoder(
    pipe: StableDiffusionInpaintPipeline,
    windows: "WindowsOfNormals",
    steps: int,
    bf16: bool,
    folder: Path,
    config: AdaptConfig,
) -> tuple[int, float]:
    side = max(64, windows.resolution // 2)

    def draw(rng: np.random.Generator) -> np.ndarray:
        return (windows.crop(side, rng) * 255 + 0.5).astype(np.uint8)

    return train_decoder(folder, pipe.vae, draw, steps, 8, 5e-4, bf16, config.checkpoint_every, config.seed)


class WindowsOfNormals:
    """Draws windows of normal images under holes, some of them with a drawn defect."""

    def __init__(self, normals: Sequence[Sample], product: str, resolution: int, config: AdaptConfig) -> None:
        self.normals, self.product, self.resolution, self.config = normals, product, resolution, config
        self._image = Kept(_load, lambda image: image.nbytes)
        self.grain = config.grain or grain_of([sample.image for sample in normals])

    def draw(self, pixels: int, rng: np.random.Generator) -> Window:
        """A crop with a hole in it, often with a drawn defect in that."""
        picture, hole, caption = open_hole(self.crop(pixels, rng), self.product, self.config.drawn_defects, rng)
        return Window((picture * 255 + 0.5).astype(np.uint8), hole, caption)

    def crop(self, pixels: int, rng: np.random.Generator) -> np.ndarray:
        """A square of any size between `min_side` and the image's shorter side, resized to the base's resolution.

        Where `pixels` is less than that resolution, a part of such a square: (pixels, pixels, 3) in 0..1.
        """
        config = self.config
        image = self._image(str(self.normals[rng.integers(len(self.normals))].image))
        height, width = image.shape[1:]
        shorter = min(height, width)
        side = np.exp(rng.uniform(np.log(min(config.min_side, shorter)), np.log(shorter)))
        if rng.random() < config.whole_share:
            side = shorter
        side = max(1, round(side * pixels / self.resolution))
        box = Box(int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1)), side, side)
        crop = crop_window(image, box, (pixels, pixels))
        if config.flip_horizontal and rng.random() < 0.5:
            crop = crop.flip(2)
        if config.flip_vertical and rng.random() < 0.5:
            crop = crop.flip(1)
        if self.grain == "none":
            crop = crop.rot90(int(rng.integers(4)), (1, 2))
        return (crop.clamp(0, 255) / 255).permute(1, 2, 0).numpy()


def _load(path: str) -> torch.Tensor:
    """An image as (3, H, W) uint8."""
    return torch.from_numpy(np.array(load_image(path))).permute(2, 0, 1)


def _settings(config: AdaptConfig) -> dict[str, Any]:
    """What a resumed run has to share with the one that was stopped."""
    free = ("resume", "overwrite", "output", "checkpoint_every", "cpu")
    return {name: value for name, value in asdict(config).items() if name not in free}


def card(history: dict[str, Any]) -> str:
    """The model card of an adapted base."""
    decoder = history["decoder_steps"] or "no"
    how = "the whole UNet" if history["method"] == "unet" else "a LoRA, folded into the UNet"
    return f"""---
base_model: {history["adapted_from"]}
base_model_relation: finetune
library_name: diffusers
pipeline_tag: image-to-image
tags: [inpainting, stable-diffusion, surface-defects, sard]
---

# {history["adapted_from"]}, continued on normal images of {history["product"]}

An inpainting base that has seen what good parts of **{history["product"]}** look like: {history["images"]} normal
images, no real defect. Trained: {how}, {history["steps"]} steps, and the autoencoder's decoder, {decoder} steps, in
{history["minutes"]:.0f} minutes; encoder and text encoder are those of {history["adapted_from"]}
({history["revision"]}). `adapted.json` holds every setting.

It loads with plain diffusers (`StableDiffusionInpaintPipeline.from_pretrained`), and adapters are trained on it with
`sard-lora train --base THIS_FOLDER`. Its licence is that of {history["adapted_from"]}, and of the images it saw.
"""
