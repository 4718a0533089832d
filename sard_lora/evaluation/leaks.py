"""The leak guard: a training set may hold nothing of what is held back, nor of anything that shows the same part."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from sard_lora.data import Category, Split
from sard_lora.images import load_image
from sard_lora.labelled import RECORD_KEY
from sard_lora.layouts import GOOD, Sample


def held_back(category: Category, split: Split) -> tuple[Sample, ...]:
    """Everything of the groups that are tested on or that set thresholds, unused images included."""
    groups = {sample.group for sample in (*split.threshold, *split.dev, *split.test)}
    return tuple(sample for sample in category.samples if sample.group in groups)


def refuse_leaks(training: Sequence[Sample], category: Category, split: Split) -> None:
    """Raise `ValueError`, naming the files, where `training` images come from the held-back side of `category`.

    Two signs are looked for: a training image with the very pixels of a held-back one, and a record (in the PNGs
    that sard-lora writes) which names a held-back image as the normal image or as the origin of the mask. Where the set
    carries that normal image, its pixels say which one it is, for cameras number their pictures alike. Images
    made by other programs carry no record: for these only the pixels can be compared. What the manifest excludes is
    held back too, but for the pixels of a picture that is there twice and excluded once.
    """
    held = held_back(category, split)
    excluded = [s for s in category.samples if s.image in category.excluded and s not in held]
    forbidden = (*held, *excluded)
    allowed = set(category.samples) - set(forbidden)
    defects = {_mask_name(sample) for sample in category.samples if sample.mask}
    held_pixels, excluded_pixels = _by_pixels(held), _by_pixels(excluded)

    @cache
    def shown_in(path: Path) -> Sample | None:
        """What is held back of the very pixels of an image."""
        digest = _pixel_digest(path)
        original = held_pixels.get(digest)
        if original is None and digest in excluded_pixels and digest not in _by_pixels(allowed):
            original = excluded_pixels[digest]
        return original

    findings = []
    for sample in training:
        if original := shown_in(sample.image):
            findings.append(f"{sample.image}: is the held-back image {original.image}")
            continue
        record = read_record(sample.image)
        if record is None:
            continue
        normal = str(record.get("normal") or "")
        own = sample.image.parents[2] / "train" / GOOD / PurePosixPath(normal).name
        carried = own.is_file() and own.parents[2].resolve() != category.root.resolve()
        if shown_in(own) if carried else _names_only(normal, forbidden, allowed, category.root):
            findings.append(f"{sample.image}: was made from the held-back normal image {normal}")
        origin = str(record.get("mask_origin") or "")
        origins = {origin} if origin in defects else _mask_names(origin, sample.defect)
        if names := origins & {_mask_name(s) for s in forbidden if s.mask}:
            findings.append(f"{sample.image}: its mask comes from the held-back defect {', '.join(sorted(names))}")
    if findings:
        more = [f"… and {len(findings) - 10} more"] if len(findings) > 10 else []
        raise ValueError(
            "\n".join(
                [
                    f"{len(findings)} training images leak what is held back:",
                    *findings[:10],
                    *more,
                    f"Make the set again from the training side of {category.root} alone (synthesize does, unless the "
                    "adapter was trained on another split), or take these images out.",
                ]
            )
        )


def read_record(path: Path) -> dict[str, Any] | None:
    """The record that sard-lora stored in a PNG, or None where there is none."""
    with Image.open(path) as image:
        text = image.info.get(RECORD_KEY)
    return json.loads(text) if text else None


def _by_pixels(samples: Iterable[Sample]) -> dict[bytes, Sample]:
    return {_pixel_digest(sample.image): sample for sample in samples}


def _pixel_digest(path: Path) -> bytes:
    image = load_image(path)
    return hashlib.sha256(str(image.size).encode() + image.tobytes()).digest()


def _names_only(name: str, forbidden: Iterable[Sample], allowed: Iterable[Sample], root: Path) -> bool:
    """Whether a path as recorded, whole or in part, means forbidden samples and no allowed one.

    The longest tail of the recorded path that means anything counts, so that data sets may have moved since, and a
    bare file name that both sides have is given the benefit of the doubt.
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    for length in range(len(parts), 0, -1):
        tail = parts[-length:]
        if any(_has_tail(sample, tail, root) for sample in allowed):
            return False
        if any(_has_tail(sample, tail, root) for sample in forbidden):
            return True
    return False


def _has_tail(sample: Sample, tail: tuple[str, ...], root: Path) -> bool:
    return sample.image.relative_to(root).parts[-len(tail) :] == tail


def _mask_name(sample: Sample) -> str:
    return f"{sample.defect}/{sample.image.stem}"


def _mask_names(origin: str, defect: str) -> set[str]:
    """Every "<defect>/<stem>" that another program's origin such as `003` or `…/crack/003_mask.png` may mean."""
    names = set()
    for word in re.split(r"[^\w./\\-]+", origin):
        path = PurePosixPath(word.replace("\\", "/"))
        stem = re.sub(r"\.(png|jpe?g|bmp|tiff?|webp)$", "", path.name, flags=re.IGNORECASE).removesuffix("_mask")
        if stem:
            names.add(f"{path.parent.name or defect}/{stem}")
    return names
