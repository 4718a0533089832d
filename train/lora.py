"""The LoRA of a base's UNet, as it is trained."""

from collections.abc import Sequence

import torch
from diffusers.training_utils import cast_training_params
from diffusers.utils.import_utils import is_xformers_available
from peft import LoraConfig

from sard_lora.pipelines.sard_inpaint import SardInpaintPipeline

ATTENTION_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out")
RESNET_TARGETS = ("conv1", "conv2", "conv_shortcut", "time_emb_proj")


def add_lora(pipe: SardInpaintPipeline, rank: int, alpha: float, targets: Sequence[str]) -> None:
    """Freeze a pipeline's models and give the `targets` of its UNet a LoRA in fp32, drawn from torch's generator."""
    for module in (pipe.vae, pipe.text_encoder, pipe.unet):
        module.requires_grad_(False)
    pipe.unet.add_adapter(
        LoraConfig(
            r=rank,
            lora_alpha=alpha,
            init_lora_weights="gaussian",
            target_modules=list(targets),
        )
    )
    cast_training_params(pipe.unet, torch.float32)


def use_xformers(unet: torch.nn.Module) -> None:
    """Switch a UNet to xformers' attention. Raises `ValueError` without a CUDA device or without the package."""
    if not torch.cuda.is_available() or not is_xformers_available():
        lacking = "a CUDA device" if not torch.cuda.is_available() else "the package (pip install sard-lora[xformers])"
        raise ValueError(f"attention=xformers needs {lacking}. Use --attention sdpa, which is as fast on most GPUs")
    unet.enable_xformers_memory_efficient_attention()
