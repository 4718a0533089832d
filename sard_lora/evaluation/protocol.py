"""The evaluation protocol: one segmenter per kind of training data, all trained alike, tested on held-back defects.

The held-back side is cut by `few_shot_split`; nothing is selected on it, and a training set that touches it is
refused. Every finished method is kept on disk, so a killed evaluation goes on where it stopped.
"""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from sard_lora.adapter import Adapter
from sard_lora.adapter_config import EVALUATION_FILE
from sard_lora.atomic import make_folder, write_text
from sard_lora.card import evaluation_summary, write_card
from sard_lora.data import Category, Split, few_shot_split, fingerprint, open_category, require_sound
from sard_lora.evaluation.baselines import write_baseline
from sard_lora.evaluation.cells import PREDICTION_REVISION, REVISION, Cell, Side, evenly
from sard_lora.evaluation.leaks import refuse_leaks
from sard_lora.evaluation.page import text_table, write_page
from sard_lora.images import DataError, Problem, load_image, load_mask
from sard_lora.labelled import SETTINGS as SYNTHESIS_REPORT
from sard_lora.labelled import LabelledSet
from sard_lora.layouts import GOOD, Sample
from sard_lora.mask_bank import without_specks
from sard_lora.train.segmenter import SegmenterConfig

PARTS = ("real", "paste", "sard")
_PICTURES = 12


@dataclass(kw_only=True)
class EvaluateConfig(SegmenterConfig):
    """What is compared, and how the segmenters are trained."""

    test: Path
    """Folder of the real data: its held-back side is tested on, its training side gives the normal images."""
    train: Path | None = None
    """Folder of the labelled synthetic set, for the method sard; any MVTec-AD layout will do."""
    category: str | None = None
    """Category inside the folder given by test, where that holds several."""
    methods: str = "real,paste,sard"
    """What to train on: real (the few real defects), paste (these pasted on normal images), sard (the set given by
    train), or sums such as sard+real."""
    split: Literal["dev", "test"] = "test"
    """Which half of the held-back images: choices are made on dev, final figures on test."""
    shots: int | None = None
    """Parts of each defect that may be trained on; by default a third of the groups."""
    draw: int = 0
    """Which parts these are: 0 the first ones of every defect, 1 the next, and so on."""
    paste_count: int = 100
    """Pasted images of each defect; where a synthetic set is given, as many as that has instead."""
    adapter: Path | None = None
    """Adapter that made the synthetic set: its card gets the figures."""
    output: Path = Path("reports/evaluation")
    """Folder for report.json, index.html and the finished methods."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.method_names:
            raise ValueError("methods is empty: name at least one, for instance methods=real,paste,sard")
        for name in self.method_names:
            parts = name.split("+")
            if not set(parts) <= set(PARTS) or len(set(parts)) < len(parts):
                raise ValueError(
                    f"methods: {name!r} is not one of {', '.join(PARTS)} or a sum of these such as sard+real"
                )
            if "sard" in parts and self.train is None:
                raise ValueError(f"methods: {name} needs a synthetic set; give its folder as train, or leave it out")
        if self.adapter is not None and self.train is None:
            raise ValueError(f"adapter={self.adapter}: needs the set that it made; give its folder as train")
        if self.paste_count < 1:
            raise ValueError(f"paste_count={self.paste_count}: must be at least 1")

    @property
    def method_names(self) -> list[str]:
        return list(dict.fromkeys(name.strip() for name in self.methods.split(",") if name.strip()))

    @property
    def training(self) -> SegmenterConfig:
        return SegmenterConfig(**{item.name: getattr(self, item.name) for item in fields(SegmenterConfig)})


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Train and test one segmenter per method; returns what `report.json` holds.

    Figures are fractions, as in `sard_lora.evaluation.metrics.summarise`, under
    `methods.<name>.{overall, mean_of_defects, per_defect}`. Everything about the data is checked before the first
    training step. Raises `FileNotFoundError` and `ValueError` (`DataError`), naming the files, for data that are
    missing, damaged or on the wrong side of the split.
    """
    make_folder(config.output)
    category = open_category(config.test, config.category)
    require_sound(category)
    split = few_shot_split(category, config.shots, config.draw)
    tested = split.held_back(config.split)
    if not any(sample.defect != GOOD for sample in tested):
        raise ValueError(f"{category.root}: no defects on the {config.split} side; add images of other parts")
    if config.adapter is not None:
        _require_own_images(config, split)
    synthetic = _synthetic_samples(config, category, split)
    pasted = _pasted_samples(config, category, split, synthetic)
    sources = {"real": without_specks(split.train), "paste": pasted, "sard": synthetic}

    report: dict[str, Any] = {
        "category": category.name,
        "split": config.split,
        "segmenter": f"{config.segmenter}-{config.size}",
        "test_images": len(tested),
        "test_images_per_defect": dict(sorted(Counter(sample.defect for sample in tested).items())),
        "normal_images_for_training": len(split.normals),
        "config": {name: str(v) if isinstance(v, Path) else v for name, v in asdict(config).items()},
        "methods": {},
    }
    side = Side(config.split, tested, choose_pictures(tested))
    predictions = {}
    for name in config.method_names:
        anomalies = evenly([sources[part] for part in name.split("+")])
        data = [fingerprint({*anomalies, *split.normals}), fingerprint(split.threshold)]
        revisions = {"revision": REVISION, "prediction": PREDICTION_REVISION}
        key = {"training": asdict(config.training), "data": data} | revisions
        cell = Cell(config.output / "methods" / name, name, key)
        cell.train(config.training, anomalies, split.normals, threshold=split.threshold)
        report["methods"][name] = cell.test(side, config.device)
        predictions[name] = cell.predictions(side)
        write_text(config.output / "report.json", json.dumps(report, indent=1))
    if config.adapter is not None:
        write_text(config.adapter / EVALUATION_FILE, json.dumps(evaluation_summary(report), indent=2) + "\n")
        write_card(config.adapter)
    write_page(config.output / "index.html", report, side.shown, predictions)
    print(f"mean of the defect types on {len(tested)} {config.split} images, in percent:\n{text_table(report)}")
    print(f"look at {config.output / 'index.html'}")
    return report


def _require_own_images(config: EvaluateConfig, split: Split) -> None:
    """Raises ValueError unless the set was made by the adapter, and that saw this split's training side."""
    adapter = Adapter.load(config.adapter)
    if adapter.config.data["fingerprint"] != fingerprint([*split.train, *split.normals]):
        raise ValueError(
            f"{config.adapter}: was trained on other images than this test leaves to training, so its figures would "
            "not be its own. Give the same data set and shots as in `sard-lora train`, or leave --adapter out"
        )
    report = config.train / SYNTHESIS_REPORT
    made = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
    if made.get("settings", {}).get("adapter_sha256") != adapter.sha256():
        raise ValueError(
            f"{config.train}: was not made by {config.adapter} with `sard-lora synthesize`, so its figures do not "
            "belong on that adapter's card. Synthesize a set with it, or leave --adapter out"
        )


def choose_pictures(tested: Sequence[Sample], count: int = _PICTURES) -> list[Sample]:
    """The images that the page shows: of each defect and of the normal images in turn the next one by name.

    One image a group, as long as there are groups that were not shown. The scores play no part in it.
    """
    queues = []
    for defect in sorted({sample.defect for sample in tested}, key=lambda name: (name == GOOD, name)):
        samples = [sample for sample in tested if sample.defect == defect]
        first = {sample.group: sample for sample in reversed(samples)}
        queues.append(sorted(samples, key=lambda sample: (first[sample.group] != sample, sample.image)))
    turns = [queue[turn] for turn in range(count) for queue in queues if turn < len(queue)]
    return sorted(turns[:count], key=lambda sample: (sample.defect == GOOD, sample.defect, sample.image))


def _synthetic_samples(config: EvaluateConfig, category: Category, split: Split) -> tuple[Sample, ...]:
    if config.train is None or not any("sard" in name.split("+") for name in config.method_names):
        return ()
    synthetic = open_category(config.train, config.category)
    _require_readable(synthetic)
    refuse_leaks(synthetic.samples, category, split)
    return synthetic.anomalies


def _require_readable(synthetic: Category) -> None:
    """`DataError`, listing every problem, for a set without defects or with damaged files.

    Its normal images are not looked at: every method trains with those of the real data.
    """
    problems = list(synthetic.folder_problems)
    if not synthetic.anomalies:
        problems.append(Problem(synthetic.root / "test", "no defect images", "Synthesize some, or give another folder"))
    for sample in tqdm(synthetic.anomalies, desc="check", leave=False, mininterval=1):
        if sample.mask is None:
            fix = "Draw it into ground_truth under the image's name, or take the image out"
            problems.append(Problem(sample.image, "a defect image without its mask", fix))
            continue
        try:
            load_mask(sample.mask, load_image(sample.image).size)
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)


def _pasted_samples(
    config: EvaluateConfig, category: Category, split: Split, synthetic: Sequence[Sample]
) -> tuple[Sample, ...]:
    if not any("paste" in name.split("+") for name in config.method_names):
        return ()
    defects = sorted({sample.defect for sample in split.train})
    counts = dict.fromkeys(defects, config.paste_count)
    if config.train is not None:
        synthetic = synthetic or open_category(config.train, config.category).anomalies
        counts = dict(Counter(sample.defect for sample in synthetic))
        if not set(counts) <= set(defects):
            counts = dict.fromkeys(defects, max(1, len(synthetic) // len(defects)))
    root = config.output / "paste"
    key = json.dumps(
        {
            "seed": config.seed,
            "counts": counts,
            "revision": REVISION,
            "data": fingerprint([*split.train, *split.normals]),
        },
        sort_keys=True,
    )
    made_from = root / "made_from.json"
    if made_from.is_file() and made_from.read_text(encoding="utf-8") != key:
        shutil.rmtree(root)
    write_text(made_from, key)
    with tqdm(total=sum(counts.values()), desc="paste", leave=False, mininterval=1) as bar:
        output = LabelledSet(root)
        write_baseline(
            "paste", split.train, split.normals, output, counts, category.root, config.seed, lambda *_: bar.update()
        )
    return open_category(root).anomalies
