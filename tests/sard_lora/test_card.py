"""The model card: what an engineer and the Hub read of an adapter."""

import json
import shutil

import pytest
from huggingface_hub import ModelCard

from sard_lora.adapter_config import AdapterConfig
from sard_lora.card import adapter_card, card_of, write_card
from sard_lora.evaluation.protocol import EvaluateConfig, evaluate
from sard_lora.synthesis import synthesize
from sard_lora.synthesize_config import SynthesizeConfig


def read(folder) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def evaluation(adapter, mvtec, tmp_path, **changes) -> EvaluateConfig:
    made = tmp_path / "synthetic"
    quick = {"count": 4, "candidates": 1, "num_inference_steps": 2, "min_visibility": 0.0}
    synthesize(SynthesizeConfig(adapter=adapter.folder, data=mvtec, output=made, **quick))
    tiny = {"steps": 1, "batch_size": 2, "crop": 32, "device": "cpu", "methods": "real,sard"}
    return EvaluateConfig(test=mvtec, train=made, output=tmp_path / "report", adapter=adapter.folder, **tiny | changes)


def test_card_tells_defects_shots_prompts_and_how_to_load(adapter):
    text = read(adapter.folder)
    assert "hole (2), scratch (2)" in text and "Nobody has measured" in text
    assert "from the real defects; with other pictures it draws from noise" in text
    assert all(prompt in text for prompt in adapter.config.prompts.values())
    shared = card_of(adapter.folder, name="user/plate", license="cc-by-4.0")
    assert 'load_lora_weights("user/plate")' in shared and ModelCard(shared).data.license == "cc-by-4.0"


def test_card_says_what_the_folder_does_not_hold(adapter):
    assert "--mask_bank" not in read(adapter.folder)
    shutil.rmtree(adapter.folder / "masks")
    (adapter.folder / "critic.safetensors").unlink()
    write_card(adapter.folder)
    text = read(adapter.folder)
    assert "bring a folder of masks" in text and "--mask_bank" in text
    assert "rank candidates | no |" in text and "samples.png" not in text


def test_figures_of_an_evaluation_are_in_the_card_and_its_metadata(adapter, mvtec, tmp_path):
    report = evaluate(evaluation(adapter, mvtec, tmp_path))
    text, figures = read(adapter.folder), report["methods"]["sard"]["mean_of_defects"]
    assert f"| {100 * figures['miou']:.1f} | {100 * figures['iou_defect']:.1f} |" in text
    assert "Nobody has measured" not in text and "the few real defects" in text
    assert "as the set behind the figures above\ndoes by default; with other pictures it draws from noise" in text
    values = {result.metric_type: result.metric_value for result in ModelCard(text).data.eval_results}
    assert values == {
        "mean_iou": round(100 * figures["miou"], 1),
        "average_precision": round(100 * figures["ap"], 1),
    }


def test_figures_of_a_set_that_another_adapter_made_are_refused(adapter, mvtec, tmp_path):
    config = evaluation(adapter, mvtec, tmp_path)
    report = json.loads((config.train / "synthesis.json").read_text())
    report["settings"]["adapter_sha256"] = "0" * 64
    (config.train / "synthesis.json").write_text(json.dumps(report))
    with pytest.raises(ValueError, match="was not made by"):
        evaluate(config)


def test_figures_of_no_set_are_refused(adapter, mvtec, tmp_path):
    with pytest.raises(ValueError, match="needs the set that it made"):
        EvaluateConfig(test=mvtec, output=tmp_path / "report", adapter=adapter.folder, methods="real")


def test_licence_of_a_card_outlives_its_rewriting(adapter):
    (adapter.folder / "README.md").write_text(card_of(adapter.folder, license="cc-by-4.0"))
    write_card(adapter.folder)
    assert ModelCard(read(adapter.folder)).data.license == "cc-by-4.0"


def test_own_text_is_kept(adapter):
    (adapter.folder / "README.md").write_text("# Mine\n")
    write_card(adapter.folder)
    assert read(adapter.folder) == "# Mine\n"


def test_figures_of_an_adapter_trained_on_other_images_are_refused(adapter, mvtec, tmp_path):
    before = read(adapter.folder)
    with pytest.raises(ValueError, match="was trained on other images"):
        evaluate(evaluation(adapter, mvtec, tmp_path, shots=1))
    assert read(adapter.folder) == before


@pytest.mark.parametrize(
    ("base", "revision", "named"),
    [
        ("sard-tiny", "0123456789abcdef", None),
        ("sd15-inpainting", "a" * 40, "stable-diffusion-v1-5/stable-diffusion-inpainting"),
        ("user/base", "a" * 40, "user/base"),
        ("bases/tile", "0123456789abcdef", None),
    ],
)
def test_metadata_name_a_base_only_where_the_hub_has_it(adapter, base, revision, named):
    config = AdapterConfig.read(adapter.folder)
    config.base.id, config.base.revision = base, revision
    data = ModelCard(adapter_card(config, {"masks"})).data
    assert data.base_model == named
    assert (data.library_name, data.pipeline_tag) == ("diffusers", "image-to-image")
    assert data.get("base_model_relation") == ("adapter" if named else None)
