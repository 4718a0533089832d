"""The command line: quick help, every option explained, YAML, and errors that end with a message, not a traceback."""

import subprocess
import sys
import time
from dataclasses import fields

import pytest
import yaml

from sard_lora import cli
from sard_lora.cli import COMMANDS, main
from sard_lora.config import parse
from sard_lora.demo import DemoConfig
from sard_lora.sharing import PushConfig
from sard_lora.synthesize_config import SynthesizeConfig


def test_help_is_light_and_lists_every_command():
    code = "import sys; from sard_lora.cli import main; main(['--help']); sys.exit(int('torch' in sys.modules))"
    begun = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, "help does not load torch"
    assert time.monotonic() - begun < 30
    assert all(f"\n  {name} " in result.stdout for name in COMMANDS)


def test_importing_the_package_is_light_and_its_names_resolve():
    code = "import sys, sard_lora; sys.exit(int(bool({'torch', 'diffusers', 'PIL', 'numpy'} & set(sys.modules))))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    import sard_lora

    assert all(getattr(sard_lora, name) is not None for name in sard_lora.__all__)
    with pytest.raises(AttributeError, match="no attribute 'pipeline'"):
        _ = sard_lora.pipeline


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained_with_its_default(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*name.split(), "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out.split("\noptions:")[1]
    module = __import__(COMMANDS[name].module, fromlist=["config"])
    for field in fields(getattr(module, COMMANDS[name].config)):
        start = text.index(f"  --{field.name} ")
        entry = text[start : text.find("\n  --", start + 1)]
        assert len(entry.split("\n", 1)[-1]) > 20, f"--{field.name} has no help"
        assert "required" in entry or "default" in entry, f"--{field.name} shows no default"


def test_yaml_holds_the_names_of_the_flags_and_flags_win(tmp_path):
    file = tmp_path / "f.yaml"
    file.write_text(yaml.safe_dump({"adapter": "a", "data": "d", "output": "o", "count": 7, "seed": 3}))
    config = parse(SynthesizeConfig, "x", "y", ["--config", str(file), "--seed", "5"])
    assert (config.count, config.seed, config.adapter.name) == (7, 5, "a")


def test_wrong_calls_end_with_status_two(tmp_path, capsys):
    file = tmp_path / "f.yaml"
    file.write_text("adapter: a\ndata: d\noutput: o\ncuont: 7\n")
    for call in (["synthesise"], ["synthesize", "--config", str(file)], ["synthesize", "--adapter", "a"]):
        try:
            assert main(call) == 2
        except SystemExit as stopped:
            assert stopped.code == 2
        error = capsys.readouterr().err
        assert "synthesise" in error or "cuont" in error or "required" in error
    with pytest.raises(SystemExit):
        main(["synthesize", "--adapter", "a", "--data", "d", "--output", "o", "--count", "0"])
    assert "count=0 has to be at least 1" in capsys.readouterr().err


def test_errors_of_the_input_are_messages_not_tracebacks(tmp_path, capsys):
    assert main(["check", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert str(tmp_path) in error and "Traceback" not in error


def test_check_prints_the_report_and_draws_the_sheet(mvtec, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    assert main(["check", str(mvtec), "--output", str(sheet)]) == 0
    assert "no problems found" in capsys.readouterr().out and sheet.is_file()
    (mvtec / "ground_truth/hole/000_mask.png").unlink()
    assert main(["check", str(mvtec), "--output", str(sheet)]) == 1
    printed = capsys.readouterr()
    assert "problems: 1" in printed.out and "hole/000.png: a defect image without its mask" in printed.err


def test_check_draws_the_sheet_into_a_folder_and_refuses_a_name_that_is_no_picture(mvtec, tmp_path, capsys):
    assert main(["check", str(mvtec), "--output", str(tmp_path / "sheets")]) == 0
    assert [sheet.suffix for sheet in (tmp_path / "sheets").iterdir()] == [".png"]
    assert main(["check", str(mvtec), "--output", str(tmp_path / "sheet.doc")]) == 1
    assert "sheet.doc: not a picture's name" in capsys.readouterr().err


def test_bare_arguments_stand_for_flags():
    assert cli._named(["DIR", "--output", "x"], ("data",)) == ["--data", "DIR", "--output", "x"]
    assert cli._named(["--data", "DIR"], ("data",)) == ["--data", "DIR"]


def test_a_command_without_any_flag_takes_the_defaults():
    assert parse(DemoConfig, "x", "y", []) == DemoConfig()


def test_switches_can_be_written_bare():
    def settings(*argv: str) -> tuple[bool, bool | None, bool]:
        config = parse(PushConfig, "x", "y", ["--source", "a", "--repo", "me/a", *argv])
        return config.private, config.masks, config.samples

    assert settings() == (False, None, False)
    assert settings("--private", "--no-masks", "--with-samples") == (True, False, True)
    assert settings("--private", "true", "--masks", "false", "--samples=true") == (True, False, True)
    assert settings("--private", "false", "--no-samples", "--masks") == (False, True, False)
    assert (
        parse(SynthesizeConfig, "x", "y", ["--adapter=a", "--data=d", "--output=o", "--no-copy-normals"]).copy_normals
        is False
    )
