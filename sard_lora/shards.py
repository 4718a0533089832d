"""A labelled set as parquet shards and back: pictures keep their bytes, records become columns.

    data/defects-00000-of-00003.parquet   image, mask and the record of every synthesized image
    data/normal-00000-of-00001.parquet    image and file name of every normal image of the set

`datasets` and the Hub's viewer read the shards as they are; a set read back is the set that was written, to the byte.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from sard_lora.labelled import LabelledSet

DEFECTS, NORMAL = "defects", "normal"
SHARD_BYTES = 200 * 2**20
"""Pictures of one shard, together, in bytes: what is held in memory at once, about."""

Picture = dict[str, Any]
"""As `datasets` stores an image: {"bytes": file content, "path": file name}."""


def write_shards(root: Path, folder: Path, shard_bytes: int = SHARD_BYTES) -> dict[str, int]:
    """Write the set at `root` as shards into `folder`; returns the number of rows of "defects" and of "normal".

    Raises ValueError for a set without images, or with records whose values do not agree in type.
    """
    labelled = LabelledSet(root)
    records = list(labelled.records())
    if not records:
        raise ValueError(f"{root}: holds no synthesized images. Make some: sard-lora synthesize")
    _write(_records_table(root, records), root, ("image", "mask"), folder, DEFECTS, shard_bytes)
    normals = [{"file_name": path.relative_to(root).as_posix()} for path in labelled.normals()]
    _write(normals, root, ("image",), folder, NORMAL, shard_bytes)
    return {DEFECTS: len(records), NORMAL: len(normals)}


def read_shards(folder: Path, root: Path) -> int:
    """Write the shards in `folder` as a set at `root`; returns its number of defect images.

    Raises ValueError, naming the shard, for one that was not written by `write_shards`.
    """
    labelled = LabelledSet(root)
    for shard, row in _rows(folder, DEFECTS, ("image", "mask")):
        defect, name = _place(shard, row["file_name"], "test", ".png")
        labelled.add_files(defect, name, row["image"]["bytes"], row["mask"]["bytes"])
    for shard, row in _rows(folder, NORMAL, ("image",)):
        _, name = _place(shard, row["file_name"], "train")
        labelled.add_normal(name, row["image"]["bytes"])
    labelled.write_metadata()
    return labelled.count


def shards(folder: Path, kind: str) -> list[Path]:
    """The shards of "defects" or of "normal" in `folder`, sorted."""
    return sorted(folder.glob(f"{kind}-*-of-*.parquet"))


def _records_table(root: Path, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records with the same columns in every row, what was made first and where it lies last."""
    names = {name: None for record in records for name in record}
    if taken := {"image", "mask"} & names.keys():
        raise ValueError(f"{root}: a record has the key {taken.pop()!r}, which a column of pictures has")
    last = ("file_name", "mask_file_name")
    first = ("defect", "prompt", "seed", "normal", "critic_score", "visibility")
    order = sorted(names, key=lambda name: (name in last, name not in first, first.index(name) if name in first else 0))
    return [{name: record.get(name) for name in order} for record in records]


def _write(
    rows: Sequence[dict[str, Any]], root: Path, pictures: Sequence[str], folder: Path, kind: str, shard_bytes: int
) -> None:
    """Write rows and the files they name as the shards of one kind; a row's picture "mask" is its mask_file_name."""
    from datasets import Dataset, Features, Image

    if not rows:
        return
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    try:
        features = Features({name: Image() for name in pictures} | Dataset.from_dict(columns).features)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{root}: its records do not make a table ({error}). Are all images of one make?") from error
    groups = list(_groups(rows, root, pictures, shard_bytes))
    folder.mkdir(parents=True, exist_ok=True)
    for number, group in enumerate(groups):
        content = [{name: _picture(root, row, name) for name in pictures} | row for row in group]
        shard = folder / f"{kind}-{number:05d}-of-{len(groups):05d}.parquet"
        Dataset.from_list(content, features=features).to_parquet(shard)


def _groups(
    rows: Iterable[dict[str, Any]], root: Path, pictures: Sequence[str], shard_bytes: int
) -> Iterator[list[dict[str, Any]]]:
    """The rows in groups whose pictures take about `shard_bytes`; one row at least."""
    group, size = [], 0
    for row in rows:
        own = sum((root / row[_key(name)]).stat().st_size for name in pictures)
        if group and size + own > shard_bytes:
            yield group
            group, size = [], 0
        group.append(row)
        size += own
    yield group


def _key(picture: str) -> str:
    return "file_name" if picture == "image" else f"{picture}_file_name"


def _picture(root: Path, row: dict[str, Any], picture: str) -> Picture:
    path = root / row[_key(picture)]
    return {"bytes": path.read_bytes(), "path": path.name}


def _rows(folder: Path, kind: str, pictures: Sequence[str]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The rows of one kind, shard by shard, with the bytes of their pictures; nothing is decoded."""
    from datasets import Image, load_dataset

    for shard in shards(folder, kind):
        rows = load_dataset("parquet", data_files=str(shard), split="train", streaming=True)
        missing = {*pictures, "file_name"} - set(rows.column_names or ())
        if missing:
            raise ValueError(f"{shard}: has no column {', '.join(sorted(missing))}, so it is no part of a labelled set")
        for name in pictures:
            rows = rows.cast_column(name, Image(decode=False))
        for row in rows:
            if any(not (row[name] and row[name]["bytes"]) for name in pictures):
                raise ValueError(f"{shard}: {row['file_name']} comes without its pictures' bytes. Ask whoever made it")
            yield shard, row


def _place(shard: Path, file_name: str, side: str, suffix: str = "") -> tuple[str, str]:
    """Folder and name of `<side>/<folder>/<name><suffix>`; a stranger's shard names no other place to write to."""
    path = PurePosixPath(file_name)
    plain = len(path.parts) == 3 and path.parts[0] == side and not any(part.startswith(".") for part in path.parts)
    if not plain or "\\" in file_name or not path.name.endswith(suffix):
        raise ValueError(f"{shard}: names the file {file_name!r}, which has no place in a labelled set")
    return path.parts[1], path.name.removesuffix(suffix)
