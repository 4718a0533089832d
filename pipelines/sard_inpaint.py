"""Region-Constrained Diffusion (RCD) and `SardInpaintPipeline`, in one self-contained file.

The first half are small functions over tensors; training imports them too, so that a model is tuned on exactly what
sampling will show it. The second half is a diffusers pipeline that writes a defect into the mask of a normal image
and leaves every other pixel as it was. Source of the method: SARD, arXiv 2508.03143.

Shapes: `z` latents (B, 4, h, w) with h = H / 8; `m` latent mask (B, 1, h, w) in {0, 1}; `alpha_bar` (B, 1, 1, 1).
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import PNDMScheduler, StableDiffusionInpaintPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import retrieve_timesteps
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled
from PIL import Image

BACKGROUNDS = ("renoised", "frozen", "off")
COMPOSITES = ("change", "contrast", "defect", "pixels")
MID_GREY = 127.5
"""The level that is 0 in [-1, 1] images."""
REGIONS = ("window", "full")
SETTINGS_FILE = "sard_config.json"

# --- RCD: the reverse process, constrained to the mask ---------------------------------------------------------------


def latent_mask(mask: torch.Tensor, factor: int = 8) -> torch.Tensor:
    """Mask (B, 1, H, W) in {0, 1} to the latent grid (B, 1, H/factor, W/factor): any covered pixel counts."""
    return F.max_pool2d(mask, factor)


def fuse(inside: torch.Tensor, background: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """m ⊙ inside + (1 − m) ⊙ background, as a selection, so that the background is equal to the bit (SARD, RCD)."""
    return torch.where(m > 0.5, inside, background)


def noise_latents(
    z0: torch.Tensor, noise: torch.Tensor, m: torch.Tensor, alpha_bar: torch.Tensor, background: str
) -> torch.Tensor:
    """z_t as sampling will show it: q(z_t | z0) (DDPM eq. 4), inside the mask only when the background is frozen."""
    noised = alpha_bar.sqrt() * z0 + (1 - alpha_bar).sqrt() * noise
    return fuse(noised, z0, m) if background == "frozen" else noised


def prediction_target(
    z0: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor, prediction_type: str
) -> torch.Tensor:
    """What the UNet is to predict: ε, v = √ᾱ ε − √(1−ᾱ) z0 (Salimans & Ho 2022), or z0."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * z0
    if prediction_type == "sample":
        return z0
    raise ValueError(f"prediction_type {prediction_type!r} is not one of epsilon, v_prediction, sample")


def predict_z0(
    model_output: torch.Tensor, z_t: torch.Tensor, alpha_bar: torch.Tensor, prediction_type: str
) -> torch.Tensor:
    """ẑ0 from the UNet's output at z_t; the inverse of `prediction_target`."""
    if prediction_type == "epsilon":
        return (z_t - (1 - alpha_bar).sqrt() * model_output) / alpha_bar.sqrt()
    if prediction_type == "v_prediction":
        return alpha_bar.sqrt() * z_t - (1 - alpha_bar).sqrt() * model_output
    if prediction_type == "sample":
        return model_output
    raise ValueError(f"prediction_type {prediction_type!r} is not one of epsilon, v_prediction, sample")


def posterior(
    z0: torch.Tensor, z_t: torch.Tensor, alpha_bar_t: torch.Tensor, alpha_bar_prev: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of q(z_{t'} | z_t, z0) for any t' < t (DDPM eq. 6-7 with α = ᾱ_t / ᾱ_{t'}).

    With `alpha_bar_prev` = 1 (t' is the clean image) the mean is z0 and the variance 0.
    """
    alpha = alpha_bar_t / alpha_bar_prev
    beta = 1 - alpha
    mean = (alpha_bar_prev.sqrt() * beta * z0 + alpha.sqrt() * (1 - alpha_bar_prev) * z_t) / (1 - alpha_bar_t)
    return mean, beta * (1 - alpha_bar_prev) / (1 - alpha_bar_t)


# --- windows: where to generate --------------------------------------------------------------------------------------


class Box(NamedTuple):
    """A rectangle in image pixels; it may reach over the image's edge, where the image is mirrored."""

    left: int
    top: int
    width: int
    height: int


def bounding_box(mask: torch.Tensor) -> Box:
    """The smallest box around the pixels > 0.5 of a mask (..., H, W). Raises ValueError for an empty mask."""
    plane = mask.reshape(-1, *mask.shape[-2:]).amax(0) > 0.5
    rows, columns = plane.any(1).nonzero().flatten(), plane.any(0).nonzero().flatten()
    if len(rows) == 0:
        raise ValueError("the mask is empty: mark at least one pixel")
    top, left = int(rows[0]), int(columns[0])
    return Box(left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1)


def window_box(mask: torch.Tensor, context: float, min_side: int, offset: tuple[float, float] = (0.5, 0.5)) -> Box:
    """A square around the mask's bounding box, `context` times its longer side, at least `min_side` pixels.

    `offset` in [0, 1]² says where in the window's slack the defect lies (0.5: centred; training jitters it). The
    window is moved to lie inside the image; along an axis where the image is smaller it is centred and reaches over.
    """
    height, width = mask.shape[-2:]
    bounds = bounding_box(mask)
    longest = max(bounds.width, bounds.height)
    side = min(max(round(context * longest), min_side, longest), max(height, width))
    corner = []
    for start, extent, size, where in (
        (bounds.left, bounds.width, width, offset[0]),
        (bounds.top, bounds.height, height, offset[1]),
    ):
        wanted = round(start - (side - extent) * where)
        corner.append(-((side - size) // 2) if side >= size else min(max(wanted, 0), size - side))
    return Box(corner[0], corner[1], side, side)


def _mirrored(start: int, length: int, size: int) -> torch.Tensor:
    index = torch.arange(start, start + length) % (2 * size)
    return torch.where(index < size, index, 2 * size - 1 - index)


def crop_window(image: torch.Tensor, box: Box, size: tuple[int, int]) -> torch.Tensor:
    """The box of an image (C, H, W), mirrored over its edges, resized to (C, *size) with antialiasing."""
    rows = _mirrored(box.top, box.height, image.shape[-2])
    columns = _mirrored(box.left, box.width, image.shape[-1])
    crop = image[:, rows[:, None], columns[None, :]].float()
    return resize(crop, size)


def crop_mask(mask: torch.Tensor, box: Box, size: tuple[int, int]) -> torch.Tensor:
    """The box of a mask (1, H, W) in {0, 1}, resized to (1, *size): any covered pixel counts."""
    rows = _mirrored(box.top, box.height, mask.shape[-2])
    columns = _mirrored(box.left, box.width, mask.shape[-1])
    return F.adaptive_max_pool2d(mask[:, rows[:, None], columns[None, :]].float(), size)


def resize(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(C, H, W) to (C, *size), bilinear with antialiasing."""
    if image.shape[-2:] == tuple(size):
        return image
    return F.interpolate(image[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]


# --- composite: what is written --------------------------------------------------------------------------------------


def feather(mask: torch.Tensor, width: int) -> torch.Tensor:
    """Weights (1, H, W) in [0, 1]: 0 outside the mask, rising inwards over `width` pixels, 1 at its core.

    The ramp adapts to the place: where the mask is thinner than `width`, as on a scratch, its own middle has weight 1.
    """
    weights = torch.zeros_like(mask, dtype=torch.float32)
    if not (mask > 0.5).any():
        return weights
    left, top, columns, rows = bounding_box(mask)
    # with a pixel around it, as far as the image goes
    around = (..., slice(max(top - 1, 0), top + rows + 1), slice(max(left - 1, 0), left + columns + 1))
    inside = (mask[around] > 0.5).float()
    depth, eroded = inside.clone(), inside
    for _ in range(width - 1):
        eroded = -F.max_pool2d(-eroded[None], 3, stride=1, padding=1)[0]
        depth += eroded
    if width > 1:
        depth = depth / F.max_pool2d(depth[None], 2 * width - 1, stride=1, padding=width - 1)[0].clamp(min=1)
    weights[around] = depth * inside
    return weights


def defect_gate(difference: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Weights (B, 1, H, W) in [0, 1]: 0 where two fills differ by no more than `noise` (B, 1, 1, 1), 1 from twice that.

    `difference` (B, 3, H, W) between the fill with and without a defect, from the same noise. What both have is no
    defect but the filling itself: written, it would only tell a segmenter where something was written.
    """
    size = F.avg_pool2d(difference.abs().mean(1, keepdim=True), 5, stride=1, padding=2, count_include_pad=False)
    return (size / noise - 1).clamp(0, 1)


def write_change(
    image: np.ndarray,
    change: torch.Tensor,
    mask: torch.Tensor,
    box: Box,
    width: int,
    start: np.ndarray | float | None = None,
) -> np.ndarray:
    """out = x + feather(M) ⊙ (s − x + change) inside M; out = x, byte for byte, outside.

    `image` x uint8 (H, W, 3); `start` s, by default x itself, as x, or one grey level; `change` (3, R, R) in units of
    [-1, 1] images, over `box`; `mask` (1, H, W). An image in these units is the change of `MID_GREY`. A grey image
    stays grey: what is added is averaged over the channels.
    """
    height, width_px = image.shape[:2]
    left, top = max(box.left, 0), max(box.top, 0)
    right, bottom = min(box.left + box.width, width_px), min(box.top + box.height, height)
    change = resize(change.float().cpu(), (box.height, box.width))
    change = change[:, top - box.top : bottom - box.top, left - box.left : right - box.left]
    region = image[top:bottom, left:right]
    added = 127.5 * change.permute(1, 2, 0).numpy()
    if start is not None:
        start = np.broadcast_to(start, image.shape)[top:bottom, left:right]
        added = added + (start.astype(np.float32) - region)
    if (region == region[..., :1]).all():
        added = added.mean(2, keepdims=True)
    weight = feather(mask.float().cpu(), width)[0, top:bottom, left:right, None].numpy()
    written = region + weight * added
    out = image.copy()
    inside = (mask[0, top:bottom, left:right] > 0.5).cpu().numpy()
    out[top:bottom, left:right][inside] = written.round().clip(0, 255).astype(np.uint8)[inside]
    return out


# --- the base an adapter belongs to ----------------------------------------------------------------------------------


def base_signature(unet: torch.nn.Module) -> dict[str, Any]:
    """What tells one base from another, whatever its name or dtype: architecture, and weights from all over the UNet.

    LoRA layers do not count, so the signature stays when adapters are loaded.
    """
    own = {
        name.replace(".base_layer", ""): p for name, p in unet.named_parameters() if "lora_" not in name and p.ndim > 1
    }
    names = sorted(own)
    chosen = [own[names[round(i)]] for i in np.linspace(0, len(names) - 1, 32)]
    weights = [weight.detach().flatten()[weight.numel() // 2 :][:2].float().tolist() for weight in chosen]
    cross_attention_dim = unet.config.cross_attention_dim
    return {
        "in_channels": unet.config.in_channels,
        "cross_attention_dim": cross_attention_dim
        if isinstance(cross_attention_dim, int)
        else list(cross_attention_dim),
        "block_out_channels": list(unet.config.block_out_channels),
        "weights": [float(f"{value:.5g}") for pair in weights for value in pair],
    }


def check_base(unet: torch.nn.Module, expected: dict[str, Any], adapter: str, base: str) -> None:
    """Raise ValueError, by name, unless the UNet is the one that the adapter's signature describes."""
    found = base_signature(unet)
    way_out = f"Load its own base ({base}), or train an adapter on this one."
    if found["in_channels"] != expected["in_channels"]:
        raise ValueError(
            f"{adapter}: trained on the {expected['in_channels']}-channel base {base}, but this pipeline's UNet takes "
            f"{found['in_channels']} channels. {way_out}"
        )
    same_shape = all(found[key] == expected[key] for key in ("cross_attention_dim", "block_out_channels"))
    weights, wanted = np.array(found["weights"]), np.array(expected["weights"])
    # bf16 rounds each weight by 0.1 % on average; a base that was trained on differs by more.
    if not same_shape or np.abs(weights - wanted).mean() > 0.0025 * np.abs(wanted).mean():
        raise ValueError(f"{adapter}: trained on the base {base}, and this pipeline holds another one. {way_out}")


# --- the pipeline ----------------------------------------------------------------------------------------------------


@dataclass
class SardInpaintOutput(BaseOutput):
    """What one call returns.

    images: PIL images, tensors (3, H, W) in [0, 1] (stacked when all sizes agree), or latents (B, 4, h, w).
    nsfw_content_detected: as in diffusers; None without a safety checker.
    latents: the final z_0 (B, 4, h, w), scaled as the UNet sees it. latent_masks: (B, 1, h, w) in {0, 1}.
    visibility: for each image the mean change inside the mask over the mean error of a VAE round trip; below about 1
    the defect drowns in what the VAE does anyway. None with output_type "latent".
    """

    images: list[Image.Image] | torch.Tensor | list[torch.Tensor]
    nsfw_content_detected: list[bool] | None
    latents: torch.Tensor
    latent_masks: torch.Tensor
    visibility: list[float] | None


class _Windows(NamedTuple):
    """The batch as the UNet and the VAE see it.

    x (B, 3, H, W) in [-1, 1]; start, the same with what diffusion starts from in the mask; reconstructed, D(E(start)),
    where pixels are wanted; pixel_mask (B, 1, H, W) and mask (B, 1, h, w) in {0, 1}; image_latents,
    start_latents and, for 9-channel UNets, masked_image_latents (B, 4, h, w).
    """

    x: torch.Tensor
    pixel_mask: torch.Tensor
    mask: torch.Tensor
    image_latents: torch.Tensor
    masked_image_latents: torch.Tensor | None
    start: torch.Tensor
    start_latents: torch.Tensor
    reconstructed: torch.Tensor | None

    def repeated(self, times: int) -> "_Windows":
        """Every window `times` in a row."""
        return _Windows(*(None if item is None else item.repeat_interleave(times, dim=0) for item in self))


class SardInpaintPipeline(StableDiffusionInpaintPipeline):
    """Writes defects into normal images, inside a mask only (SARD, arXiv 2508.03143).

    Loads any Stable Diffusion (inpainting) base with a 9- or 4-channel UNet:

    >>> pipe = SardInpaintPipeline.from_pretrained(base)  # doctest: +SKIP
    >>> pipe.load_lora_weights("user/sard-hazelnut")  # doctest: +SKIP
    >>> image = pipe("a hazelnut with a crack", image=normal, mask_image=mask).images[0]  # doctest: +SKIP
    """

    _callback_tensor_inputs = [  # noqa: RUF012 - diffusers' own name and type
        "latents",
        "prompt_embeds",
        "negative_prompt_embeds",
        "mask",
        "masked_image_latents",
        "image_latents",
    ]

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: Image.Image | Sequence[Image.Image] | torch.Tensor | None = None,
        mask_image: Image.Image | Sequence[Image.Image] | torch.Tensor | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        *,
        background: str | None = None,
        composite: str = "change",
        region: str = "window",
        context: float | None = None,
        min_side: int | None = None,
        feather_width: int | Sequence[int] = 2,
        height: int | None = None,
        width: int | None = None,
        strength: float = 1.0,
        init_image: Image.Image | Sequence[Image.Image] | torch.Tensor | None = None,
        num_inference_steps: int = 20,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float = 3.0,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> SardInpaintOutput | tuple:
        """Generate inside the masks.

        prompt: what the region shows, one for all images or one each ("a hazelnut with a crack").
        image, mask_image: PIL images or tensors (B, 3, H, W) / (B, 1, H, W) in [0, 1]; one of them or lists; every
            image has its own size and mask. The mask is binarised at half; {0, 1} masks are taken as they are.
        negative_prompt: the product *without* a defect ("a hazelnut without a defect"): guidance amplifies what
            makes the difference, ε̂ = ε_good + w (ε_defect − ε_good). Empty when not given.
        background: "renoised" re-noises the known background at every step; "frozen" keeps it clean (SARD, literally);
            "off" is plain inpainting. Default: the loaded adapter's, else "renoised".
        composite: "change" adds D(z_0) − D(E(x)) to the image; "defect" adds it only where the same noise under the
            negative prompt would have become something else, "contrast" adds the difference to that (both take half as
            many UNet calls again); "pixels" writes D(z_0).
        region: "window" generates in a square of `context` × the mask's bounding box (at least `min_side` pixels);
            "full" in the whole image. Defaults: the loaded adapter's, else 2.0 and 64.
        feather_width: pixels over which the change fades in, inside the mask; one for all images or one each.
        height, width: resolution of the generation in pixels, multiples of 8; default: the base's.
        strength: 1 starts inside the mask from pure noise; less from `init_image`, noised, and keeps some of it there
            (SDEdit, Meng et al. 2022).
        init_image: one for each image and of its size, for instance with a real defect pasted into the mask; by default
            the image itself. What is written is then that and the change to it: "change" is D(z_0) − D(E(init_image)).
        timesteps, sigmas, eta, generator, latents, prompt_embeds, cross_attention_kwargs, callbacks: as in diffusers.
            `generator` may be a list, one for each image. Callbacks also see `image_latents`; `mask` is (B, 1, h, w).
        output_type: "pil", "pt" or "latent".

        Raises ValueError for a missing or empty mask, a mask of another size than its image, and unknown options.
        """
        settings = self._adapter_settings()
        background = background or settings.get("background", "renoised")
        context = context if context is not None else settings.get("context", 2.0)
        min_side = min_side if min_side is not None else settings.get("min_side", 64)
        for name, value, known in (
            ("background", background, BACKGROUNDS),
            ("composite", composite, COMPOSITES),
            ("region", region, REGIONS),
            ("output_type", output_type, ("pil", "pt", "latent")),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(known)}")
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs

        images, masks = _as_pairs(image, mask_image)
        prompt = [prompt] * len(images) if isinstance(prompt, str) else prompt
        if prompt is not None and len(prompt) != len(images):
            raise ValueError(f"{len(prompt)} prompts for {len(images)} images: give one, or one for each image")
        if isinstance(negative_prompt, str):
            negative_prompt = [negative_prompt] * len(images)
        widths = [feather_width] * len(images) if isinstance(feather_width, int) else list(feather_width)
        if len(widths) != len(images):
            raise ValueError(f"{len(widths)} feather widths for {len(images)} images: give one, or one for each image")
        height = height or self.unet.config.sample_size * self.vae_scale_factor
        width = width or self.unet.config.sample_size * self.vae_scale_factor
        self.check_inputs(
            list(prompt) if prompt is not None else None,
            image,
            mask_image,
            height,
            width,
            strength,
            None,
            output_type,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        self._guidance_scale = guidance_scale
        self._clip_skip = None
        self._cross_attention_kwargs = cross_attention_kwargs
        self._interrupt = False
        device = self._execution_device

        prompt_embeds, negative_prompt_embeds = self.encode_prompt(
            list(prompt) if prompt is not None else None,
            device,
            num_images_per_prompt,
            self.do_classifier_free_guidance or composite in ("contrast", "defect"),
            list(negative_prompt) if negative_prompt is not None else None,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
        )
        # transformers loads a saved fp16 text encoder in fp16 beside a UNet in fp32
        prompt_embeds = prompt_embeds.to(self.unet.dtype)
        if negative_prompt_embeds is not None:
            negative_prompt_embeds = negative_prompt_embeds.to(self.unet.dtype)
        boxes = [
            window_box(mask, context, min_side) if region == "window" else Box(0, 0, *mask.shape[:0:-1])
            for mask in masks
        ]
        starts = images
        if init_image is not None and strength < 1:
            starts = [init_image] if isinstance(init_image, Image.Image) else list(init_image)
            if [_size(item) for item in starts] != [_size(item) for item in images]:
                raise ValueError("init_image: give one for each image, and of its size")
        targets = list(zip(images, starts, masks, boxes, widths, strict=True))
        targets = [target for target in targets for _ in range(num_images_per_prompt)]
        if isinstance(generator, list) and len(generator) != len(targets):
            raise ValueError(f"{len(generator)} generators for {len(targets)} images: give one, or one for each image")
        windows = self._encode_windows(
            images, starts, masks, boxes, (height, width), prompt_embeds.dtype, output_type != "latent"
        ).repeated(num_images_per_prompt)

        noise = randn_tensor(
            windows.image_latents.shape,
            generator=generator,
            device=windows.image_latents.device,
            dtype=windows.image_latents.dtype,
        )

        def denoise(embeds: torch.Tensor, callback: Callable | None) -> torch.Tensor:
            # Set anew for each pass: schedulers of several steps remember the last ones.
            own, steps = retrieve_timesteps(self.scheduler, num_inference_steps, device, timesteps, sigmas)
            own, steps = self.get_timesteps(steps, strength, device)
            if steps < 1:
                raise ValueError(f"strength={strength} leaves no step to take: raise it or num_inference_steps")
            if isinstance(self.scheduler, PNDMScheduler) and self.scheduler.config.skip_prk_steps:
                # It takes its first step twice, wherever it begins, and its timesteps say so at the very first alone.
                own = own.unique_consecutive()
                own = torch.cat([own[:2], own[1:]])
            return self._denoise(
                noise,
                latents,
                windows,
                embeds,
                negative_prompt_embeds,
                own,
                background,
                strength,
                generator,
                eta,
                callback,
                callback_on_step_end_tensor_inputs,
            )

        good_latents = None
        if composite in ("contrast", "defect") and output_type != "latent":
            self._guidance_scale = 1.0
            good_latents = denoise(negative_prompt_embeds, None)
            self._guidance_scale = guidance_scale
        latents = denoise(prompt_embeds, callback_on_step_end)
        results, visibility, has_nsfw_concept = latents, None, None
        if output_type != "latent":
            change, visibility, has_nsfw_concept = self._change(latents, windows, composite, good_latents)
            results = [
                write_change(
                    _to_array(item), delta, mask, box, fade, MID_GREY if composite == "pixels" else _to_array(start)
                )
                for delta, (item, start, mask, box, fade) in zip(change, targets, strict=True)
            ]
            results = _as_output(results, output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return results, has_nsfw_concept
        return SardInpaintOutput(
            images=results,
            nsfw_content_detected=has_nsfw_concept,
            latents=latents,
            latent_masks=windows.mask,
            visibility=visibility,
        )

    def _encode_windows(
        self,
        images: Sequence[Any],
        starts: Sequence[Any],
        masks: Sequence[torch.Tensor],
        boxes: Sequence[Box],
        size: tuple[int, int],
        dtype: torch.dtype,
        reconstruct: bool,
    ) -> "_Windows":
        """Crop every image and mask to its box and bring them to the latent grid."""
        in_channels = self.unet.config.in_channels
        if in_channels not in (4, 9):
            raise ValueError(f"the UNet takes {in_channels} channels; RCD knows bases with 4 or 9")
        x = torch.stack([crop_window(_to_tensor(item), box, size) for item, box in zip(images, boxes, strict=True)])
        pixel_mask = torch.stack([crop_mask(mask, box, size) for mask, box in zip(masks, boxes, strict=True)])
        x, pixel_mask = (item.to(self._execution_device, self.vae.dtype) for item in (x, pixel_mask))
        start, image_latents = x, self.encode_images(x)
        start_latents = image_latents
        if starts is not images:
            crops = [crop_window(_to_tensor(item), box, size) for item, box in zip(starts, boxes, strict=True)]
            start = torch.stack(crops).to(x)
            start_latents = self.encode_images(start)
        return _Windows(
            x=x,
            pixel_mask=pixel_mask,
            mask=latent_mask(pixel_mask, self.vae_scale_factor).to(dtype),
            image_latents=image_latents.to(dtype),
            masked_image_latents=self.encode_images(x * (pixel_mask < 0.5)).to(dtype) if in_channels == 9 else None,
            start=start,
            start_latents=start_latents.to(dtype),
            reconstructed=self.decode_latents_to_images(start_latents) if reconstruct else None,
        )

    def _denoise(
        self,
        noise: torch.Tensor,
        latents: torch.Tensor | None,
        windows: "_Windows",
        prompt_embeds: torch.Tensor,
        negative_prompt_embeds: torch.Tensor | None,
        timesteps: torch.Tensor,
        background: str,
        strength: float,
        generator: torch.Generator | list[torch.Generator] | None,
        eta: float,
        callback_on_step_end: Callable | None,
        callback_on_step_end_tensor_inputs: Sequence[str],
    ) -> torch.Tensor:
        """RCD's reverse process: z_{t-1} = m ⊙ z̃_{t-1} + (1 − m) ⊙ b_{t-1}; returns z_0 (B, 4, h, w)."""
        mask, image_latents = windows.mask, windows.image_latents
        masked_image_latents = windows.masked_image_latents
        noised = self.scheduler.add_noise(image_latents, noise, timesteps[:1])
        start = noise * self.scheduler.init_noise_sigma
        if strength < 1:
            start = self.scheduler.add_noise(windows.start_latents, noise, timesteps[:1])
        if latents is not None:
            start = latents.to(image_latents)
        latents = fuse(start, {"frozen": image_latents, "renoised": noised, "off": start}[background], mask)

        extra_step_kwargs = self.prepare_extra_step_kwargs(generator, eta)
        self._num_timesteps = len(timesteps)
        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue
                model_input = self.scheduler.scale_model_input(latents, t)
                if background == "frozen":
                    # sigma-space schedulers rescale their input, but the frozen background is at no noise level
                    model_input = fuse(model_input, image_latents, mask)
                if masked_image_latents is not None:
                    model_input = torch.cat([model_input, mask, masked_image_latents], dim=1)
                noise_pred = self._guided_prediction(model_input, t, prompt_embeds, negative_prompt_embeds)
                latents = self.scheduler.step(noise_pred, t, latents, **extra_step_kwargs, return_dict=False)[0]
                if background != "off":
                    known = image_latents
                    if background == "renoised" and i < len(timesteps) - 1:
                        known = self.scheduler.add_noise(image_latents, noise, timesteps[i + 1 : i + 2])
                    latents = fuse(latents, known, mask)

                if callback_on_step_end is not None:
                    local = locals()
                    tensors = {name: local[name] for name in callback_on_step_end_tensor_inputs}
                    changed = callback_on_step_end(self, i, t, tensors)
                    latents = changed.pop("latents", latents)
                    prompt_embeds = changed.pop("prompt_embeds", prompt_embeds)
                    negative_prompt_embeds = changed.pop("negative_prompt_embeds", negative_prompt_embeds)
                    mask = changed.pop("mask", mask)
                    masked_image_latents = changed.pop("masked_image_latents", masked_image_latents)
                    image_latents = changed.pop("image_latents", image_latents)
                progress_bar.update()
        return latents

    def _guided_prediction(
        self,
        model_input: torch.Tensor,
        t: torch.Tensor,
        prompt_embeds: torch.Tensor,
        negative_prompt_embeds: torch.Tensor | None,
    ) -> torch.Tensor:
        """ε̂ = ε_good + w (ε_defect − ε_good) (classifier-free guidance, Ho & Salimans 2022); plain ε̂ for w ≤ 1."""
        guided = self.do_classifier_free_guidance
        prediction = self.unet(
            torch.cat([model_input] * 2) if guided else model_input,
            t,
            encoder_hidden_states=torch.cat([negative_prompt_embeds, prompt_embeds]) if guided else prompt_embeds,
            cross_attention_kwargs=self.cross_attention_kwargs,
            return_dict=False,
        )[0]
        if not guided:
            return prediction
        good, defect = prediction.chunk(2)
        return good + self.guidance_scale * (defect - good)

    def _change(
        self, latents: torch.Tensor, windows: "_Windows", composite: str, good_latents: torch.Tensor | None
    ) -> tuple[torch.Tensor, list[float], list[bool] | None]:
        """What is written into the windows (B, 3, H, W), how visible it is, and the safety checker's verdict, if any.

        That is a change of what diffusion starts from, or, for "pixels", an image.
        """
        decoded = self.decode_latents_to_images(latents)
        decoded, has_nsfw_concept = self.run_safety_checker(decoded, decoded.device, latents.dtype)
        if has_nsfw_concept is not None:
            decoded[torch.tensor(has_nsfw_concept)] = -1  # black, as in diffusers; the checker itself writes 0, a grey
        x, start = windows.x.float(), windows.start.float()
        round_trip = (windows.reconstructed - start).abs().mean((1, 2, 3), keepdim=True).clamp(min=1 / 255)
        change = decoded - windows.reconstructed
        if good_latents is not None:
            contrast = decoded - self.decode_latents_to_images(good_latents)
            change = contrast if composite == "contrast" else change * defect_gate(contrast, round_trip)
        pixel_mask = windows.pixel_mask.float()
        size = (start - x + change).abs().mean(1, keepdim=True)
        inside = (size * pixel_mask).sum((1, 2, 3)) / pixel_mask.sum((1, 2, 3))
        visibility = (inside / round_trip.flatten()).tolist()
        return decoded if composite == "pixels" else change, visibility, has_nsfw_concept

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """E(x): images (B, 3, H, W) in [-1, 1] to scaled latents; the posterior's mean, so that seeds do not drift."""
        return self.vae.encode(images).latent_dist.mode() * self.vae.config.scaling_factor

    def decode_latents_to_images(self, latents: torch.Tensor) -> torch.Tensor:
        """D(z): scaled latents to images (B, 3, H, W), about [-1, 1], not clamped; float32."""
        return self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample.float()

    def load_lora_weights(
        self, pretrained_model_name_or_path_or_dict, adapter_name: str | None = None, **kwargs
    ) -> None:
        """As in diffusers; a sard-lora adapter also brings its settings, and is refused on another base than its own.

        Raises ValueError, naming the adapter and its base, when this pipeline's UNet is not the one it was trained on.
        """
        settings = _read_settings(pretrained_model_name_or_path_or_dict, kwargs)
        if settings is not None:
            base = settings["base"]
            check_base(self.unet, base["signature"], str(pretrained_model_name_or_path_or_dict), base["id"])
        before = set(self.get_list_adapters().get("unet", []))
        super().load_lora_weights(pretrained_model_name_or_path_or_dict, adapter_name=adapter_name, **kwargs)
        new = set(self.get_list_adapters().get("unet", [])) - before
        # Names of adapters that were unloaded are given again: their settings must not stay behind.
        kept = {name: own for name, own in getattr(self, "_sard_settings", {}).items() if name in before}
        self._sard_settings = kept | (dict.fromkeys(new, settings["sampling"]) if settings is not None else {})

    def save_pretrained(self, save_directory, **kwargs) -> None:
        """As in diffusers; the folder opens here and in plain diffusers, and carries this file as `pipeline.py`."""
        super().save_pretrained(save_directory, **kwargs)
        index = Path(save_directory) / "model_index.json"
        content = json.loads(index.read_text(encoding="utf-8"))
        content["_class_name"] = StableDiffusionInpaintPipeline.__name__
        index.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        shutil.copyfile(__file__, Path(save_directory) / "pipeline.py")

    def _adapter_settings(self) -> dict[str, Any]:
        loaded = getattr(self, "_sard_settings", {})
        active = self.get_active_adapters() if loaded else []
        return next((loaded[name] for name in active if name in loaded), {})


def _read_settings(adapter: Any, kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """`sard_config.json` beside the LoRA, in a folder or on the Hub; None for any other LoRA."""
    if isinstance(adapter, dict):
        return None
    path = Path(adapter)
    if path.exists():
        file = (path if path.is_dir() else path.parent) / SETTINGS_FILE
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    names = ("revision", "subfolder", "cache_dir", "token", "local_files_only", "force_download")
    try:
        file = hf_hub_download(str(adapter), SETTINGS_FILE, **{name: kwargs[name] for name in names if name in kwargs})
    except (EntryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled):
        return None
    return json.loads(Path(file).read_text(encoding="utf-8"))


def _as_output(arrays: Sequence[np.ndarray], output_type: str) -> Any:
    """uint8 (H, W, 3) arrays as PIL images, or as tensors (3, H, W) in [0, 1], stacked when their sizes agree."""
    if output_type == "pil":
        return [Image.fromarray(array) for array in arrays]
    tensors = [torch.from_numpy(array).permute(2, 0, 1).float() / 255 for array in arrays]
    return torch.stack(tensors) if len({tensor.shape for tensor in tensors}) == 1 else tensors


def _as_pairs(image: Any, mask_image: Any) -> tuple[list[Any], list[torch.Tensor]]:
    """Images and masks (1, H, W) in {0, 1} as equally long lists, checked."""
    if image is None:
        raise ValueError("image is missing: pass the normal image that the defect is written into")
    if mask_image is None:
        raise ValueError("mask_image is missing: pass a mask (1 = write here) for every image")
    images = [image] if isinstance(image, Image.Image) else list(image)
    masks = [mask_image] if isinstance(mask_image, Image.Image) else list(mask_image)
    if len(images) == 1 and len(masks) > 1:
        images = images * len(masks)
    if len(masks) == 1 and len(images) > 1:
        masks = masks * len(images)
    if len(images) != len(masks) or not images:
        raise ValueError(f"{len(images)} images and {len(masks)} masks: give one mask for each image")
    pairs = []
    for number, (item, mask) in enumerate(zip(images, masks, strict=True)):
        if isinstance(item, Image.Image) and item.mode in ("I", "F", "I;16", "I;16B", "I;16L"):
            raise ValueError(
                f"image {number} has mode {item.mode} (more than 8 bits): convert it to 8 bits first, for instance "
                "with sard_lora.load_image"
            )
        array = np.asarray(mask.convert("L") if isinstance(mask, Image.Image) else mask.float().cpu())
        plane = array.reshape(-1, *array.shape[-2:]).max(0)
        plane = plane > (0.5 if plane.max(initial=0) <= 1 else 127)
        size = _size(item)
        if size != plane.shape[::-1]:
            raise ValueError(
                f"mask {number} is {plane.shape[1]} × {plane.shape[0]} pixels, its image {size[0]} × {size[1]}: "
                "draw the mask at the image's own size"
            )
        if not plane.any():
            raise ValueError(
                f"mask {number} is empty (its brightest value is {array.max()}): mark at least one pixel, 255 or 1"
            )
        pairs.append((item, torch.from_numpy(plane)[None].float()))
    return [item for item, _ in pairs], [mask for _, mask in pairs]


def _size(image: Any) -> tuple[int, int]:
    """Width and height of a PIL image or a tensor (3, H, W)."""
    return image.size if isinstance(image, Image.Image) else tuple(image.shape[:0:-1][:2])


def _to_array(image: Any) -> np.ndarray:
    """A PIL image, or a tensor (3, H, W) in [0, 1], as uint8 (H, W, 3)."""
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    return (image.float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def _to_tensor(image: Any) -> torch.Tensor:
    """A PIL image, or a tensor (3, H, W) in [0, 1], as float (3, H, W) in [-1, 1]."""
    return torch.from_numpy(_to_array(image).copy()).permute(2, 0, 1).float() / 127.5 - 1
