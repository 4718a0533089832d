"""Training state on disk: safetensors and JSON only, whole or absent, rotated. Nothing is ever unpickled."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sard_lora.atomic import atomic_folder, write_text

PREFIX = "checkpoint-"
SETTINGS = "settings.json"
"""Beside the checkpoints: what a resumed run has to share with the one that was stopped."""


def save_state(folder: Path | str, step: int, tensors: Mapping[str, Tensor], keep: int = 2) -> Path:
    """Write `folder/checkpoint-000100/{state.safetensors,state.json}` and keep the newest `keep` of them.

    A checkpoint appears by one rename, so a kill leaves the older ones and no half of a new one.
    """
    if keep < 1:
        raise ValueError(f"keep={keep}: at least one checkpoint has to stay")
    folder = Path(folder)
    # A copy on the CPU: safetensors refuses tensors that share memory, and tied weights do.
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    path = folder / f"{PREFIX}{step:06d}"
    with atomic_folder(path) as temporary:
        save_file(copies, temporary / "state.safetensors")
        (temporary / "state.json").write_text(json.dumps({"step": step, "tensors": len(copies)}) + "\n")
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def load_state(folder: Path | str) -> tuple[int, dict[str, Tensor]] | None:
    """(step, tensors on the CPU) of the newest complete checkpoint in `folder`; None when there is none.

    Raises:
        ValueError: the newest checkpoint is damaged; the message names it.
    """
    found = checkpoints(Path(folder))
    if not found:
        return None
    path = found[-1]
    try:
        state = json.loads((path / "state.json").read_text())
        tensors = load_file(path / "state.safetensors")
        step = int(state["step"])
    except Exception as error:  # safetensors raises its own type, which is no subclass of OSError or ValueError
        raise ValueError(
            f"{path}: damaged checkpoint ({error}). Delete this folder to go on from an older one."
        ) from error
    if len(tensors) != state["tensors"]:
        raise ValueError(
            f"{path}: {len(tensors)} tensors where {state['tensors']} were written. "
            "Delete this folder to go on from an older one."
        )
    return step, tensors


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of `folder`, oldest first."""
    found = [
        path
        for path in folder.glob(f"{PREFIX}*")
        if path.name.removeprefix(PREFIX).isdigit()
        and (path / "state.json").is_file()
        and (path / "state.safetensors").is_file()
    ]
    return sorted(found, key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(PREFIX))


def begin(folder: Path, settings: Mapping[str, Any], log: str, resume: bool, overwrite: bool) -> None:
    """Make `folder` ready for a run: to resume, as its newest checkpoint left it; to overwrite, emptied of it.

    The log keeps one line for every step that the checkpoint has done.

    Raises:
        ValueError: a run is there that is neither to be resumed nor overwritten, or the one to resume was begun with
            other settings; the message names them.
    """
    wanted = json.loads(json.dumps(settings, default=str))
    found = checkpoints(folder)
    if resume and found:
        there = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        if different := sorted(name for name, value in wanted.items() if there.get(name) != value):
            raise ValueError(
                f"{folder}: was begun with another {', '.join(different)}. Use the same, or begin anew with "
                "--overwrite true in place of --resume"
            )
        lines = (folder / log).read_text(encoding="utf-8").splitlines(keepends=True)
        write_text(folder / log, "".join(lines[: _step(found[-1])]))
        return
    if found and not overwrite:
        raise ValueError(
            f"{folder}: holds an earlier run up to step {_step(found[-1])}. Pass --resume true to go on, or "
            "--overwrite true to begin anew"
        )
    for old in found:
        shutil.rmtree(old)
    write_text(folder / log, "")
    write_text(folder / SETTINGS, json.dumps(wanted, indent=2) + "\n")


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's running state as `{"<parameter index>.<name>": tensor}`, e.g. `"3.exp_avg"`.

    Parameters are counted in the order of the optimizer's groups. Settings such as the learning rate are not
    part of it: they come from the configuration.
    """
    return {
        f"{index}.{name}": value
        for index, parameter in enumerate(_parameters(optimizer))
        for name, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave, to the bit; what the optimizer held before is forgotten.

    Raises:
        ValueError: the tensors belong to an optimizer of other parameters.
    """
    parameters = _parameters(optimizer)
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        if not index.isdigit() or int(index) >= len(parameters):
            raise ValueError(f"optimizer state {key!r} has no parameter: the optimizer holds {len(parameters)}")
        parameter = parameters[int(index)]
        if value.dim() and value.shape != parameter.shape:
            raise ValueError(
                f"optimizer state {key!r} has shape {tuple(value.shape)}, the parameter {tuple(parameter.shape)}"
            )
        # Step counters (0-dimensional) live on the CPU unless the optimizer is fused or capturable.
        on_device = value.dim() or optimizer.defaults.get("fused") or optimizer.defaults.get("capturable")
        states.setdefault(int(index), {})[name] = value.to(parameter.device if on_device else "cpu", copy=True)
    optimizer.state.clear()
    for index, state in states.items():
        optimizer.state[parameters[index]] = state


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
