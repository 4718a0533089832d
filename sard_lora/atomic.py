"""Writes that are whole or not there at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def make_folder(path: Path | str) -> Path:
    """Create `path` and its parents; a clear `OSError` when the place cannot be written to."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise OSError(
            f"{path}: cannot write here ({error.strerror or error}). Choose another --output, "
            "or free the disk / change the folder's permissions."
        ) from error


def is_occupied(path: Path) -> bool:
    """Whether something is at `path` that a new folder there would replace; an empty folder is nothing."""
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def require_free(path: Path, overwrite: bool) -> None:
    """Raise ValueError where something is at `path`, unless it may be overwritten."""
    if is_occupied(path) and not overwrite:
        raise ValueError(f"{path}: exists already. Choose another folder, or pass --overwrite")


def require_replaceable(path: Path, marker: str, kind: str) -> None:
    """Raise ValueError unless nothing is at `path`, or a folder of this `kind`, which the file `marker` in it tells."""
    if is_occupied(path) and not (path / marker).is_file():
        raise ValueError(f"{path}: is not {kind}, so it is not overwritten. Choose another folder")


@contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the same folder; it becomes `path` only when the block ends without an error.

    The temporary name keeps the suffix, so that savers that look at it (Pillow, safetensors) still work.
    """
    path = Path(path)
    make_folder(path.parent)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Yield a temporary folder that replaces `path`, whatever it is, only when the block ends without an error."""
    path = Path(path)
    make_folder(path.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        old = None
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent)) / path.name
            os.replace(path, old)
        try:
            os.replace(temporary, path)
        except OSError:
            if old is not None:
                os.replace(old, path)
                old.parent.rmdir()
            raise
        if old is not None:
            shutil.rmtree(old.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
