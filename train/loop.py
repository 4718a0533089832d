"""The plain training loop of base models: AdamW, warm-up and cosine decay, averaged weights, checkpoints, a log."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sard_lora.atomic import make_folder
from sard_lora.train.checkpoint import checkpoints, load_optimizer_tensors, load_state, optimizer_tensors, save_state


def train(
    folder: Path,
    model: nn.Module,
    loss_of: Callable[[nn.Module, int], Tensor],
    steps: int,
    learning_rate: float,
    bf16: bool,
    checkpoint_every: int,
    warmup: int = 200,
) -> None:
    """Train what `model` has to train for `steps` steps, from the newest checkpoint in `folder` on.

    `loss_of(model, step)` must depend on nothing else, so that a resumed run goes on as if it had not stopped. The
    weights' moving average is in the checkpoints: `load_average`.

    Raises:
        FloatingPointError: the loss is no longer finite; the message names the last checkpoint, if there is one.
    """
    make_folder(folder)
    parameters = _trained(model)
    device = next(iter(parameters.values())).device.type
    average = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    start, seconds = 0, 0.0
    if (state := load_state(folder)) is not None:
        start, tensors = state
        _copy(parameters, _part(tensors, "model."))
        _copy(average, _part(tensors, "average."))
        load_optimizer_tensors(optimizer, _part(tensors, "optimizer."))
        seconds = tensors["seconds"].item()
        print(f"{folder.name}: resumed at step {start} of {steps}", flush=True)

    model.train()
    began, recent = time.monotonic() - seconds, []
    for step in range(start, steps):
        rise = min(1.0, (step + 1) / warmup)
        rate = learning_rate * rise * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        optimizer.param_groups[0]["lr"] = rate
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = loss_of(model, step)
        if not torch.isfinite(loss):
            kept = checkpoints(folder)
            last = f"the last checkpoint is {kept[-1].name}" if kept else "no checkpoint was written yet"
            raise FloatingPointError(f"{folder}: the loss is {loss.item()} at step {step}; {last}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        decay = min(0.995, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.values()), [p.detach() for p in parameters.values()], 1 - decay)

        done, elapsed, recent = step + 1, time.monotonic() - began, [*recent[-99:], loss.item()]
        with (folder / "log.jsonl").open("a") as log:
            log.write(json.dumps({"step": done, "loss": recent[-1], "seconds": elapsed}) + "\n")
        if done % 50 == 0 or done == steps:
            left = elapsed / done * (steps - done)
            print(
                f"{folder.name}: step {done}/{steps}  loss {np.mean(recent):.4f}  {elapsed:.0f} s, {left:.0f} s to go",
                flush=True,
            )
        if done % checkpoint_every == 0 or done == steps:
            tensors = {f"model.{name}": value for name, value in parameters.items()}
            tensors |= {f"average.{name}": value for name, value in average.items()}
            tensors |= {f"optimizer.{name}": value for name, value in optimizer_tensors(optimizer).items()}
            save_state(folder, done, tensors | {"seconds": torch.tensor(time.monotonic() - began)})


def load_average(folder: Path, model: nn.Module) -> tuple[int, float]:
    """Put the averaged weights of the newest checkpoint into `model`; answer its step and its minutes of training.

    Raises:
        FileNotFoundError: no checkpoint in `folder`.
    """
    state = load_state(folder)
    if state is None:
        raise FileNotFoundError(f"{folder}: no checkpoint. Train first (--stage {folder.name}).")
    step, tensors = state
    _copy(_trained(model), _part(tensors, "average."))
    return step, tensors["seconds"].item() / 60


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@torch.no_grad()
def _copy(target: dict[str, Tensor], source: dict[str, Tensor]) -> None:
    if target.keys() != source.keys():
        raise ValueError("the checkpoint belongs to another model: choose another output folder")
    for name, tensor in target.items():
        tensor.copy_(source[name])
