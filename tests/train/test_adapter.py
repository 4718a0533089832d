"""Joint training: killed and resumed, on several processes, stopped by a NaN, refused for bad settings."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from tiny_base import write_tiny_base

from sard_lora.adapter import Adapter, save_adapter
from sard_lora.train.adapter import train_adapter
from sard_lora.train.adapter_train_config import AdapterTrainConfig
from sard_lora.train.joint import AdapterTrainer

SETTINGS = {
    "batch_size": 4,
    "rank": 4,
    "min_side": 16,
    "critic_channels": 8,
    "mixed_precision": "no",
    "sample_every": 0,
    "cpu": True,
}
MODULE = [sys.executable, "-m", "sard_lora.train.adapter"]
ENVIRONMENT = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}


def config(data, base, output, **changes) -> AdapterTrainConfig:
    return AdapterTrainConfig(data=data, base=str(base), output=output, **(SETTINGS | {"steps": 3} | changes))


def flags(values: dict) -> list[str]:
    return [f"--{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in values.items()]


def weights(adapter: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(adapter / "pytorch_lora_weights.safetensors")
    return tensors | {f"critic.{k}": v for k, v in load_file(adapter / "critic.safetensors").items()}


def test_killed_and_resumed_gives_the_weights_of_an_uninterrupted_run(mvtec, tiny_base, tmp_path):
    settings = SETTINGS | {"steps": 8, "checkpoint_every": 2, "data": mvtec, "base": tiny_base}
    killed = tmp_path / "killed"
    process = subprocess.Popen([*MODULE, *flags(settings | {"output": killed, "seed": 3})], env=ENVIRONMENT)
    work = tmp_path / "killed.training"
    deadline = time.monotonic() + 300
    while not (work / "checkpoint-000004").is_dir() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was still training when it was killed"
    assert not killed.exists(), "no half of an adapter"
    resumed = subprocess.run(
        [*MODULE, *flags(settings | {"output": killed, "seed": 3, "resume": True})], env=ENVIRONMENT
    )
    assert resumed.returncode == 0
    whole = tmp_path / "whole"
    subprocess.run([*MODULE, *flags(settings | {"output": whole, "seed": 3})], env=ENVIRONMENT, check=True)
    expected, found = weights(whole), weights(killed)
    assert expected.keys() == found.keys()
    assert all(found[name].equal(tensor) for name, tensor in expected.items())
    steps = [json.loads(line)["step"] for line in (work / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 9)), "the log has every step once"


def test_two_processes_write_one_adapter_like_one_with_twice_the_batch(mvtec, tiny_base, tmp_path):
    settings = SETTINGS | {"steps": 3, "data": mvtec, "base": tiny_base}
    two, one = tmp_path / "two", tmp_path / "one"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29513"]
    command = [*launcher, *MODULE[1:], *flags(settings | {"output": two, "batch_size": 4})]
    subprocess.run(command, env=ENVIRONMENT, check=True)
    adapter = train_adapter(config(mvtec, tiny_base, one, batch_size=8))
    both = Adapter.load(two)
    assert {k: v.shape for k, v in weights(two).items()} == {k: v.shape for k, v in weights(one).items()}
    per_run = ("batch_size", "output", "seconds")
    settings_of = [{k: v for k, v in a.config.training.items() if k not in per_run} for a in (both, adapter)]
    assert settings_of[0] == settings_of[1] and settings_of[0]["total_batch_size"] == 8
    assert both.config.base == adapter.config.base and both.config.data == adapter.config.data
    assert both.critic() is not None and both.masks().defects == adapter.masks().defects


@pytest.mark.parametrize(
    "changes", [{}, {"background": "frozen", "min_snr_gamma": 5.0}, {"critic": False}, {"critic_mask_branch": False}]
)
def test_reloaded_adapter_gives_equal_pictures(mvtec, tiny_base, tmp_path, changes):
    settings = config(mvtec, tiny_base, tmp_path / "a", **changes)
    trainer = AdapterTrainer(settings, Accelerator(cpu=True))
    before = [parameter.clone() for parameter in trainer.lora]
    for step in range(2):
        assert all(math.isfinite(value) for value in trainer.step(step).values())
    assert not all(a.equal(b) for a, b in zip(before, trainer.lora, strict=True)), "the LoRA learned"
    critic = trainer.critic_model if settings.critic else None
    adapter = save_adapter(settings.output, trainer.adapter_config(1.0), trainer.pipe.unet, critic, trainer.source.bank)

    def run(pipe, background=None):
        rng = np.random.default_rng(0)
        image = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        mask = Image.fromarray(np.eye(64, dtype=bool))
        return pipe(
            adapter.prompt("hole"),
            image=image,
            mask_image=mask,
            background=background,
            num_inference_steps=3,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        ).images

    loaded = adapter.pipeline()
    expected = run(trainer.pipe, settings.background)
    assert run(loaded).equal(expected), "the adapter brings its own background mode"
    loaded.unload_lora_weights()
    assert not torch.allclose(run(loaded, settings.background), expected), "without the LoRA the pictures differ"
    assert (adapter.critic() is None) == (critic is None)


def test_v_prediction_accumulation_and_checkpointing_train(mvtec, tmp_path):
    base = write_tiny_base(tmp_path / "v", in_channels=4, prediction_type="v_prediction")
    adapter = train_adapter(
        config(
            mvtec,
            base,
            tmp_path / "a",
            gradient_accumulation_steps=2,
            gradient_checkpointing=True,
            mixed_precision="bf16",
            tensorboard=True,
            steps=2,
        )
    )
    assert adapter.config.training["total_batch_size"] == 8
    assert adapter.config.base.signature["in_channels"] == 4
    assert list((tmp_path / "a.training").rglob("events.out*"))
    assert (adapter.folder / "samples.png").is_file()


def test_adapter_of_another_base_is_refused_by_name(mvtec, tiny_base, tmp_path):
    adapter = train_adapter(config(mvtec, tiny_base, tmp_path / "a", steps=1))
    with pytest.raises(ValueError, match=f"{adapter.folder}.*9-channel base {tiny_base}.*takes 4"):
        adapter.pipeline(base=str(write_tiny_base(tmp_path / "four", in_channels=4)))
    with pytest.raises(ValueError, match=f"{adapter.folder}: trained on the base {tiny_base}, .*another one"):
        adapter.pipeline(base=str(write_tiny_base(tmp_path / "other", seed=1)))
    four = train_adapter(config(mvtec, tmp_path / "four", tmp_path / "b", steps=1))
    with pytest.raises(ValueError, match="4-channel base"):
        four.pipeline(base=str(tiny_base))


def test_nan_stops_the_run_and_names_the_last_good_checkpoint(mvtec, tiny_base, tmp_path, monkeypatch):
    step = AdapterTrainer.step
    monkeypatch.setattr(
        AdapterTrainer, "step", lambda self, k: step(self, k) | ({"denoising": math.nan} if k == 2 else {})
    )
    settings = config(mvtec, tiny_base, tmp_path / "a", checkpoint_every=1)
    with pytest.raises(FloatingPointError, match=r"step 3: .*a\.training/checkpoint-000002.*resume true and a lower"):
        train_adapter(settings)
    assert not settings.output.exists()

    rates = []

    def watched(self, k):
        losses = step(self, k)
        rates.append(self.optimizer.param_groups[0]["lr"])
        return losses

    monkeypatch.setattr(AdapterTrainer, "step", watched)
    slower = replace(settings, resume=True, learning_rate=1e-6)
    assert train_adapter(slower).config.training["learning_rate"] == 1e-6
    assert len(rates) == 1 and 0 < rates[0] < 1e-6, "it went on from the second step, at the new rate"
    with pytest.raises(ValueError, match="was trained with another learning_rate"):
        train_adapter(replace(settings, resume=True))
    other_precision = replace(settings, overwrite=True, mixed_precision="bf16")
    with monkeypatch.context() as broken:
        broken.setattr(AdapterTrainer, "step", lambda self, k: {"denoising": math.nan})
        with pytest.raises(FloatingPointError, match="begin anew in fp32: --mixed_precision no --overwrite true"):
            train_adapter(other_precision)
    train_adapter(replace(settings, overwrite=True))
    assert len(rates) == 1 + settings.steps, "a run that failed forbids no other precision"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": "sard-huge"}, "base 'sard-huge' is not known.*sard-tiny"),
        ({"attention": "xformers"}, "xformers needs a CUDA device"),
        ({"attention": "flash"}, "'flash' is not one of sdpa, xformers"),
        ({"background": "blurred"}, "'blurred' is not one of"),
        ({"grain": "up"}, "grain='up' is not one of none, down, across"),
        ({"mixed_precision": "fp16"}, "'fp16' is not one of auto, bf16, no"),
        ({"steps": 0}, "steps=0 has to be at least 1"),
        ({"normal_share": 1.0}, "normal_share=1.0"),
        ({"normal_share": 0.95, "batch_size": 8}, "leaves no window with a defect"),
        ({"resolution": 100}, "resolution=100 is not a multiple of 8"),
        ({"resolution": 0}, "resolution=0 is not a multiple of 8"),
        ({"margin": -1}, "margin=-1 has to be at least 0"),
        ({"context_range": (3.5, 1.6)}, r"context_range=\(3.5, 1.6\) has to begin above 0 and must not fall"),
    ],
)
def test_bad_settings_are_named(mvtec, tiny_base, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train_adapter(config(mvtec, **({"base": tiny_base, "output": tmp_path / "a"} | changes)))
    assert not (tmp_path / "a").exists()


def test_existing_and_unwritable_outputs_are_refused_before_training(mvtec, tiny_base, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"there: exists already.*--overwrite"):
        train_adapter(config(mvtec, tiny_base, tmp_path / "there"))
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match=r"file.*another --output"):
        train_adapter(config(mvtec, tiny_base, tmp_path / "file" / "adapter"))


def test_only_an_adapter_is_overwritten(mvtec, tiny_base, tmp_path, capsys):
    def contents(folder):
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    adapter = train_adapter(config(mvtec, tiny_base, tmp_path / "adapters/plate", steps=1))
    assert f"adapter: {adapter.folder}\n" in capsys.readouterr().out
    for taken in (tmp_path / "adapters", mvtec):
        before = contents(taken)
        with pytest.raises(ValueError, match=rf"{taken}: is not an adapter, so it is not overwritten"):
            train_adapter(config(mvtec, tiny_base, taken, overwrite=True))
        assert contents(taken) == before and not taken.with_name(f"{taken.name}.training").exists()
    again = train_adapter(config(mvtec, tiny_base, adapter.folder, steps=2, overwrite=True))
    assert again.config.training["steps"] == 2
    train_adapter(config(mvtec, tiny_base, adapter.folder, steps=2, resume=True))
    assert f"adapter: {adapter.folder}, trained before\n" in capsys.readouterr().out


def test_tensorboard_that_is_not_there_is_asked_for(mvtec, tiny_base, tmp_path, monkeypatch):
    monkeypatch.setattr("sard_lora.train.adapter.is_tensorboard_available", lambda: False)
    with pytest.raises(ValueError, match=r"tensorboard=True: .*sard-lora\[tracking\]"):
        train_adapter(config(mvtec, tiny_base, tmp_path / "a", tensorboard=True))


def test_resuming_with_other_settings_is_refused(mvtec, tiny_base, tmp_path, monkeypatch):
    settings = config(mvtec, tiny_base, tmp_path / "a", steps=4, checkpoint_every=1)
    step = AdapterTrainer.step

    def stop_at_three(self, number):
        if number == 2:
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(AdapterTrainer, "step", stop_at_three)
    with pytest.raises(KeyboardInterrupt):
        train_adapter(settings)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"a\.training: holds an earlier run up to step 2\. Pass --resume true"):
        train_adapter(settings)
    with pytest.raises(ValueError, match=r"a\.training: was begun with another rank, seed"):
        train_adapter(replace(settings, resume=True, seed=5, rank=8))
    defect = mvtec / "test/hole/000.png"
    before = defect.read_bytes()
    Image.open(defect).rotate(90).save(defect)
    with pytest.raises(ValueError, match=r"a\.training: was begun with another data"):
        train_adapter(replace(settings, resume=True))
    defect.write_bytes(before)
    settings.output.mkdir()  # an empty folder is nothing
    assert train_adapter(replace(settings, resume=True)).config.training["steps"] == 4
    with pytest.raises(ValueError, match=r"a: was trained with another steps\. Choose another --output"):
        train_adapter(replace(settings, resume=True, steps=5))
    (mvtec / "train/good/000.png").unlink()
    with pytest.raises(ValueError, match=r"a: was trained with another data"):
        train_adapter(replace(settings, resume=True))
