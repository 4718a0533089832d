"""Categories of images: opened from disk, checked for everything that can be wrong with them, and split.

The folder layouts are described in `sard_lora.layouts`. A `manifest.csv` at the category's root (columns
`path,group`, paths relative to it) says which images show the same part; without it every image is its own. Anything in
a third column, `exclude`, keeps an image from being used, and moves no other one to another side.
"""

import csv
import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal

from sard_lora.images import DataError, Problem, load_image, load_mask
from sard_lora.layouts import GOOD, Sample, find_layout, image_files, is_plain_name, scan

THRESHOLD_IMAGES = 60
"""So many normal images are enough to set a threshold on."""


@dataclass(frozen=True)
class Category:
    """One product class: its samples sorted by path, and what is wrong with the folder as a whole."""

    root: Path
    name: str
    layout: str
    train_normals: tuple[Sample, ...]
    test_normals: tuple[Sample, ...]
    anomalies: tuple[Sample, ...]
    folder_problems: tuple[Problem, ...] = ()
    excluded: frozenset[Path] = frozenset()
    """Images that are on no side of a split."""

    @property
    def defects(self) -> tuple[str, ...]:
        """Names of the defects, sorted."""
        return tuple(sorted({sample.defect for sample in self.anomalies}))

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Every sample: normal images of both sides, then the anomalies."""
        return (*self.train_normals, *self.test_normals, *self.anomalies)


@dataclass(frozen=True)
class Inspection:
    """What reading every file of a category gave."""

    problems: tuple[Problem, ...]
    sizes: tuple[tuple[int, int], ...]
    """(width, height) of every readable image."""
    areas: Mapping[str, tuple[float, ...]]
    """By defect: the share of its image that each sound mask covers, in [0, 1]."""


@dataclass(frozen=True)
class Split:
    """Who may see what. No group is in more than one of (`train` and `normals`), `threshold`, `dev`, `test`."""

    train: tuple[Sample, ...]
    """Anomalies that the generator may see."""
    normals: tuple[Sample, ...]
    """Normal images for training and for filling with defects."""
    threshold: tuple[Sample, ...]
    """Normal images that segmenters' thresholds are set on and nothing else sees: those of every fifth part, at most
    `THRESHOLD_IMAGES`. None of fewer than five parts, or where the fifth one alone has more."""
    dev: tuple[Sample, ...]
    """Held back, anomalies and normal images: choices are made here."""
    test: tuple[Sample, ...]
    """Held back, anomalies and normal images: final figures only."""
    unused: tuple[Sample, ...]
    """Left out, because their group is on the other side, `shots` asked for fewer, or the manifest excludes them."""

    def held_back(self, half: Literal["dev", "test"]) -> tuple[Sample, ...]:
        """One half of what is held back."""
        return self.test if half == "test" else self.dev


def open_category(root: Path | str, category: str | None = None) -> Category:
    """The category whose folder `root` is, or that `root` holds under the name `category`.

    Where `root` is a category's folder itself, `category` only names it. Only names are read, no pixels:
    `find_problems` does that. Raises `FileNotFoundError` for a folder that is not there, `ValueError` for one
    that has no known layout or whose manifest cannot be read, and for a name that cannot be a folder's.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder. Give the folder of a category, or of several.")
    if category and not is_plain_name(category):
        raise ValueError(f"category={category!r} has to be the name of a folder in {root}, or of what it shows")
    folder = category_folder(root, category)
    layout = find_layout(folder)
    if layout is None:
        raise ValueError(_unknown_layout(root, category))
    groups, excluded, problems = _read_manifest(folder)
    train_normals, test_normals, anomalies, strays = scan(folder, layout, groups)
    listed = {sample.image for sample in (*train_normals, *test_normals, *anomalies)}
    if groups:
        problems += [
            Problem(
                path,
                "not listed in manifest.csv",
                "Add a line with its group, so that no part is on both sides",
            )
            for path in sorted(listed)
            if path.relative_to(folder).as_posix() not in groups
        ]
    return Category(
        root=folder,
        name=category or folder.resolve().name,
        layout=layout,
        train_normals=tuple(train_normals),
        test_normals=tuple(test_normals),
        anomalies=tuple(anomalies),
        folder_problems=(*problems, *strays),
        excluded=frozenset(folder / name for name in excluded),
    )


def category_folder(root: Path, category: str | None) -> Path:
    """The folder of a category that lies in `root` or, where there is no such one, is `root` itself."""
    return root / category if category and find_layout(root / category) else root


def inspect(category: Category) -> Inspection:
    """Read every file of a category that is not excluded once, a few at a time, and list all that is wrong with it."""
    problems = list(category.folder_problems)
    if not category.anomalies:
        wanted = {"mvtec": "test/<defect>", "btad": "test/ko", "paired": "images"}[category.layout]
        fix = "Put images with a defect there, and their masks beside as the layout has it"
        problems.append(Problem(category.root / wanted, "no defect images", fix))
    normals = category.train_normals
    try:
        normals = few_shot_split(category).normals
    except DataError as error:
        problems += error.problems
    if not normals:
        problems.append(_no_normals(category))
    sizes, areas = [], defaultdict(list)
    used = [sample for sample in category.samples if sample.image not in category.excluded]
    with ThreadPoolExecutor(max_workers=4) as pool:
        read = pool.map(lambda sample: _read_sample(category, sample), used)
        for sample, (size, area, found) in zip(used, read, strict=True):
            problems += found
            if size is not None:
                sizes.append(size)
            if area is not None:
                areas[sample.defect].append(area)
    return Inspection(tuple(problems), tuple(sizes), {defect: tuple(a) for defect, a in areas.items()})


def find_problems(category: Category) -> list[Problem]:
    """Everything that is wrong with a category; see `inspect`."""
    return list(inspect(category).problems)


def require_sound(category: Category) -> None:
    """Raise `DataError`, listing every problem, unless there is none."""
    if problems := find_problems(category):
        raise DataError(problems)


def few_shot_split(category: Category, shots: int | None = None, draw: int = 0) -> Split:
    """Cut a category by group: a third of each defect's groups for the generator, the rest held back.

    A defect's quota is `floor(groups / 3)`, but at least one. Groups come in sorted order, and one joins the
    training side when every defect it holds is still short of its quota. Everything a group has follows it:
    `train/good` images of held-back groups and `test/good` images of training groups are unused, and a
    normal-only group with images in both is held back. What is held back alternates between `test` and `dev`,
    per defect and for the normal-only groups. Of the other normal-only groups every fifth sets thresholds, in sorted
    order as long as their images are no more than `THRESHOLD_IMAGES` together; where the first has more, none does.
    `shots` keeps only so many training groups of each defect: `draw` 0 the first ones, 1 the next, and so on, beginning
    again after the last; nothing else depends on the two. Excluded images count until everything has its side, and are
    taken out then.

    Raises `DataError` where a defect has fewer than two groups, none that fits the quotas, or only excluded ones to
    train on.
    """
    if shots is not None and shots < 1:
        raise ValueError(f"shots: {shots} is not a number of images. Give 1 or more, or leave it out for a third.")
    if draw < 0:
        raise ValueError(f"draw: {draw} is negative. Give 0 for the first parts, 1 for the next, and so on.")
    holders = _groups_by_defect(category.anomalies)
    train_groups = _training_groups(category, holders)
    test_normal_groups = {sample.group for sample in category.test_normals}
    held_back = {group for groups in holders.values() for group in groups} | test_normal_groups
    held_back -= train_groups
    test_groups = _test_groups(holders, held_back)

    def included(samples: Iterable[Sample]) -> list[Sample]:
        return [sample for sample in samples if sample.image not in category.excluded]

    trainable = _groups_by_defect(s for s in included(category.anomalies) if s.group in train_groups)
    if starved := [defect for defect in holders if defect not in trainable]:
        what = f"all images of {', '.join(starved)} on the training side are excluded in manifest.csv"
        raise DataError([Problem(category.root, what, "Include one of them, or take the defect out")])
    shown = {(defect, group) for defect, groups in trainable.items() for group in _handful(groups, shots, draw)}
    train = tuple(sample for sample in included(category.anomalies) if (sample.defect, sample.group) in shown)
    threshold_groups = _threshold_groups(s for s in category.train_normals if s.group not in held_back | train_groups)
    good = [sample for sample in included(category.train_normals) if sample.group not in held_back]
    normals = tuple(sample for sample in good if sample.group not in threshold_groups)
    threshold = tuple(sample for sample in good if sample.group in threshold_groups)
    held = [s for s in included((*category.anomalies, *category.test_normals)) if s.group in held_back]
    dev = tuple(sample for sample in held if sample.group not in test_groups)
    test = tuple(sample for sample in held if sample.group in test_groups)
    sides = {*train, *normals, *threshold, *dev, *test}
    unused = tuple(sample for sample in category.samples if sample not in sides)
    return Split(train, normals, threshold, dev, test, unused)


def normal_images(data: Path, category: str | None) -> tuple[Sample, ...]:
    """Normal images to work on: the training side of a data set, or all images of a plain folder.

    Raises `DataError` where there are none, and `ValueError` for a folder inside a data set.
    """
    if files := _plain_images(data, category):
        return tuple(Sample(path, None, GOOD, path.name) for path in files)
    opened = open_category(data, category)
    normals = few_shot_split(opened).normals
    if not normals:
        raise DataError([_no_normals(opened)])
    return normals


def named_anomalies(data: Path, category: str | None, names: Collection[str]) -> tuple[Sample, ...]:
    """The anomalies of a data set whose paths below the category's folder are `names`; none in a plain folder."""
    if _plain_images(data, category):
        return ()
    opened = open_category(data, category)
    return tuple(s for s in opened.anomalies if s.image.relative_to(opened.root).as_posix() in names)


def _plain_images(data: Path, category: str | None) -> list[Path]:
    """The images of a folder that is nothing but images; none of a data set that some picture happens to lie beside.

    Raises `ValueError` for a folder inside a data set: some of its images may be held back.
    """
    files = image_files(data) if category is None and find_layout(data) is None else []
    for root in data.resolve().parents[:2] if files else ():
        if find_layout(root):
            raise ValueError(f"{data}: lies in the data set {root}, which keeps some images for testing. Give {root}")
    return files


def fingerprint(samples: Iterable[Sample]) -> str:
    """SHA-256 over names (folder and file) and bytes of images and masks, whatever their order."""
    digest = hashlib.sha256()
    for path in sorted(path for sample in samples for path in (sample.image, sample.mask) if path is not None):
        digest.update(f"{path.parent.name}/{path.name}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _unknown_layout(root: Path, category: str | None) -> str:
    looked = "train/good + test/<defect> + ground_truth/<defect> (MVTec-AD), "
    looked += "train/ok + test/ko + ground_truth/ko (BTAD) or images + masks (+ good)"
    names = [path.name + "/" * path.is_dir() for path in sorted(root.iterdir()) if not path.name.startswith(".")]
    found = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    categories = [path.name for path in sorted(root.iterdir()) if path.is_dir() and find_layout(path)]
    subject = f"{root}: no category {category!r} here" if category else f"{root}: not the folder of a category"
    message = f"{subject}. Looked for {looked}; found {found or 'nothing'}."
    if categories:
        return f"{message} It holds categories: choose one of {', '.join(categories)}."
    return f"{message} Arrange the images in one of these layouts, or give the folder that holds them."


def _read_manifest(folder: Path) -> tuple[dict[str, str], set[str], list[Problem]]:
    """Groups by image path relative to `folder` (none without a manifest), those to exclude, and what is wrong."""
    path = folder / "manifest.csv"
    if not path.exists():
        return {}, set(), []
    groups: dict[str, str] = {}
    excluded: set[str] = set()
    problems = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns, rows = reader.fieldnames or (), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read ({error}). Save it as CSV in UTF-8.") from error
    if not {"path", "group"} <= set(columns):
        raise ValueError(f"{path}: needs the columns path and group, has {columns}. Add them.")
    for number, row in enumerate(rows, start=2):
        name, group = (row["path"] or "").strip().replace("\\", "/"), (row["group"] or "").strip()
        if (row.get("exclude") or "").strip():
            excluded.add(name)
        if not name or not group:
            problems.append(Problem(path, f"line {number} has no path or no group", "Fill it in or delete the line"))
        elif groups.setdefault(name, group) != group:
            what = f"line {number} puts {name} into group {group}, an earlier line into {groups[name]}"
            problems.append(Problem(path, what, "Keep one of the two"))
        elif not (folder / name).is_file():
            what = f"line {number} names {name}, which is not there"
            problems.append(Problem(path, what, "Restore it or delete the line"))
    return groups, excluded, problems


def _no_normals(category: Category) -> Problem:
    """Why there is no normal image to train on, and the way out."""
    if category.train_normals:
        what = "leaves no normal image to train on: all are excluded, or of parts that are kept for tests or thresholds"
        return Problem(category.root / "manifest.csv", what, "Add images of other good parts, or correct their groups")
    wanted = {"mvtec": "train/good", "btad": "train/ok", "paired": "good"}[category.layout]
    return Problem(category.root / wanted, "no normal images", "Put images of good parts there")


def _read_sample(category: Category, sample: Sample) -> tuple[tuple[int, int] | None, float | None, list[Problem]]:
    """(width, height) of the image, share of it that the mask covers (each None if unreadable), problems."""
    size, area, problems = None, None, []
    try:
        size = load_image(sample.image).size
    except DataError as error:
        problems += error.problems
    if sample.defect == GOOD:
        return size, area, problems
    if sample.mask is None:
        parts = {"mvtec": "ground_truth", "btad": "ground_truth", "paired": "masks"}
        wanted = category.root / parts[category.layout]
        fix = f"Draw it into {wanted} under the image's name, or move the image to the normal images"
        return size, area, [*problems, Problem(sample.image, "a defect image without its mask", fix)]
    try:
        histogram = load_mask(sample.mask, size).histogram()
        area = histogram[255] / sum(histogram)
    except DataError as error:
        problems += error.problems
    return size, area, problems


def _handful(groups: list[str], shots: int | None, draw: int) -> list[str]:
    """`shots` of the groups, all of them where that is None or more than there are."""
    if shots is None or shots >= len(groups):
        return groups
    return [groups[(draw * shots + number) % len(groups)] for number in range(shots)]


def _groups_by_defect(anomalies: Iterable[Sample]) -> dict[str, list[str]]:
    """Sorted groups that hold each defect, by sorted defect."""
    groups = defaultdict(set)
    for sample in anomalies:
        groups[sample.defect].add(sample.group)
    return {defect: sorted(groups[defect]) for defect in sorted(groups)}


def _training_groups(category: Category, holders: dict[str, list[str]]) -> set[str]:
    lone = [defect for defect, groups in holders.items() if len(groups) < 2]
    if lone:
        what = f"{', '.join(lone)}: a single group of images, but one to train on and one to test on are needed"
        raise DataError([Problem(category.root, what, "Add images of another part, or take the defect out")])
    quota = {defect: max(1, len(groups) // 3) for defect, groups in holders.items()}
    taken: Counter[str] = Counter()
    train = set()
    for group in sorted({group for groups in holders.values() for group in groups}):
        defects = [defect for defect, groups in holders.items() if group in groups]
        if all(taken[defect] < quota[defect] for defect in defects):
            train.add(group)
            taken.update(defects)
    if starved := [defect for defect in holders if not taken[defect]]:
        what = f"every group with {', '.join(starved)} also holds a defect whose third is already full"
        fix = "Rename one of these groups in manifest.csv so that it sorts first, or add images of other parts"
        raise DataError([Problem(category.root, what, fix)])
    return train


def _threshold_groups(normals: Iterable[Sample]) -> set[str]:
    """Every fifth of their groups, as long as these have no more than `THRESHOLD_IMAGES` together."""
    images = Counter(sample.group for sample in normals)
    groups = sorted(images)[4::5]
    totals = accumulate(images[group] for group in groups)
    return {group for group, total in zip(groups, totals, strict=True) if total <= THRESHOLD_IMAGES}


def _test_groups(holders: dict[str, list[str]], held_back: set[str]) -> set[str]:
    """Every other held-back group, the first of each defect included; what remains is the dev side."""
    seen: set[str] = set()
    test: set[str] = set()
    normal_only = sorted(held_back - {group for groups in holders.values() for group in groups})
    for groups in [*holders.values(), normal_only]:
        held = [group for group in groups if group in held_back]
        balance = sum(1 if group in test else -1 for group in held if group in seen)
        for group in held:
            if group in seen:
                continue
            seen.add(group)
            if balance <= 0:
                test.add(group)
            balance += 1 if group in test else -1
    return test
