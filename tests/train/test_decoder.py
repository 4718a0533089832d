"""The decoder learns grain: spectra tell smooth from grainy and a lattice from grain, and only the decoder moves."""

import numpy as np
import torch
from diffusers import AutoencoderKL
from scipy.ndimage import gaussian_filter

from sard_lora.train.decoder import grain_loss, power_spectrum, train_decoder


def grain(seed: int, sigma: float = 0.05) -> torch.Tensor:
    return sigma * torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(seed))


def test_grain_of_another_seed_is_better_than_none_and_than_a_lattice():
    target = grain(0)
    lattice = torch.zeros_like(target)
    lattice[..., ::8, ::8] = 1
    lattice = lattice / lattice.std() * target.std()
    other, smooth, even = (grain_loss(x, target) for x in (grain(1), torch.zeros_like(target), lattice))
    assert other < even < smooth
    assert grain_loss(target, target) == 0


def test_spectrum_shows_direction():
    across = torch.from_numpy(gaussian_filter(grain(0)[0].numpy(), (0, 3, 0)))[None]
    power = power_spectrum(across)
    assert power.shape == (1, 3, 32, 17)
    assert power[..., 1, 8].mean() > 100 * power[..., 8, 1].mean()


def test_the_decoder_gains_grain_and_the_encoder_stays(tmp_path):
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        norm_num_groups=4,
    )
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}

    def draw(rng: np.random.Generator) -> np.ndarray:
        return np.clip(rng.normal(128, 30, (64, 64, 1)), 0, 255).astype(np.uint8).repeat(3, 2)

    target = torch.from_numpy(draw(np.random.default_rng(9))).permute(2, 0, 1)[None] / 127.5 - 1

    def strength() -> float:
        with torch.no_grad():
            return power_spectrum(vae.decode(vae.encode(target).latent_dist.mode()).sample)[..., 6:, 6:].mean().item()

    first = strength()
    steps, _ = train_decoder(tmp_path, vae, draw, 60, 2, 1e-2, False, 100, 0)
    assert steps == 60
    true = power_spectrum(target)[..., 6:, 6:].mean().item()
    assert abs(np.log(strength() / true)) < 0.5 * abs(np.log(first / true))
    after = vae.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(name.startswith(("decoder.", "post_quant_conv.")) for name in moved)
