"""Tasks in several processes: order, failures, and what can never start."""

import os
import time
from pathlib import Path

import pytest

from sard_lora.evaluation.tasks import Task, run_tasks


def note(folder: Path, name: str, seconds: float = 0.0) -> None:
    time.sleep(seconds)
    with (folder / "order").open("a") as file:
        file.write(f"{name} {os.getpid()}\n")


def fail() -> None:
    raise RuntimeError("nine lives")


def refuse() -> None:
    raise ValueError("'moo' is no number")


def test_each_waits_for_those_before_it(tmp_path, capsys):
    tasks = [
        Task("last", note, (tmp_path, "last"), ("slow", "quick")),
        Task("slow", note, (tmp_path, "slow", 0.5)),
        Task("quick", note, (tmp_path, "quick")),
    ]
    run_tasks(tasks, 2, tmp_path / "logs")
    names, processes = zip(*(line.split() for line in (tmp_path / "order").read_text().splitlines()), strict=True)
    assert names == ("quick", "slow", "last")
    assert str(os.getpid()) not in processes
    assert "[3/3] last" in capsys.readouterr().out


def test_a_failure_names_its_task_and_the_others_are_finished(tmp_path):
    tasks = [
        Task("cat", fail, ()),
        Task("dog", note, (tmp_path, "dog", 0.5)),
        Task("bird", note, (tmp_path, "bird"), ("cat",)),
    ]
    with pytest.raises(RuntimeError, match="cat: nine lives"):
        run_tasks(tasks, 2, tmp_path / "logs")
    assert (tmp_path / "order").read_text().split()[0] == "dog"
    assert "nine lives" in "".join(path.read_text() for path in (tmp_path / "logs").glob("*.log"))


def test_bad_input_is_an_error_that_the_command_line_explains(tmp_path):
    with pytest.raises(ValueError, match="cow: 'moo' is no number"):
        run_tasks([Task("cow", refuse, ())], 1, tmp_path / "logs")


def test_what_waits_for_nothing_that_comes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="hen waits for egg"):
        run_tasks([Task("hen", fail, (), ("egg",))], 1, tmp_path / "logs")
