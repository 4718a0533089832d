"""What evaluation and benchmark are both watched by."""

import pytest

from sard_lora.evaluation import cells


@pytest.fixture
def trainings(monkeypatch) -> list[tuple]:
    """The arguments of every segmenter's training, which goes on as it would."""
    train, seen = cells.train_segmenter, []
    monkeypatch.setattr(cells, "train_segmenter", lambda *arguments: seen.append(arguments) or train(*arguments))
    return seen
