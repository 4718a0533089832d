"""A base is found by name, folder or Hub id, and described well enough to refuse a wrong one."""

import json
from pathlib import Path

import pytest
import torch

from sard_lora import bases


@pytest.fixture
def folder(tmp_path):
    configs = {
        "model_index.json": {},
        "unet/config.json": {"in_channels": 9, "sample_size": 64},
        "vae/config.json": {"block_out_channels": [1, 2, 3, 4]},
    }
    for name, config in configs.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(config))
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"weights")
    return tmp_path


def test_embedded_base_is_found_and_described():
    path = bases.resolve("sard-tiny")
    assert (Path(path) / "model_index.json").is_file()
    base = bases.describe("sard-tiny")
    assert (base.path, base.resolution, base.revision) == (path, 256, bases.fingerprint(path))


def test_embedded_base_is_small_and_only_safetensors():
    files = [path for path in Path(bases.resolve("sard-tiny")).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 40e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".txt"}
    assert "apache-2.0" in (bases.EMBEDDED / "README.md").read_text()


def test_embedded_base_loads_in_one_dtype_in_plain_diffusers():
    from diffusers import StableDiffusionInpaintPipeline

    pipe = StableDiffusionInpaintPipeline.from_pretrained(bases.resolve("sard-tiny"))
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.float32}


def test_names_folders_and_hub_ids(folder):
    assert bases.resolve("sd15-inpainting") == "stable-diffusion-v1-5/stable-diffusion-inpainting"
    assert bases.resolve("someone/some.base-2") == "someone/some.base-2"
    assert bases.resolve(folder) == str(folder)


@pytest.mark.parametrize("name", ["sd15", "./nowhere/at/all", "/no/such/folder", "a/b/c", ""])
def test_unknown_base_lists_what_is_known(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:
        bases.resolve(name or "''")
    assert "sard-tiny" in str(error.value)
    assert "sd15-inpainting" in str(error.value)


def test_folder_that_is_no_pipeline_is_named(tmp_path):
    with pytest.raises(ValueError, match=rf"{tmp_path}.*model_index"):
        bases.resolve(tmp_path)


def test_folder_is_described(folder):
    base = bases.describe(folder)
    assert (base.path, base.resolution, base.adapted_from) == (str(folder), 512, None)


def test_other_weights_other_fingerprint(folder):
    before = bases.fingerprint(folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"other weights")
    assert bases.fingerprint(folder) != before


def test_wrong_channels_are_refused(folder):
    (folder / "unet" / "config.json").write_text(json.dumps({"in_channels": 5, "sample_size": 64}))
    with pytest.raises(ValueError, match="5 channels"):
        bases.describe(folder)


def test_broken_configuration_is_named(folder):
    (folder / "vae" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"vae.config\.json"):
        bases.describe(folder)


def test_hub_revision_is_the_commit(folder, monkeypatch, tmp_path):
    snapshot = tmp_path / "snapshots" / "0123abc"
    snapshot.parent.mkdir()
    snapshot.symlink_to(folder, target_is_directory=True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda _, file, revision: str(snapshot / file))
    base = bases.describe("someone/base")
    assert (base.path, base.revision, base.resolution) == ("someone/base", "0123abc", 512)


def test_unreachable_hub_says_what_to_do(monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_, **__):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(ValueError, match=r"someone/base.*sard-tiny"):
        bases.describe("someone/base")
