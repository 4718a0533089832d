"""An adapter folder: LoRA weights, critic, settings, mask bank and card of one product category (DESIGN §4).

    pytorch_lora_weights.safetensors   LoRA of the UNet, in diffusers' format, with its metadata
    critic.safetensors                 the critic; absent when it was trained without one
    sard_config.json                   everything that sampling needs to know, and how it was trained
    masks/<defect>/<name>.png          the few-shot mask bank, 1-bit PNG; can be left out
    pipeline.py                        a copy of `sard_inpaint.py`
    samples.png, README.md             pictures and the model card

Only safetensors, JSON and PNG are read; nothing is ever unpickled.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import _collate_lora_metadata
from huggingface_hub import CommitInfo
from peft import get_peft_model_state_dict

from sard_lora import bases, sharing
from sard_lora.atomic import atomic_folder
from sard_lora.critic import MaskGuidedCritic
from sard_lora.data import GOOD
from sard_lora.hub import snapshot
from sard_lora.masks import MaskBank
from sard_lora.pipelines import sard_inpaint
from sard_lora.pipelines.sard_inpaint import SETTINGS_FILE, SardInpaintPipeline

FORMAT_VERSION = 1
LORA_FILE = "pytorch_lora_weights.safetensors"
CRITIC_FILE = "critic.safetensors"
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "sard-lora")


def prompts_for(category: str, defects: list[str] | tuple[str, ...]) -> dict[str, str]:
    """The prompt of every defect, and of the product without one (key "good")."""
    product = category.replace("_", " ").replace("-", " ")
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
    guidance_scale: float = 3.0
    """Defect guidance against the no-defect prompt; 1 is none."""
    num_inference_steps: int = 20
    """Steps of the reverse diffusion."""

    def arguments(self, resolution: int) -> dict[str, Any]:
        """These settings as keyword arguments of `SardInpaintPipeline`, at `resolution` pixels."""
        return asdict(self) | {"height": resolution, "width": resolution}


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
        """Raises ValueError for a folder that is no adapter, or one of a newer format."""
        path = folder / SETTINGS_FILE
        if not path.is_file():
            raise ValueError(
                f"{folder}: not an adapter folder ({SETTINGS_FILE} is missing). Train one: sard-lora train"
            )
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("format_version", 0) > FORMAT_VERSION:
            raise ValueError(
                f"{path}: format {content['format_version']} is newer than this sard-lora reads: upgrade it"
            )
        content["base"] = BaseReference(**content["base"])
        content["sampling"] = SamplingSettings(**content["sampling"])
        return cls(**content)


@dataclass(frozen=True)
class Adapter:
    """An adapter in a folder. It needs no original data: masks and prompts are in it."""

    folder: Path
    config: AdapterConfig

    @classmethod
    def load(cls, folder: Path | str) -> "Adapter":
        """Open an adapter folder. Raises ValueError naming the folder and what is missing."""
        folder = Path(folder)
        config = AdapterConfig.read(folder)
        if not (folder / LORA_FILE).is_file():
            raise ValueError(
                f"{folder / LORA_FILE}: missing; the adapter is incomplete. Train it again, or copy it whole"
            )
        return cls(folder, config)

    @classmethod
    def from_pretrained(
        cls, repo_or_folder: Path | str, revision: str | None = None, token: str | None = None
    ) -> "Adapter":
        """Open an adapter folder, or fetch an adapter `user/name` from the Hugging Face Hub.

        `revision` is a branch, tag or commit; `token` defaults to the one of `hf auth login`. Raises ValueError for
        what is no adapter, OSError for a repository that is missing, private or cannot be reached.
        """
        name = str(repo_or_folder)
        if Path(name).is_dir() or name.count("/") != 1:
            return cls.load(name)
        try:
            return cls.load(snapshot(name, sharing.ADAPTER, revision, token))
        except OSError as error:
            raise OSError(f"{error}. A folder of that name is not here either") from error

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        masks: bool = True,
        samples: bool = False,
        token: str | None = None,
        commit_message: str | None = None,
    ) -> CommitInfo:
        """Push this adapter to `user/name` on the Hugging Face Hub, in one commit; the folder stays as it is.

        `masks=False` leaves the few-shot masks out, `samples=True` takes samples.png along, which shows the product.

        Raises:
            ValueError: a name that is none, a repository that holds something else or is public though `private`.
            OSError: not logged in, no permission, or no connection. Nothing is half published; push again.
        """
        return sharing.push_adapter(
            self.folder,
            repo_id,
            private=private,
            masks=masks,
            samples=samples,
            token=token,
            commit_message=commit_message,
        )

    def prompt(self, defect: str) -> str:
        """The prompt of a defect, or of the product without one ("good")."""
        if defect not in self.config.prompts:
            raise ValueError(f"{self.folder}: knows no defect {defect!r}, only {', '.join(self.config.defects)}")
        return self.config.prompts[defect]

    def critic(self) -> MaskGuidedCritic | None:
        """The trained critic, in eval mode; None when the adapter was trained without one."""
        path = self.folder / CRITIC_FILE
        return MaskGuidedCritic.load(path) if path.is_file() else None

    def masks(self) -> MaskBank:
        """The few-shot mask bank. Raises ValueError when it was left out."""
        path = self.folder / "masks"
        if not path.is_dir():
            raise ValueError(f"{path}: this adapter was shared without its masks; pass masks of your own")
        return MaskBank.load(path)

    def pipeline(
        self, base: str | None = None, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> SardInpaintPipeline:
        """The base with this adapter loaded. Raises ValueError, by name, for a base it was not trained on."""
        path = bases.resolve(base or self.config.base.id)
        pinned = None if base or Path(path).is_dir() else self.config.base.revision
        pipe = SardInpaintPipeline.from_pretrained(path, revision=pinned, dtype=dtype).to(device)
        pipe.load_lora_weights(str(self.folder), weight_name=LORA_FILE)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def save_adapter(
    folder: Path | str,
    config: AdapterConfig,
    unet: torch.nn.Module,
    critic: MaskGuidedCritic | None,
    masks: MaskBank,
    samples: Path | None = None,
) -> Adapter:
    """Write a whole adapter folder, or nothing. `unet` carries the LoRA as its adapter "default".

    The LoRA keeps peft's own key names: converting them loses every layer outside attention without an error.
    """
    folder = Path(folder)
    with atomic_folder(folder) as temporary:
        SardInpaintPipeline.save_lora_weights(
            temporary,
            unet_lora_layers=get_peft_model_state_dict(unet),
            **_collate_lora_metadata({"unet": unet}),
        )
        if critic is not None:
            critic.save(temporary / CRITIC_FILE)
        masks.save(temporary / "masks")
        text = json.dumps(asdict(config), indent=2, default=str) + "\n"
        (temporary / SETTINGS_FILE).write_text(text, encoding="utf-8")
        shutil.copyfile(sard_inpaint.__file__, temporary / "pipeline.py")
        if samples is not None:
            shutil.copyfile(samples, temporary / "samples.png")
        (temporary / "README.md").write_text(card(config, has_samples=samples is not None), encoding="utf-8")
    return Adapter.load(folder)


def card(config: AdapterConfig, has_samples: bool) -> str:
    """The model card (README.md of the folder), with the Hub's metadata."""
    shots = "\n".join(f"| {defect} | {config.data['shots'].get(defect, 0)} |" for defect in config.defects)
    origin = f", continued from {config.base.adapted_from} on normal images" if config.base.adapted_from else ""
    picture = "![normal image, mask, result](samples.png)\n\n" if has_samples else ""
    return f"""---
base_model: {config.base.id}
base_model_relation: adapter
library_name: diffusers
pipeline_tag: image-to-image
tags: [lora, inpainting, anomaly-synthesis, defect-detection, sard]
---

# Defects of {config.category}: a sard-lora adapter

Writes {", ".join(config.defects)} into the masked region of a normal image of **{config.category}**; every other
pixel stays as it was.

{picture}```python
from sard_lora import SardInpaintPipeline

pipe = SardInpaintPipeline.from_pretrained("{config.base.id}")
pipe.load_lora_weights("THIS_FOLDER")
image = pipe("{config.prompts[config.defects[0]]}", image=normal, mask_image=mask,
             negative_prompt="{config.prompts[GOOD]}").images[0]
```

Or a whole labelled data set:
`sard-lora synthesize --adapter THIS_FOLDER --data NORMAL_IMAGES --count 1000 --output OUT`.

| defect | images trained on |
|---|---|
{shots}

Base: {config.base.id}{origin} ({config.base.revision}), {config.base.signature["in_channels"]} input channels,
{config.base.resolution} px.
Trained for {config.training["steps"]} steps at a total batch of {config.training["total_batch_size"]} in
{config.training["seconds"] / 60:.0f} minutes. Background mode: {config.sampling.background}.

Limits: it knows the defects it saw, on this product. Measure what a segmenter learns from it before you rely on it
(`sard-lora evaluate`).
"""
