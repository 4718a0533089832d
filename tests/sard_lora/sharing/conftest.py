"""A Hub, two people, an adapter and a synthetic data set."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from loopback_hub import LoopbackHub
from loopback_people import ANNA, BEN, READER, Person, files
from peft import LoraConfig
from PIL import Image

from sard_lora.adapter import save_adapter
from sard_lora.adapter_config import AdapterConfig, BaseReference, SamplingSettings, prompts_for
from sard_lora.critic import CriticConfig, MaskGuidedCritic
from sard_lora.labelled import LabelledSet
from sard_lora.layouts import Sample
from sard_lora.mask_bank import BankMask, MaskBank
from sard_lora.pipelines.sard_inpaint import SardInpaintPipeline, base_signature
from sard_lora.train.adapter_train_config import AdapterTrainConfig


@pytest.fixture
def hub():
    with LoopbackHub() as hub:
        hub.add_user("anna", ANNA)
        hub.add_user("ben", BEN)
        hub.add_user("anna", READER, write=False)
        yield hub


@pytest.fixture
def anna(hub, tmp_path) -> Person:
    return Person(hub, tmp_path / "anna", ANNA)


@pytest.fixture
def stranger(hub, tmp_path) -> Person:
    return Person(hub, tmp_path / "stranger", None)


@pytest.fixture(scope="module")
def built(tiny_base, tmp_path_factory) -> Path:
    """An adapter folder with everything in it, and a pickle that has no business there."""
    root = tmp_path_factory.mktemp("adapters")
    pipe = SardInpaintPipeline.from_pretrained(tiny_base)
    signature = base_signature(pipe.unet)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    config = AdapterConfig(
        category="metal_nut",
        defects=["bent", "deep scratch"],
        prompts=prompts_for("metal_nut", ["bent", "deep scratch"]),
        base=BaseReference(str(tiny_base), "0123456789abcdef", None, 64, signature),
        sampling=SamplingSettings(num_inference_steps=2, min_side=16),
        training=asdict(AdapterTrainConfig(data=root / "client", output=root / "metal_nut", base=str(tiny_base)))
        | {"total_batch_size": 4, "seconds": 1.0},
        data={"shots": {"bent": 1, "deep scratch": 1}},
        critic_grid=8,
    )
    mask = np.eye(40, dtype=bool)
    bank = MaskBank(tuple(BankMask(mask, defect, f"{defect}/000") for defect in config.defects))
    samples = root / "samples.png"
    Image.new("RGB", (64, 64), "grey").save(samples)
    critic = MaskGuidedCritic(CriticConfig(channels=8))
    adapter = save_adapter(root / "metal_nut", config, pipe.unet, critic, bank, samples)
    (adapter.folder / "optimizer.bin").write_bytes(b"\x80\x04pickle")
    return adapter.folder


@pytest.fixture
def adapter(built, tmp_path) -> Path:
    """A copy of it to work with."""
    folder = tmp_path / "metal_nut"
    for path in files(built):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes((built / path).read_bytes())
    return folder


@pytest.fixture
def synthetic(tmp_path) -> Path:
    """A synthetic set of 5 images, colour and grey, with 2 normal images of other formats."""
    labelled = LabelledSet(tmp_path / "nut set")
    for number in range(5):
        rng = np.random.default_rng(number)
        pixels = rng.integers(0, 256, (32, 40, 3) if number % 2 else (32, 40), dtype=np.uint8)
        mask = np.zeros((32, 40), bool)
        mask[number, 3] = True
        defect = "bent" if number % 2 else "deep scratch"
        record = {"defect": defect, "prompt": f"a {defect} nut", "seed": number, "visibility": 2 + number / 7}
        record |= {"normal": "train/good/000.png", "critic_score": number / 3, "rejected": number}
        labelled.add(defect, f"{number:06d}", Image.fromarray(pixels), mask, record)
    normals = [tmp_path / "000.bmp", tmp_path / "001.jpg"]
    for path in normals:
        Image.new("RGB", (40, 32), "grey").save(path)
    labelled.add_normals([Sample(path, None, "good", path.stem) for path in normals])
    labelled.write_metadata()
    (labelled.root / "synthesis.json").write_text('{"synthesized": 5}\n')
    (labelled.root / "notes.pkl").write_bytes(b"\x80\x04pickle")
    return labelled.root
