"""An adapter folder: LoRA weights, critic, settings, mask bank and card of one product category (DESIGN §4).

    pytorch_lora_weights.safetensors   LoRA of the UNet, in diffusers' format, with its metadata
    critic.safetensors                 the critic; absent when it was trained without one
    sard_config.json                   everything that sampling needs to know, and how it was trained
    masks/<defect>/<name>.png          the few-shot mask bank, 1-bit PNG; can be left out
    pipeline.py                        a copy of `sard_inpaint.py`
    samples.png, README.md             pictures and the model card
    evaluation.json                    what segmenters learned from its images, where that was measured

Only safetensors, JSON and PNG are read; nothing is ever unpickled.
"""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers.training_utils import _collate_lora_metadata
from huggingface_hub import CommitInfo
from peft import get_peft_model_state_dict

from sard_lora import bases, sharing
from sard_lora.adapter_config import (
    CRITIC_FILE,
    LORA_FILE,
    MASKS_FOLDER,
    PIPELINE_FILE,
    SAMPLES_FILE,
    SETTINGS_FILE,
    AdapterConfig,
)
from sard_lora.atomic import atomic_folder
from sard_lora.card import write_card
from sard_lora.critic import MaskGuidedCritic
from sard_lora.display import adapter_html
from sard_lora.hub import snapshot
from sard_lora.mask_bank import MaskBank
from sard_lora.pipelines import sard_inpaint
from sard_lora.pipelines.sard_inpaint import SardInpaintPipeline


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
        masks: bool | None = None,
        samples: bool = False,
        license: str | None = None,
        token: str | None = None,
        commit_message: str | None = None,
    ) -> CommitInfo:
        """Push this adapter to `user/name` on the Hugging Face Hub, in one commit; the folder stays as it is.

        `masks=False` leaves the few-shot masks out, None leaves it as it is in the repository, or takes them along.
        `samples=True` takes samples.png along, which shows the product. `license` is for the card, as the Hub spells
        it ("apache-2.0").

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
            license=license,
            token=token,
            commit_message=commit_message,
        )

    def _repr_html_(self) -> str:
        return adapter_html(self.folder, self.config)

    def prompt(self, defect: str) -> str:
        """The prompt of a defect, or of the product without one ("good")."""
        if defect not in self.config.prompts:
            raise ValueError(f"{self.folder}: knows no defect {defect!r}, only {', '.join(self.config.defects)}")
        return self.config.prompts[defect]

    def critic(self) -> MaskGuidedCritic | None:
        """The trained critic, in eval mode; None when the adapter was trained without one."""
        path = self.folder / CRITIC_FILE
        return MaskGuidedCritic.load(path) if path.is_file() else None

    def sha256(self) -> str:
        """SHA-256 of the LoRA's file: what tells this adapter from others, in the reports of its data sets."""
        return hashlib.sha256((self.folder / LORA_FILE).read_bytes()).hexdigest()

    def masks(self) -> MaskBank:
        """The few-shot mask bank. Raises ValueError when it was left out."""
        path = self.folder / MASKS_FOLDER
        if not path.is_dir():
            raise ValueError(
                f"{path}: this adapter was shared without its masks. Give a folder of masks of your own, --mask_bank"
            )
        return MaskBank.load(path)

    def pipeline(
        self, base: str | None = None, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> SardInpaintPipeline:
        """The base with this adapter loaded, and without a safety checker: its false alarms would be black defects.

        Raises ValueError, by name, for a base it was not trained on, and where that is a folder which is not here.
        """
        own = self.config.base
        was_folder = own.id not in bases.BASES and bases.hub_id(own.id, own.revision) is None
        if not base and was_folder and not Path(own.id).expanduser().is_dir():
            raise ValueError(
                f"{self.folder}: was trained on the base {own.id}, a folder that is not here. Give it with --base"
            )
        path = bases.resolve(base or own.id)
        pinned = None if base or Path(path).is_dir() else own.revision
        pipe = SardInpaintPipeline.from_pretrained(
            path, revision=pinned, dtype=dtype, safety_checker=None, requires_safety_checker=False
        ).to(device)
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
        masks.save(temporary / MASKS_FOLDER)
        text = json.dumps(asdict(config), indent=2, default=str) + "\n"
        (temporary / SETTINGS_FILE).write_text(text, encoding="utf-8")
        shutil.copyfile(sard_inpaint.__file__, temporary / PIPELINE_FILE)
        if samples is not None:
            shutil.copyfile(samples, temporary / SAMPLES_FILE)
        write_card(temporary)
    return Adapter.load(folder)
