"""How an adapter is trained: every setting of `sard-lora train`."""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from sard_lora.pipelines.sard_inpaint import BACKGROUNDS
from sard_lora.product import Grain
from sard_lora.train.lora import ATTENTION_TARGETS, RESNET_TARGETS


@dataclass
class AdapterTrainConfig:
    """Settings of one adapter's training."""

    data: Path
    """Data set: MVTec-AD, BTAD or paired folders; the category's folder or the one that holds it."""
    output: Path
    """Where the adapter folder goes; logs and checkpoints go to OUTPUT.training."""
    category: str | None = None
    """Category inside the data set; default: the folder itself."""
    base: str = "sard-tiny"
    """Base model: sard-tiny (embedded), a named one, a folder, or a Hub id."""
    revision: str | None = None
    """Revision of a base from the Hub."""
    shots: int | None = None
    """Anomaly parts per defect to train on; default: the first third."""
    draw: int = 0
    """Which parts these are: 0 the first ones of every defect, 1 the next, and so on."""
    steps: int = 500
    """Optimizer steps."""
    batch_size: int = 8
    """Windows per step and process."""
    normal_share: float = 0.5
    """Share of a batch that is normal images under masks from the sampler."""
    learning_rate: float = 4e-4
    """Learning rate of the LoRA; warms up, then falls along a cosine."""
    warmup_steps: int = 20
    """Steps of the warm-up."""
    weight_decay: float = 0.01
    """Weight decay of the LoRA."""
    max_grad_norm: float = 1.0
    """Gradient clipping, for the LoRA and for the critic."""
    rank: int = 32
    """Rank of the LoRA."""
    alpha: float = 32.0
    """Alpha of the LoRA; alpha / rank scales it."""
    targets: tuple[str, ...] = ATTENTION_TARGETS + RESNET_TARGETS
    """Layers of the UNet that get a LoRA: attention and resnet convolutions."""
    resolution: int | None = None
    """Pixels of a training window, a multiple of 8; default: the base's."""
    context_range: tuple[float, float] = (1.6, 3.5)
    """Window side over the longer side of the defect, drawn from this range."""
    min_side: int = 64
    """Smallest window, in image pixels."""
    margin: int | None = None
    """Pixels by which masks are widened, in training and synthesis, because a defect fades out beyond what is outlined;
    default: measured for each defect."""
    window_reuse: int = 8
    """How often an encoded window is drawn, each time with new noise; 1 encodes every window anew."""
    flip_horizontal: bool = True
    """Mirror windows left to right; off for products with a side."""
    flip_vertical: bool = True
    """Mirror windows top to bottom."""
    grain: Grain | None = None
    """Direction of the product's surface, along which it changes least, as that of brushed metal or cells with bars:
    down, across or none; default: measured. Without one windows are turned by quarter turns, and new masks by any
    angle; with one only lines are."""
    background: str = "renoised"
    """Background mode of RCD: renoised, frozen or off."""
    background_weight: float = 0.1
    """Weight of the denoising loss outside the mask (none when the background is frozen)."""
    min_snr_gamma: float | None = None
    """Min-SNR weighting of the denoising loss (Hang et al. 2023); 5 is usual; default: none."""
    critic: bool = True
    """Train the critic jointly (DMG)."""
    critic_mask_branch: bool = True
    """Give the critic its mask branch; without, its global branch judges alone."""
    critic_every: int = 2
    """Adversarial part every so many steps."""
    critic_learning_rate: float = 5e-4
    """Learning rate of the critic."""
    critic_channels: int = 48
    """Channels of the critic's first level."""
    critic_grid: int = 8
    """Timesteps on the critic's coarse grid."""
    adversarial_weight: float = 0.3
    """Largest adversarial gradient, as a share of the denoising gradient at the UNet's output."""
    adversarial_warmup: int = 100
    """Steps before the adversarial weight is full; the critic learns from the start."""
    r1_weight: float = 0.02
    """Weight of the R1 penalty; 0 is none."""
    r1_every: int = 8
    """R1 every so many adversarial steps (lazy regularisation)."""
    ema_decay: float = 0.995
    """Decay of the LoRA's moving average, which is what the adapter keeps; 0 is none."""
    gradient_checkpointing: bool = False
    """Trade speed for memory in the UNet."""
    gradient_accumulation_steps: int = 1
    """Batches per optimizer step."""
    mixed_precision: str = "auto"
    """bf16, no (fp32), or auto: bf16 where it is fast."""
    attention: str = "sdpa"
    """Attention: sdpa, or xformers (CUDA only)."""
    guidance_scale: float = 3.0
    """Defect guidance that the adapter recommends for sampling."""
    seed: int = 0
    """Seed of everything random."""
    cpu: bool = False
    """Stay on the CPU even where there is a GPU."""
    sample_every: int = 250
    """Steps between sample grids; 0 is none but the last."""
    samples: int = 2
    """Pictures of each defect in a sample grid."""
    checkpoint_every: int = 100
    """Steps between checkpoints; the newest two are kept."""
    tensorboard: bool = False
    """Also log to tensorboard (needs the extra `tracking`)."""
    resume: bool = False
    """Go on from the newest checkpoint of the same output; only the learning rate may be another one."""
    overwrite: bool = False
    """Replace an adapter at OUTPUT, and what a run that was stopped left in OUTPUT.training."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("background", self.background, BACKGROUNDS),
            ("grain", self.grain or "none", get_args(Grain)),
            ("mixed_precision", self.mixed_precision, ("auto", "bf16", "no")),
            ("attention", self.attention, ("sdpa", "xformers")),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(known)}")
        positive = ("steps", "batch_size", "rank", "window_reuse", "critic_every", "critic_grid", "r1_every")
        for name in (*positive, "samples", "checkpoint_every", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} has to be at least 1")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} has to be at least 0")
        if self.resolution is not None and (self.resolution < 8 or self.resolution % 8):
            raise ValueError(f"resolution={self.resolution} is not a multiple of 8")
        if self.margin is not None and self.margin < 0:
            raise ValueError(f"margin={self.margin} has to be at least 0")
        low, high = self.context_range
        if not 0 < low <= high:
            raise ValueError(f"context_range={self.context_range} has to begin above 0 and must not fall")
        if not 0 <= self.normal_share < 1:
            raise ValueError(f"normal_share={self.normal_share} has to lie in [0, 1)")
        if round(self.batch_size * self.normal_share) == self.batch_size:
            raise ValueError(
                f"normal_share={self.normal_share}, batch_size={self.batch_size}: leaves no window with a defect. "
                "Make the batch larger or the share smaller"
            )
