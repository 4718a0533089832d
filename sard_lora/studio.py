"""`sard-lora studio`: paint a mask on a picture of a good part, look at candidates, keep the good ones.

This file is what the page does, without the page: adapters, pictures, masks, candidates and the set they are kept in.
`studio_page.py` is the page.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sard_lora.adapter import Adapter
from sard_lora.adapter_config import CRITIC_FILE, SETTINGS_FILE
from sard_lora.atomic import make_folder
from sard_lora.images import DataError, Problem, load_image
from sard_lora.labelled import LabelledSet
from sard_lora.layouts import GOOD, SUFFIXES
from sard_lora.masks import Placement, sample_mask
from sard_lora.product import foreground
from sard_lora.synthesize_config import SynthesizeConfig
from sard_lora.synthesizer import Job, Synthesizer, compose

MAX_PIXELS = 64_000_000
PAINTED = "painted"


@dataclass
class StudioConfig:
    """Where the studio finds its adapters, keeps its images and listens."""

    adapters: Path
    """An adapter folder, or a folder of adapter folders."""
    output: Path
    """Where kept images go (MVTec-AD layout); with a folder of adapters, a folder for each category below it."""
    base: str | None = None
    """Where the adapters' base lies, when not at its own name."""
    min_visibility: float = 2.0
    """Least change inside the mask, over the error of a VAE round trip; fainter candidates cannot be kept."""
    num_inference_steps: int | None = None
    """Steps of the reverse diffusion; default: the adapter's."""
    device: str | None = None
    """Where to run; default: the GPU when there is one."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets everyone on the network use the studio, without a password."""
    port: int = 7860
    """Port to listen on."""

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise ValueError(f"port={self.port} has to be between 1 and 65535")
        if self.num_inference_steps is not None and self.num_inference_steps < 1:
            raise ValueError(f"num_inference_steps={self.num_inference_steps} has to be at least 1")


@dataclass(frozen=True, eq=False)
class Picture:
    """A normal image: its file, under the name it had where it came from, and its pixels (RGB)."""

    path: Path
    image: Image.Image


@dataclass(frozen=True, eq=False)
class Mask:
    """(H, W) bool, and where it is from: a mask of the adapter's bank, or painted.

    `core` is the mask before it was widened by the adapter's margin; None for one that was not.
    """

    pixels: np.ndarray
    origin: str = PAINTED
    core: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Result:
    """A candidate at the picture's size: its image, the mask of what was written, and its record.

    `core` is the part of the mask that is labelled a defect, as synthesis labels it; the rest is its fringe.
    `visible` is False where more than half of the mask shows no defect that could be seen; such a one is not kept.
    """

    picture: Picture
    adapter: str
    image: Image.Image
    mask: np.ndarray
    core: np.ndarray
    record: dict[str, Any]
    visible: bool


def studio(config: StudioConfig) -> None:
    """Serve the page until it is interrupted. Raises ValueError without gradio or adapters, OSError on a taken port."""
    try:
        from sard_lora.studio_page import serve
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError("the studio's page needs gradio: pip install 'sard-lora[ui]'") from error
    serve(Studio(config), config.host, config.port)


class Studio:
    """Adapters to play with, and the sets that what they make is kept in. Its methods may be called from any thread."""

    def __init__(self, config: StudioConfig) -> None:
        self.config = config
        self.adapters = find_adapters(config.adapters)
        make_folder(config.output)
        self._loaded: tuple[str, Synthesizer] | None = None
        self._busy = threading.Lock()

    def open(self, path: Path | str) -> Picture:
        """Read a normal image. Raises DataError for one that `load_image` refuses, or that is too large to paint on."""
        path = Path(path)
        if path.suffix.lower() not in SUFFIXES:
            what = f"{path.suffix or 'a file without an ending'} is no kind of image that data sets are made of"
            known = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
            raise DataError([Problem(path, what, f"Save it as one of {known}")])
        image = load_image(path)
        if image.width * image.height > MAX_PIXELS:
            what = f"{image.width} × {image.height} pixels are too many to paint on in a browser"
            fix = f"Crop it to {MAX_PIXELS // 10**6} megapixels, or use sard-lora synthesize, which has no such limit"
            raise DataError([Problem(path, what, fix)])
        return Picture(path, image)

    def random_mask(self, adapter: str, defect: str, picture: Picture) -> Mask:
        """A new mask like the real ones of a defect, on the part, as synthesis draws them.

        Raises ValueError when the adapter was shared without its masks.
        """
        chosen = self.adapters[adapter]
        bank, options = chosen.masks().for_defect(defect), chosen.config.sampling.mask_options(defect)
        placement = sample_mask(bank, foreground(picture.image), np.random.default_rng(), **options)
        return Mask(placement.mask, placement.origin, placement.core)

    def generate(
        self, adapter: str, defect: str, picture: Picture, mask: Mask, count: int, guidance: float, seed: int
    ) -> list[Result]:
        """`count` candidates; the same arguments give the same ones. Raises ValueError for an empty mask.

        As in synthesis a part of a scattered mask that shows no visible defect is left out of image and label.
        """
        if not mask.pixels.any():
            raise ValueError("The mask is empty. Paint one on the part, or take a random one")
        if seed < 0:
            raise ValueError(f"The seed is {seed}. Choose 0 or more")
        with self._busy:
            synthesizer = self._synthesizer(adapter, candidates=count, guidance_scale=guidance)
            rng = np.random.default_rng(seed)
            placement = Placement(mask.pixels, mask.pixels if mask.core is None else mask.core, mask.origin)
            draw = synthesizer.plan(Job(0, defect, ""), picture.path, picture.image, placement, rng)
            parts = synthesizer.generate([draw])[0]
        results = []
        for candidates in zip(*parts, strict=True):
            every = list(zip(draw.parts, candidates, strict=True))
            seen = [(part, one) for part, one in every if one.visibility >= self.config.min_visibility]
            visible = 2 * sum(np.count_nonzero(part & draw.core) for part, _ in seen) >= np.count_nonzero(draw.core)
            image, written, core, record = compose(synthesizer, draw, seen if visible else every)
            record |= {"adapter": adapter, "guidance_scale": guidance}
            results.append(Result(picture, adapter, image, written, core, record, visible))
        return results

    def keep(self, results: Sequence[Result]) -> list[Path]:
        """Add candidates, and the normal image each was made from, to the set of their category; their images' paths.

        Raises ValueError, before anything is written, for one whose defect cannot be seen, and where a set holds images
        that no record tells of.
        """
        if faint := [r for r in results if not r.visible]:
            least = min(r.record["visibility"] for r in faint)
            raise ValueError(
                f"Visibility {least:.1f} is less than {self.config.min_visibility:g}: the defect cannot be seen, so it "
                "is not kept. Raise the guidance, or make the mask larger"
            )
        paths = []
        with self._busy:
            for adapter in {result.adapter for result in results}:
                self.set_of(adapter).require_records()
            for result in results:
                labelled = self.set_of(result.adapter)
                record = result.record | {"normal": _keep_normal(result.picture, labelled.root)}
                name = _next_name(labelled.names(record["defect"]))
                labelled.add(record["defect"], name, result.image, result.mask, record, result.core)
                paths.append(labelled.root / "test" / record["defect"] / f"{name}.png")
            for root in {path.parents[2] for path in paths}:
                LabelledSet(root).write_metadata()
        return paths

    def set_of(self, adapter: str) -> LabelledSet:
        """The set that an adapter's images are kept in."""
        several = not (self.config.adapters / SETTINGS_FILE).is_file()
        category = self.adapters[adapter].config.category
        return LabelledSet(self.config.output / category if several else self.config.output)

    def has_critic(self, adapter: str) -> bool:
        """Whether an adapter's scores mean anything."""
        return (self.adapters[adapter].folder / CRITIC_FILE).is_file()

    def _synthesizer(self, adapter: str, **settings: Any) -> Synthesizer:
        """The adapter, loaded, under these settings. One stays in memory: another one takes its place."""
        if self._loaded is None or self._loaded[0] != adapter:
            self._loaded = None
            config = SynthesizeConfig(
                adapter=self.adapters[adapter].folder,
                data=Path(),
                output=self.config.output,
                base=self.config.base,
                num_inference_steps=self.config.num_inference_steps,
                min_visibility=self.config.min_visibility,
                device=self.config.device,
            )
            self._loaded = adapter, Synthesizer(self.adapters[adapter], config)
        synthesizer = self._loaded[1]
        synthesizer.config = replace(synthesizer.config, **settings)
        return synthesizer


def find_adapters(folder: Path) -> dict[str, Adapter]:
    """The adapters in a folder, or the one that it is, by name. Raises ValueError for none, or a broken one."""
    if (folder / SETTINGS_FILE).is_file():
        return {folder.resolve().name: Adapter.load(folder)}
    found = sorted(path.parent for path in folder.glob(f"*/{SETTINGS_FILE}") if not path.parent.name.startswith("."))
    if not found:
        raise ValueError(f"{folder}: no adapter here or one folder below ({SETTINGS_FILE}). Train one: sard-lora train")
    return {path.name: Adapter.load(path) for path in found}


def _keep_normal(picture: Picture, root: Path) -> str:
    """Copy the normal image, byte for byte, to `train/good`, and return its path below `root`.

    Cameras number their pictures alike: another picture of the same name stays, and this one gets a number.
    """
    content = picture.path.read_bytes()
    number = 1
    while True:
        stem = picture.path.stem if number == 1 else f"{picture.path.stem}-{number}"
        path = root / "train" / GOOD / f"{stem}{picture.path.suffix}"
        if not path.exists():
            LabelledSet(root).add_normal(path.name, content)
        if path.read_bytes() == content:
            return path.relative_to(root).as_posix()
        number += 1


def _next_name(taken: Sequence[str]) -> str:
    """A name of the studio's own, so that `synthesize` does not take its images for what it made itself."""
    own = [name.removeprefix("studio-") for name in taken if name.startswith("studio-")]
    numbers = [int(number) for number in own if number.isdecimal()]
    return f"studio-{max(numbers, default=-1) + 1:06d}"
