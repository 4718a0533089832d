"""The joint training loop: a LoRA on an inpainting UNet and the mask-guided critic, under accelerate.

sard-lora train --data DIR --category C --output adapters/C
accelerate launch -m sard_lora.train.adapter --config adapter.yaml      # several GPUs
"""

import json
import math
import shutil
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from sard_lora.train.checkpoint import checkpoints, load_state, save_state
from sard_lora.train.joint import AdapterTrainConfig, AdapterTrainer
from tqdm import tqdm

from sard_lora.adapter import Adapter, save_adapter
from sard_lora.atomic import make_folder
from sard_lora.config import parse


def train_adapter(config: AdapterTrainConfig) -> Adapter:
    """Train an adapter; returns it, opened from its folder.

    Raises ValueError naming what is wrong with the data, the base or the settings before the first step, and
    FloatingPointError with the last good checkpoint when a loss is no longer finite.
    """
    if config.output.exists() and not config.overwrite:
        if config.resume:
            return Adapter.load(config.output)
        raise ValueError(f"{config.output}: exists already. Choose another --output, or pass --overwrite")
    make_folder(config.output.parent)
    work = make_folder(config.output.with_name(config.output.name + ".training"))
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with="tensorboard" if config.tensorboard else None,
        project_dir=str(work),
        cpu=config.cpu,
    )
    trainer = AdapterTrainer(config, accelerator)
    start, seconds_before = _restore(trainer, work) if config.resume else (0, 0.0)
    if not config.resume and accelerator.is_main_process:
        for old in checkpoints(work):
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    if config.tensorboard:
        accelerator.init_trackers("adapter")
    begun = time.monotonic() - seconds_before
    log_path = work / "log.jsonl"
    bar = tqdm(
        range(start, config.steps),
        initial=start,
        total=config.steps,
        desc="train",
        disable=not accelerator.is_main_process,
    )
    with log_path.open("a" if start else "w", encoding="utf-8") as log:
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
    accelerator.end_training()
    return Adapter.load(config.output)


def _restore(trainer: AdapterTrainer, work: Path) -> tuple[int, float]:
    found = load_state(work)
    if found is None:
        return 0, 0.0
    step, tensors = found
    trainer.load_tensors(tensors)
    return step, float(tensors["seconds"])


def _stop_if_not_finite(losses: dict[str, float], step: int, work: Path) -> None:
    bad = [name for name, value in losses.items() if not math.isfinite(value)]
    if bad:
        kept = checkpoints(work)
        way_out = f"The last good checkpoint is {kept[-1]}" if kept else "No checkpoint was written yet"
        raise FloatingPointError(
            f"step {step + 1}: the loss is not finite ({', '.join(bad)}). {way_out}. Lower --learning_rate and go on "
            "with --resume true, or train in fp32 (--mixed_precision no)."
        )


def main(argv: list[str] | None = None) -> None:
    """Entry point of `python -m sard_lora.train.adapter` and of `accelerate launch`."""
    adapter = train_adapter(parse(AdapterTrainConfig, "sard-lora train", "Train an adapter on a few defects.", argv))
    print(f"adapter: {adapter.folder}")


if __name__ == "__main__":
    main()
