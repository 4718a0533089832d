"""The recipe of sard-tiny: seeded to the bit, resumable, and its product is a plain diffusers pipeline."""

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline
from PIL import Image

from sard_lora.train import base, corpus, tiny


def _config(folder, **changes):
    small = dict(vae_steps=2, unet_steps=2, vae_batch=1, unet_batch=2, pool=2, fresh=1, precision="fp32")
    return base.BaseConfig(output=folder, **small | changes)


def _losses(folder, stage):
    return [json.loads(line)["loss"] for line in (folder / stage / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    config = _config(folder)
    base.train_vae(config)
    base.train_unet(config, base.load_vae(config)[0])
    base.export(config)
    return folder


def test_same_config_and_seed_give_the_same_losses(trained, tmp_path):
    config = _config(tmp_path)
    base.train_vae(config)
    base.train_unet(config, base.load_vae(config)[0])
    assert _losses(tmp_path, "vae") == _losses(trained, "vae")
    assert _losses(tmp_path, "unet") == _losses(trained, "unet")


def test_export_is_a_plain_diffusers_pipeline(trained):
    folder = trained / "sard-tiny"
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 40e6
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.unet.config.in_channels == 9
    assert pipeline.unet.config.sample_size * pipeline.vae_scale_factor == 256
    assert pipeline.vae.config.scaling_factor != 0.18215
    image, mask = Image.new("RGB", (64, 64), "grey"), Image.new("L", (64, 64), 255)
    result = pipeline(
        "a leather with a scratch", image, mask, height=64, width=64, num_inference_steps=2, output_type="np"
    ).images
    assert result.shape == (1, 64, 64, 3)
    assert np.isfinite(result).all()


def test_card_says_how_it_was_made(trained):
    card = (trained / "sard-tiny" / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "autoencoder 2 steps" in card
    assert "cannot do" in card


def test_training_goes_on_from_a_finished_base(trained, tmp_path):
    config = _config(tmp_path, start=trained / "sard-tiny", unet_steps=1)
    vae, _ = base.load_vae(config)
    before = StableDiffusionInpaintPipeline.from_pretrained(trained / "sard-tiny", dtype=torch.float32)
    base.train_unet(config, vae)
    after = StableDiffusionInpaintPipeline.from_pretrained(base.export(config), dtype=torch.float32)
    assert torch.equal(after.vae.encoder.conv_in.weight, before.vae.encoder.conv_in.weight)
    moved = after.unet.conv_in.weight - before.unet.conv_in.weight
    assert 0 < moved.abs().max() < 0.01
    card = (tmp_path / "sard-tiny" / "README.md").read_text()
    assert "autoencoder 2 steps" in card and "text encoder 3\nsteps" in card


def test_export_without_training_names_the_stage(tmp_path):
    with pytest.raises(FileNotFoundError, match="--stage vae"):
        base.export(_config(tmp_path))


def test_only_an_earlier_base_is_replaced(trained, tmp_path):
    assert base.export(_config(trained)).is_dir()
    (tmp_path / "photo.png").write_text("mine")
    with pytest.raises(ValueError, match=rf"{tmp_path}: is not a base that train/base.py wrote"):
        base.export(_config(trained, export=tmp_path))
    with pytest.raises(ValueError, match=rf"{tmp_path}: is not a base that train/base.py wrote"):
        base.main(["--output", str(tmp_path / "runs"), "--export", str(tmp_path), "--threads", "1"])
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"], "nothing was trained before"


@pytest.mark.parametrize(("name", "value"), [("stage", "gan"), ("precision", "fp8"), ("pool", 0)])
def test_bad_settings_are_named(tmp_path, name, value):
    with pytest.raises(ValueError, match=rf"{name}="):
        _config(tmp_path, **{name: value})


def test_edges_weigh_more_than_a_shift():
    target = torch.zeros(1, 3, 16, 16)
    step = target.clone()
    step[..., 8:] = 0.1
    assert base.edge_loss(target + 0.1, target) < 1e-6
    assert base.edge_loss(step, target) > 1e-3


def test_tokenizer_knows_its_words_and_spells_all_others():
    tokenizer = tiny.make_tokenizer(corpus.all_captions())
    assert tokenizer.tokenize("A leather with a Scratch") == [
        "a</w>",
        "leather</w>",
        "with</w>",
        "a</w>",
        "scratch</w>",
    ]
    for strange in ("hazelnut", "µ-Riß №42", "日本"):
        ids = tiny.tokenise(tokenizer, [strange])
        assert ids.shape == (1, tiny.TOKENS)
        assert tokenizer.decode(ids[0], skip_special_tokens=True).replace(" ", "") == strange.lower().replace(" ", "")
    assert tiny.tokenise(tokenizer, ["a " * 100]).shape == (1, tiny.TOKENS)


def test_half_of_the_windows_hold_a_defect_and_the_hole_covers_it():
    windows = [corpus.draw_window(64, np.random.default_rng(seed)) for seed in range(80)]
    told = [any(f"a {name}" in w.caption for name in corpus.DEFECT_NAMES) for w in windows]
    assert 0.3 < np.mean(told) < 0.7
    assert all(w.hole.any() for w in windows)
    assert all(w.picture.shape == (64, 64, 3) and w.picture.dtype == np.uint8 for w in windows)


def test_hole_hides_the_whole_defect(monkeypatch):
    masks = []
    draw = corpus.add_defect

    def recorded(*arguments):
        damaged, mask = draw(*arguments)
        masks.append(mask)
        return damaged, mask

    monkeypatch.setattr(corpus, "add_defect", recorded)
    for seed in range(30):
        window = corpus.draw_window(64, np.random.default_rng(seed))
        if any(f"a {name}" in window.caption for name in corpus.DEFECT_NAMES):
            assert not (masks[-1] & ~window.hole).any()


def test_holes_are_small_and_large():
    shares = [corpus.draw_hole(64, np.random.default_rng(seed)).mean() for seed in range(60)]
    assert 0.01 <= min(shares) < 0.06
    assert 0.3 < max(shares) <= 0.6


def test_resumed_pool_is_the_one_that_was_left():
    def draw(rng):
        return float(rng.random())

    walked = corpus.Pool(draw, size=5, fresh=2, seed=3)
    for step in range(8):
        left = walked.at(step)
    assert left == corpus.Pool(draw, size=5, fresh=2, seed=3).at(7)
    assert len(set(left)) == 5
    assert left != corpus.Pool(draw, size=5, fresh=2, seed=4).at(7)


def test_mixed_channels_are_grey_nowhere_and_keep_their_contents():
    x = torch.rand(4, 1, 8, 8).expand(-1, 3, -1, -1)
    mixed = base.mix_channels(x)
    assert mixed.shape == x.shape and torch.equal(mixed[:, 1], x[:, 1])
    assert (mixed[:, 0] != mixed[:, 1]).all() and (mixed[:, 0] != mixed[:, 2]).all()
    assert base.colour_loss(x + 0.3, x) < 1e-6 < 1e-4 < base.colour_loss(mixed, x)
