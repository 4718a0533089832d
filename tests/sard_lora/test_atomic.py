"""A folder appears whole, or what was there stays; and only what a command wrote is overwritten by it."""

import os
from pathlib import Path

import pytest

from sard_lora import atomic


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one(tmp_path, monkeypatch):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "old").write_text("kept")
    replace = os.replace

    def fails(source, target):
        if ".partial" in Path(source).name:
            raise OSError("no permission")
        replace(source, target)

    monkeypatch.setattr(atomic.os, "replace", fails)
    with pytest.raises(OSError, match="no permission"), atomic.atomic_folder(folder) as temporary:
        (temporary / "new").write_text("lost")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert (folder / "old").read_text() == "kept"


def test_only_nothing_and_folders_of_the_same_kind_are_replaced(tmp_path):
    for name in ("empty", "kind", "other"):
        (tmp_path / name).mkdir()
    for name in ("kind/marker", "other/photo", "file"):
        (tmp_path / name).write_text("")
    for name in ("absent", "empty", "kind"):
        atomic.require_replaceable(tmp_path / name, "marker", "a thing")
    for name in ("other", "file"):
        with pytest.raises(ValueError, match=rf"{name}: is not a thing, so it is not overwritten"):
            atomic.require_replaceable(tmp_path / name, "marker", "a thing")
