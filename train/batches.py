"""Batches of the joint training: windows that were encoded once, for several steps."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from sard_lora.pipelines.sard_inpaint import SardInpaintPipeline, latent_mask
from sard_lora.train.windows import WindowSource

_BLOCK = 8
"""Batches' worth of windows that are encoded together."""
_ENCODED_AT_ONCE = 8
"""Windows."""


@dataclass(frozen=True)
class Windows:
    """A stack of encoded windows.

    latents, masked_latents: (N, 4, h, w), scaled; masks: latent masks (N, 1, h, w) in {0, 1}; defects: N names.
    """

    latents: torch.Tensor
    masked_latents: torch.Tensor
    masks: torch.Tensor
    defects: list[str]

    def take(self, index: np.ndarray) -> "Windows":
        """The windows at `index`."""
        rows = torch.from_numpy(index)
        return Windows(
            self.latents[rows], self.masked_latents[rows], self.masks[rows], [self.defects[i] for i in index]
        )

    @staticmethod
    def cat(parts: Sequence["Windows"]) -> "Windows":
        """Windows one after the other."""
        return Windows(
            torch.cat([part.latents for part in parts]),
            torch.cat([part.masked_latents for part in parts]),
            torch.cat([part.masks for part in parts]),
            [defect for part in parts for defect in part.defects],
        )


@dataclass(frozen=True)
class BatchSettings:
    """Windows a batch, the share of them that is normal images, and how often an encoded window is drawn."""

    batch_size: int
    normal_share: float
    window_reuse: int
    seed: int


class Batches:
    """Batches by the number of their step: a pure function of that, the seed and the process."""

    def __init__(
        self, source: WindowSource, pipe: SardInpaintPipeline, accelerator: Accelerator, settings: BatchSettings
    ) -> None:
        self.source, self.pipe, self.accelerator, self.settings = source, pipe, accelerator, settings
        self._block: tuple[int, Windows, Windows | None] | None = None

    def batch(self, micro_step: int) -> Windows:
        """The windows of one batch, anomalies first: drawn from a block that was encoded once for several steps."""
        settings, process = self.settings, self.accelerator.process_index
        normals = round(settings.batch_size * settings.normal_share)
        anomalies = settings.batch_size - normals
        block = micro_step // (_BLOCK * settings.window_reuse)
        if self._block is None or self._block[0] != block:
            rng = np.random.default_rng([settings.seed, 1, block, process])
            first = self._encode([self.source.draw_anomaly(rng) for _ in range(_BLOCK * anomalies)])
            second = self._encode([self.source.draw_normal(rng) for _ in range(_BLOCK * normals)]) if normals else None
            self._block = (block, first, second)
        _, first, second = self._block
        rng = np.random.default_rng([settings.seed, 2, micro_step, process])
        parts = [first.take(rng.permutation(len(first.defects))[:anomalies])]
        if second is not None:
            parts.append(second.take(rng.permutation(len(second.defects))[:normals]))
        return Windows.cat(parts)

    @torch.no_grad()
    def _encode(self, windows: list[tuple[torch.Tensor, torch.Tensor, str]]) -> Windows:
        encoded = []
        for start in range(0, len(windows), _ENCODED_AT_ONCE):
            images, masks, defects = zip(*windows[start : start + _ENCODED_AT_ONCE], strict=True)
            x = torch.stack(images).to(self.accelerator.device, self.pipe.vae.dtype)
            mask = torch.stack(masks).to(x)
            with self.accelerator.autocast():
                latents = self.pipe.encode_images(x)
                masked = self.pipe.encode_images(x * (mask < 0.5))
            m = latent_mask(mask, self.pipe.vae_scale_factor)
            encoded.append(Windows(latents.float(), masked.float(), m.float(), list(defects)))
        return Windows.cat(encoded)
