"""What evaluation and benchmark are both watched by."""

from collections.abc import Callable
from pathlib import Path

import pytest
from manifest import manifest

from sard_lora.evaluation import cells


@pytest.fixture
def trainings(monkeypatch) -> list[tuple]:
    """The arguments of every segmenter's training, which goes on as it would."""
    train, seen = cells.train_segmenter, []
    monkeypatch.setattr(cells, "train_segmenter", lambda *arguments: seen.append(arguments) or train(*arguments))
    return seen


@pytest.fixture
def turn(mvtec: Path) -> Callable[[int], None]:
    """Gives every good part of the training side the group of another one, some places on: others set thresholds."""

    def write(places: int) -> None:
        good = [path.relative_to(mvtec).as_posix() for path in sorted(mvtec.glob("train/good/*"))]
        manifest(mvtec, dict(zip(good, good[places:] + good[:places], strict=True)))

    return write
