"""One step of the joint training: a LoRA on an inpainting UNet (the generator) against the mask-guided critic.

`train/adapter.py` is the loop around it. Everything random in step k comes from (seed, k, process), so a resumed run
repeats an uninterrupted one.
"""

import math
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

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
from sard_lora.pipelines.sard_inpaint import SardInpaintPipeline, base_signature
from sard_lora.product import grain_of
from sard_lora.train.adapter_train_config import AdapterTrainConfig
from sard_lora.train.batches import Batches, BatchSettings
from sard_lora.train.checkpoint import load_optimizer_tensors, optimizer_tensors
from sard_lora.train.lora import add_lora, use_xformers
from sard_lora.train.objectives import Game, NoisedBatch, bounded_weight
from sard_lora.train.samples import sample_grid
from sard_lora.train.windows import WindowSettings, WindowSource


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

    @cached_property
    def fingerprint(self) -> str:
        """That of all images that are trained on, as they were when it was first asked for."""
        return fingerprint([*self.split.train, *self.split.normals])

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
                "fingerprint": self.fingerprint,
                "shots": {d: sum(sample.defect == d for sample in samples) for d in self.defects},
                "images": [sample.image.relative_to(self.category.root).as_posix() for sample in samples],
            },
            critic_grid=config.critic_grid if config.critic else None,
        )

    def draw_samples(self, path: Path) -> None:
        """Save a grid normal | mask | result with the current weights, the same pictures every time."""
        rng = np.random.default_rng(self.config.seed)
        config = self.adapter_config(0.0)
        sample_grid(self.pipe, config, self.source.bank, self.split.normals, rng, path, self.config.samples)
