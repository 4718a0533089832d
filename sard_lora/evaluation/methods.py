"""What a segmenter can be trained on: methods by name, and the data sets they make.

real                                  the few real defects
paste, cutpaste, draem                training sets that need no generator (`sard_lora.evaluation.baselines`)
inpaint                               the same LoRA as plain inpainting: no RCD, no critic, decoded pixels written
sard                                  sard-lora as it comes
sard[guidance_scale=1,critic=false]   any setting of training or synthesis changed, for ablations
sard+real                             both sets together
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from sard_lora import bases
from sard_lora.data import Category, Split, few_shot_split, fingerprint, open_category
from sard_lora.evaluation.baselines import BASELINES, write_baseline
from sard_lora.evaluation.cells import PIXELS_REVISION, REVISION, SYNTHESIS_REVISION
from sard_lora.evaluation.leaks import refuse_leaks
from sard_lora.labelled import LabelledSet
from sard_lora.layouts import Sample
from sard_lora.mask_bank import without_specks
from sard_lora.synthesis import synthesize
from sard_lora.synthesize_config import SynthesizeConfig
from sard_lora.train.adapter import train_adapter
from sard_lora.train.adapter_train_config import AdapterTrainConfig

PARTS = ("real", *BASELINES, "inpaint", "sard")
INPAINT: dict[str, Any] = {
    "background": "off",
    "critic": False,
    "composite": "pixels",
    "candidates": 1,
    "min_visibility": 0.0,
    "strength": 1.0,
}
"""What makes `sard` the plain inpainting LoRA of diffusers' pipelines, on the same windows and from noise alone."""

# What every part shares, or what the benchmark itself decides.
_FIXED = {
    *("data", "output", "category", "base", "revision", "adapter", "seed", "draw", "resume", "overwrite", "per_defect"),
    *("sample_every", "samples", "copy_normals", "device", "fills"),
}
# Where both have a setting of the same name, it means one of them.
_TRAINING = {item.name for item in fields(AdapterTrainConfig)} - _FIXED - {"guidance_scale"}
_SYNTHESIS = {item.name for item in fields(SynthesizeConfig)} - _FIXED - {"background", "batch_size"}
_TYPES = get_type_hints(SynthesizeConfig) | get_type_hints(AdapterTrainConfig) | {"decoys": int}

_OPTIONS = {
    "real": {"shots"},
    **{kind: {"count", "shots", "decoys"} for kind in BASELINES},
    "paste": {"count", "shots", "decoys", "margin"},
    **{kind: _TRAINING | _SYNTHESIS | {"decoys"} for kind in ("inpaint", "sard")},
}


@dataclass(frozen=True)
class Part:
    """One data set of a method: its kind, one of `PARTS`, and the settings that differ from the defaults."""

    kind: str
    options: tuple[tuple[str, Any], ...] = ()

    def settings(self, names: set[str]) -> dict[str, Any]:
        """Those of the part's settings that are among `names`."""
        chosen = (INPAINT if self.kind == "inpaint" else {}) | dict(self.options)
        return {name: value for name, value in chosen.items() if name in names}

    @property
    def decoys(self) -> int:
        """How many fills it asks for as decoys."""
        return self.settings({"decoys"}).get("decoys", 0)

    @property
    def generated(self) -> bool:
        """Whether an adapter makes its images."""
        return self.kind not in ("real", *BASELINES)

    @property
    def synthesis_revision(self) -> int:
        """That of the images that its adapter makes."""
        pixels = self.settings({"composite"}).get("composite") == "pixels"
        return PIXELS_REVISION if pixels else SYNTHESIS_REVISION


def split_names(text: str) -> list[str]:
    """Method names of a list such as `real,sard[steps=100,critic=false]+real`; commas in brackets do not count."""
    return list(dict.fromkeys(name for name in _split(text, ",") if name))


def _split(text: str, separator: str) -> list[str]:
    """The pieces of a text, stripped; a separator within brackets does not count."""
    depths = accumulate((char == "[") - (char == "]") for char in text)
    cut = "".join("\0" if char == separator and depth == 0 else char for char, depth in zip(text, depths, strict=True))
    return [piece.strip() for piece in cut.split("\0")]


def parse_method(name: str) -> tuple[Part, ...]:
    """The parts of a method.

    Raises:
        ValueError: an unknown kind or setting, a value that it cannot have, or the same part twice; the message names
            it.
    """
    parts = []
    for text in _split(name, "+"):
        found = re.fullmatch(r"(\w+)(?:\[(.*)\])?", text)
        if not found or found[1] not in PARTS:
            raise ValueError(f"method {name!r}: {text!r} is not one of {', '.join(PARTS)} or a sum such as sard+real")
        kind, options = found[1], {}
        for pair in _split(found[2], ",") if found[2] else ():
            key, _, value = (item.strip() for item in pair.partition("="))
            if key not in _OPTIONS[kind] or not value:
                raise ValueError(f"method {name!r}: {kind} has no setting {pair!r}; write name=value")
            options[key] = _typed(name, key, value)
        parts.append(Part(kind, tuple(sorted(options.items()))))
        _require_possible(name, parts[-1])
    if len(set(parts)) < len(parts):
        raise ValueError(f"method {name!r}: names a part twice")
    return tuple(parts)


def _require_possible(method: str, part: Part) -> None:
    """Raise ValueError, naming the method, where a setting of the part has a value that it cannot have."""
    for name, least in (("count", 1), ("shots", 1), ("decoys", 0)):
        value = part.settings({name}).get(name)
        if value is not None and value < least:
            raise ValueError(f"method {method!r}: {name}={value} has to be at least {least}")
    if part.generated:
        try:
            AdapterTrainConfig(data=Path(), output=Path(), **part.settings(_TRAINING))
            SynthesizeConfig(adapter=Path(), data=Path(), output=Path(), **part.settings(_SYNTHESIS))
        except ValueError as error:
            raise ValueError(f"method {method!r}: {error}") from error


def _typed(method: str, setting: str, text: str) -> Any:
    """The value that a setting's text means, as on the command line.

    Raises:
        ValueError: it is none of the setting's type; the message names method and setting.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=_TYPES[setting])
    try:
        value = parser.parse_args([f"--value={text}"]).value
        return tuple(value) if isinstance(value, list) else value  # parts are compared and hashed
    except ArgumentError as error:
        raise ValueError(f"method {method!r}: {setting}={text} is not a {_TYPES[setting]}") from error


@dataclass(frozen=True)
class SetMaker:
    """Makes the data sets of one category and seed below `folder`; what is there already is kept.

    The seed also chooses the parts where `shots` takes a few only: every seed has others, as long as there are, so that
    no figure hangs on one of them. `training` and `synthesis` are settings that all adapters and all generated sets
    share.
    """

    category: Category
    folder: Path
    base: str
    seed: int
    count: int
    shots: int | None
    training: Mapping[str, Any]
    synthesis: Mapping[str, Any]

    def samples(self, part: Part) -> tuple[Sample, ...]:
        """The labelled samples of a part, made now unless they are there; nothing of the held-back side is in them."""
        if part.kind == "real":
            return without_specks(self.split(part).train)
        return self._made(part, part.settings({"count"}).get("count", self.count), fills=False)

    def fills(self, part: Part, count: int) -> tuple[Sample, ...]:
        """`count` images that were written into as the part's are, with nothing that is a defect; masks say where."""
        if part.kind == "real":
            raise ValueError("real: these images were not written into, so they have no fills")
        return self._made(part, count, fills=True)

    def decoys(self, part: Part) -> tuple[Sample, ...]:
        """The fills that a part asks for as decoys."""
        return self.fills(part, part.decoys) if part.decoys else ()

    def split(self, part: Part) -> Split:
        """Who may see what, where the part is made with its own number of shots."""
        return few_shot_split(self.category, self._shots(part), self.seed)

    def _shots(self, part: Part) -> int | None:
        return part.settings({"shots"}).get("shots", self.shots)

    def _made(self, part: Part, count: int, fills: bool) -> tuple[Sample, ...]:
        split, folder = self.split(part), self.set_folder(part, count, fills)
        if part.kind in BASELINES:
            self._draw(part, split, count, fills, folder)
        else:
            self._generate(part, count, fills, folder)
        samples = open_category(folder).anomalies
        refuse_leaks(samples, self.category, split)
        return samples

    def set_folder(self, part: Part, count: int | None = None, fills: bool = False) -> Path:
        """Where a part's set lies, or a number of its fills; another folder for all that its images depend on."""
        count = part.settings({"count"}).get("count", self.count) if count is None else count
        key = {"count": count, "fills": fills}
        if part.kind in BASELINES:
            key |= part.settings({"margin"}) | {"shots": self._shots(part)} | self._origin(part)
        else:
            key = {"adapter": self._adapter_key(part)} | self._synthesis(part) | key
            key["synthesis"] = part.synthesis_revision
        return self.folder / "sets" / _name(part.kind, key)

    def adapter_folder(self, part: Part) -> Path:
        """Where the adapter of a generated part lies."""
        return self.folder / "adapters" / _name(part.kind, self._adapter_key(part))

    def _origin(self, part: Part) -> dict[str, Any]:
        """What all that is made here depends on; files are read once for every number of shots."""
        shots = self._shots(part)
        if shots not in self._fingerprints:
            split = self.split(part)
            self._fingerprints[shots] = fingerprint([*split.train, *split.normals])
        return {"data": self._fingerprints[shots], "seed": self.seed, "revision": REVISION}

    @cached_property
    def _fingerprints(self) -> dict[int | None, str]:
        return {}

    def _draw(self, part: Part, split: Split, count: int, fills: bool, folder: Path) -> None:
        defects = sorted({sample.defect for sample in split.train})
        counts = Counter(defects[number % len(defects)] for number in range(count))
        write_baseline(
            part.kind,
            split.train,
            split.normals,
            LabelledSet(folder),
            counts,
            self.category.root,
            self.seed,
            fills=fills,
            **part.settings({"margin"}),
        )

    def adapter(self, part: Part) -> Path:
        """The folder of the adapter of a generated part, trained now unless it is there."""
        folder = self.adapter_folder(part)
        train_adapter(
            AdapterTrainConfig(
                data=self.category.root,
                output=folder,
                base=self.base,
                seed=self.seed,
                resume=True,
                sample_every=0,
                samples=1,
                **self._training(part),
            )
        )
        return folder

    def _training(self, part: Part) -> dict[str, Any]:
        return {"shots": self.shots, "draw": self.seed, **self.training, **part.settings(_TRAINING)}

    def _synthesis(self, part: Part) -> dict[str, Any]:
        return {**self.synthesis, **part.settings(_SYNTHESIS)}

    def _adapter_key(self, part: Part) -> dict[str, Any]:
        return {"training": self._training(part), "base": bases.describe(self.base).revision} | self._origin(part)

    def _generate(self, part: Part, count: int, fills: bool, folder: Path) -> None:
        synthesize(
            SynthesizeConfig(
                adapter=self.adapter(part),
                data=self.category.root,
                output=folder,
                seed=self.seed,
                copy_normals=False,
                fills=fills,
                **self._synthesis(part) | {"count": count},
            )
        )


def _name(kind: str, settings: Mapping[str, Any]) -> str:
    """A folder name that is the same for the same settings."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
