"""What to compute on: the device, and bf16 where it is fast enough."""

import torch


def choose_device(name: str | None = "auto") -> torch.device:
    """The device of that name; of "auto" or None, a GPU where there is one.

    Raises ValueError for one that cannot be used.
    """
    if name in ("auto", None):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={name!r} cannot be used here ({reason}). Give cpu, cuda or auto") from error
    return device


def bf16_is_fast(device: torch.device) -> bool:
    """Whether bf16 pays: on GPUs, and on CPUs with matrix units for it (AMX).

    AVX-512's bf16 instructions alone do not pay: small networks took 1.3 to 1.7 times as long as in fp32.
    """
    if device.type != "cpu":
        return True
    capabilities = getattr(torch.cpu, "get_capabilities", dict)  # newer than the oldest torch that is supported
    return bool(capabilities().get("amx_bf16", False))


def precision_name(device: torch.device) -> str:
    """bf16 or fp32: what `mixed_precision` computes in."""
    return "bf16" if bf16_is_fast(device) else "fp32"


def mixed_precision(device: torch.device) -> torch.autocast:
    """bf16 autocast where it is fast, else a context that changes nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16_is_fast(device))
