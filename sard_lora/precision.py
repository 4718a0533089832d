"""Where bf16 is fast enough to be used."""

import torch


def bf16_is_fast(device: torch.device) -> bool:
    """Whether bf16 pays: on GPUs, and on CPUs with AVX-512; elsewhere it is emulated and slower than fp32."""
    return device.type != "cpu" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def mixed_precision(device: torch.device) -> torch.autocast:
    """bf16 autocast where it is fast, else a context that changes nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16_is_fast(device))
