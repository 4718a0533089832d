"""A base continued on normal images: a base again, another one than before, and known as such to its adapters."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline
from PIL import Image
from tiny_base import write_tiny_base

from sard_lora.adapter import Adapter
from sard_lora.cli import main
from sard_lora.train import adapt as adapt_module
from sard_lora.train.adapt import AdaptConfig, WindowsOfNormals, _choose_weights, _unround, adapt
from sard_lora.train.adapter import train_adapter
from sard_lora.train.adapter_train_config import AdapterTrainConfig


def settings(data, base, output, **changes) -> AdaptConfig:
    small = dict(steps=2, batch_size=2, pool=4, fresh=1, min_side=16, mixed_precision="no", cpu=True)
    small |= dict(decoder_steps=1, small_share=0.5)
    return AdaptConfig(**small | dict(data=data, base=str(base), output=output) | changes)


def weights(folder) -> dict[str, torch.Tensor]:
    return StableDiffusionInpaintPipeline.from_pretrained(folder, dtype=torch.float32).unet.state_dict()


@pytest.mark.parametrize("method", ["unet", "lora"])
def test_an_adapted_base_is_a_base_with_other_weights(mvtec, tiny_base, tmp_path, method):
    folder = adapt(settings(mvtec, tiny_base, tmp_path / "adapted", method=method))
    before, after = weights(tiny_base), weights(folder)
    assert before.keys() == after.keys()
    assert any((before[name] - after[name]).abs().max() > 1e-5 for name in before)
    history = json.loads((folder / "adapted.json").read_text())
    assert (history["adapted_from"], history["method"], history["product"]) == (str(tiny_base), method, "plate")
    assert "5 normal\nimages" in (folder / "README.md").read_text()


def test_a_base_of_four_channels_is_adapted_too(mvtec, tmp_path):
    base = write_tiny_base(tmp_path / "four", in_channels=4)
    assert adapt(settings(mvtec, base, tmp_path / "adapted")).is_dir()


def test_adapters_say_which_base_they_belong_to(mvtec, tiny_base, tmp_path):
    folder = adapt(settings(mvtec, tiny_base, tmp_path / "adapted", steps=8, learning_rate=1e-2))
    adapter = train_adapter(
        AdapterTrainConfig(
            data=mvtec, output=tmp_path / "adapter", base=str(folder), steps=1, batch_size=2, min_side=16, cpu=True
        )
    )
    assert adapter.config.base.adapted_from == str(tiny_base)
    assert f"continued from {tiny_base}" in (adapter.folder / "README.md").read_text()
    Adapter.load(adapter.folder).pipeline()
    with pytest.raises(ValueError, match=r"trained on the base .*adapted, and this pipeline holds another one"):
        adapter.pipeline(base=str(tiny_base))


def test_killed_and_resumed_is_the_same_to_the_bit(mvtec, tiny_base, tmp_path, monkeypatch):
    whole = adapt(settings(mvtec, tiny_base, tmp_path / "whole", steps=4, checkpoint_every=2))
    from sard_lora.train import adapt as module

    draw = WindowsOfNormals.draw
    drawn = []

    def dies(self, pixels, rng):
        drawn.append(1)
        if len(drawn) == (16 + 4) + (4 + 1):  # half the steps on small windows
            raise KeyboardInterrupt
        return draw(self, pixels, rng)

    monkeypatch.setattr(module.WindowsOfNormals, "draw", dies)
    config = settings(mvtec, tiny_base, tmp_path / "killed", steps=4, checkpoint_every=2)
    with pytest.raises(KeyboardInterrupt):
        adapt(config)
    assert not config.output.exists()
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"killed\.training: holds an earlier run up to step 2"):
        adapt(config)
    with pytest.raises(ValueError, match="another batch_size"):
        adapt(settings(mvtec, tiny_base, config.output, steps=4, batch_size=3, resume=True))
    resumed = adapt(settings(mvtec, tiny_base, config.output, steps=4, checkpoint_every=2, resume=True))
    first, second = weights(whole), weights(resumed)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_overwriting_trains_the_decoder_anew(mvtec, tiny_base, tmp_path, capsys):
    for changes in ({}, {"overwrite": True}):
        adapt(settings(mvtec, tiny_base, tmp_path / "adapted", **changes))
    assert "resumed" not in capsys.readouterr().out


@pytest.mark.parametrize("what", ["a data set", "somebody's base"])
def test_only_an_adapted_base_is_overwritten(mvtec, tiny_base, tmp_path, what):
    output = shutil.copytree(mvtec if what == "a data set" else tiny_base, tmp_path / "there")
    with pytest.raises(ValueError, match=rf"{output}: is not a base that `sard-lora base adapt` wrote"):
        adapt(settings(mvtec, tiny_base, output, overwrite=True))
    assert any(output.iterdir()) and not output.with_name("there.training").exists()


def test_around_a_lora_weights_are_halved_only_where_training_is(tiny_base, tmp_path, monkeypatch):
    monkeypatch.setattr(StableDiffusionInpaintPipeline, "device", property(lambda _: torch.device("cuda")))
    config = settings(tmp_path, tiny_base, tmp_path / "out", method="lora")
    for bf16, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        pipe = StableDiffusionInpaintPipeline.from_pretrained(tiny_base, dtype=torch.float32)
        assert _choose_weights(pipe, config, bf16)
        assert {part.dtype for part in pipe.vae.parameters()} == {dtype}
        assert {part.dtype for part in pipe.unet.parameters() if part.requires_grad} == {torch.float32}
        _unround(pipe, str(tiny_base), None)
        whole = StableDiffusionInpaintPipeline.from_pretrained(tiny_base, dtype=torch.float32)
        pipe.unet.unload_lora()
        for part in ("vae", "text_encoder", "unet"):
            own = getattr(whole, part).state_dict()
            assert all(torch.equal(own[name], weight) for name, weight in getattr(pipe, part).state_dict().items())


def test_what_was_rounded_around_a_lora_is_restored_and_what_was_trained_stays(mvtec, tiny_base, tmp_path, monkeypatch):
    def rounded(pipe, config, bf16):
        lora = _choose_weights(pipe, config, bf16)
        trained = [parameter for parameter in pipe.unet.parameters() if parameter.requires_grad]
        pipe.to(dtype=torch.bfloat16)
        for parameter in trained:
            parameter.data = parameter.data.float()
        return lora

    monkeypatch.setattr(adapt_module, "_choose_weights", rounded)
    half, vector = {"dtype": torch.float16}, torch.nn.utils.parameters_to_vector
    own = settings(mvtec, tiny_base, tmp_path / "out", method="lora", mixed_precision="bf16", decoder_steps=2)
    made, base = (StableDiffusionInpaintPipeline.from_pretrained(folder, **half) for folder in (adapt(own), tiny_base))
    parts = {
        "text encoder": (made.text_encoder, base.text_encoder),
        "encoder": (made.vae.encoder, base.vae.encoder),
        "decoder": (made.vae.decoder, base.vae.decoder),
        "unet": (made.unet, base.unet),
    }
    same = {name: torch.equal(*(vector(part.parameters()) for part in both)) for name, both in parts.items()}
    assert same == {"text encoder": True, "encoder": True, "decoder": False, "unet": False}


def test_windows_are_cut_from_the_images_and_turned(mvtec, tiny_base, tmp_path):
    stripe = np.zeros((30, 50, 3), np.uint8)
    stripe[10:13] = 250
    (tmp_path / "plain").mkdir()
    Image.fromarray(stripe).save(tmp_path / "plain/one.png")
    from sard_lora.data import normal_images

    normals = normal_images(tmp_path / "plain", None)
    config = settings(tmp_path / "plain", tiny_base, tmp_path / "out", drawn_defects=0.0)
    drawn = [WindowsOfNormals(normals, "bar", 64, config).draw(64, np.random.default_rng(n)) for n in range(12)]
    assert all(w.picture.shape == (64, 64, 3) and w.hole.any() and " with a " not in w.caption for w in drawn)
    assert WindowsOfNormals(normals, "bar", 64, config).grain == "across"
    config.grain = "none"
    drawn = [WindowsOfNormals(normals, "bar", 64, config).draw(64, np.random.default_rng(n)) for n in range(12)]
    lying = [np.ptp(w.picture[..., 0], axis=0).max() > 200 for w in drawn]
    assert any(lying) and not all(lying) and len({w.picture.tobytes() for w in drawn}) > 8


def test_the_command_is_two_words(mvtec, tiny_base, tmp_path, capsys):
    out = tmp_path / "adapted"
    out.mkdir()  # empty: nothing could be lost
    flags = ["--base", str(tiny_base), "--data", str(mvtec), "--output", str(out), "--cpu", "true"]
    assert (
        main(["base", "adapt", *flags, "--steps", "1", "--batch_size", "1", "--pool", "1", "--decoder_steps", "1"]) == 0
    )
    assert (out / "model_index.json").is_file()
    assert main(["base", "adapt", *flags]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["base"]) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"grain": "up"}, "grain='up' is not one of none, down, across"), ({"steps": 0}, "steps=0 has to be at least 1")],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        settings(tmp_path, "sard-tiny", tmp_path / "out", **changes)
