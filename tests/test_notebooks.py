"""The notebooks run from top to bottom, are kept without outputs, and show pictures."""

from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_first_notebook_trains_an_adapter_and_shows_pictures(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "notebooks"))
    from execute import execute

    shorter = tmp_path / NOTEBOOKS[0].name
    text = NOTEBOOKS[0].read_text(encoding="utf-8")
    assert text.count("steps=100") == 1
    shorter.write_text(text.replace("steps=100", "steps=6"), encoding="utf-8")
    executed = nbformat.read(execute(shorter, tmp_path / "run"), as_version=4)
    assert (tmp_path / "run/work/adapter/pytorch_lora_weights.safetensors").is_file()
    shown = [
        output["data"]
        for cell in executed.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "execute_result"
    ]
    assert any("image/png" in data for data in shown)
    assert any("data:image/png" in data.get("text/html", "") for data in shown)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_kept_without_outputs(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert cell.cell_type != "code" or (not cell.outputs and cell.execution_count is None)
