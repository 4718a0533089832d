"""RCD's functions: geometry, composite and the constrained reverse process."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from sard_lora.pipelines.sard_inpaint import (
    MID_GREY,
    Box,
    bounding_box,
    crop_mask,
    crop_window,
    feather,
    fuse,
    latent_mask,
    noise_latents,
    posterior,
    predict_z0,
    prediction_target,
    window_box,
    write_change,
)

sizes = st.integers(1, 70)


def random_case(height: int, width: int, seed: int) -> tuple[np.ndarray, torch.Tensor, np.random.Generator]:
    """An image and a mask: a scratch of one pixel, a box, or single pixels."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), bool)
    kind = rng.integers(3)
    if kind == 0:
        count = int(rng.integers(1, max(height, width) + 1))
        rows = np.linspace(rng.integers(height), rng.integers(height), count).round().astype(int)
        mask[rows, np.linspace(rng.integers(width), rng.integers(width), count).round().astype(int)] = True
    elif kind == 1:
        top, left = rng.integers(height), rng.integers(width)
        mask[top : rng.integers(top, height) + 1, left : rng.integers(left, width) + 1] = True
    else:
        mask |= rng.random((height, width)) < 0.02
        mask[rng.integers(height), rng.integers(width)] = True
    return image, torch.from_numpy(mask)[None].float(), rng


@settings(max_examples=10_000, deadline=None)
@given(sizes, sizes, st.floats(1, 4), st.integers(1, 90), st.integers(1, 6), st.booleans(), st.integers(0, 2**32))
def test_background_is_bit_exact_and_scratch_survives(height, width, context, min_side, ramp, full, seed):
    """Whatever diffusion returns, no pixel outside the mask changes; every marked pixel reaches the latent mask."""
    image, mask, rng = random_case(height, width, seed)
    box = Box(0, 0, width, height) if full else window_box(mask, context, min_side, tuple(rng.random(2)))
    change = torch.from_numpy(rng.normal(0, 2, (3, 16, 16)).astype(np.float32))
    out = write_change(image, change, mask, box, ramp)
    outside = mask[0].numpy() < 0.5
    assert out.shape == image.shape and out.dtype == np.uint8
    assert (out[outside] == image[outside]).all()

    in_window = crop_mask(mask, box, (16, 16))
    latent = latent_mask(in_window[None])[0, 0].numpy() > 0.5
    rows, columns = np.nonzero(mask[0].numpy())
    inside = (rows >= box.top) & (rows < box.top + box.height) & (columns >= box.left)
    inside &= columns < box.left + box.width
    assert inside.all(), "the window covers the whole mask"
    cell_rows = (rows - box.top) * 2 // box.height
    cell_columns = (columns - box.left) * 2 // box.width
    assert latent[cell_rows, cell_columns].all()


def test_scratch_of_one_pixel_survives_at_every_offset():
    """Nearest resizing, as diffusers does it, loses it in seven of eight positions."""
    for offset in range(8):
        mask = torch.zeros(1, 1, 64, 64)
        mask[..., 24 + offset, 10:50] = 1
        assert latent_mask(mask)[0, 0, 3, 1:7].eq(1).all()
        assert latent_mask(mask).sum() == 6


@given(st.integers(1, 400), st.integers(1, 400), st.floats(1, 4), st.integers(1, 300), st.integers(0, 2**32))
def test_window_is_a_square_inside_the_image_or_centred_on_it(height, width, context, min_side, seed):
    _, mask, rng = random_case(min(height, 60), min(width, 60), seed)
    canvas = torch.zeros(1, height, width)
    canvas[:, : mask.shape[1], : mask.shape[2]] = mask
    bounds = bounding_box(canvas)
    box = window_box(canvas, context, min_side, tuple(rng.random(2)))
    assert box.width == box.height <= max(height, width)
    assert box.left <= bounds.left and box.left + box.width >= bounds.left + bounds.width
    assert box.top <= bounds.top and box.top + box.height >= bounds.top + bounds.height
    if box.width <= min(height, width):
        assert min(box.left, box.top) >= 0
        assert box.left + box.width <= width and box.top + box.height <= height


def test_window_over_the_edge_mirrors_the_image():
    image = torch.arange(12.0).reshape(1, 3, 4)
    crop = crop_window(image, Box(0, -1, 4, 5), (5, 4))
    assert crop[0, 0].tolist() == image[0, 0].tolist()
    assert crop[0, 4].tolist() == image[0, 2].tolist()


def test_change_of_zero_changes_nothing_and_change_is_written_at_the_core():
    image = np.full((32, 32, 3), 100, np.uint8)
    mask = torch.zeros(1, 32, 32)
    mask[:, 8:24, 8:24] = 1
    box = Box(0, 0, 32, 32)
    assert (write_change(image, torch.zeros(3, 32, 32), mask, box, 4) == image).all()
    out = write_change(image, torch.full((3, 32, 32), 0.2), mask, box, 4)
    assert (out[16, 16] == round(100 + 127.5 * 0.2)).all()
    assert 100 < out[8, 16, 0] < out[16, 16, 0], "the change fades in from the mask's edge"
    whole = write_change(image, torch.full((3, 32, 32), 0.2), mask, box, 4, MID_GREY)
    assert (whole[16, 16] == 153).all() and (whole[0, 0] == 100).all()


def test_grey_image_stays_grey():
    image = np.repeat(np.random.default_rng(0).integers(0, 256, (20, 20, 1), dtype=np.uint8), 3, axis=2)
    mask = torch.ones(1, 20, 20)
    change = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    out = write_change(image, change, mask, Box(0, 0, 20, 20), 2)
    assert (out == out[..., :1]).all() and (out != image).any()


def test_feather_rises_inwards_and_keeps_thin_scratches():
    mask = torch.zeros(1, 40, 40)
    mask[:, 5:25, 5:25] = 1
    mask[:, 30, 5:35] = 1
    weight = feather(mask, 4)
    assert weight[mask == 0].eq(0).all()
    assert weight[0, 5:9, 15].tolist() == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert weight[0, 30, 5:35].eq(1).all(), "a scratch of one pixel is written at full strength"
    assert feather(mask, 1).equal(mask)


def test_fuse_is_a_selection():
    inside, background = torch.full((1, 4, 2, 2), torch.nan), torch.randn(1, 4, 2, 2)
    assert fuse(inside, background, torch.zeros(1, 1, 2, 2)).equal(background)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_predict_z0_inverts_the_target(prediction_type):
    z0, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    alpha_bar = torch.tensor([0.9, 0.2]).view(-1, 1, 1, 1)
    z_t = noise_latents(z0, noise, torch.ones(2, 1, 8, 8), alpha_bar, "renoised")
    target = prediction_target(z0, noise, alpha_bar, prediction_type)
    assert torch.allclose(predict_z0(target, z_t, alpha_bar, prediction_type), z0, atol=1e-5)
    with pytest.raises(ValueError, match="flow"):
        prediction_target(z0, noise, alpha_bar, "flow")


def test_frozen_background_is_noised_inside_only():
    z0, noise = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    m = torch.zeros(1, 1, 8, 8)
    m[..., 2:4, 2:4] = 1
    z_t = noise_latents(z0, noise, m, torch.tensor(0.3).view(1, 1, 1, 1), "frozen")
    outside = m.expand_as(z0) < 0.5
    assert z_t[outside].equal(z0[outside]) and not z_t[~outside].equal(z0[~outside])


def test_posterior_agrees_with_diffusers_between_neighbours():
    scheduler = DDPMScheduler(clip_sample=False, prediction_type="sample")
    scheduler.set_timesteps(1000)
    z0, z_t, t = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8), 700
    bars = [scheduler.alphas_cumprod[step].view(1, 1, 1, 1) for step in (t, t - 1)]
    mean, variance = posterior(z0, z_t, *bars)
    torch.manual_seed(0)
    expected = scheduler.step(z0, t, z_t, generator=torch.Generator().manual_seed(1)).prev_sample
    noise = torch.randn(z0.shape, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(mean + variance.sqrt() * noise, expected, atol=1e-5)
    clean_mean, clean_variance = posterior(z0, z_t, bars[0], torch.ones_like(bars[0]))
    assert torch.allclose(clean_mean, z0) and clean_variance.eq(0).all()
