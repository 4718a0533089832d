"""The joint training loop: a LoRA on an inpainting UNet and the mask-guided critic, under accelerate.

sard-lora train --data DIR --category C --output adapters/C
accelerate launch -m sard_lora.train.adapter --config adapter.yaml      # several GPUs
"""

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import is_tensorboard_available
from tqdm import tqdm

from sard_lora.adapter import Adapter, save_adapter
from sard_lora.adapter_config import SETTINGS_FILE
from sard_lora.atomic import is_occupied, make_folder, require_free, require_replaceable
from sard_lora.config import parse
from sard_lora.data import few_shot_split, fingerprint, open_category
from sard_lora.precision import bf16_is_fast
from sard_lora.train.adapter_train_config import AdapterTrainConfig
from sard_lora.train.checkpoint import begin, checkpoints, load_state, save_state
from sard_lora.train.joint import AdapterTrainer

LOG = "log.jsonl"


def train_adapter(config: AdapterTrainConfig) -> Adapter:
    """Train an adapter and print where it is; returns it, opened from its folder.

    Raises ValueError naming what is wrong with the data, the base or the settings before the first step, and
    FloatingPointError with the last good checkpoint when a loss is no longer finite.
    """
    if is_occupied(config.output) and config.resume and not config.overwrite:
        adapter = _finished(config)
        print(f"adapter: {config.output}, trained before")
        return adapter
    require_free(config.output, config.overwrite)
    require_replaceable(config.output, SETTINGS_FILE, "an adapter")
    if config.tensorboard and not is_tensorboard_available():
        raise ValueError("tensorboard=True: the package is missing. Install it: pip install 'sard-lora[tracking]'")
    make_folder(config.output.parent)
    work = make_folder(config.output.with_name(config.output.name + ".training"))
    device = torch.device("cuda" if torch.cuda.is_available() and not config.cpu else "cpu")
    automatic = "bf16" if bf16_is_fast(device) else "no"
    accelerator = Accelerator(
        mixed_precision=automatic if config.mixed_precision == "auto" else config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with="tensorboard" if config.tensorboard else None,
        project_dir=str(work),
        cpu=config.cpu,
    )
    try:
        _train(config, accelerator, work)
    finally:
        AcceleratorState._reset_state()  # it would forbid the next run in this process another precision
    return Adapter.load(config.output)


def _train(config: AdapterTrainConfig, accelerator: Accelerator, work: Path) -> None:
    """Train from the newest checkpoint in `work` on, and write the adapter."""
    trainer = AdapterTrainer(config, accelerator)
    if accelerator.is_main_process:
        settings = _settings(config) | {"data": trainer.fingerprint, "base_revision": trainer.base.revision}
        begin(work, settings, LOG, config.resume, config.overwrite)
    accelerator.wait_for_everyone()
    start, seconds_before = _restore(trainer, work)
    if config.tensorboard:
        accelerator.init_trackers("adapter")
    begun = time.monotonic() - seconds_before
    bar = tqdm(
        range(start, config.steps),
        initial=start,
        total=config.steps,
        desc="train",
        disable=not accelerator.is_main_process,
    )
    with (work / LOG).open("a", encoding="utf-8") as log:
        for step in bar:
            losses = trainer.step(step)
            _stop_if_not_finite(losses, step, work)
            bar.set_postfix({name: f"{value:.3f}" for name, value in losses.items()})
            if not accelerator.is_main_process:
                continue
            done = step + 1
            log.write(json.dumps({"step": done, "seconds": round(time.monotonic() - begun, 2)} | losses) + "\n")
            log.flush()
            if config.tensorboard:
                accelerator.log(losses, step=done)
            if done % config.checkpoint_every == 0 or done == config.steps:
                save_state(work, done, trainer.tensors() | {"seconds": torch.tensor(time.monotonic() - begun)})
            if config.sample_every and done % config.sample_every == 0 and done < config.steps:
                trainer.draw_samples(work / "samples" / f"{done:06d}.png")
    if accelerator.is_main_process:
        if trainer.ema is not None:
            trainer.ema.copy_to(trainer.lora)
        trainer.draw_samples(work / "samples" / f"{config.steps:06d}.png")
        save_adapter(
            config.output,
            trainer.adapter_config(time.monotonic() - begun),
            trainer.pipe.unet,
            trainer.critic_model if config.critic else None,
            trainer.source.bank,
            work / "samples" / f"{config.steps:06d}.png",
        )
    accelerator.wait_for_everyone()
    accelerator.print(f"adapter: {config.output}")
    accelerator.end_training()


def _finished(config: AdapterTrainConfig) -> Adapter:
    """The adapter that is there already; ValueError where other settings or other images made it."""
    adapter = Adapter.load(config.output)
    settings = _settings(config) | {"learning_rate": config.learning_rate}
    there, wanted = adapter.config.training, json.loads(json.dumps(settings, default=str))
    different = sorted(name for name in wanted.keys() & there.keys() - {"data"} if there[name] != wanted[name])
    split = few_shot_split(open_category(config.data, config.category), config.shots, config.draw)
    if adapter.config.data["fingerprint"] != fingerprint([*split.train, *split.normals]):
        different.append("data")
    if different:
        raise ValueError(
            f"{config.output}: was trained with another {', '.join(different)}. Choose another --output, or pass "
            "--overwrite true"
        )
    return adapter


def _restore(trainer: AdapterTrainer, work: Path) -> tuple[int, float]:
    """Step and seconds of the newest checkpoint, put back into the trainer; zeros where there is none."""
    found = load_state(work)
    if found is None:
        return 0, 0.0
    step, tensors = found
    trainer.load_tensors(tensors)
    return step, float(tensors["seconds"])


def _settings(config: AdapterTrainConfig) -> dict[str, Any]:
    """What a resumed run has to share with the one that was stopped."""
    free = ("resume", "overwrite", "output", "sample_every", "samples", "checkpoint_every", "tensorboard", "cpu")
    free += ("learning_rate",)  # lowering it is the way on from a loss that is no longer finite
    return {name: value for name, value in asdict(config).items() if name not in free}


def _stop_if_not_finite(losses: dict[str, float], step: int, work: Path) -> None:
    bad = [name for name, value in losses.items() if not math.isfinite(value)]
    if bad:
        kept = checkpoints(work)
        way_out = f"The last good checkpoint is {kept[-1]}" if kept else "No checkpoint was written yet"
        raise FloatingPointError(
            f"step {step + 1}: the loss is not finite ({', '.join(bad)}). {way_out}. Go on with --resume true and a "
            "lower --learning_rate, or begin anew in fp32: --mixed_precision no --overwrite true."
        )


def main(argv: list[str] | None = None) -> None:
    """Entry point of `python -m sard_lora.train.adapter` and of `accelerate launch`."""
    train_adapter(parse(AdapterTrainConfig, "sard-lora train", "Train an adapter on a few defects.", argv))


if __name__ == "__main__":
    main()
