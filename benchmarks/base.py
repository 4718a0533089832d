"""What a base is worth on surfaces it never saw: round trips of its autoencoder, and normal regions inpainted.

    python benchmarks/base.py --data DIR --output runs/base-benchmark

DIR holds one or more data sets in MVTec-AD layout. Only their held-back normal images are measured; the adapted base
saw those of the training side. The result is `base.json`, `base.md` and one picture `base-NAME.jpg` for each data set.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionInpaintPipeline
from PIL import Image
from scipy.ndimage import binary_dilation
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from skimage.restoration import inpaint_biharmonic

from sard_lora import bases
from sard_lora.adapter_config import prompts_for
from sard_lora.atomic import make_folder, write_text
from sard_lora.config import parse
from sard_lora.data import Category, few_shot_split, open_category
from sard_lora.evaluation.cells import machine
from sard_lora.images import load_image
from sard_lora.layouts import GOOD
from sard_lora.pipelines.sard_inpaint import Box, crop_window
from sard_lora.precision import mixed_precision
from sard_lora.report import grid
from sard_lora.train.adapt import AdaptConfig, adapt
from sard_lora.train.corpus import draw_hole
from sard_lora.train.inpainting import to_tensor

MEASURES = {"mean": "mean, grey levels", "variance": "variance, dB", "spectrum": "gradient spectrum, dB"}
SHOWN = 16
ROUNDING = 1 / 12
"""Variance of rounding to whole grey levels: what is below it cannot be seen in an 8-bit image."""


@dataclass
class BaseBenchmarkConfig:
    """What to measure."""

    data: Path
    """Folder of data sets in MVTec-AD layout."""
    output: Path = Path("runs/base-benchmark")
    """Where results and adapted bases go."""
    base: str = "sard-tiny"
    """Base model: sard-tiny (embedded), a named one, a folder, or a Hub id."""
    holes: int = 200
    """Holes in each data set."""
    adapt_steps: int = 700
    """Steps of `sard-lora base adapt` on the training side's normal images; 0 leaves the adapted base out."""
    num_inference_steps: int = 20
    """Steps of the reverse diffusion."""
    batch_size: int = 8
    """Windows a call."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """cpu or cuda."""


@dataclass(frozen=True)
class Region:
    """A normal picture (256, 256, 3) uint8 and a hole (256, 256) bool in it."""

    picture: np.ndarray
    hole: np.ndarray


Fill = Callable[[Sequence[Region]], list[np.ndarray]]


def pictures(category: Category, resolution: int) -> list[np.ndarray]:
    """The held-back normal images, their middle square resized, (resolution, resolution, 3) uint8."""
    split = few_shot_split(category)
    found = []
    for sample in (*split.dev, *split.test):
        if sample.defect == GOOD:
            image = torch.from_numpy(np.array(load_image(sample.image))).permute(2, 0, 1)
            height, width = image.shape[1:]
            side = min(height, width)
            box = Box((width - side) // 2, (height - side) // 2, side, side)
            window = crop_window(image, box, (resolution, resolution))
            found.append(window.round().clamp(0, 255).byte().permute(1, 2, 0).numpy())
    return found


def regions(images: Sequence[np.ndarray], count: int) -> list[Region]:
    """`count` holes as in LaMa, at most 30 % of a window, over the images in turn; the same every time."""
    found = []
    for n in range(count):
        rng = np.random.default_rng([7, n])
        hole = draw_hole(images[0].shape[0], rng)
        while hole.mean() > 0.3:
            hole = draw_hole(images[0].shape[0], rng)
        found.append(Region(images[n % len(images)], hole))
    return found


@torch.no_grad()
def round_trip(pipe: StableDiffusionInpaintPipeline, images: Sequence[np.ndarray]) -> dict[str, float]:
    """PSNR in dB and SSIM of decoded against encoded pictures, means over the pictures."""
    psnr, ssim = [], []
    for picture in images:
        x = to_tensor([picture]).to(pipe.device, pipe.vae.dtype)
        decoded = pipe.vae.decode(pipe.vae.encode(x).latent_dist.mode()).sample
        again = decoded[0].float().clamp(-1, 1).add(1).mul(127.5).round().byte().permute(1, 2, 0).cpu().numpy()
        psnr.append(peak_signal_noise_ratio(picture, again))
        ssim.append(structural_similarity(picture, again, channel_axis=-1))
    return {"psnr": round(float(np.mean(psnr)), 2), "ssim": round(float(np.mean(ssim)), 4), "images": len(images)}


def border_mean(batch: Sequence[Region]) -> list[np.ndarray]:
    """Reference: the hole in the mean colour of the two pixels around it."""
    filled = []
    for region in batch:
        border = binary_dilation(region.hole, iterations=2) & ~region.hole
        result = region.picture.copy()
        result[region.hole] = region.picture[border].mean(0).round()
        filled.append(result)
    return filled


def biharmonic(batch: Sequence[Region]) -> list[np.ndarray]:
    """Reference: scikit-image's biharmonic inpainting, which continues brightness and slope smoothly."""
    filled = []
    for region in batch:
        grey = np.ptp(region.picture, axis=2).max() == 0
        known = region.picture[..., 0] if grey else region.picture
        smooth = inpaint_biharmonic(
            known / 255.0, region.hole, channel_axis=None if grey else -1, split_into_regions=True
        )
        smooth = (np.clip(smooth, 0, 1) * 255).round().astype(np.uint8)
        filled.append(np.repeat(smooth[..., None], 3, axis=2) if grey else smooth)
    return filled


def diffusion(pipe: StableDiffusionInpaintPipeline, prompt: str, steps: int) -> Fill:
    """The base as plain diffusers runs it: it sees the picture with the hole cut out, and no guidance."""

    def fill(batch: Sequence[Region]) -> list[np.ndarray]:
        with mixed_precision(pipe.device):
            decoded = pipe(
                [prompt] * len(batch),
                image=[Image.fromarray(region.picture) for region in batch],
                mask_image=[Image.fromarray(region.hole) for region in batch],
                height=batch[0].hole.shape[0],
                width=batch[0].hole.shape[1],
                num_inference_steps=steps,
                guidance_scale=1.0,
                generator=[torch.Generator().manual_seed(int(region.hole.sum())) for region in batch],
            ).images
        return [
            np.where(region.hole[..., None], np.asarray(image), region.picture)
            for region, image in zip(batch, decoded, strict=True)
        ]

    return fill


def gradient_spectrum(picture: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Power of the gradient inside the hole, in dB, in octaves from one cycle a window up (eight of 256 pixels)."""
    down, across = np.gradient(picture.astype(np.float64).mean(2))
    power = sum(np.abs(np.fft.fft2(part * hole)) ** 2 for part in (down, across)) / hole.sum()
    size = hole.shape[0]
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(size) * size] * 2))
    octave = np.floor(np.log2(np.maximum(frequency, 1)))
    return 10 * np.log10([power[octave == n].mean() + ROUNDING for n in range(int(np.log2(size)))])


def distances(region: Region, filled: np.ndarray) -> dict[str, float]:
    """How far a filled hole is from what was there: mean, variance and gradient spectrum."""
    true, ours = (picture[region.hole].astype(np.float64).mean(1) for picture in (region.picture, filled))
    spectra = [gradient_spectrum(picture, region.hole) for picture in (region.picture, filled)]
    return {
        "mean": abs(true.mean() - ours.mean()),
        "variance": abs(10 * np.log10((ours.var() + ROUNDING) / (true.var() + ROUNDING))),
        "spectrum": np.abs(spectra[0] - spectra[1]).mean(),
    }


def measure(fill: Fill, holes: Sequence[Region], batch_size: int) -> tuple[dict[str, float], list[np.ndarray]]:
    """Mean distances over the holes with the seconds each took, and the filled pictures."""
    began, filled = time.monotonic(), []
    for start in range(0, len(holes), batch_size):
        filled += fill(holes[start : start + batch_size])
    seconds = (time.monotonic() - began) / len(holes)
    each = [distances(region, picture) for region, picture in zip(holes, filled, strict=True)]
    return {name: round(float(np.mean([d[name] for d in each])), 3) for name in MEASURES} | {
        "seconds": round(seconds, 3)
    }, filled


def load(base: str, device: str) -> StableDiffusionInpaintPipeline:
    """The base as plain diffusers loads it, in fp32 on a CPU."""
    dtype = torch.float32 if device == "cpu" else torch.float16
    pipe = StableDiffusionInpaintPipeline.from_pretrained(bases.resolve(base), dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def benchmark(config: BaseBenchmarkConfig) -> dict:
    """Measure the base on every data set below `config.data`; writes and returns the results."""
    output = make_folder(config.output)
    pipe, revision = load(config.base, config.device), bases.describe(config.base).revision
    resolution = pipe.unet.config.sample_size * pipe.vae_scale_factor
    result = {
        "command": f"python benchmarks/base.py --data DATA --base {config.base} --holes {config.holes} "
        f"--adapt_steps {config.adapt_steps} --num_inference_steps {config.num_inference_steps}",
        "base": config.base,
        "revision": revision,
        "machine": f"{machine('cpu')}, {config.device}, torch {torch.__version__}",
        "data": {},
    }
    for root in sorted(path for path in config.data.iterdir() if (path / "train" / "good").is_dir()):
        category = open_category(root)
        prompt = prompts_for(category.name, ())[GOOD]
        images = pictures(category, resolution)
        holes = regions(images, config.holes)
        fills: dict[str, Fill] = {
            "border mean": border_mean,
            "biharmonic": biharmonic,
            config.base: diffusion(pipe, prompt, config.num_inference_steps),
        }
        rows = {"vae": round_trip(pipe, images), "inpainting": {}}
        if config.adapt_steps:
            folder = output / "adapted" / f"{root.name}-{config.adapt_steps}-{revision}"
            if not folder.exists():
                cpu = config.device == "cpu"
                adapt(AdaptConfig(root, folder, base=config.base, steps=config.adapt_steps, cpu=cpu, resume=True))
            history = json.loads((folder / bases.HISTORY).read_text())
            rows["adapted"] = {key: history[key] for key in ("steps", "minutes", "images")}
            adapted = load(str(folder), config.device)
            fills["adapted"] = diffusion(adapted, prompt, config.num_inference_steps)
        shown = []
        for name, fill in fills.items():
            rows["inpainting"][name], filled = measure(fill, holes, config.batch_size)
            shown.append(filled[:SHOWN])
            print(f"{root.name}: {name}: {rows['inpainting'][name]}", flush=True)
        result["data"][root.name] = rows
        cut = [np.where(r.hole[..., None], np.uint8(128), r.picture) for r in holes[:SHOWN]]
        columns = [[r.picture for r in holes[:SHOWN]], cut, *shown]
        rows_of_pictures = [[Image.fromarray(cell) for cell in row] for row in zip(*columns, strict=True)]
        grid(rows_of_pictures, ["normal image", "hole", *fills], output / f"base-{root.name}.jpg", cell=192)
    write_text(output / "base.json", json.dumps(result, indent=2) + "\n")
    write_text(output / "base.md", table(result))
    return result


def table(result: dict) -> str:
    """The results as Markdown."""
    lines = ["| data | fill | " + " | ".join(MEASURES.values()) + " | s |", "|---|---|" + "---:|" * (len(MEASURES) + 1)]
    for name, rows in result["data"].items():
        for fill, row in rows["inpainting"].items():
            numbers = " | ".join(f"{row[measure]:.2f}" for measure in (*MEASURES, "seconds"))
            lines.append(f"| {name} | {fill} | {numbers} |")
    lines += ["", "| data | round trip, PSNR dB | SSIM |", "|---|---:|---:|"]
    lines += [f"| {name} | {r['vae']['psnr']:.1f} | {r['vae']['ssim']:.3f} |" for name, r in result["data"].items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    done = benchmark(parse(BaseBenchmarkConfig, "python benchmarks/base.py", __doc__))
    print(table(done))
