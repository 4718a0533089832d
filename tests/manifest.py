"""A manifest of a category, for the tests of what it decides."""

from collections.abc import Collection
from pathlib import Path


def manifest(root: Path, groups: dict[str, str], exclude: Collection[str] = ()) -> None:
    """Write manifest.csv for every image below `root`: each its own group unless `groups` says otherwise."""
    images = [path.relative_to(root).as_posix() for path in sorted(root.glob("t*/*/*")) if path.suffix == ".png"]
    lines = [f"{path},{groups.get(path, path)},{'blurred' if path in exclude else ''}" for path in images]
    # With a byte order mark, as spreadsheets save it.
    (root / "manifest.csv").write_text("\n".join(["path,group,exclude", *lines]), encoding="utf-8-sig")
