"""The figures of a benchmark in one file: it goes on from them on another machine, without weights and images.

    python benchmarks/figures.py pack runs/table benchmarks/results/figures.json
    python benchmarks/figures.py unpack runs/table benchmarks/results/figures.json

`pack` adds what was measured in an output folder of `sard-lora benchmark` to the file, `unpack` puts everything back:
the same command then trains only what is not there. Ablations are measured on the development side only, so `pack`
leaves out what there may be of them on the test side.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from sard_lora.atomic import write_text

WEIGHTS = "segmenter"
"""Folders of trained networks: their `result.json` says that the weights are there, and these are not packed."""


def pack(output: Path, file: Path) -> int:
    """Add all figures below `output` to `file`, in place of older ones of a cell; answers how many it then holds.

    Raises:
        ValueError: there are no figures in `output`.
    """
    places = {path.parent.relative_to(output): path for path in output.rglob("result.json")}
    found = {
        place.as_posix(): json.loads(path.read_text(encoding="utf-8"))
        for place, path in places.items()
        if place.name != WEIGHTS
        and not any(name.startswith(".") for name in place.parts)  # half written
        and not (place.name == "test" and any("[" in name for name in place.parts))
    }
    if not found:
        raise ValueError(f"{output}: no figures; give the output folder of a `sard-lora benchmark` that has begun")
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    found = {
        name: kept for name, kept in found.items() if name not in known or _revisions(kept) >= _revisions(known[name])
    }
    lines = [f"{json.dumps(name)}: {json.dumps(kept)}" for name, kept in sorted((known | found).items())]
    write_text(file, "{\n" + ",\n".join(lines) + "\n}\n")  # a line each, for readable differences
    return len(lines)


def unpack(output: Path, file: Path) -> int:
    """Put the figures of `file` below `output`, but for those that are there; answers how many were put.

    What an earlier revision measured gives way, with its predictions.
    """
    put = 0
    for name, kept in json.loads(file.read_text(encoding="utf-8")).items():
        path = output / name / "result.json"
        if not path.exists() or _revisions(json.loads(path.read_text(encoding="utf-8"))) < _revisions(kept):
            shutil.rmtree(path.parent, ignore_errors=True)
            write_text(path, json.dumps(kept, indent=1))
            put += 1
    return put


def _revisions(kept: dict[str, Any]) -> list[int]:
    """By which revisions of the benchmark's parts a figure was measured; the later one replaces the earlier."""
    return [kept["key"].get(name, 0) for name in ("revision", "synthesis", "prediction")]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pack", "unpack"))
    parser.add_argument("output", type=Path, help="output folder of `sard-lora benchmark`")
    parser.add_argument("file", type=Path, help="JSON file of the figures")
    arguments = parser.parse_args()
    count = {"pack": pack, "unpack": unpack}[arguments.what](arguments.output, arguments.file)
    print(f"{arguments.file}: {count} figures {arguments.what}ed")


if __name__ == "__main__":
    main()
