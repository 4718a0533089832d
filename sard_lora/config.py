"""Typed dataclasses from flags and YAML: one parser for the command line and for the training scripts."""

import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import TypeVar

Config = TypeVar("Config")
SWITCH_VALUES = ("true", "false", "yes", "no", "null")


def parse(config_type: type[Config], prog: str, description: str, argv: Sequence[str] | None = None) -> Config:
    """Build `config_type` from `argv`: every field is a flag, `--config FILE.yaml` holds the same names.

    Flags win over the file. A switch can be written bare: `--private` for `--private true`, `--no-masks` for
    `--masks false`, `--with-samples` for `--samples true`. Unknown names, wrong types and a `ValueError` of the
    dataclass's own checks end the program with a message and exit status 2.
    """
    from jsonargparse import ActionConfigFile, ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=prog, description=description)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with the same names as the flags.")
    parser.add_class_arguments(config_type, nested_key=None, as_group=False)
    namespace = parser.parse_args(_spelt_out(config_type, sys.argv[1:] if argv is None else argv))
    values = parser.instantiate(namespace).as_dict()
    values.pop("config", None)
    try:
        return config_type(**values)
    except ValueError as error:
        parser.error(str(error))


def _spelt_out(config_type: type, argv: Sequence[str]) -> list[str]:
    """`argv` with the value behind every bare switch: `--no-masks` becomes `--masks false`."""
    switches = {}
    for field in fields(config_type):
        if field.type in (bool, bool | None):
            flag, name = f"--{field.name}", field.name.replace("_", "-")
            switches |= {f"--no-{name}": (flag, "false"), f"--with-{name}": (flag, "true"), flag: (flag, "true")}
    spelt = []
    for argument, following in zip(argv, [*argv, None][1:], strict=True):
        flag, value = switches.get(argument, (argument, None))
        bare = value is not None and (flag != argument or (following or "").lower() not in SWITCH_VALUES)
        spelt += [flag, value] if bare else [flag]
    return spelt
