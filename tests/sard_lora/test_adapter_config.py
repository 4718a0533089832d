"""`sard_config.json` may come from a stranger: what makes no sense there is named."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from sard_lora.adapter_config import SETTINGS_FILE, AdapterConfig, BaseReference, SamplingSettings, prompts_for


def written(folder: Path, **sampling: Any) -> Path:
    base = BaseReference("sard-tiny", "0123456789abcdef", None, 128, {})
    config = AdapterConfig("nut", ["bent"], prompts_for("nut", ["bent"]), base, SamplingSettings(), {}, {})
    settings = asdict(config)
    settings["sampling"] |= sampling
    (folder / SETTINGS_FILE).write_text(json.dumps(settings), encoding="utf-8")
    return folder


def test_settings_are_read_as_they_were_written(tmp_path):
    config = AdapterConfig.read(written(tmp_path, grain="across", margins={"bent": 2}))
    assert config.sampling == SamplingSettings(grain="across", margins={"bent": 2})


@pytest.mark.parametrize(
    ("sampling", "message"),
    [({"grain": "up"}, r"grain='up' is not one of none, down, across"), ({"rotate": True}, "rotate")],
)
def test_settings_that_make_no_sense_are_named_with_their_file(tmp_path, sampling, message):
    with pytest.raises(ValueError, match=rf"{SETTINGS_FILE}: is no adapter's settings .*{message}"):
        AdapterConfig.read(written(tmp_path, **sampling))


@pytest.mark.parametrize("length", [0, 1, 100])
def test_a_truncated_file_is_named(tmp_path, length):
    path = written(tmp_path) / SETTINGS_FILE
    path.write_text(path.read_text()[:length])
    with pytest.raises(ValueError, match=rf"{path}: is no adapter's settings .*Get the adapter again"):
        AdapterConfig.read(tmp_path)


def test_a_newer_format_asks_for_an_upgrade(tmp_path):
    path = written(tmp_path) / SETTINGS_FILE
    path.write_text(json.dumps({"format_version": 99}))
    with pytest.raises(ValueError, match=rf"{path}: format 99 is newer .*upgrade"):
        AdapterConfig.read(tmp_path)
