"""What the joint loop minimises: the masked denoising loss, and the adversarial game with the critic (SARD's DMG)."""

from dataclasses import dataclass

import torch

from sard_lora.critic import (
    MaskGuidedCritic,
    border,
    critic_loss,
    generator_loss,
    r1_penalty,
    transition,
)
from sard_lora.pipelines.sard_inpaint import noise_latents, predict_z0, prediction_target


@dataclass(frozen=True)
class NoisedBatch:
    """A batch at its noise levels; anomalies come first, normal windows behind them.

    z0, noise (B, 4, h, w); m (B, 1, h, w) in {0, 1}; t (B,); alpha_bar, alpha_bar_prev (B, 1, 1, 1), the latter the
    next point of the critic's grid, or None off the grid.
    """

    z0: torch.Tensor
    noise: torch.Tensor
    m: torch.Tensor
    t: torch.Tensor
    alpha_bar: torch.Tensor
    alpha_bar_prev: torch.Tensor | None
    anomalies: int
    background: str
    prediction_type: str

    @property
    def z_t(self) -> torch.Tensor:
        """The UNet's input latents."""
        return noise_latents(self.z0, self.noise, self.m, self.alpha_bar, self.background)

    def denoising_loss(
        self, output: torch.Tensor, background_weight: float, min_snr_gamma: float | None
    ) -> torch.Tensor:
        """Σ m ⊙ (ε − ε̂)² / Σ m for each sample, so that small defects teach as much as large ones.

        Outside the mask the same error counts `background_weight`, unless the background is frozen: no noise is there.
        """
        target = prediction_target(self.z0, self.noise, self.alpha_bar, self.prediction_type)
        error = (target - output).square().mean(1, keepdim=True)
        loss = _mean_over(error, self.m)
        if self.background != "frozen":
            loss = loss + background_weight * _mean_over(error, 1 - self.m)
        if min_snr_gamma is not None:
            snr = (self.alpha_bar / (1 - self.alpha_bar)).flatten()
            divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1}[self.prediction_type]
            loss = loss * snr.clamp(max=min_snr_gamma) / divisor
        return loss.mean()


@dataclass(frozen=True)
class Game:
    """One round of generator against critic, on transitions z_t → z_{t'} between two points of the critic's grid.

    real and fake differ in the z0 of their posterior alone. Two more kinds of transition are fakes for the mask
    branch: `misplaced`, a real defect under another sample's mask, and `nothing`, a normal window under a mask.
    """

    real: torch.Tensor
    fake: torch.Tensor
    z_t: torch.Tensor
    t: torch.Tensor
    m: torch.Tensor
    mask_fakes: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
    mask_fakes_count: torch.Tensor

    @classmethod
    def play(cls, batch: NoisedBatch, output: torch.Tensor, noises: tuple[torch.Tensor, torch.Tensor]) -> "Game":
        """Build the transitions of a batch from the UNet's `output`; `noises` are those of posterior and background."""
        z0_pred = predict_z0(output, batch.z_t, batch.alpha_bar, batch.prediction_type)

        def step(z0_inside: torch.Tensor, rows: slice, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            bars = batch.alpha_bar[rows], batch.alpha_bar_prev[rows]
            z_t = noise_latents(batch.z0[rows], batch.noise[rows], mask, bars[0], batch.background)
            own = noises[0][rows], noises[1][rows]
            return transition(z0_inside, z_t, batch.z0[rows], mask, bars, own, batch.background), z_t

        anomalies, normals = slice(0, batch.anomalies), slice(batch.anomalies, None)
        m, other, empty = batch.m[anomalies], batch.m[anomalies].roll(1, 0), batch.m[normals]
        real, z_t = step(batch.z0[anomalies], anomalies, m)
        fake, _ = step(z0_pred[anomalies], anomalies, m)
        misplaced, misplaced_z_t = step(batch.z0[anomalies], anomalies, other)
        nothing, nothing_z_t = step(batch.z0[normals], normals, empty)
        mask_fakes = (
            torch.cat([misplaced, nothing]),
            torch.cat([misplaced_z_t, nothing_z_t]),
            torch.cat([batch.t[anomalies], batch.t[normals]]),
            torch.cat([other, empty]),
        )
        # where a foreign mask overlaps the true defect it is right: only its other cells count as misplaced
        counted = torch.cat([other * (1 - border(m)), empty])
        return cls(real.detach(), fake, z_t.detach(), batch.t[anomalies], m, mask_fakes, counted)

    def critic_loss(self, critic: torch.nn.Module, penalise: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The critic's hinge loss, and R1 on the real transitions when `penalise`; one forward pass for all of them."""
        real = self.real.clone().requires_grad_(penalise)
        z_prev = torch.cat([real, self.fake.detach(), self.mask_fakes[0].detach()])
        z_t = torch.cat([self.z_t, self.z_t, self.mask_fakes[1].detach()])
        t = torch.cat([self.t, self.t, self.mask_fakes[2]])
        m = torch.cat([self.m, self.m, self.mask_fakes[3]])
        global_logits, mask_logits = critic(z_prev, z_t, t, m)
        n = len(self.m)
        logits_real, logits_fake = ((global_logits[rows], mask_logits[rows]) for rows in (slice(n), slice(n, 2 * n)))
        loss = critic_loss(logits_real, logits_fake, self.m, [(mask_logits[2 * n :], self.mask_fakes_count)])
        return loss, r1_penalty(logits_real, real) if penalise else None

    def generator_loss(self, critic: MaskGuidedCritic) -> torch.Tensor:
        """The generator's hinge loss; the critic's own parameters get no gradient from it."""
        critic.requires_grad_(False)
        loss = generator_loss(critic(self.fake, self.z_t, self.t, self.m), self.m)
        critic.requires_grad_(True)
        return loss


def bounded_weight(
    denoising: torch.Tensor, adversarial: torch.Tensor, output: torch.Tensor, share: float
) -> torch.Tensor:
    """The weight that keeps the adversarial gradient, at the UNet's output, within `share` of the denoising one.

    So a bad critic cannot ruin an adapter (the idea of VQGAN's adaptive weight, Esser et al. 2021, made a bound).
    """
    (wanted,) = torch.autograd.grad(denoising, output, retain_graph=True)
    (pushed,) = torch.autograd.grad(adversarial, output, retain_graph=True)
    return share * (wanted.norm() / pushed.norm().clamp(min=1e-8)).clamp(max=1.0)


def _mean_over(values: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    return (values * m).sum((1, 2, 3)) / m.sum((1, 2, 3)).clamp(min=1)
