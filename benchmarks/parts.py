"""The benchmark's data sets without leaks: a part that is tested on is seen nowhere else.

    python benchmarks/parts.py DATA OUTPUT

DATA holds magnetic_tile and pv_cell_4bb. The `group` of an image there does not tell all parts apart:

- magnetic tiles: some series of exposures of one tile are cut into several groups, and a few tiles are in two folders.
  Found by registering images of different groups onto each other, and looked at.
- solar cells: a name such as FSEC_5GC62_7 is cell 7 in step 62 of series 5GC, and a step later the cell looks the same.
  The fine structure of two cells of one name correlates by 0.81 to 0.96 (medians) up to 25 steps apart, from there on
  by 0.54 and less, as that of any two cells of a series (0.59).

OUTPUT gets links to the images and a `manifest.csv` whose column `exclude` takes an image out where a side before its
own shows the same part: test comes first, then dev, training and thresholds. Groups, and with them the sides of all
others, stay as they are.
"""

import argparse
import csv
import re
from collections import defaultdict
from collections.abc import Hashable
from io import StringIO
from pathlib import Path

from sard_lora.atomic import make_folder, write_text
from sard_lora.data import few_shot_split, open_category

TILES = (
    {"crack_002", "crack_003", "crack_004", "crack_005"},
    {"blowhole_006", "blowhole_007"},
    {"blowhole_011", "blowhole_012"},
    {"break_002", "fray_002"},
    {"break_005", "free_058"},
    {"fray_006", "free_156"},
)
"""Groups of magnetic tiles that show the same tile."""
STEPS = 25
"""Steps of a series over which a solar cell still looks the same."""

Seen = tuple[Hashable, int]
"""What an image shows, and in which step; the same part in steps that lie near each other."""


def tile_seen(row: dict[str, str]) -> Seen:
    """Of a line of the manifest of magnetic_tile."""
    return next((min(groups) for groups in TILES if row["group"] in groups), row["group"]), 0


def cell_seen(row: dict[str, str]) -> Seen:
    """Of a line of the manifest of pv_cell_4bb."""
    found = re.fullmatch(r"(.*?)(\d+)_(\d+)", Path(row["source"]).stem)
    if not found:
        raise ValueError(f"{row['path']}: its source {row['source']} does not end in a step and a cell, as in 5GC62_7")
    series, step, cell = found.groups()
    return (series, cell), int(step)


def write_data_set(source: Path, output: Path) -> int:
    """Links to the folders of `source`, and its manifest with the column `exclude`; answers how many are excluded.

    What is there is replaced; what `source` excludes stays excluded.

    Raises:
        ValueError: there is no manifest, or one that does not tell parts apart.
    """
    manifest = source / "manifest.csv"
    if not manifest.is_file():
        raise ValueError(f"{manifest}: not there; DATA has to hold magnetic_tile and pv_cell_4bb with their manifests")
    with manifest.open(newline="", encoding="utf-8-sig") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    seen = {path: (tile_seen if "block" in row else cell_seen)(row) for path, row in rows.items()}
    category = open_category(source)
    split = few_shot_split(category)
    known: dict[Hashable, list[int]] = defaultdict(list)
    excluded = {path for path, row in rows.items() if row.get("exclude")}
    for side in (split.test, split.dev, (*split.train, *split.normals), split.threshold):
        shown = [sample.image.relative_to(category.root).as_posix() for sample in side]
        excluded |= {path for path in shown if any(abs(seen[path][1] - step) <= STEPS for step in known[seen[path][0]])}
        for path in shown:
            known[seen[path][0]].append(seen[path][1])
    make_folder(output)
    for item in source.iterdir():
        if item.name != "manifest.csv":
            (output / item.name).unlink(missing_ok=True)
            (output / item.name).symlink_to(item.resolve())
    table = StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["path", "group", "exclude"])
    writer.writerows(
        [path, row["group"], "shown on another side" if path in excluded else ""] for path, row in rows.items()
    )
    write_text(output / "manifest.csv", table.getvalue())
    return len(excluded)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    for name in ("magnetic_tile", "pv_cell_4bb"):
        number = write_data_set(arguments.data / name, arguments.output / name)
        print(f"{name}: {number} images excluded")
