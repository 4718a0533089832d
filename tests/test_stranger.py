"""A stranger who has diffusers, transformers, peft and torch, and nothing of this project, uses an adapter."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from loopback_hub import LoopbackHub
from loopback_people import ANNA, Person
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from sard_lora.adapter import LORA_FILE

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
SCRIPT = """
import importlib.util, json, sys
import numpy, torch
from diffusers import DiffusionPipeline, StableDiffusionInpaintPipeline
from PIL import Image

base, name, folder = sys.argv[1:]
assert importlib.util.find_spec("sard_lora") is None, "nothing of this project is here"
normal, mask = Image.open(f"{folder}/normal.png"), Image.open(f"{folder}/mask.png")
call = dict(image=normal, mask_image=mask, num_inference_steps=2)

pipe = DiffusionPipeline.from_pretrained(base, custom_pipeline=name, trust_remote_code=True)
pipe.load_lora_weights(name)
pipe("a plate", generator=torch.Generator().manual_seed(0), **call).images[0].save(f"{folder}/result.png")
assert pipe.get_active_adapters(), "the LoRA is loaded"

plain = StableDiffusionInpaintPipeline.from_pretrained(base)
size = dict(height=plain.unet.config.sample_size * 8, width=plain.unet.config.sample_size * 8)
def predict():
    return plain("a plate", generator=torch.Generator().manual_seed(0), output_type="latent", **call, **size).images
without = predict()
plain.load_lora_weights(name, weight_name="pytorch_lora_weights.safetensors")
print(json.dumps({"moved": (predict() - without).abs().max().item()}))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The interpreter of a new virtual environment with these four libraries only."""
    home = tmp_path_factory.mktemp("stranger") / "venv"
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    install = [home / "bin/pip", "install", "--quiet", "-c", CONSTRAINTS]
    subprocess.run([*install, "torch"], check=True, timeout=900)
    subprocess.run([*install, "diffusers", "transformers", "peft"], check=True, timeout=900)
    return home / "bin/python"


def train_a_little(file: Path) -> None:
    """Weights that change something: those of an untrained LoRA are zero on one side."""
    with safe_open(file, "pt") as opened:
        metadata, names = opened.metadata(), list(opened.keys())
        weights = {name: opened.get_tensor(name) for name in names}
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(value.shape, generator=generator) for name, value in weights.items()}
    save_file(weights, file, metadata)


def test_stranger_with_only_diffusers_uses_a_pushed_adapter(python, adapter, tiny_base, tmp_path):
    train_a_little(adapter.folder / LORA_FILE)
    normal = np.random.default_rng(0).integers(60, 200, (80, 90, 3), dtype=np.uint8)
    mask = np.zeros((80, 90), np.uint8)
    mask[30:50, 20:60] = 255
    Image.fromarray(normal).save(tmp_path / "normal.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    with LoopbackHub() as hub:
        hub.add_user("anna", ANNA)
        Person(hub, tmp_path / "anna", ANNA).run("push", adapter.folder, "anna/plate")
        stranger = Person(hub, tmp_path / "stranger", None)
        call = [python, "-c", SCRIPT, tiny_base, "anna/plate", tmp_path]
        done = subprocess.run(
            call, env=stranger.environment, capture_output=True, text=True, timeout=300, cwd=tmp_path, check=False
        )
    assert done.returncode == 0, done.stderr
    result = np.asarray(Image.open(tmp_path / "result.png"))
    changed = (result != normal).any(-1)
    assert changed.any() and not changed[mask == 0].any()
    assert json.loads(done.stdout.splitlines()[-1])["moved"] > 0, "the LoRA works in plain diffusers"
