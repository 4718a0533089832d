"""The base models' loop: resumable to the bit, stopped by a loss that is no number, and only what trains is kept."""

import pytest
import torch
from torch import nn

from sard_lora.train.checkpoint import load_state
from sard_lora.train.loop import load_average, train


def test_resumed_run_equals_uninterrupted_to_the_bit(tmp_path):
    def model():
        torch.manual_seed(0)
        return nn.Linear(4, 1)

    def loss(module, step):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        return (module(x) - x.sum(1, keepdim=True)).square().mean()

    def dies(module, step):
        if step == 5:
            raise KeyboardInterrupt
        return loss(module, step)

    settings = dict(steps=8, learning_rate=0.01, bf16=False, checkpoint_every=2)
    whole, killed = (tmp_path / name for name in ("whole", "killed"))
    train(whole, model(), loss, **settings)
    with pytest.raises(KeyboardInterrupt):
        train(killed, model(), dies, **settings)
    train(killed, model(), loss, **settings)
    first, second = (load_state(folder)[1] for folder in (whole, killed))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first if name != "seconds")


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    def loss(model, step):
        return model.weight.sum() * float("nan")

    settings = dict(learning_rate=0.1, bf16=False, checkpoint_every=2)
    with pytest.raises(FloatingPointError, match=r"toy: the loss is nan at step 0; no checkpoint was written yet"):
        train(tmp_path / "toy", nn.Linear(1, 1), loss, steps=3, **settings)
    train(tmp_path / "toy", nn.Linear(1, 1), lambda model, step: model.weight.sum(), steps=2, **settings)
    with pytest.raises(FloatingPointError, match=r"nan at step 2; the last checkpoint is checkpoint-000002"):
        train(tmp_path / "toy", nn.Linear(1, 1), loss, steps=3, **settings)


def test_frozen_weights_are_neither_trained_nor_kept(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    before = model[0].weight.clone()

    def loss(module, step):
        return module(torch.ones(1, 2)).square().mean()

    train(tmp_path / "toy", model, loss, steps=2, learning_rate=0.1, bf16=False, checkpoint_every=2)
    assert torch.equal(model[0].weight, before)
    assert {name for name in load_state(tmp_path / "toy")[1] if name.startswith("model.")} == {
        "model.1.weight",
        "model.1.bias",
    }
    assert load_average(tmp_path / "toy", model)[0] == 2
    with pytest.raises(ValueError, match="another model"):
        load_average(tmp_path / "toy", nn.Linear(2, 1))
