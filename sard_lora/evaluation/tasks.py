"""Tasks that wait for one another, run by several processes."""

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sard_lora.atomic import make_folder


@dataclass(frozen=True)
class Task:
    """A call of a module's function, made once all tasks named in `after` are done. What it returns is dropped."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    after: tuple[str, ...] = ()


def run_tasks(tasks: Sequence[Task], workers: int, logs: Path) -> None:
    """Run all tasks in `workers` processes; of those that may start, the first in the list starts next.

    What they print goes to `logs`/<process>.log, and a line for each finished task to standard output. Processes share
    the machine's cores evenly.

    Raises:
        ValueError: a task found fault with what it was given or with a file, and says so; the message names the task.
            Also for tasks that wait for what is not there, or for one another.
        RuntimeError: a task failed in another way. The others that had begun were finished.
    """
    make_folder(logs)
    context = multiprocessing.get_context("spawn")  # a process that uses a GPU must not be forked
    waiting, done = list(tasks), set()
    running: dict[Future, Task] = {}
    threads = max(1, (os.cpu_count() or 1) // workers)
    failed = None
    with ProcessPoolExecutor(workers, context, _begin, (logs, threads)) as pool:
        while running or (waiting and failed is None):
            ready = [task for task in waiting if failed is None and done.issuperset(task.after)]
            for task in ready[: workers - len(running)]:
                waiting.remove(task)
                running[pool.submit(_call, task)] = task
            if not running:
                raise ValueError(f"no task can start: {waiting[0].name} waits for {', '.join(waiting[0].after)}")
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                task = running.pop(future)
                if error := future.exception():
                    failed = failed or (task, error)
                    continue
                done.add(task.name)
                print(f"[{len(done)}/{len(tasks)}] {task.name}", flush=True)
    if failed:
        task, error = failed
        explained = isinstance(error, (ValueError, OSError, ArithmeticError))
        raise (ValueError if explained else RuntimeError)(f"{task.name}: {error} (see the logs in {logs})") from error


def _begin(logs: Path, threads: int) -> None:
    file = (logs / f"{os.getpid()}.log").open("a", buffering=1)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(file.fileno(), stream.fileno())
    torch.set_num_threads(threads)


def _call(task: Task) -> None:
    try:
        task.function(*task.arguments)
    except BaseException:
        traceback.print_exc()
        raise
