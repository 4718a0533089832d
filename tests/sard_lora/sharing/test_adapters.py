"""Adapters on a Hub on the loopback address: pushed, pulled and loaded, with the unmodified client."""

import json
from pathlib import Path

import pytest
from loopback_hub import Fault, LoopbackHub
from loopback_people import ANNA, BEN, Person, files, metadata, pushed
from loopback_storage import XetStore

from sard_lora import sharing
from sard_lora.adapter import Adapter
from sard_lora.card import ADAPTER_FOLDER


def test_pushed_adapter_pulled_by_a_stranger_is_the_same(hub, anna, stranger, adapter, tmp_path):
    before = files(adapter)
    assert "anna/nut" in anna.run("push", adapter, "anna/nut", "--with-samples")
    assert files(adapter) == before, "the local folder stays as it was"
    assert [message for _, message, _ in hub.repository("model", "anna/nut").commits[1:]] == ["Adapter of metal_nut"]

    stranger.run("pull", "anna/nut", tmp_path / "pulled")
    pulled = files(tmp_path / "pulled")
    assert pulled.keys() == before.keys() - {"optimizer.bin"}, "the whole adapter, and no pickle"
    rewritten = {"README.md", "sard_config.json"}
    assert all(pulled[name] == before[name] for name in pulled.keys() - rewritten)
    mine, theirs = Adapter.load(adapter), Adapter.load(tmp_path / "pulled")
    assert theirs.masks().defects == mine.masks().defects and theirs.critic() is not None
    assert theirs.config.sampling == mine.config.sampling and theirs.config.prompts == mine.config.prompts
    assert theirs.config.base.signature == mine.config.base.signature
    assert not any(str(tmp_path.parent).encode() in content for content in pulled.values()), "no path of this machine"
    card = pulled["README.md"].decode()
    assert 'load_lora_weights("anna/nut")' in card and ADAPTER_FOLDER not in card


def test_adapter_on_the_hub_loads_in_diffusers_and_at_an_older_commit(hub, stranger, adapter, tiny_base):
    stranger.python(
        f"""
import json, numpy, torch
from pathlib import Path
from PIL import Image
from sard_lora import Adapter, SardInpaintPipeline

folder = Path({str(adapter)!r})
first = Adapter.load(folder).push_to_hub("anna/nut", token={ANNA!r}, commit_message="the first").oid
settings = json.loads((folder / "sard_config.json").read_text())
(folder / "sard_config.json").write_text(json.dumps(settings | {{"category": "newer_nut"}}))
Adapter.load(folder).push_to_hub("anna/nut", token={ANNA!r})

def picture(place):
    pipe = SardInpaintPipeline.from_pretrained({str(tiny_base)!r})
    pipe.load_lora_weights(place)
    assert pipe.get_active_adapters() and pipe._adapter_settings()["num_inference_steps"] == 2
    image, mask = Image.new("RGB", (64, 64), "grey"), Image.fromarray(numpy.eye(64, dtype=bool))
    generator = torch.Generator().manual_seed(0)
    return numpy.asarray(pipe("nut", image=image, mask_image=mask, generator=generator, height=64, width=64).images[0])

assert (picture("anna/nut") == picture(folder)).all()
assert Adapter.from_pretrained("anna/nut").config.category == "newer_nut"
assert Adapter.from_pretrained("anna/nut", revision=first).config.category == "metal_nut"
assert Adapter.from_pretrained(folder).config.category == "newer_nut"
"""
    )
    assert [message for _, message, _ in hub.repository("model", "anna/nut").commits] == [
        "initial commit",
        "the first",
        "Adapter of newer_nut",
    ]


def test_many_files_go_in_one_commit_through_xet_too(adapter, synthetic, tmp_path):
    for number in range(300):
        (adapter / f"masks/bent/{number:03d}.png").write_bytes((adapter / "masks/bent/000.png").read_bytes())
    with LoopbackHub(XetStore(tmp_path / "xet")) as hub:
        hub.add_user("anna", ANNA)
        anna, stranger = Person(hub, tmp_path / "anna", ANNA), Person(hub, tmp_path / "stranger", None)
        anna.run("push", adapter, "anna/nut", "--with-samples")
        anna.run("push", synthetic, "anna/nut-set")
        stranger.run("pull", "anna/nut", tmp_path / "pulled")
        stranger.run("pull", "anna/nut-set", tmp_path / "pulled-set")
        assert len(hub.repository("model", "anna/nut").commits) == 2
        assert not hub.asked("PUT", "/lfs/") and not hub.asked("GET", "/lfs/"), "large files took the other way"
    before, pulled = files(adapter), files(tmp_path / "pulled")
    same = before.keys() - {"optimizer.bin", "README.md", "sard_config.json"}
    assert len(same) > 300 and all(pulled[name] == before[name] for name in same)
    before, pulled = files(synthetic), files(tmp_path / "pulled-set")
    assert all(pulled[name] == before[name] for name in before.keys() - {"notes.pkl"})


def test_no_masks_pushes_no_masks_and_takes_earlier_ones_away(hub, anna, adapter):
    anna.run("push", adapter, "anna/nut", "--samples", "true")
    assert {"masks/bent/000.png", "samples.png"} <= pushed(hub).keys()
    anna.run("push", adapter, "anna/nut", "--no-masks")
    there = pushed(hub)
    assert not any(name.startswith("masks/") or name == "samples.png" for name in there)
    card = there["README.md"].decode()
    assert "samples.png" not in card and "left out: bring a folder of masks" in card and "--mask_bank" in card
    assert (adapter / "masks/bent/000.png").is_file()


def test_private_repo_needs_a_token(hub, anna, stranger, adapter, tmp_path):
    anna.run("push", adapter, "anna/nut", "--private")
    assert hub.repository("model", "anna/nut").private
    ben = Person(hub, tmp_path / "ben", BEN)
    for person in (stranger, ben):
        said = person.run("pull", "anna/nut", tmp_path / "pulled", fails=True)
        assert "anna/nut: is not there, or is private" in said and "hf auth login" in said
    assert not (tmp_path / "pulled").exists()
    anna.run("pull", "anna/nut", tmp_path / "pulled")
    assert Adapter.load(tmp_path / "pulled").config.category == "metal_nut"


def test_pull_never_fetches_other_files(hub, anna, stranger, adapter, tmp_path):
    anna.run("push", adapter, "anna/nut")
    repository = hub.repository("model", "anna/nut")
    evil = repository.files()["README.md"]
    repository.commit("by hand", repository.files() | {"pytorch_model.bin": evil, "masks/bent/a.pkl": evil})
    stranger.run("pull", "anna/nut", tmp_path / "pulled")
    assert not any(name.endswith((".bin", ".pkl")) for name in files(tmp_path / "pulled"))
    assert not hub.asked("GET", r"\.(bin|pkl)$") and not hub.asked("HEAD", r"\.(bin|pkl)$")
    anna.run("push", adapter, "anna/nut")
    assert "pytorch_model.bin" in pushed(hub), "what somebody else put there is theirs"


def test_token_is_never_printed_or_written(hub, anna, adapter, synthetic, tmp_path):
    said = anna.run("push", adapter, "anna/nut") + anna.run("push", synthetic, "anna/nut-set", "--private")
    said += anna.run("pull", "anna/nut-set", tmp_path / "pulled")
    hub.faults.append(Fault("POST", "/commit/", times=10**6, status=500))
    (adapter / "pipeline.py").write_text("changed")
    said += anna.run("push", adapter, "anna/nut", fails=True)
    assert "SecretToken" not in said
    assert not any(b"SecretToken" in content for content in files(tmp_path).values())
    assert not list(anna.home.glob("sard-lora-push-*")), "what was staged is gone"


def test_a_repository_made_on_the_hubs_page_holds_no_earlier_push(hub, anna, adapter):
    anna.run("push", adapter, "anna/nut", "--no-masks")
    repository = hub.repository("model", "anna/nut")
    repository.commit("by hand", {"README.md": repository.files()["README.md"]})
    assert "left out again" not in anna.run("push", adapter, "anna/nut")
    assert "masks/bent/000.png" in pushed(hub)


def test_second_push_keeps_masks_withheld_and_the_licence(hub, anna, adapter):
    anna.run("push", adapter, "anna/nut", "--no-masks", "--license", "cc-by-4.0")
    assert "left out again" in anna.run("push", adapter, "anna/nut")
    there = pushed(hub)
    assert not any(name.startswith("masks/") for name in there)
    assert metadata(there["README.md"])["license"] == "cc-by-4.0"
    anna.run("push", adapter, "anna/nut", "--masks", "true")
    assert "masks/bent/000.png" in pushed(hub)


def test_pulled_adapter_pushed_by_another_carries_the_new_name(hub, anna, adapter, tmp_path):
    anna.run("push", adapter, "anna/nut", "--license", "mit")
    anna.run("pull", "anna/nut", tmp_path / "pulled")
    anna.run("push", tmp_path / "pulled", "anna/bolt")
    card = hub.repository("model", "anna/bolt").files()["README.md"].content
    assert b"anna/bolt" in card and b"anna/nut" not in card and metadata(card)["license"] == "mit"


def test_card_written_by_hand_keeps_its_text_and_gets_name_and_licence(hub, anna, adapter):
    base = json.loads((adapter / "sard_config.json").read_text())["base"]["id"]
    (adapter / "README.md").write_text(f"# Mine\n\nload_lora_weights('ADAPTER_FOLDER') on {base}\n")
    anna.run("push", adapter, "anna/nut", "--license", "cc-by-4.0")
    card = pushed(hub)["README.md"].decode()
    assert "# Mine" in card and f"load_lora_weights('anna/nut') on {Path(base).name}\n" in card
    assert metadata(card.encode())["license"] == "cc-by-4.0"


def test_unreadable_metadata_of_a_card_are_named(anna, adapter):
    (adapter / "README.md").write_text("---\nlicense: a: b\n---\n# Mine\n")
    assert "README.md: its metadata" in anna.run("push", adapter, "anna/nut", fails=True)


@pytest.mark.parametrize(
    ("base", "revision", "shown"),
    [
        ("sd15-inpainting", "a" * 40, "sd15-inpainting"),
        ("somebody/inpainting", "a" * 40, "somebody/inpainting"),
        ("bases/tile", "0123456789abcdef", "tile"),
        ("/home/anna/bases/tile", "0123456789abcdef", "tile"),
    ],
)
def test_no_path_of_a_base_is_shared(adapter, base, revision, shown):
    settings = json.loads((adapter / "sard_config.json").read_text())
    settings["base"] |= {"id": base, "revision": revision, "adapted_from": "/home/anna/models/large"}
    shared = sharing.shareable(settings)
    assert shared["base"]["id"] == shared["training"]["base"] == shown
    assert shared["base"]["adapted_from"] == "large" and "home" not in json.dumps(shared)
