"""Methods by name: what they change, what they refuse, and the sets they make from the training side alone."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from sard_lora.data import few_shot_split, open_category
from sard_lora.evaluation.methods import Part, SetMaker, parse_method, split_names
from sard_lora.labelled import DRAWN, LabelledSet

TRAINING = {"steps": 1, "batch_size": 2, "min_side": 16, "rank": 4, "critic_channels": 8, "cpu": True}
SYNTHESIS = {"num_inference_steps": 2, "min_visibility": 0.0, "device": "cpu"}


@pytest.fixture
def maker(mvtec, tiny_base, tmp_path) -> SetMaker:
    return SetMaker(open_category(mvtec), tmp_path / "work", str(tiny_base), 0, 4, None, TRAINING, SYNTHESIS)


def test_commas_and_sums_inside_brackets_belong_to_the_method():
    names = split_names("real, sard[critic=false,guidance_scale=1]+real,paste,real")
    assert names == ["real", "sard[critic=false,guidance_scale=1]+real", "paste"]
    assert parse_method(names[1]) == (Part("sard", (("critic", False), ("guidance_scale", 1))), Part("real"))


def test_settings_have_the_types_of_the_command_line():
    (name,) = split_names(
        "sard[background=off,learning_rate=1e-4,mixed_precision=no,critic=false,margin=null,contrast=[1,2]]"
    )
    (part,) = parse_method(name)
    assert dict(part.options) == {
        "contrast": (1.0, 2.0),
        "background": "off",
        "learning_rate": 1e-4,
        "mixed_precision": "no",
        "critic": False,
        "margin": None,
    }
    (listed,) = parse_method("sard[defects=[crack,hole]]")
    assert dict(listed.options) == {"defects": ("crack", "hole")}


@pytest.mark.parametrize(
    "name",
    [
        *("gan", "sard+", "sard+sard", "sard[colour=3]", "paste[critic=false]", "sard[seed=1]", "sard[samples=3]"),
        *("sard[steps=many]", "sard[critic=7]"),
        *("sard[background=frozem]", "sard[in_place=2]", "sard[composite=x]", "sard[rank=0]", "sard[count=0]"),
        *("paste[count=0]", "paste[shots=0]", "paste[decoys=-3]", "real[shots=0]"),
    ],
)
def test_unknown_methods_and_settings_are_named(name):
    with pytest.raises(ValueError, match="method"):
        parse_method(name)


def test_ablations_of_synthesis_share_their_adapter(maker):
    for name in ("sard", "sard[composite=pixels]", "sard[guidance_scale=1]"):
        assert len(maker.samples(*parse_method(name))) == 4
    assert len(list((maker.folder / "adapters").glob("sard-*[!g]"))) >= 1
    assert len([p for p in (maker.folder / "adapters").iterdir() if (p / "sard_config.json").is_file()]) == 1
    assert len(list((maker.folder / "sets").iterdir())) == 3
    maker.samples(*parse_method("sard[critic=false]"))
    assert len([p for p in (maker.folder / "adapters").iterdir() if (p / "sard_config.json").is_file()]) == 2


def test_inpaint_has_no_critic_and_writes_decoded_pixels(maker):
    samples = maker.samples(Part("inpaint"))
    (adapter,) = [p for p in (maker.folder / "adapters").iterdir() if (p / "sard_config.json").is_file()]
    assert not (adapter / "critic.safetensors").exists()
    assert '"background": "off"' in (adapter / "sard_config.json").read_text()
    (root,) = {sample.image.parents[2] for sample in samples}
    assert '"composite": "pixels"' in (root / "synthesis.json").read_text()


def test_sets_have_equal_numbers_and_no_held_back_image(maker):
    split = few_shot_split(maker.category)
    assert maker.samples(Part("real")) == split.train
    assert maker.samples(Part("real", (("shots", 1),))) == few_shot_split(maker.category, 1).train
    normals = {f"train/good/{sample.image.name}" for sample in split.normals}
    defective = {sample.image.relative_to(maker.category.root).as_posix() for sample in split.train}
    for kind in ("paste", "cutpaste", "draem", "sard"):
        samples = maker.samples(Part(kind))
        drawn = [sample for sample in samples if sample.defect == DRAWN]  # in place of one of the known defects
        assert len(samples) == 4 and len(drawn) == (kind == "sard")
        assert {sample.defect for sample in samples} - {DRAWN} == {"hole", "scratch"}
        records = list(LabelledSet(samples[0].image.parents[2]).records())
        assert {record["normal"] for record in records} <= normals | (defective if kind == "sard" else set())


def test_every_seed_has_parts_of_its_own_where_shots_are_few(maker):
    few = [replace(maker, shots=1, seed=seed, folder=maker.folder / f"seed{seed}") for seed in (0, 1)]
    shown = [{sample.image for sample in sets.samples(Part("real"))} for sets in few]
    assert [len(images) for images in shown] == [2, 2] and not shown[0] & shown[1]
    for sets, images in zip(few, shown, strict=True):
        for kind in ("paste", "sard"):
            (root,) = {sample.image.parents[2] for sample in sets.samples(Part(kind))}
            origins = {record["mask_origin"] for record in LabelledSet(root).records()}
            assert origins & {f"{path.parent.name}/{path.stem}" for path in images}
            assert not origins & {f"{path.parent.name}/{path.stem}" for path in set.union(*shown) - images}


def test_sets_of_other_shots_or_other_data_are_other_sets(maker):
    few, more = replace(maker, shots=1), replace(maker, shots=2)
    folders = {sets.set_folder(Part(kind)) for sets in (few, more) for kind in ("paste", "sard")}
    assert len(folders) == 4
    mask = few_shot_split(maker.category).train[0].mask
    Image.fromarray(~np.asarray(Image.open(mask))).save(mask)
    assert not folders & {replace(maker, shots=1).set_folder(Part(kind)) for kind in ("paste", "sard")}


def test_fills_of_other_numbers_are_other_sets_whatever_a_method_says_of_its_own(maker):
    for name in ("sard", "sard[count=50]", "paste[count=50]"):
        (part,) = parse_method(name)
        assert len({maker.set_folder(part, count, fills=True) for count in (30, 50, 200)}) == 3
        assert maker.set_folder(part) not in {maker.set_folder(part, count, fills=True) for count in (4, 50)}


def test_decoys_are_fills_of_the_same_kind(maker):
    for kind in ("paste", "sard"):
        (part,) = parse_method(f"{kind}[decoys=2]")
        decoys = maker.decoys(part)
        assert len(decoys) == 2 and all(sample.mask for sample in decoys)
        (record, _) = LabelledSet(decoys[0].image.parents[2]).records()
        assert "fill" in record["method"]
        assert not {sample.image for sample in decoys} & {sample.image for sample in maker.samples(part)}
    assert maker.decoys(Part("real")) == maker.decoys(Part("paste")) == ()
    with pytest.raises(ValueError, match="real"):
        maker.fills(Part("real"), 2)
