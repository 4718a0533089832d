"""An adapter at work: which picture and mask come next, their candidates, and the one that is written.

Everything random about image i comes from (seed, i).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from sard_lora.adapter import Adapter
from sard_lora.adapter_config import FEATHER_WIDTH
from sard_lora.critic import rank_score
from sard_lora.data import named_anomalies
from sard_lora.detectability import matched_filter_snr
from sard_lora.foreign import blended, drawn_texture
from sard_lora.images import load_image
from sard_lora.labelled import DRAWN, IN_PLACE
from sard_lora.layouts import GOOD, Sample
from sard_lora.mask_bank import BankMask, MaskBank
from sard_lora.mask_geometry import split_mask
from sard_lora.masks import Placement, sample_mask
from sard_lora.pipelines.sard_inpaint import SardInpaintOutput, SardInpaintPipeline
from sard_lora.precision import choose_device, mixed_precision
from sard_lora.product import foreground
from sard_lora.synthesize_config import SynthesizeConfig, chosen_strength, default_candidates
from sard_lora.transplant import borrowed, transplant

PLACES = 12
"""How many are tried, at most, for a real defect to stand out."""


@dataclass
class Job:
    """One image to make: number i of the whole set, its defect, its file's name, its `turn` among those of its defect.

    With `drawn` it shows none of the known defects but a drawn texture, under a mask as large as those of `defect`.
    """

    number: int
    defect: str
    name: str
    turn: int = 0
    rejected: int = 0
    drawn: bool = False

    @property
    def folder(self) -> str:
        """The defect that it is filed under."""
        return DRAWN if self.drawn else self.defect


@dataclass
class Draw:
    """An image and a mask for one attempt at a job; every part of the mask has seeds of its own.

    `core` is the mask before it was widened, which is what is labelled a defect where a real one was moved. `source` is
    the image's file. `start` is the image with a real defect in the mask, or None; where a defect is drawn anew
    `in_place`, it is the image itself.
    """

    job: Job
    source: Path
    image: Image.Image
    mask: np.ndarray
    core: np.ndarray
    mask_origin: str
    start: Image.Image | None
    parts: list[np.ndarray]
    seeds: list[list[int]]
    in_place: bool = False


class Candidate(NamedTuple):
    """A picture with one part of a mask written: how visible that is, the critic's opinion, and the seed."""

    image: Image.Image
    visibility: float
    score: float
    seed: int


class Synthesizer:
    """An adapter loaded for synthesis: the pipeline, its critic and its masks."""

    def __init__(self, adapter: Adapter, config: SynthesizeConfig) -> None:
        self.adapter, self.config = adapter, config
        self.device = choose_device(config.device)
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.pipe: SardInpaintPipeline = adapter.pipeline(config.base, self.device, dtype)
        self.pipe.fuse_lora(components=["unet"])  # one adapter, many images: its layers need not be added every time
        for model in (self.pipe.unet, self.pipe.vae):
            model.to(memory_format=torch.channels_last)  # a tenth less time on a CPU
        critic = adapter.critic()
        self.critic = critic.to(self.device) if critic is not None else None

    @cached_property
    def bank(self) -> MaskBank:
        """The masks that new ones are made from; raises as `mask_bank`."""
        return mask_bank(self.adapter, self.config)

    @cached_property
    def strength(self) -> float:
        """How much the real defects are changed that diffusion starts from; 1 is from noise alone."""
        return chosen_strength(self.config, self.bank)

    def draw(self, job: Job, attempt: int, normals: Sequence[Sample]) -> Draw:
        """The image, mask and seeds of one attempt; the same for the same (seed, job, attempt)."""
        rng = np.random.default_rng([self.config.seed, job.number, attempt])
        bank = self.bank.for_defect(job.defect)
        if self.strength < 1 and not (self.config.fills or job.drawn) and (entry := self._in_place(bank, job.turn)):
            image = load_image(entry.image)
            placement = Placement(entry.mask, entry.mask, entry.origin)
            return replace(self.plan(job, entry.image, image, placement, rng, image), in_place=True)
        moved = self.strength < 1 and (job.drawn or not self._from_noise(job.turn))
        if not moved or self.config.fills:
            return self._placed(job, bank, normals, rng, moved)
        best, most = None, -1.0
        for _ in range(PLACES):
            draw = self._placed(job, bank, normals, rng, moved)
            snr = matched_filter_snr(draw.start, draw.core, draw.image)
            if snr > most:
                best, most = draw, snr
            if snr >= self.config.min_snr:
                break
        return best

    def _placed(
        self, job: Job, bank: Sequence[BankMask], normals: Sequence[Sample], rng: np.random.Generator, moved: bool
    ) -> Draw:
        """A normal image and a new mask in it; `moved` with a real defect there, or for fills a piece of a normal.

        What is drawn has a texture there, under a mask of any shape.
        """
        source = normals[rng.integers(len(normals))].image
        image, start = load_image(source), None
        if job.drawn:
            placement = sample_mask(bank, foreground(image), rng, source="perlin")
            texture = drawn_texture(placement.mask.shape, rng)
            start = Image.fromarray(blended(np.asarray(image), texture, placement.mask, rng))
            return self.plan(job, source, image, placement, rng, start)
        masks = self.config.masks if moved or self.strength == 1 else "mixed"
        options = self.adapter.config.sampling.mask_options(job.defect)
        placement = sample_mask(bank, foreground(image), rng, source=masks, **options)
        if moved:
            if self.config.fills:
                placement = borrowed(placement, normals[rng.integers(len(normals))].image)
            start = transplant(image, placement, self._contrast(rng))
        return self.plan(job, source, image, placement, rng, start)

    def _contrast(self, rng: np.random.Generator) -> float | None:
        """How strong the change is that a thin moved defect makes, or None: its pixels are moved."""
        return None if self.config.contrast is None else float(np.exp(rng.uniform(*np.log(self.config.contrast))))

    def _in_place(self, bank: Sequence[BankMask], turn: int) -> BankMask | None:
        """The real defect to draw anew where it is, or None: every one is taken before one is taken again."""
        share = self.config.in_place or 0.0
        if not is_chosen(turn, share):
            return None
        lap, place = divmod(int(turn * share), len(bank))
        return bank[np.random.default_rng([self.config.seed, lap]).permutation(len(bank))[place]]

    def _from_noise(self, turn: int) -> bool:
        """Whether an image, of those that are not in place, does without a real defect to start from."""
        before = 0 if self.config.fills else int(turn * (self.config.in_place or 0.0))
        return is_chosen(turn - before, self.config.from_noise)

    def plan(
        self,
        job: Job,
        source: Path,
        image: Image.Image,
        placement: Placement,
        rng: np.random.Generator,
        start: Image.Image | None = None,
    ) -> Draw:
        """What to generate for a mask of an image: its parts, and seeds for their candidates.

        From noise, unless there is an image to `start` from.
        """
        sampling, mask = self.adapter.config.sampling, placement.mask
        whole = self.config.region == "full"
        parts = [mask] if whole else split_mask(mask, sampling.context, sampling.min_side)
        candidates = self.config.candidates or default_candidates(1.0 if start is None else self.strength)
        seeds = rng.integers(2**31, size=(len(parts), candidates)).tolist()
        return Draw(job, source, image, mask, placement.core, placement.origin, start, parts, seeds)

    def generate(self, draws: Sequence[Draw]) -> list[list[list[Candidate]]]:
        """For every draw and every part of its mask the candidates; without a critic every score is 0."""
        wanted = [(draw, part, seeds) for draw in draws for part, seeds in zip(draw.parts, draw.seeds, strict=True)]
        made: list[list[Candidate]] = [[] for _ in wanted]
        for from_noise in (False, True):  # each by themselves: the steps of the reverse diffusion are not the same
            places = [place for place, (draw, _, _) in enumerate(wanted) if (draw.start is None) == from_noise]
            size = max(1, self.config.batch_size // len(wanted[places[0]][2])) if places else 1
            for first in range(0, len(places), size):
                batch = places[first : first + size]
                flat = iter(self._candidates([wanted[place] for place in batch]))
                for place in batch:
                    made[place] = [next(flat) for _ in wanted[place][2]]
        rows = iter(made)
        return [[next(rows) for _ in draw.parts] for draw in draws]

    def _candidates(self, wanted: Sequence[tuple[Draw, np.ndarray, list[int]]]) -> list[Candidate]:
        """Those of several parts, all of them from noise or none."""
        with mixed_precision(self.device):
            output = self._sample(wanted)
        scores = [0.0] * len(output.images)
        if self.critic is not None:
            scores = rank_score(
                self.critic,
                output.latents.float(),
                output.latent_masks.float(),
                self.pipe.scheduler.alphas_cumprod.float(),
                self.config.background or self.adapter.config.sampling.background,
                self.adapter.config.critic_grid,
            ).tolist()
        seeds = [seed for _, _, seeds in wanted for seed in seeds]
        return [Candidate(*row) for row in zip(output.images, output.visibility, scores, seeds, strict=True)]

    def _sample(self, wanted: Sequence[tuple[Draw, np.ndarray, list[int]]]) -> SardInpaintOutput:
        config, own = self.config, self.adapter.config
        chosen = {name: getattr(config, name) for name in ("background", "guidance_scale", "num_inference_steps")}
        moved = wanted[0][0].start is not None
        settings = own.sampling.arguments(own.base.resolution)
        if moved:
            settings["guidance_scale"] = 1.0  # what it starts from is a defect already
        settings |= {name: value for name, value in chosen.items() if value is not None}
        if config.fills:
            settings["guidance_scale"] = 1.0  # nothing to amplify: both prompts would be the same
        return self.pipe(
            [self.adapter.prompt(GOOD if config.fills else draw.job.defect) for draw, _, _ in wanted],
            image=[draw.image for draw, _, _ in wanted],
            mask_image=[Image.fromarray(part) for _, part, _ in wanted],
            negative_prompt=self.adapter.prompt(GOOD),
            strength=max(self.strength, 1.001 / settings["num_inference_steps"]) if moved else 1.0,  # one step at least
            feather_width=[
                FEATHER_WIDTH if draw.in_place or draw.job.drawn else own.sampling.feather_width(draw.job.defect)
                for draw, _, _ in wanted
            ],
            init_image=[draw.start for draw, _, _ in wanted] if moved else None,
            composite=config.composite,
            region=config.region,
            num_images_per_prompt=len(wanted[0][2]),
            generator=[torch.Generator().manual_seed(seed) for _, _, seeds in wanted for seed in seeds],
            **settings,
        )


def is_chosen(number: int, share: float) -> bool:
    """Whether a thing is among a share of all, which are numbered from 0 and chosen at even distances."""
    return int((number + 1) * share) > int(number * share)


def mask_bank(adapter: Adapter, config: SynthesizeConfig) -> MaskBank:
    """The masks to shape new ones by: those given, or the adapter's. Raises ValueError or OSError without any."""
    if config.mask_bank:
        return MaskBank.load(config.mask_bank)
    return adapter.masks().with_images(named_anomalies(config.data, config.category, adapter.config.data["images"]))


def compose(
    synthesizer: Synthesizer, draw: Draw, chosen: Sequence[tuple[np.ndarray, Candidate]]
) -> tuple[Image.Image, np.ndarray, np.ndarray, dict[str, Any]]:
    """The image with the chosen candidates of parts written, grey where its own picture is grey; mask, core and record.

    The mask (H, W) bool is all that was written, its core what is labelled a defect.
    """
    config, job = synthesizer.config, draw.job
    pixels, mask = np.array(draw.image), np.zeros_like(draw.mask)
    for part, candidate in chosen:
        pixels[part] = np.asarray(candidate.image)[part]
        mask |= part
    image = Image.fromarray(pixels)
    candidates = [candidate for _, candidate in chosen]
    with Image.open(draw.source) as file:
        grey = file.mode in ("1", "L", "I", "I;16")
    record = {
        "mask_origin": draw.mask_origin,
        "mask_sha256": mask_digest(mask),
        "defect": job.folder,
        "prompt": synthesizer.adapter.prompt(GOOD if config.fills else job.defect),
        "seed": candidates[0].seed,
        "critic_score": float(np.mean([candidate.score for candidate in candidates])),
        "visibility": min(candidate.visibility for candidate in candidates),
        "parts": len(chosen),
        "rejected": job.rejected,
        "method": "fill" if config.fills else IN_PLACE if draw.in_place else DRAWN if job.drawn else "sard",
    }
    image = image.convert("L") if grey else image
    if config.fills:
        core = mask  # no defect that fades out: all of what was written is what a segmenter may or may not tell
    elif draw.start is None and config.composite != "pixels":  # where all is decoded, an outline of the change is noise
        core = outlined(image, draw.image, mask)
    else:
        core = mask & draw.core
    return image, mask, core, record


def outlined(image: Image.Image, normal: Image.Image, mask: np.ndarray) -> np.ndarray:
    """The part of a mask (H, W) bool that an annotator would outline: where a defect that was drawn into it has at
    least half of its contrast. Never empty."""
    change = np.abs(np.asarray(image.convert("RGB"), np.float32) - np.asarray(normal, np.float32)).mean(2)
    change = ndimage.uniform_filter(change, 3)
    return mask & (change >= 0.5 * np.percentile(change[mask], 90))


def mask_digest(mask: np.ndarray) -> str:
    """SHA-256 of a mask (H, W) bool, as records have it."""
    return hashlib.sha256(np.packbits(mask).tobytes()).hexdigest()
