"""The mask-guided critic: what it sees, what it learns, and how it is kept."""

import pytest
import torch
from diffusers import DDIMScheduler

from sard_lora.critic import (
    CriticConfig,
    MaskGuidedCritic,
    border,
    critic_loss,
    generator_loss,
    grid_step,
    r1_penalty,
    rank_score,
    timestep_grid,
    transition,
)

ALPHAS = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).alphas_cumprod


def spot(rows, columns, count=4):
    m = torch.zeros(count, 1, 8, 8)
    m[:, :, rows, columns] = 1
    return m


def scene(m, defect: bool, generator):
    """Latents that are bright inside the mask when there is a defect."""
    z = 0.3 * torch.randn(len(m), 4, 8, 8, generator=generator)
    return z + 2 * m if defect else z


def test_grid_is_trailing_and_ends_at_the_clean_image():
    grid = timestep_grid(1000, 8)
    assert grid.tolist() == [999, 874, 749, 624, 499, 374, 249, 124]
    t, alpha_bar, alpha_bar_prev = grid_step(grid, torch.tensor([0, 7]), ALPHAS)
    assert t.tolist() == [999, 124]
    assert alpha_bar.flatten().tolist() == pytest.approx([ALPHAS[999].item(), ALPHAS[124].item()])
    assert alpha_bar_prev.flatten().tolist() == pytest.approx([ALPHAS[874].item(), 1.0])


@pytest.mark.parametrize("points", [1, 7, 61, 103, 1000])
def test_grid_has_as_many_points_as_asked_for(points):
    grid = timestep_grid(1000, points)
    assert len(grid) == len(set(grid.tolist())) == points and grid[-1] >= 0
    with pytest.raises(ValueError, match="critic_grid=1001: the base has 1000 timesteps only"):
        timestep_grid(1000, 1001)


@pytest.mark.parametrize("background", ["frozen", "renoised"])
def test_real_and_fake_share_their_background_to_the_bit(background):
    m, z0, noise = spot(slice(2, 5), slice(2, 5)), torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8)
    _, alpha_bar, alpha_bar_prev = grid_step(timestep_grid(1000, 8), torch.tensor([0, 3, 6, 7]), ALPHAS)
    z_t = alpha_bar.sqrt() * z0 + (1 - alpha_bar).sqrt() * noise
    noises = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8)
    real, fake = (
        transition(inside, z_t, z0, m, (alpha_bar, alpha_bar_prev), noises, background)
        for inside in (z0, torch.zeros_like(z0))
    )
    outside = m.expand_as(z0) < 0.5
    assert real[outside].equal(fake[outside])
    assert not torch.isclose(real[~outside], fake[~outside]).any()


def test_mask_branch_reads_at_the_masks_own_scale():
    critic = MaskGuidedCritic(CriticConfig(channels=16)).eval()
    z, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    global_logits, mask_logits = critic(z, z, t, spot(3, 3, 2))
    assert global_logits.shape == (2, 1, 2, 2) and mask_logits.shape == (2, 1, 8, 8)
    other_mask = critic(z, z, t, spot(6, 6, 2))[1]
    assert not torch.allclose(mask_logits, other_mask)
    assert not torch.allclose(critic(z, z, t.flip(0), spot(3, 3, 2))[1], mask_logits), "it knows the timestep"


def test_without_its_mask_branch_the_global_one_judges_alone(tmp_path):
    critic = MaskGuidedCritic(CriticConfig(channels=16, mask_branch=False)).eval()
    z, t, m = torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), spot(3, 3, 2)
    global_logits, mask_logits = critic(z, z, t, m)
    assert global_logits.std() > 0 and mask_logits.shape == m.shape and not mask_logits.any()
    assert not [name for name, _ in critic.named_parameters() if name.startswith("mask")]
    critic.save(tmp_path / "critic.safetensors")
    loaded = MaskGuidedCritic.load(tmp_path / "critic.safetensors")
    scores = rank_score(loaded, z, m, ALPHAS, "renoised", 8)
    assert scores.equal(rank_score(critic, z, m, ALPHAS, "renoised", 8)) and scores[0] != scores[1]


def test_logits_far_from_the_mask_do_not_count():
    m = spot(3, 3, 1)
    zero = torch.zeros(1, 1, 2, 2)
    near, far = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    near[..., 2, 2] = 9
    far[..., 6, 6] = 9
    assert border(m).sum() == 9
    assert generator_loss((zero, far), m) == 0
    assert generator_loss((zero, near), m).item() == pytest.approx(-1.0)
    wrong = -9 * torch.ones(1, 1, 8, 8)
    assert critic_loss((zero, wrong), (zero, wrong), m) > critic_loss((zero, -wrong), (zero, wrong), m)


def test_learns_alignment_and_visibility():
    """After a short game against fixed fakes it prefers a defect in its mask to one beside it, and to none."""
    torch.manual_seed(0)
    critic = MaskGuidedCritic(CriticConfig(channels=16))
    optimizer = torch.optim.Adam(critic.parameters(), lr=2e-3, betas=(0.0, 0.99))
    generator = torch.Generator().manual_seed(1)
    t = torch.full((4,), 124)
    here, there = spot(slice(1, 4), slice(1, 4)), spot(slice(5, 8), slice(4, 7))
    for _ in range(60):
        real, nothing = scene(here, True, generator), scene(here, False, generator)
        logits = critic(real, real, t, here)
        fake = critic(nothing, nothing, t, here)
        loss = critic_loss(logits, fake, here, [(critic(real, real, t, there)[1], there)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    critic.eval()
    real = scene(here, True, generator)
    with torch.no_grad():
        inside = (critic(real, real, t, here)[1] * here).sum((1, 2, 3)) / 9
        beside = (critic(real, real, t, there)[1] * there).sum((1, 2, 3)) / 9
    assert (inside > beside).all()
    scores = rank_score(critic, torch.cat([real[:1], scene(here[:1], False, generator)]), here[:2], ALPHAS, "frozen", 8)
    assert scores[0] > scores[1], "best of k picks the candidate that shows a defect"


def test_r1_is_the_squared_gradient():
    z = torch.full((2, 4, 8, 8), 0.5, requires_grad=True)
    logits = (3 * z).mean(1, keepdim=True), torch.zeros(2, 1, 8, 8)
    assert r1_penalty(logits, z).item() == pytest.approx(256 * (3 / 4) ** 2)


def test_save_and_load_give_the_same_scores(tmp_path):
    critic = MaskGuidedCritic(CriticConfig(channels=16)).eval()
    critic.save(tmp_path / "critic.safetensors")
    loaded = MaskGuidedCritic.load(tmp_path / "critic.safetensors")
    z, m = torch.randn(3, 4, 8, 8), spot(2, 2, 3)
    assert rank_score(critic, z, m, ALPHAS, "renoised", 8).equal(rank_score(loaded, z, m, ALPHAS, "renoised", 8))


@pytest.mark.parametrize("length", [0, 100, -1])
def test_a_damaged_file_is_named(tmp_path, length):
    path = tmp_path / "critic.safetensors"
    MaskGuidedCritic(CriticConfig(channels=8)).save(path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=rf"{path}: damaged .*Get the adapter again, or train it"):
        MaskGuidedCritic.load(path)
