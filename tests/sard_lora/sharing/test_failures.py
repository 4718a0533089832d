"""When push or pull fails: nothing is half there, on the Hub or here, and the message says what to do."""

import pytest
from loopback_hub import Fault
from loopback_people import ANNA, BEN, READER, Person, files, pushed

from sard_lora.adapter import Adapter


def test_private_push_to_a_public_repo_is_refused(hub, anna, adapter):
    anna.run("push", adapter, "anna/nut", "--no-masks")
    before = pushed(hub)
    assert "anna/nut: is there already, and public" in anna.run("push", adapter, "anna/nut", "--private", fails=True)
    assert pushed(hub) == before


@pytest.mark.parametrize(
    ("token", "repo", "says"),
    [
        (None, "anna/nut", "Log in with `hf auth login`"),
        ("hf_mistypedToken", "anna/nut", "your token is no good"),
        (READER, "anna/nut", "you may not do this"),
        (BEN, "anna/nut", "you may not do this"),
        (ANNA, "nut", "Give it as user/name"),
        (ANNA, "anna/nut nut", "anna/nut nut"),
    ],
)
def test_push_without_permission_says_what_to_do(hub, adapter, tmp_path, token, repo, says):
    said = Person(hub, tmp_path / "somebody", token).run("push", adapter, repo, fails=True)
    assert says in said and repo in said
    assert not hub.repositories


def test_pull_of_what_is_not_there_says_what_to_do(hub, anna, stranger, adapter, tmp_path):
    out = tmp_path / "pulled"
    for person in (anna, stranger):
        assert "anna/nut: is not there, or is private" in person.run("pull", "anna/nut", out, fails=True)
    anna.run("push", adapter, "anna/nut")
    assert "anna/nut: has no such revision" in anna.run("pull", "anna/nut", out, "--revision", "v2", fails=True)
    repository = hub.repository("model", "anna/nut")
    repository.commit("something else", {"model.bin": repository.files()["README.md"]})
    said = anna.run("pull", "anna/nut", out, fails=True)
    assert "anna/nut: holds neither an adapter nor a synthetic data set" in said
    assert "holds something else (model.bin" in anna.run("push", adapter, "anna/nut", fails=True)
    assert not out.exists()


def test_pull_replaces_only_what_it_could_have_written(hub, anna, adapter, tmp_path):
    anna.run("push", adapter, "anna/nut")
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").write_bytes(b"cat")
    assert "photos: exists already" in anna.run("pull", "anna/nut", photos, fails=True)
    assert "is not overwritten" in anna.run("pull", "anna/nut", photos, "--overwrite", fails=True)
    assert files(photos) == {"cat.jpg": b"cat"}
    anna.run("pull", "anna/nut", adapter, "--overwrite")
    assert "optimizer.bin" not in files(adapter) and Adapter.load(adapter)
    empty = tmp_path / "empty"
    empty.mkdir()
    anna.run("pull", "anna/nut", empty)  # without --overwrite: nothing could be lost
    assert Adapter.load(empty)


def test_cut_upload_leaves_folder_alone_and_next_push_completes(hub, anna, stranger, adapter, tmp_path):
    before = files(adapter)
    cut = Fault("PUT", "/lfs/", times=10**6, cut_after=300)
    hub.faults.append(cut)
    said = anna.run("push", adapter, "anna/nut", fails=True)
    assert "anna/nut: no connection" in said and "push again" in said
    assert files(adapter) == before and not pushed(hub), "nothing is half published"
    assert "holds neither" in stranger.run("pull", "anna/nut", tmp_path / "pulled", fails=True)
    cut.times = 1
    anna.run("push", adapter, "anna/nut")
    assert cut.times == 0 and 0 in hub.asked("PUT", "/lfs/"), "one more broken line is mended by the client"
    stranger.run("pull", "anna/nut", tmp_path / "pulled")
    assert files(tmp_path / "pulled")["critic.safetensors"] == before["critic.safetensors"]


def test_hub_that_fails_once_is_asked_again_and_one_that_fails_at_the_end_publishes_nothing(hub, anna, adapter):
    hub.faults += [Fault("POST", "/preupload/", times=1, status=503), Fault("PUT", "/lfs/", times=1, status=500)]
    hub.faults.append(Fault("POST", "/commit/", times=1, status=500))
    said = anna.run("push", adapter, "anna/nut", fails=True)
    assert (
        "anna/nut: the Hub answered 500 (it says: Something went wrong). On the Hub is all of this push or nothing"
        in said
        and not pushed(hub)
    )
    uploads = len(hub.asked("PUT", "/lfs/"))
    hub.faults.append(Fault("POST", "/commit/", times=1, status=412))
    assert "changed by someone else meanwhile" in anna.run("push", adapter, "anna/nut", fails=True)
    anna.run("push", adapter, "anna/nut")
    assert len(hub.asked("PUT", "/lfs/")) == uploads, "what had arrived is not sent again"
    assert "pytorch_lora_weights.safetensors" in pushed(hub)


def test_push_whose_answer_was_lost_is_there_once(hub, anna, adapter):
    hub.faults.append(Fault("POST", "/commit/", times=1, loses_answer=True))
    assert "On the Hub is all of this push or nothing" in anna.run("push", adapter, "anna/nut", fails=True)
    assert "sard_config.json" in pushed(hub)
    anna.run("push", adapter, "anna/nut")
    assert len(hub.repository("model", "anna/nut").commits) == 2, "nothing new is no commit"


def test_broken_download_writes_no_folder(hub, anna, adapter, tmp_path):
    anna.run("push", adapter, "anna/nut")
    hub.faults.append(Fault("GET", "/lfs/", times=10**6, status=403))
    assert "anna/nut" in anna.run("pull", "anna/nut", tmp_path / "pulled", fails=True)
    assert not list(tmp_path.glob("*pulled*"))


def test_card_that_the_hub_refuses_is_named_before_anything_is_published(hub, anna, adapter):
    card = adapter / "README.md"
    card.write_text(card.read_text().replace("tags:", "license: do-what-you-like\ntags:"))
    said = anna.run("push", adapter, "anna/nut", fails=True)
    assert "README.md: the Hub does not accept its metadata" in said and '"license" must be one of' in said
    assert not hub.repositories


def test_what_is_neither_adapter_nor_data_set_is_not_pushed(hub, anna, synthetic, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "neither an adapter folder" in anna.run("push", tmp_path / "empty", "anna/nut", fails=True)
    assert "has no labels" in anna.run("push", synthetic, "anna/nut", "--no-masks", fails=True)
    assert not hub.repositories
