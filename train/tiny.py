"""The parts of `sard-tiny`, untrained, and how they become a pipeline folder that diffusers reads."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sard_lora.atomic import atomic_folder, require_replaceable
from sard_lora.bases import save_half

RESOLUTION = 256
TOKENS = 32
"""Longest prompt, its begin and end tokens included; what is longer is cut."""
WIDTH = 128
"""Width of the text encoder, and so of the UNet's cross-attention."""
TRAINING_FILE = "training.json"
"""Beside the weights: how long each part was trained."""
KIND = "a base that train/base.py wrote"
"""What a folder with that file is; nothing else is replaced."""
BEGIN, END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True)
class Run:
    """How long something was trained: optimizer steps, and minutes as measured."""

    steps: int = 0
    minutes: float = 0.0

    def __add__(self, later: "Run") -> "Run":
        return Run(self.steps + later.steps, self.minutes + later.minutes)


def make_vae() -> AutoencoderKL:
    """An autoencoder of 3.4 M parameters: (B, 3, H, W) to latents (B, 4, H/8, W/8) and back."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 64, 96, 128),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=RESOLUTION,
    )


def make_unet() -> UNet2DConditionModel:
    """A UNet of 10.9 M parameters: noisy latents, mask, masked latents (B, 9, h, w) to velocity (B, 4, h, w)."""
    return UNet2DConditionModel(
        sample_size=RESOLUTION // 8,
        in_channels=9,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=(2, 4, 6),  # diffusers means the number of heads here: each is 32 wide
        norm_num_groups=16,
    )


def make_scheduler() -> DDIMScheduler:
    """Stable Diffusion 2's schedule (velocity prediction), so that every sampler made for it fits."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
        prediction_type="v_prediction",
    )


def byte_letters() -> list[str]:
    """The 256 printable stand-ins for bytes that byte-level BPE counts in (Radford et al. 2019)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letter = {byte: chr(byte) for byte in shown} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}
    return [letter[byte] for byte in range(256)]


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, the most frequent pair first, until every one of `words` is a single token."""
    pieces = {word: (*word[:-1], word[-1] + "</w>") for word in sorted(set(words))}
    merges = []
    while counts := Counter(pair for parts in pieces.values() for pair in pairwise(parts)):
        first, second = best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        for word, parts in pieces.items():
            merged, i = [], 0
            while i < len(parts):
                joined = parts[i : i + 2] == best
                merged.append(first + second if joined else parts[i])
                i += 2 if joined else 1
            pieces[word] = tuple(merged)
    return merges


def make_tokenizer(captions: Iterable[str]) -> CLIPTokenizer:
    """A CLIP tokenizer that knows the captions' words as one token each and spells all others in bytes."""
    merges = learn_merges(word for caption in captions for word in caption.lower().split())
    letters = byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges), BEGIN, END]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(dict.fromkeys(tokens))}, merges=merges, model_max_length=TOKENS
    )


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A text encoder of about 0.7 M parameters: token ids (B, 32) to embeddings (B, 32, 128)."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            projection_dim=WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tokenise(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids (B, 32), padded and cut as Stable Diffusion pipelines do."""
    return tokenizer(captions, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt").input_ids


def save_pipeline(
    folder: Path,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    unet: UNet2DConditionModel,
    runs: Mapping[str, Run],
    machine: str,
) -> Path:
    """Write an inpainting pipeline in fp16 safetensors with its card (`README.md`), whole or not at all.

    `runs` tells how long the parts "vae" and "unet" were trained on `machine`. Raises ValueError where `folder` holds
    anything but an earlier base of this kind.
    """
    require_replaceable(folder, TRAINING_FILE, KIND)
    pipeline = StableDiffusionInpaintPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with atomic_folder(folder) as temporary:
        save_half(pipeline, temporary)
        (temporary / "README.md").write_text(card(runs, machine), encoding="utf-8")
        training = {part: asdict(run) for part, run in runs.items()}
        (temporary / TRAINING_FILE).write_text(json.dumps(training) + "\n", encoding="utf-8")
        for file in temporary.rglob("*.safetensors"):  # safetensors writes for the owner only
            file.chmod(0o644)
    return folder


def card(runs: Mapping[str, Run], machine: str) -> str:
    """The model card."""
    vae, unet = runs["vae"], runs["unet"]
    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: image-to-image
tags: [inpainting, stable-diffusion, surface-defects]
---

# sard-tiny

A small Stable Diffusion inpainting base for surfaces, so that sard-lora runs without a download: CLIP tokenizer and
text encoder (0.7 M parameters), AutoencoderKL (f8, 4 latent channels, 3.4 M) and a 9-channel UNet (10.9 M), fp16,
256 × 256 pixels. It loads with plain diffusers:

    StableDiffusionInpaintPipeline.from_pretrained("sard_lora/weights/sard-tiny", dtype=torch.float32)

**Trained on** nothing but pictures drawn by `sard_lora/textures.py` and `sard_lora/defects.py` from a seed: noise,
metal, cloth, leather, wood, tiles, print, granulate, crystals, dead leaves and objects on backgrounds, half of the
windows with a defect (scratch, crack, pit, stain, hole, chip, missing piece, fibre, dent, scuff, contamination,
smear). No photograph was used, so no photograph's licence binds it.

**How long**: autoencoder {vae.steps} steps of 8 crops, {vae.minutes:.0f} minutes; UNet and text encoder {unet.steps}
steps of 16 windows of 256 px or 64 of 128 px, {unet.minutes:.0f} minutes; {machine}, shared with other work. Made by
`python -m sard_lora.train.base` in several runs, each started from the last one's weights; averaged (EMA) weights,
velocity prediction, 10 % of the captions dropped.

**Prompts** it knows: "a photo of a PRODUCT with a DEFECT defect", "a PRODUCT with a DEFECT", "a photo of a PRODUCT
without a defect". Other words are spelt in bytes and mean nothing to it until an adapter is trained. Prompts are cut
at 32 tokens.

**What it cannot do**: photographs of scenes, people, text; it fills holes in surfaces and parts and nothing else. Fine
sensor grain does not survive the autoencoder. Large holes come out smoother than their surroundings, regular patterns
(weave, print) may lose step inside a hole, and unknown materials are continued only roughly: continue it on your own
normal images (`sard-lora base adapt`, which also teaches the decoder their grain), train an adapter, or use a large
base. 20 DDIM steps do.

Licence: Apache-2.0, as the rest of sard-lora.
"""
