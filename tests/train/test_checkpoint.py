"""A checkpoint is whole or absent, the newest wins, and a resumed optimizer goes on to the bit."""

import pytest
import torch
from safetensors.torch import save_file

from sard_lora.train.checkpoint import (
    begin,
    checkpoints,
    load_optimizer_tensors,
    load_state,
    optimizer_tensors,
    save_state,
)


def _steps(model, optimizer, first, last):
    for step in range(first, last):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _fresh():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def test_resumed_training_equals_uninterrupted_to_the_bit(tmp_path):
    model, optimizer = _fresh()
    _steps(model, optimizer, 0, 10)

    half, half_optimizer = _fresh()
    _steps(half, half_optimizer, 0, 5)
    state = {f"model.{k}": v for k, v in half.state_dict().items()}
    state |= {f"optimizer.{k}": v for k, v in optimizer_tensors(half_optimizer).items()}
    save_state(tmp_path, 5, state)

    resumed, resumed_optimizer = _fresh()
    step, state = load_state(tmp_path)
    resumed.load_state_dict({k[6:]: v for k, v in state.items() if k.startswith("model.")})
    load_optimizer_tensors(resumed_optimizer, {k[10:]: v for k, v in state.items() if k.startswith("optimizer.")})
    _steps(resumed, resumed_optimizer, step, 10)
    assert step == 5
    assert torch.equal(resumed.weight, model.weight)
    assert torch.equal(resumed.bias, model.bias)


def test_only_the_newest_stay_and_the_newest_is_loaded(tmp_path):
    for step in (1, 9, 10, 100_000_0):
        save_state(tmp_path, step, {"x": torch.full((2,), float(step))}, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-000010", "checkpoint-1000000"]
    step, tensors = load_state(tmp_path)
    assert step == 1_000_000
    assert tensors["x"].tolist() == [1e6, 1e6]


def test_nothing_there_is_none(tmp_path):
    assert load_state(tmp_path) is None
    assert load_state(tmp_path / "absent") is None


def test_incomplete_folder_is_passed_over(tmp_path):
    save_state(tmp_path, 3, {"x": torch.ones(1)})
    (tmp_path / "checkpoint-000009").mkdir()
    save_file({"x": torch.zeros(1)}, tmp_path / "checkpoint-000009" / "state.safetensors")
    assert load_state(tmp_path)[0] == 3


def test_interrupted_write_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    save_state(tmp_path, 1, {"x": torch.ones(1)})

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("sard_lora.train.checkpoint.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_state(tmp_path, 2, {"x": torch.ones(1)})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000001"]


def test_damaged_checkpoint_is_named(tmp_path):
    path = save_state(tmp_path, 4, {"x": torch.ones(100)})
    (path / "state.safetensors").write_bytes((path / "state.safetensors").read_bytes()[:50])
    with pytest.raises(ValueError, match=r"checkpoint-000004.*Delete"):
        load_state(tmp_path)


def test_an_earlier_run_goes_only_where_that_was_asked_for(tmp_path):
    begin(tmp_path, {"rank": 4}, "log.jsonl", resume=False, overwrite=False)
    save_state(tmp_path, 40, {"x": torch.ones(1)})
    with pytest.raises(ValueError, match=rf"{tmp_path}: holds .* up to step 40.*--resume true.*--overwrite true"):
        begin(tmp_path, {"rank": 4}, "log.jsonl", resume=False, overwrite=False)
    with pytest.raises(ValueError, match=r"begun with another rank.*--overwrite true"):
        begin(tmp_path, {"rank": 8}, "log.jsonl", resume=True, overwrite=False)
    begin(tmp_path, {"rank": 4}, "log.jsonl", resume=True, overwrite=False)
    assert load_state(tmp_path)[0] == 40
    begin(tmp_path, {"rank": 8}, "log.jsonl", resume=False, overwrite=True)
    assert not checkpoints(tmp_path)


def test_shared_tensors_can_be_saved(tmp_path):
    x = torch.arange(6.0)
    save_state(tmp_path, 1, {"a": x, "b": x, "c": x.view(2, 3).T})
    assert load_state(tmp_path)[1]["c"].equal(x.view(2, 3).T)


def test_state_of_other_parameters_is_refused():
    model, optimizer = _fresh()
    _steps(model, optimizer, 0, 1)
    other = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))])
    with pytest.raises(ValueError, match=r"0\.exp_avg"):
        load_optimizer_tensors(other, optimizer_tensors(optimizer))
    with pytest.raises(ValueError, match="no parameter"):
        load_optimizer_tensors(other, {"1.exp_avg": torch.zeros(3)})
