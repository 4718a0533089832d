"""Base models by name or path: what `--base` accepts, and what an adapter has to remember of its base."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EMBEDDED = Path(__file__).parent / "weights" / "sard-tiny"

BASES: dict[str, str] = {
    "sard-tiny": str(EMBEDDED),
    "sd15-inpainting": "stable-diffusion-v1-5/stable-diffusion-inpainting",
    "sd2-inpainting": "sd2-community/stable-diffusion-2-inpainting",
}
"""Short names: the embedded base, and inpainting bases on the Hugging Face Hub."""

HISTORY = "adapted.json"
"""In a base that `sard-lora base adapt` wrote: what it was continued from, on what and how."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Base:
    """What tells one base from another."""

    path: str
    """Folder or Hub id, for `from_pretrained`."""
    resolution: int
    """Side in pixels that the base was trained for."""
    revision: str
    """Commit on the Hub, or a fingerprint of the UNet's weights in a folder."""
    adapted_from: str | None = None
    """The base that this one was continued from on normal images."""


def resolve(name_or_path: str | Path) -> str:
    """What `from_pretrained` takes for a base: a folder's path or a Hub id.

    Raises:
        ValueError: neither a short name, nor a pipeline's folder, nor shaped like a Hub id `user/name`.
    """
    name = str(name_or_path)
    target = BASES.get(name, name)
    folder = Path(target).expanduser()
    if (folder / "model_index.json").is_file():
        return str(folder)
    if folder.is_dir():
        raise ValueError(
            f"{folder}: no model_index.json, so this is not a base. Give the folder that "
            "`pipeline.save_pretrained` wrote."
        )
    if target == str(EMBEDDED):
        raise ValueError(
            f"{folder}: the embedded base is missing. Install sard-lora again, or train it: train/base.py."
        )
    if _HUB_ID.fullmatch(target):
        return target
    raise ValueError(
        f"base {name!r} is not known. Known names: {', '.join(BASES)}; or give a folder with a model_index.json, "
        "or a Hugging Face Hub id like user/name."
    )


def hub_id(name: str, revision: str) -> str | None:
    """The Hub id of a base that an adapter names; None for the embedded one and for a folder.

    `revision`, as in `Base`, tells the two apart: a relative path, `bases/tile`, is shaped like a Hub id.
    """
    return BASES.get(name, name) if _COMMIT.fullmatch(revision) else None


def describe(name_or_path: str | Path, revision: str | None = None) -> Base:
    """Read what an adapter must know of its base; from the Hub only the small configuration files are fetched.

    `revision` is a branch, tag or commit on the Hub; the answer names the commit.

    Raises:
        ValueError: an unknown base, one that cannot be reached, or one that is no Stable Diffusion pipeline.
    """
    path = resolve(name_or_path)
    unet, commit = _read(path, "unet/config.json", revision)
    vae, _ = _read(path, "vae/config.json", revision)
    in_channels = unet.get("in_channels")
    if in_channels not in (4, 9):
        raise ValueError(
            f"{path}: its UNet takes {in_channels} channels; sard-lora works with 9 (inpainting) or 4 (plain). "
            f"Inpainting bases: {', '.join(BASES)}."
        )
    return Base(
        path=path,
        resolution=unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1),
        revision=commit or fingerprint(path),
        adapted_from=_adapted_from(Path(path)),
    )


def save_half(pipe: Any, folder: Path) -> None:
    """Save a Stable Diffusion pipeline in fp16, so that it loads in fp32 where no dtype is asked for.

    transformers takes the dtype that its config names, diffusers fp32: without this a text encoder would come in fp16
    beside a UNet in fp32, and plain diffusers would not run.
    """
    import torch

    pipe.to(dtype=torch.float16).save_pretrained(folder)
    path = folder / "text_encoder" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"dtype": "float32"}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def fingerprint(folder: Path | str) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a folder's UNet weights: other weights, other digits.

    Raises:
        ValueError: the folder holds no UNet weights in safetensors.
    """
    files = sorted((Path(folder) / "unet").glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder}/unet: no safetensors weights. Save the pipeline with safe_serialization=True.")
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:16]


def _adapted_from(folder: Path) -> str | None:
    history = folder / HISTORY
    return json.loads(history.read_text(encoding="utf-8"))["adapted_from"] if history.is_file() else None


def _read(base: str, file: str, revision: str | None) -> tuple[dict, str]:
    """A configuration file of a base, and the Hub commit it came from ("" for a folder)."""
    local = Path(base) / file
    commit = ""
    if not Path(base).is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            local = Path(hf_hub_download(base, file, revision=revision))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise ValueError(
                f"base {base!r}: {file} cannot be had from the Hugging Face Hub ({type(error).__name__}). Check "
                "the name and the connection (gated models need `hf auth login`), or give a folder, or use sard-tiny."
            ) from error
        commit = local.parents[len(Path(file).parts) - 1].name
    try:
        return json.loads(local.read_text(encoding="utf-8")), commit
    except (OSError, ValueError) as error:
        raise ValueError(f"{local}: cannot be read ({error}). Is {base} a Stable Diffusion pipeline?") from error
