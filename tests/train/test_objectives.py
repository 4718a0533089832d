"""The losses of the joint loop: normalised by mask area, and an adversarial part that is bounded."""

import pytest
import torch
from diffusers import DDIMScheduler

from sard_lora.critic import CriticConfig, MaskGuidedCritic, grid_step, timestep_grid
from sard_lora.train.objectives import Game, NoisedBatch, bounded_weight

ALPHAS = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).alphas_cumprod


def batch(background="renoised", anomalies=2, prediction_type="epsilon", masks=None) -> NoisedBatch:
    generator = torch.Generator().manual_seed(0)
    m = torch.zeros(4, 1, 8, 8)
    m[0, :, 1:3, 1:3] = m[1, :, 5:7, 5:7] = m[2, :, 2:5, 2:5] = m[3, :, 0, 0] = 1
    t, alpha_bar, alpha_bar_prev = grid_step(timestep_grid(1000, 8), torch.tensor([1, 3, 5, 7]), ALPHAS)
    z0, noise = (torch.randn(4, 4, 8, 8, generator=generator) for _ in range(2))
    return NoisedBatch(z0, noise, m, t, alpha_bar, alpha_bar_prev, anomalies, background, prediction_type)


def noises():
    return tuple(torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))


def test_small_and_large_masks_count_the_same():
    data = batch()
    wrong_inside = data.noise + 0.5 * data.m
    assert data.denoising_loss(wrong_inside, 0.1, None).item() == pytest.approx(0.25)
    wrong_outside = data.noise + 0.5 * (1 - data.m)
    assert data.denoising_loss(wrong_outside, 0.1, None).item() == pytest.approx(0.025)
    assert batch("frozen").denoising_loss(wrong_outside, 0.1, None).item() == 0, "no noise there, nothing to predict"


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_weighs_easy_timesteps_down(prediction_type):
    data = batch(prediction_type=prediction_type)
    zero = torch.zeros_like(data.z0)
    plain, weighted = data.denoising_loss(zero, 0.0, None), data.denoising_loss(zero, 0.0, 5.0)
    assert weighted < plain
    snr = (ALPHAS[data.t] / (1 - ALPHAS[data.t])).clamp(max=5.0)
    divisor = ALPHAS[data.t] / (1 - ALPHAS[data.t]) + (prediction_type == "v_prediction")
    target = (
        data.noise
        if prediction_type == "epsilon"
        else (data.alpha_bar.sqrt() * data.noise - (1 - data.alpha_bar).sqrt() * data.z0)
    )
    error = (target.square().mean(1, keepdim=True) * data.m).sum((1, 2, 3)) / data.m.sum((1, 2, 3))
    assert weighted.item() == pytest.approx((error * snr / divisor).mean().item(), rel=1e-4)


def test_min_snr_is_the_whole_weight_where_z0_itself_is_predicted():
    data = batch(prediction_type="sample")
    snr = (ALPHAS[data.t] / (1 - ALPHAS[data.t])).clamp(max=5.0)
    error = (data.z0.square().mean(1, keepdim=True) * data.m).sum((1, 2, 3)) / data.m.sum((1, 2, 3))
    weighted = data.denoising_loss(torch.zeros_like(data.z0), 0.0, 5.0)
    assert weighted.item() == pytest.approx((error * snr).mean().item(), rel=1e-4)


def test_perfect_generator_makes_fakes_equal_to_real():
    data = batch()
    game = Game.play(data, data.noise, noises())
    assert torch.allclose(game.real, game.fake, atol=1e-3)
    worse = Game.play(data, data.noise + 1, noises())
    assert not torch.allclose(worse.real, worse.fake, atol=0.1)
    outside = game.m.expand_as(game.real) < 0.5
    assert worse.real[outside].equal(worse.fake[outside]), "real and fake differ inside the mask alone"


def test_mask_fakes_are_misplaced_defects_and_empty_masks():
    data = batch()
    game = Game.play(data, data.noise, noises())
    z_prev, _, t, m = game.mask_fakes
    assert m[:2].equal(data.m[[1, 0]]), "the defect of one under the mask of the other"
    assert m[2:].equal(data.m[2:]) and t.equal(data.t)
    assert z_prev.shape == (4, 4, 8, 8)
    overlapping = data.m.clone()
    overlapping[1] = overlapping[0]
    same = NoisedBatch(*(overlapping if v is data.m else v for v in vars(data).values()))
    assert Game.play(same, data.noise, noises()).mask_fakes_count[:2].sum() == 0, (
        "a mask on the defect is not misplaced"
    )


def test_game_without_normals_and_gradients_go_where_they_should():
    data = batch(anomalies=4)
    output = data.noise.clone().requires_grad_()
    critic = MaskGuidedCritic(CriticConfig(channels=8))
    game = Game.play(data, output, noises())
    loss, penalty = game.critic_loss(critic, penalise=True)
    (loss + penalty).backward()
    assert output.grad is None, "the critic's loss does not train the generator"
    assert all(p.grad is not None for p in critic.parameters())
    critic.zero_grad()
    game.generator_loss(critic).backward()
    assert output.grad is not None and output.grad[0].abs().sum() > 0
    assert all(p.grad is None for p in critic.parameters()), "the generator's loss does not train the critic"
    assert all(p.requires_grad for p in critic.parameters())


def test_adversarial_gradient_stays_within_its_share():
    output = torch.randn(2, 4, 8, 8, requires_grad=True)
    denoising = 0.5 * output.square().sum()
    for strength in (0.01, 1.0, 1000.0):
        adversarial = strength * output.sum()
        weight = bounded_weight(denoising, adversarial, output, 0.3)
        (pushed,) = torch.autograd.grad(weight * adversarial, output, retain_graph=True)
        (wanted,) = torch.autograd.grad(denoising, output, retain_graph=True)
        assert pushed.norm() <= 0.3 * wanted.norm() * 1.0001
        assert weight <= 0.3
