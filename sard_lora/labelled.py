"""A labelled synthetic data set in MVTec-AD layout, written image by image.

Readers of MVTec-AD (anomalib and others, and `sard_lora.data`) take the folder as it is. `datasets` reads images
and masks side by side through the `metadata.jsonl` at its root:

    load_dataset("imagefolder", data_dir=SET, data_files="metadata.jsonl", split="train")

`data_files` is needed: without it `datasets` makes splits of the folders called train and test. One metadata file
per image folder cannot name the masks, because `datasets` refuses paths that leave the metadata file's folder.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sard_lora.atomic import atomic_file, write_text
from sard_lora.data import open_category
from sard_lora.display import samples_html
from sard_lora.images import DEFECT, FRINGE
from sard_lora.layouts import GOOD, Sample, is_plain_name

RECORD_KEY = "sard"
IN_PLACE = "sard in place"
"""The method in the record of an image that is a defective one, its defect drawn anew."""
DRAWN = "drawn"
"""The defect, and the method, of an image that shows none of the known defects, but a drawn texture."""
METADATA, SETTINGS = "metadata.jsonl", "synthesis.json"
"""Files at the root of a set: all records, and the settings that `synthesize` made it with, and its figures."""


class LabelledSet:
    """Synthetic images of one category under `root`: `test/<defect>/NAME.png` and their masks in `ground_truth`.

    Masks are 0 where nothing was written, 255 on the defect and, where it has a fringe, 127 there
    (`sard_lora.images`). An image exists as soon as its PNG does: the mask is written before it, its record travels
    inside it, and both files appear whole or not at all. So a killed run leaves nothing half-made and can go on where
    it stopped.
    """

    def __init__(self, root: Path | str):
        self.root = Path(root)

    def _repr_html_(self) -> str:
        return samples_html(f"Labelled set {self.root}", open_category(self.root).anomalies if self.count else ())

    def has(self, defect: str, name: str) -> bool:
        """Whether this image, its mask and its record are all there."""
        return self._image(defect, name).is_file()

    def names(self, defect: str) -> list[str]:
        """Names of the images of a defect, sorted."""
        return [path.stem for path in _visible(self.root / "test" / defect, "*.png")]

    @property
    def count(self) -> int:
        """Number of defect images, of all defects together."""
        return sum(1 for _ in self._images())

    def add(
        self,
        defect: str,
        name: str,
        image: Image.Image,
        mask: np.ndarray,
        record: Mapping[str, Any],
        core: np.ndarray | None = None,
    ) -> None:
        """Write an image, its mask ((H, W) bool, True = anomaly) and its record (JSON values by name).

        Where only the `core` of a mask, (H, W) bool, is to count as a defect, the rest is written as its fringe.
        Raises `ValueError` for an empty mask, one of another size, or a record that JSON or `datasets` cannot hold.
        """
        path = self._image(defect, name)
        _require_plain_names(path, defect, name)
        if mask.dtype != bool or mask.shape != (image.height, image.width):
            wanted = f"bool of shape {(image.height, image.width)}"
            raise ValueError(f"{path}: the mask is {mask.dtype} of shape {mask.shape}, not {wanted} as the image.")
        label = mask * np.uint8(DEFECT)
        if core is not None:
            label[mask & ~core] = FRINGE
        if not (label == DEFECT).any():
            raise ValueError(f"{path}: the mask is empty. An image without a defect belongs to the normal images.")
        if taken := [key for key in record if key.endswith("file_name")]:
            raise ValueError(f"{path}: record key {taken[0]!r} would be read as an image. Give it another name.")
        try:
            text = json.dumps(dict(record), sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: the record cannot be stored as JSON ({error}). Correct {record}.") from error
        info = PngInfo()
        info.add_text(RECORD_KEY, text)
        with atomic_file(self._mask(defect, name)) as temporary:
            Image.fromarray(label).save(temporary)
        with atomic_file(path) as temporary:
            image.save(temporary, pnginfo=info)

    def add_files(self, defect: str, name: str, image: bytes, mask: bytes) -> None:
        """Write an image and its mask as they came from another set, byte for byte.

        Raises `ValueError` for names that are no plain ones.
        """
        path = self._image(defect, name)
        _require_plain_names(path, defect, name)
        with atomic_file(self._mask(defect, name)) as temporary:
            temporary.write_bytes(mask)
        with atomic_file(path) as temporary:
            temporary.write_bytes(image)

    def normals(self) -> list[Path]:
        """The normal images that the set carries, sorted."""
        return _visible(self.root / "train" / GOOD, "*.*")

    def add_normal(self, name: str, image: bytes) -> None:
        """Write one normal image, byte for byte; `name` has its suffix. Raises `ValueError` for no plain name."""
        path = self.root / "train" / GOOD / name
        _require_plain_names(path, name)
        with atomic_file(path) as temporary:
            temporary.write_bytes(image)

    def add_normals(self, samples: Iterable[Sample]) -> None:
        """Copy normal images, byte for byte, to `train/good`; those already there are left alone.

        Raises `ValueError` for two pictures of the same file name.
        """
        for source in self.missing_normals(samples):
            self.add_normal(source.name, source.read_bytes())

    def missing_normals(self, samples: Iterable[Sample]) -> list[Path]:
        """The files of those normal images that are not in `train/good` yet; raises as `add_normals`."""
        sources: dict[str, Path] = {}
        for sample in samples:
            source = sources.setdefault(sample.image.name, sample.image)
            if source != sample.image:
                raise ValueError(f"{sample.image}: has the same file name as {source}. Rename one of them.")
        for name, source in sources.items():
            target = self.root / "train" / GOOD / name
            if target.exists() and target.read_bytes() != source.read_bytes():
                raise ValueError(f"{source}: another picture of this name is in {target.parent} already. Rename one.")
        return [source for name, source in sources.items() if not (self.root / "train" / GOOD / name).exists()]

    def records(self) -> Iterator[dict[str, Any]]:
        """One dict an image, by sorted defect and name: `file_name`, `mask_file_name` and the record's fields.

        Raises `ValueError` for an image that was not written by this class.
        """
        for path in self._images():
            with Image.open(path) as image:
                text = image.info.get(RECORD_KEY)
            if text is None:
                raise ValueError(f"{path}: carries no record, so it was not synthesized. Move it out of this folder.")
            defect, name = path.parent.name, path.stem
            # The paths last: a record from elsewhere must not name other files than its own.
            yield json.loads(text) | {
                "file_name": path.relative_to(self.root).as_posix(),
                "mask_file_name": self._mask(defect, name).relative_to(self.root).as_posix(),
            }

    def require_records(self) -> None:
        """Raise `ValueError` as `records` does."""
        for _ in self.records():
            pass

    def write_metadata(self) -> None:
        """Rebuild `metadata.jsonl` from the images' records, and clear away what a killed run left behind."""
        for path in sorted(self.root.glob("*/*/.*.partial*")):
            path.unlink()
        lines = [json.dumps(record, sort_keys=True) for record in self.records()]
        write_text(self.root / METADATA, "".join(f"{line}\n" for line in lines))

    def _image(self, defect: str, name: str) -> Path:
        return self.root / "test" / defect / f"{name}.png"

    def _mask(self, defect: str, name: str) -> Path:
        return self.root / "ground_truth" / defect / f"{name}_mask.png"

    def _images(self) -> list[Path]:
        return [path for path in _visible(self.root / "test", "*/*.png") if path.parent.name != GOOD]


def records_by_image(images: Iterable[Path]) -> dict[Path, dict[str, Any]]:
    """The records of all sets that these images lie in, by the images' paths."""
    roots = {image.parents[2] for image in images}
    return {root / record["file_name"]: record for root in sorted(roots) for record in LabelledSet(root).records()}


def _require_plain_names(path: Path, *names: str) -> None:
    if GOOD in names[:-1] or not all(map(is_plain_name, names)):
        raise ValueError(f"{path}: {' and '.join(map(repr, names))} must be plain names, and no defect is called good.")


def _visible(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))
