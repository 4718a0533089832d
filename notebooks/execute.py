"""Execute the notebooks from top to bottom, in a folder of their own: what is beside them stays as it is.

    python notebooks/execute.py --output runs/notebooks [1_train_an_adapter ...]

The executed copies, with their pictures, are `OUTPUT/NAME.ipynb`. They share a working folder, so the adapter that the
first one trains serves the others. What they share on the Hub goes to one that runs on this machine, for as long as
they do.
"""

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
WORK = "work"
"""Where the notebooks keep what they make, in the folder they run in."""
sys.path.append(str(HERE.parent / "tests"))
from loopback_hub import LoopbackHub  # noqa: E402 - beside the tests, not installed


def execute(notebook: Path, output: Path, timeout: int = 900) -> Path:
    """Run one notebook in the folder `output`; its copy with outputs is written there even when a cell fails.

    Raises `nbclient.exceptions.CellExecutionError` with the cell and its traceback.
    """
    output.mkdir(parents=True, exist_ok=True)
    content = nbformat.read(notebook, as_version=4)
    client = NotebookClient(content, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": output}})
    try:
        client.execute()
    finally:
        nbformat.write(content, output / notebook.name)
    return output / notebook.name


def main() -> None:
    """Run those named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="notebooks without .ipynb; all by default")
    parser.add_argument("--output", type=Path, default=Path("runs/notebooks"), help="working folder")
    arguments = parser.parse_args()
    notebooks = sorted(HERE.glob("*.ipynb"))
    if unknown := set(arguments.names) - {path.stem for path in notebooks}:
        sys.exit(f"no notebook {', '.join(sorted(unknown))}; there are {', '.join(path.stem for path in notebooks)}")
    if not arguments.names:
        shutil.rmtree(arguments.output / WORK, ignore_errors=True)  # else the first would find its adapter trained
    with LoopbackHub() as hub:
        hub.add_user("you", "hf_notebooks")
        os.environ |= {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_notebooks", "HF_HUB_DISABLE_XET": "1"}
        os.environ["NO_PROXY"] = "127.0.0.1,localhost"
        os.environ["HF_HOME"] = str((arguments.output / "hub").absolute())
        for notebook in notebooks:
            if not arguments.names or notebook.stem in arguments.names:
                began = time.monotonic()
                done = execute(notebook, arguments.output)
                print(f"{done}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
