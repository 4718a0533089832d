"""The command line, `sard-lora`: thin, no logic. A command's module is imported only when it is called."""

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """Where a command lives. `positional` names the flags that bare leading arguments stand for."""

    help: str
    module: str
    config: str
    function: str
    positional: tuple[str, ...] = ()


COMMANDS = {
    "check": Command(
        "what is in a data set, what is wrong with it; contact sheet",
        "sard_lora.check",
        "CheckConfig",
        "check",
        ("data",),
    ),
    "train": Command(
        "train an adapter on a few defects",
        "sard_lora.train.adapter",
        "AdapterTrainConfig",
        "train_adapter",
    ),
    "base adapt": Command(
        "continue a base on normal images, before adapters are trained on it",
        "sard_lora.train.adapt",
        "AdaptConfig",
        "adapt",
    ),
    "synthesize": Command(
        "make labelled defect images with an adapter",
        "sard_lora.synthesis",
        "SynthesizeConfig",
        "synthesize",
    ),
    "studio": Command(
        "a page to paint masks, look at candidates and keep the good ones",
        "sard_lora.studio",
        "StudioConfig",
        "studio",
    ),
    "evaluate": Command(
        "train segmenters and test them on held-back real defects",
        "sard_lora.evaluation.protocol",
        "EvaluateConfig",
        "evaluate",
    ),
    "benchmark": Command(
        "methods side by side over several seeds: what does a segmenter learn from each",
        "sard_lora.evaluation.benchmark",
        "BenchmarkConfig",
        "benchmark",
    ),
    "push": Command(
        "an adapter or a synthetic data set to the Hugging Face Hub",
        "sard_lora.sharing",
        "PushConfig",
        "push",
        ("source", "repo"),
    ),
    "pull": Command(
        "an adapter or a synthetic data set from the Hugging Face Hub",
        "sard_lora.sharing",
        "PullConfig",
        "pull",
        ("repo", "output"),
    ),
    "demo": Command(
        "the whole job on an embedded product, without any download",
        "sard_lora.demo",
        "DemoConfig",
        "demo",
    ),
}


def usage() -> str:
    """The text of `sard-lora --help`."""
    lines = [f"  {name:<12}{command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: sard-lora COMMAND [--config FILE.yaml] [--OPTION VALUE ...]",
            "",
            "A few defect images in, thousands of labelled ones and a better segmenter out.",
            "",
            *lines,
            "",
            "sard-lora COMMAND --help explains every option and its default.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it succeeds, 1 for a problem with the input, 2 for a wrong call."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"sard-lora {version('sard-lora')}")
        return 0
    name = next((name for name in COMMANDS if arguments[: len(name.split())] == name.split()), None)
    if name is None:
        print(f"sard-lora: there is no command {arguments[0]!r}\n\n{usage()}", file=sys.stderr)
        return 2
    rest = arguments[len(name.split()) :]
    command = COMMANDS[name]
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    module = importlib.import_module(command.module)
    _quiet_libraries()
    from sard_lora.config import parse

    config = parse(
        getattr(module, command.config),
        prog=f"sard-lora {name}",
        description=command.help[0].upper() + command.help[1:] + ".",
        argv=_named(rest, command.positional),
    )
    try:
        getattr(module, command.function)(config)
    except (ValueError, OSError, ArithmeticError) as error:
        print(f"\nsard-lora {name}: {error}", file=sys.stderr)
        return 1
    return 0


def _quiet_libraries() -> None:
    """Keep the libraries' own bars out of the output of a command that runs models; the others need not load them."""
    if "torch" not in sys.modules:
        return
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def _named(arguments: list[str], positional: tuple[str, ...]) -> list[str]:
    """Bare leading arguments as the flags they stand for."""
    named = []
    for flag in positional:
        if not arguments or arguments[0].startswith("-"):
            break
        named += [f"--{flag}", arguments.pop(0)]
    return named + arguments


if __name__ == "__main__":
    sys.exit(main())
