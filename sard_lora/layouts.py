"""Three folder layouts, read into samples by their names alone.

Each is the folder of one category (a product class):

- `mvtec` (MVTec-AD): `train/good`, `test/good`, `test/<defect>/NAME.*`, `ground_truth/<defect>/NAME_mask.*`.
- `btad` (BTAD): the same with `ok` for good and `ko` for the defect; masks are named like their images.
- `paired`: `images/NAME.*` and `masks/NAME.*` (the defect is called "defect"), or one subfolder per defect,
  `images/<defect>/NAME.*` and `masks/<defect>/NAME.*`; normal images in `good/` or `normal/`, beside or
  inside `images/`. Every fifth of them, by sorted group, is kept for testing.

In all three a mask may be called `NAME_mask.*` or `NAME.*`. An image outside the normal folders that has no
mask is a problem, never a normal image. Other folders, hidden files and files that are no images are ignored.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from sard_lora.images import Problem

GOOD = "good"
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
NORMAL_FOLDERS = ("good", "normal", "ok")


@dataclass(frozen=True)
class Sample:
    """One image: its mask (None for a normal image), its defect (`GOOD` for a normal image) and its group."""

    image: Path
    mask: Path | None
    defect: str
    group: str


def is_plain_name(name: str) -> bool:
    """Whether a name can be that of a file or folder in a data set, and leads nowhere else."""
    return Path(name).name == name and name not in ("", "..")


def find_layout(folder: Path) -> str | None:
    """`"mvtec"`, `"btad"`, `"paired"`, or None for a folder that is no category's."""

    def has(*names: str) -> bool:
        return any((folder / name).is_dir() for name in names)

    if has("train/good", "test/good"):
        return "mvtec"
    if has("train/ok", "test/ok", "test/ko"):
        return "btad"
    if has("ground_truth") and has("test"):
        return "mvtec"
    if has("images") and has("masks", *NORMAL_FOLDERS):
        return "paired"
    return None


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder, sorted; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _sample(folder: Path, image: Path, mask: Path | None, defect: str, groups: dict[str, str]) -> Sample:
    name = image.relative_to(folder).as_posix()
    return Sample(image, mask, defect, groups.get(name, name))


def _pair(folder: Path, images: Path, masks: Path, defect: str, groups: dict[str, str]) -> tuple[list, list[Problem]]:
    """Samples of the images in one folder with their masks from another, and what does not pair up."""
    by_stem = defaultdict(list)
    for path in image_files(masks):
        by_stem[path.stem].append(path)
    samples, problems, claimed = [], [], set()
    for image in image_files(images):
        found = [*by_stem[f"{image.stem}_mask"], *by_stem[image.stem]]
        claimed.update(found)
        if len(found) > 1:
            names = " and ".join(path.name for path in found)
            problems.append(Problem(image, f"two masks: {names}", "Keep the right one"))
        samples.append(_sample(folder, image, found[0] if found else None, defect, groups))
    for stem, number in Counter(sample.image.stem for sample in samples).items():
        if number > 1:
            problems.append(Problem(images / stem, f"{number} images share this name and so one mask", "Rename them"))
    problems += [
        Problem(path, f"a mask without its image in {images}", "Add the image or delete the mask")
        for path in image_files(masks)
        if path not in claimed
    ]
    return samples, problems


def _scan_mvtec(folder: Path, groups: dict[str, str]) -> tuple[list, list, list, list[Problem]]:
    """Train normals, test normals, anomalies and problems of an MVTec-AD or BTAD folder."""
    normals = {
        side: [
            _sample(folder, path, None, GOOD, groups)
            for name in NORMAL_FOLDERS
            for path in image_files(folder / side / name)
        ]
        for side in ("train", "test")
    }
    names = {path.name for side in ("test", "ground_truth") for path in _subfolders(folder / side)}
    anomalies, problems = [], []
    for defect in sorted(names - set(NORMAL_FOLDERS)):
        samples, found = _pair(folder, folder / "test" / defect, folder / "ground_truth" / defect, defect, groups)
        anomalies += samples
        problems += found
    return normals["train"], normals["test"], anomalies, problems


def _scan_paired(folder: Path, groups: dict[str, str]) -> tuple[list, list, list, list[Problem]]:
    """Train normals, test normals, anomalies and problems of two folders paired by name."""
    images, masks = folder / "images", folder / "masks"
    normals = [
        _sample(folder, path, None, GOOD, groups)
        for parent in (folder, images)
        for name in NORMAL_FOLDERS
        for path in image_files(parent / name)
    ]
    kept_for_test = set(sorted({sample.group for sample in normals})[4::5])
    anomalies, problems = _pair(folder, images, masks, "defect", groups)
    names = {path.name for parent in (images, masks) for path in _subfolders(parent)}
    for defect in sorted(names - set(NORMAL_FOLDERS)):
        samples, found = _pair(folder, images / defect, masks / defect, defect, groups)
        anomalies += samples
        problems += found
    train = [sample for sample in normals if sample.group not in kept_for_test]
    return train, [sample for sample in normals if sample.group in kept_for_test], anomalies, problems


def scan(folder: Path, layout: str, groups: dict[str, str]) -> tuple[list, list, list, list[Problem]]:
    """Train normals, test normals and anomalies, each sorted, and the files that pair up with nothing."""
    return (_scan_paired if layout == "paired" else _scan_mvtec)(folder, groups)
