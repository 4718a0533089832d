"""One step of the joint training: a LoRA on an inpainting UNet (the generator) against the mask-guided critic.

`train/adapter.py` is the loop around it. Everything random in step k comes from (seed, k, process), so a resumed run
repeats an uninterrupted one.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from peft import get_peft_model_state_dict, set_peft_model_state_dict

from sard_lora import bases
from sard_lora.adapter_config import AdapterConfig, BaseReference, SamplingSettings, prompts_for
from sard_lora.critic import CriticConfig, MaskGuidedCritic, grid_step, timestep_grid
from sard_lora.data import few_shot_split, fingerprint, open_category, require_sound
from sard_lora.layouts import GOOD
from sard_lora.margins import fade_margins
from sard_lora.pipelines.sard_inpaint import BACKGROUNDS, SardInpaintPipeline, base_signature
from sard_lora.product import Grain, grain_of
from sard_lora.train.batches import Batches, BatchSettings
from sard_lora.train.checkpoint import load_optimizer_tensors, optimizer_tensors
from sard_lora.train.lora import ATTENTION_TARGETS, RESNET_TARGETS, add_lora, use_xformers
from sard_lora.train.objectives import Game, NoisedBatch, bounded_weight
from sard_lora.train.samples import sample_grid
from sard_lora.train.windows import WindowSettings, WindowSource


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


class AdapterTrainer:
    """Models, optimizers and data of one run, and what is done with them in a step."""

    def __init__(self, config: AdapterTrainConfig, accelerator: Accelerator) -> None:
        self.config, self.accelerator, self.device = config, accelerator, accelerator.device
        category = open_category(config.data, config.category)
        require_sound(category)
        self.category = category
        self.split = few_shot_split(category, config.shots, config.draw)

        self.base = bases.describe(config.base, config.revision)
        bf16 = accelerator.mixed_precision == "bf16" and self.device.type == "cuda"  # frozen weights in training's own
        self.pipe = SardInpaintPipeline.from_pretrained(
            self.base.path,
            revision=config.revision,
            dtype=torch.bfloat16 if bf16 else torch.float32,
            safety_checker=None,
            requires_safety_checker=False,
        ).to(self.device)
        self.pipe.set_progress_bar_config(disable=True)
        unet, scheduler = self.pipe.unet, self.pipe.scheduler
        self.signature = base_signature(unet)
        self.prediction_type = scheduler.config.prediction_type
        self.alphas_cumprod = scheduler.alphas_cumprod.to(self.device, torch.float32)
        self.grid = timestep_grid(len(self.alphas_cumprod), config.critic_grid).to(self.device)
        self.resolution = config.resolution or unet.config.sample_size * self.pipe.vae_scale_factor
        self.defects = sorted({sample.defect for sample in self.split.train})
        self.prompts = prompts_for(category.name, self.defects)
        if config.margin is None:
            self.margins = fade_margins(self.split.train)
        else:
            self.margins = dict.fromkeys(self.defects, config.margin)
        self.grain = config.grain or grain_of([sample.image for sample in self.split.normals])
        with torch.no_grad():
            embeds, _ = self.pipe.encode_prompt(list(self.prompts.values()), self.device, 1, False)
        self.prompt_embeds = dict(zip(self.prompts, embeds, strict=True))

        torch.manual_seed(config.seed)
        add_lora(self.pipe, config.rank, config.alpha, config.targets)
        if config.attention == "xformers":
            use_xformers(unet)
        if config.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        self.critic_model = MaskGuidedCritic(
            CriticConfig(
                latent_channels=self.pipe.vae.config.latent_channels,
                channels=config.critic_channels,
                mask_branch=config.critic_mask_branch,
            )
        )
        self.lora = [parameter for parameter in unet.parameters() if parameter.requires_grad]
        self.ema = EMAModel(self.lora, decay=config.ema_decay, use_ema_warmup=False) if config.ema_decay else None
        optimizer = torch.optim.AdamW(self.lora, lr=config.learning_rate, weight_decay=config.weight_decay)
        critic_optimizer = torch.optim.AdamW(
            self.critic_model.parameters(), lr=config.critic_learning_rate, betas=(0.0, 0.99), weight_decay=0.0
        )
        self.unet, self.critic, self.optimizer, self.critic_optimizer = accelerator.prepare(
            unet, self.critic_model, optimizer, critic_optimizer
        )
        self.source = WindowSource(
            self.split.train,
            self.split.normals,
            WindowSettings(
                self.resolution,
                config.context_range,
                config.min_side,
                self.margins,
                config.flip_horizontal,
                config.flip_vertical,
                self.grain,
            ),
        )
        self.batches = Batches(
            self.source,
            self.pipe,
            accelerator,
            BatchSettings(config.batch_size, config.normal_share, config.window_reuse, config.seed),
        )

    # --- one step -----------------------------------------------------------------------------------------------------

    def step(self, step: int) -> dict[str, float]:
        """One optimizer step of the LoRA and, on its turn, of the critic; returns the losses."""
        config = self.config
        progress = min(1.0, (step + 1) / max(1, config.warmup_steps))
        decay = 0.5 * (1 + math.cos(math.pi * step / config.steps))
        for optimizer, rate in (
            (self.optimizer, config.learning_rate * progress * (0.1 + 0.9 * decay)),
            (self.critic_optimizer, config.critic_learning_rate),
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate
        logs: dict[str, float] = {}
        for micro in range(config.gradient_accumulation_steps):
            micro_step = step * config.gradient_accumulation_steps + micro
            with self.accelerator.accumulate(self.unet, self.critic):
                logs = self._micro_step(step, micro_step)
        if self.ema is not None:
            self.ema.step(self.lora)
        return logs

    def _micro_step(self, step: int, micro_step: int) -> dict[str, float]:
        config, accelerator, unet = self.config, self.accelerator, self.pipe.unet
        windows = self.batches.batch(micro_step)
        seed = int(np.random.default_rng([config.seed, 3, micro_step, accelerator.process_index]).integers(2**62))
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)

        def randn() -> torch.Tensor:
            return torch.randn(windows.latents.shape, generator=generator).to(self.device)

        adversarial = config.critic and step % config.critic_every == 0
        if adversarial:
            index = torch.randint(len(self.grid), (config.batch_size,), generator=generator).to(self.device)
            t, alpha_bar, alpha_bar_prev = grid_step(self.grid, index, self.alphas_cumprod)
        else:
            t = torch.randint(len(self.alphas_cumprod), (config.batch_size,), generator=generator).to(self.device)
            alpha_bar, alpha_bar_prev = self.alphas_cumprod[t].view(-1, 1, 1, 1), None
        batch = NoisedBatch(
            windows.latents,
            randn(),
            windows.masks,
            t,
            alpha_bar,
            alpha_bar_prev,
            anomalies=sum(defect != GOOD for defect in windows.defects),
            background=config.background,
            prediction_type=self.prediction_type,
        )
        model_input = batch.z_t
        if unet.config.in_channels == 9:
            model_input = torch.cat([model_input, windows.masks, windows.masked_latents], dim=1)
        embeds = torch.stack([self.prompt_embeds[defect] for defect in windows.defects])
        with accelerator.autocast():
            output = self.unet(model_input.to(unet.dtype), t, encoder_hidden_states=embeds.to(unet.dtype)).sample
        output = output.float()
        loss = denoising = batch.denoising_loss(output, config.background_weight, config.min_snr_gamma)
        logs = {"denoising": denoising}
        if adversarial:
            game = Game.play(batch, output, (randn(), randn()))
            logs |= self._step_critic(step, game)
            adversarial_loss = game.generator_loss(self.critic_model)
            warm_up = min(1.0, step / max(1, config.adversarial_warmup))
            weight = bounded_weight(denoising, adversarial_loss, output, warm_up * config.adversarial_weight)
            loss = denoising + weight * adversarial_loss
            logs |= {"adversarial": adversarial_loss, "adversarial_weight": weight}
        accelerator.backward(loss)
        if accelerator.sync_gradients:
            logs["gradient_norm"] = accelerator.clip_grad_norm_(self.lora, config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {name: float(value.detach()) for name, value in logs.items()}

    def _step_critic(self, step: int, game: Game) -> dict[str, torch.Tensor]:
        config, accelerator = self.config, self.accelerator
        penalise = config.r1_weight > 0 and (step // config.critic_every) % config.r1_every == 0
        loss, penalty = game.critic_loss(self.critic, penalise)
        logs = {"critic": loss}
        if penalty is not None:
            logs["r1"] = penalty
            loss = loss + config.r1_weight * config.r1_every * penalty
        accelerator.backward(loss)
        if accelerator.sync_gradients:
            accelerator.clip_grad_norm_(self.critic.parameters(), config.max_grad_norm)
        self.critic_optimizer.step()
        self.critic_optimizer.zero_grad(set_to_none=True)
        return logs

    # --- state --------------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything a resumed run needs, as flat named tensors."""
        state = {f"lora.{name}": value for name, value in get_peft_model_state_dict(self.pipe.unet).items()}
        state |= {f"critic.{name}": value for name, value in self.critic_model.state_dict().items()}
        for name, optimizer in (("optimizer", self.optimizer), ("critic_optimizer", self.critic_optimizer)):
            state |= {f"{name}.{key}": value for key, value in optimizer_tensors(optimizer.optimizer).items()}
        if self.ema is not None:
            state |= {f"ema.{number}": value for number, value in enumerate(self.ema.shadow_params)}
            state["ema_steps"] = torch.tensor(self.ema.optimization_step)
        return state

    def load_tensors(self, state: dict[str, torch.Tensor]) -> None:
        """Put back what `tensors` gave, to the bit."""

        def part(name: str) -> dict[str, torch.Tensor]:
            return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}

        set_peft_model_state_dict(self.pipe.unet, part("lora"))
        self.critic_model.load_state_dict(part("critic"))
        load_optimizer_tensors(self.optimizer.optimizer, part("optimizer"))
        load_optimizer_tensors(self.critic_optimizer.optimizer, part("critic_optimizer"))
        if self.ema is not None:
            for number, value in part("ema").items():
                self.ema.shadow_params[int(number)].copy_(value)
            self.ema.optimization_step = int(state["ema_steps"])

    def adapter_config(self, seconds: float) -> AdapterConfig:
        """`sard_config.json` of the finished adapter."""
        config = self.config
        training = {key: value for key, value in asdict(config).items() if key not in ("resume", "overwrite")}
        training["total_batch_size"] = (
            config.batch_size * self.accelerator.num_processes * config.gradient_accumulation_steps
        )
        samples = self.split.train
        return AdapterConfig(
            category=self.category.name,
            defects=self.defects,
            prompts=self.prompts,
            base=BaseReference(
                config.base, self.base.revision, self.base.adapted_from, self.resolution, self.signature
            ),
            sampling=SamplingSettings(
                background=config.background,
                min_side=config.min_side,
                margins=self.margins,
                grain=self.grain,
                guidance_scale=config.guidance_scale,
            ),
            training=training | {"seconds": round(seconds, 1)},
            data={
                "fingerprint": fingerprint([*samples, *self.split.normals]),
                "shots": {d: sum(sample.defect == d for sample in samples) for d in self.defects},
                "images": [str(sample.image.relative_to(self.category.root)) for sample in samples],
            },
            critic_grid=config.critic_grid if config.critic else None,
        )

    def draw_samples(self, path: Path) -> None:
        """Save a grid normal | mask | result with the current weights, the same pictures every time."""
        rng = np.random.default_rng(self.config.seed)
        config = self.adapter_config(0.0)
        sample_grid(self.pipe, config, self.source.bank, self.split.normals, rng, path, self.config.samples)
