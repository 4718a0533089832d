"""Typed dataclasses from flags and YAML: one parser for the command line and for the training scripts."""

from collections.abc import Sequence
from typing import TypeVar

Config = TypeVar("Config")


def parse(config_type: type[Config], prog: str, description: str, argv: Sequence[str] | None = None) -> Config:
    """Build `config_type` from `argv`: every field is a flag, `--config FILE.yaml` holds the same names.

    Flags win over the file. Unknown names, wrong types and a `ValueError` of the dataclass's own checks end the
    program with a message and exit status 2.
    """
    from jsonargparse import ActionConfigFile, ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=prog, description=description)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with the same names as the flags.")
    parser.add_class_arguments(config_type, nested_key=None, as_group=False)
    namespace = parser.parse_args(argv)
    values = parser.instantiate(namespace).as_dict()
    values.pop("config", None)
    try:
        return config_type(**values)
    except ValueError as error:
        parser.error(str(error))
