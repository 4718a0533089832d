"""`sard_config.json`: all that sampling with an adapter needs to know, and how the adapter was trained."""

import json
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from sard_lora.layouts import GOOD, is_plain_name
from sard_lora.product import Grain

SETTINGS_FILE = "sard_config.json"
"""As in `pipelines/sard_inpaint.py`, which stands alone and takes seconds to import."""
LORA_FILE = "pytorch_lora_weights.safetensors"
CRITIC_FILE = "critic.safetensors"
EVALUATION_FILE = "evaluation.json"
SAMPLES_FILE = "samples.png"
CARD_FILE = "README.md"
MASKS_FOLDER = "masks"
PIPELINE_FILE = "pipeline.py"
FORMAT_VERSION = 1
FEATHER_WIDTH = 2
"""Pixels over which a defect fades in, inside a mask that was not widened."""
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "sard-lora")


def product_name(category: str) -> str:
    """A category's or a folder's name as the prompts say it."""
    return category.replace("_", " ").replace("-", " ")


def prompts_for(category: str, defects: list[str] | tuple[str, ...]) -> dict[str, str]:
    """The prompt of every defect, and of the product without one (key "good")."""
    product = product_name(category)
    prompts = {GOOD: f"a photo of a {product} without a defect"}
    return prompts | {d: f"a photo of a {product} with a {d.replace('_', ' ')} defect" for d in defects}


@dataclass
class BaseReference:
    """The base that an adapter was trained on, and belongs to."""

    id: str
    revision: str
    """Commit on the Hub, or a fingerprint of the UNet's weights."""
    adapted_from: str | None
    """Where the base was continued on normal images: from which one."""
    resolution: int
    signature: dict[str, Any]


@dataclass
class SamplingSettings:
    """How the adapter wants to be sampled: the same windows and background as in training."""

    background: str = "renoised"
    """Background mode of RCD: renoised, frozen or off."""
    context: float = 2.0
    """Side of the window over the longer side of the mask's bounding box."""
    min_side: int = 64
    """Smallest window, in image pixels."""
    margins: dict[str, int] = field(default_factory=dict)
    """Pixels by which new masks of a defect are widened, as those of training were: there it fades out."""
    grain: Grain = "none"
    """Direction of the product's surface: new masks are turned by any angle only without one."""
    guidance_scale: float = 3.0
    """Defect guidance against the no-defect prompt; 1 is none."""
    num_inference_steps: int = 20
    """Steps of the reverse diffusion."""

    def __post_init__(self) -> None:
        if self.grain not in get_args(Grain):
            raise ValueError(f"sampling.grain={self.grain!r} is not one of {', '.join(get_args(Grain))}")

    def mask_options(self, defect: str) -> dict[str, Any]:
        """Keyword arguments of `sample_mask` for masks of a defect."""
        return {"margin": self.margins.get(defect, 0), "grain": self.grain}

    def feather_width(self, defect: str) -> int:
        """Pixels over which a defect fades in, inside a mask that was widened by its margin: all of these, and one."""
        return max(FEATHER_WIDTH, self.margins.get(defect, 0) + 1)

    def arguments(self, resolution: int) -> dict[str, Any]:
        """These settings as keyword arguments of `SardInpaintPipeline`, at `resolution` pixels."""
        of_masks = ("margins", "grain")
        own = {name: value for name, value in asdict(self).items() if name not in of_masks}
        return own | {"height": resolution, "width": resolution}


@dataclass
class AdapterConfig:
    """`sard_config.json`."""

    category: str
    defects: list[str]
    prompts: dict[str, str]
    base: BaseReference
    sampling: SamplingSettings
    training: dict[str, Any]
    data: dict[str, Any]
    critic_grid: int | None = None
    versions: dict[str, str] = field(default_factory=lambda: {name: version(name) for name in LIBRARIES})
    format_version: int = FORMAT_VERSION

    @classmethod
    def read(cls, folder: Path) -> "AdapterConfig":
        """Raises ValueError for a folder that is no adapter, one of a newer format, or settings that make no sense."""
        path = folder / SETTINGS_FILE
        if not path.is_file():
            raise ValueError(
                f"{folder}: not an adapter folder ({SETTINGS_FILE} is missing). Train one: sard-lora train"
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            format_version = content.get("format_version", 0)
            if format_version <= FORMAT_VERSION:
                content["base"] = BaseReference(**content["base"])
                content["sampling"].pop("moved_margins", None)  # adapters had these before labels had fringes
                content["sampling"] = SamplingSettings(**content["sampling"])
                config = cls(**content)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: is no adapter's settings ({error}). Get the adapter again, or train it"
            ) from error
        if format_version > FORMAT_VERSION:
            raise ValueError(f"{path}: format {format_version} is newer than this sard-lora reads: upgrade it")
        # They become names of folders, and an adapter may come from a stranger.
        for name in (config.category, *config.defects):
            if not is_plain_name(name):
                raise ValueError(f"{path}: {name!r} cannot be the name of a category or defect. Correct it")
        return config
