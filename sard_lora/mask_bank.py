"""The masks of the few real defects: kept with an adapter, and what new masks are shaped by."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from sard_lora.atomic import atomic_file
from sard_lora.images import DEFECT, load_mask
from sard_lora.layouts import Sample

SPECK = 9
"""Pixels that a mask has at least, unless all masks of its defect have fewer: less is a slip of the annotator's pen."""


@dataclass(frozen=True, eq=False)
class BankMask:
    """A real mask at its image's size ((H, W) bool), its defect, where it is from ("defect/file stem"), and its image.

    An adapter's own masks have no image: it carries none.
    """

    mask: np.ndarray
    defect: str
    origin: str
    image: Path | None = None


@dataclass(frozen=True)
class MaskBank:
    """The masks of the few real defect images, by which new ones are shaped, sized and placed."""

    masks: tuple[BankMask, ...]
    folder: Path | None = None
    """Where they were read from, if they were."""

    @classmethod
    def from_samples(cls, samples: Iterable[Sample]) -> "MaskBank":
        """The bank of these anomalies. Raises `DataError` for a mask that `load_mask` refuses."""
        return cls(
            tuple(
                BankMask(_as_bool(load_mask(s.mask, None)), s.defect, f"{s.defect}/{s.image.stem}", s.image)
                for s in samples
                if s.mask is not None
            )
        )

    @classmethod
    def load(cls, folder: Path | str) -> "MaskBank":
        """Read masks `<defect>/<name>.png`, as `save` writes them. Raises `FileNotFoundError` where there are none."""
        folder = Path(folder)
        paths = sorted(path for path in folder.glob("*/*.png") if not path.name.startswith("."))
        if not paths:
            raise FileNotFoundError(
                f"{folder}: no masks <defect>/<name>.png. Put them there as PNG files, in a folder for each defect."
            )
        return cls(
            tuple(
                BankMask(_as_bool(load_mask(path, None)), path.parent.name, f"{path.parent.name}/{path.stem}")
                for path in paths
            ),
            folder,
        )

    def with_images(self, samples: Iterable[Sample]) -> "MaskBank":
        """The same masks, those that are the masks of `samples` with their images."""
        named = {f"{s.defect}/{s.image.stem}": s for s in samples if s.mask is not None}
        masks = []
        for entry in self.masks:
            sample = named.get(entry.origin)
            if sample and np.array_equal(_as_bool(load_mask(sample.mask, None)), entry.mask):
                entry = replace(entry, image=sample.image)
            masks.append(entry)
        return replace(self, masks=tuple(masks))

    def save(self, folder: Path | str) -> None:
        """Write 1-bit PNG files `<defect>/<stem>.png` below `folder`."""
        for entry in self.masks:
            with atomic_file(Path(folder) / f"{entry.origin}.png") as temporary:
                Image.fromarray(entry.mask).save(temporary)

    @property
    def defects(self) -> tuple[str, ...]:
        """Names of the defects, sorted."""
        return tuple(sorted({entry.defect for entry in self.masks}))

    def for_defect(self, defect: str) -> tuple[BankMask, ...]:
        """The masks of one defect, without specks (`SPECK`). Raises `ValueError` where there are none."""
        found = tuple(entry for entry in self.masks if entry.defect == defect)
        if not found:
            where, known = f"{self.folder}: " if self.folder else "", ", ".join(self.defects)
            raise ValueError(f"{where}no masks of the defect {defect!r}. Add some, or choose {known}.")
        return tuple(entry for entry in found if np.count_nonzero(entry.mask) >= SPECK) or found


def without_specks(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """Those anomalies whose masks `MaskBank.for_defect` gives: the same that new defects are made from."""
    bank = MaskBank.from_samples(samples)
    kept = {entry.image for defect in bank.defects for entry in bank.for_defect(defect)}
    return tuple(sample for sample in samples if sample.image in kept)


def _as_bool(mask: Image.Image) -> np.ndarray:
    return np.asarray(mask) == DEFECT
