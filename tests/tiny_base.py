"""A Stable Diffusion base of a few thousand random weights, in the real format, for tests that only need its shape."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sard_lora.pipelines.sard_inpaint import SardInpaintPipeline


def write_tiny_base(folder: Path, in_channels: int = 9, prediction_type: str = "epsilon", seed: int = 0) -> Path:
    """Write a 64-pixel base with random weights; the same arguments give the same weights."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=64,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    pipe = SardInpaintPipeline(
        vae=vae,
        text_encoder=_text_encoder(),
        tokenizer=_tokenizer(folder),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    return folder


def _text_encoder() -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=62,
            eos_token_id=63,
            pad_token_id=63,
        )
    )


def _tokenizer(folder: Path) -> CLIPTokenizer:
    letters = "abcdefghijklmnopqrstuvwxyz,"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += [f"<unused{number}>" for number in range(62 - len(tokens))]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "tokenizer-source"
    source.mkdir(exist_ok=True)
    (source / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (source / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(source, model_max_length=77)
