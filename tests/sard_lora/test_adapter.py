"""An adapter finds its own base, wherever that is, and never a stranger's; no checker blackens its defects."""

import json

import pytest
from diffusers import StableDiffusionInpaintPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor

from sard_lora.adapter import Adapter
from sard_lora.adapter_config import SETTINGS_FILE
from sard_lora.pipelines.sard_inpaint import SardInpaintPipeline
from sard_lora.train.adapter_train_config import AdapterTrainConfig
from sard_lora.train.joint import AdapterTrainer

COMMIT, FINGERPRINT = "a" * 40, "0123456789abcdef"


def with_base(adapter: Adapter, name: str, revision: str) -> Adapter:
    """The same adapter, as if it had been trained on that base."""
    file = adapter.folder / SETTINGS_FILE
    settings = json.loads(file.read_text())
    settings["base"] |= {"id": name, "revision": revision}
    file.write_text(json.dumps(settings))
    return Adapter.load(adapter.folder)


@pytest.mark.parametrize("name", ["bases/tile", "tile", "/home/anna/bases/tile", "~/bases/tile"])
def test_a_base_that_was_a_folder_and_is_not_here_is_asked_for(adapter, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(SardInpaintPipeline, "from_pretrained", lambda *_, **__: pytest.fail("loaded something"))
    with pytest.raises(ValueError, match=rf"{adapter.folder}: was trained on the base {name}, a folder .*--base"):
        with_base(adapter, name, FINGERPRINT).pipeline()


@pytest.mark.parametrize(
    ("name", "revision", "path", "pinned"),
    [
        ("sd15-inpainting", COMMIT, "stable-diffusion-v1-5/stable-diffusion-inpainting", COMMIT),
        ("somebody/inpainting", COMMIT, "somebody/inpainting", COMMIT),
        ("bases/tile", FINGERPRINT, "bases/tile", None),
    ],
)
def test_a_base_on_the_hub_is_pinned_and_a_folder_is_taken_as_it_is(
    adapter, name, revision, path, pinned, tmp_path, monkeypatch
):
    (tmp_path / "bases/tile").mkdir(parents=True)
    (tmp_path / "bases/tile/model_index.json").write_text("{}")
    monkeypatch.chdir(tmp_path)

    def loaded(path, revision, **_):
        raise InterruptedError(path, revision)

    monkeypatch.setattr(SardInpaintPipeline, "from_pretrained", loaded)
    with pytest.raises(InterruptedError) as stopped:
        with_base(adapter, name, revision).pipeline()
    assert stopped.value.args == (path, pinned)


def test_no_safety_checker_blackens_defects_in_training_or_sampling(adapter, mvtec, tiny_base, tmp_path):
    from accelerate import Accelerator

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    pipe = StableDiffusionInpaintPipeline.from_pretrained(tiny_base)
    pipe.register_modules(
        safety_checker=StableDiffusionSafetyChecker(CLIPConfig(text_config=small, vision_config=small)),
        feature_extractor=CLIPImageProcessor(),
    )
    pipe.register_to_config(requires_safety_checker=True)
    pipe.save_pretrained(tmp_path / "checked")
    assert StableDiffusionInpaintPipeline.from_pretrained(tmp_path / "checked").safety_checker is not None
    assert adapter.pipeline(base=str(tmp_path / "checked")).safety_checker is None
    config = AdapterTrainConfig(data=mvtec, output=tmp_path / "a", base=str(tmp_path / "checked"), rank=4, cpu=True)
    assert AdapterTrainer(config, Accelerator(cpu=True)).pipe.safety_checker is None
