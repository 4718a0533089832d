"""The part of a benchmark that one data set takes: adapters, sets, cells, and what is measured beside them."""

import hashlib
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from sard_lora import bases
from sard_lora.data import Category, Split, few_shot_split, fingerprint
from sard_lora.evaluation.benchmark_config import BenchmarkConfig
from sard_lora.evaluation.cells import (
    PREDICTION_REVISION,
    REVISION,
    Cell,
    Side,
    evenly,
    finished,
    keep,
)
from sard_lora.evaluation.fidelity import defect_features, exactness, feature_figures
from sard_lora.evaluation.methods import Part, SetMaker, parse_method, split_names
from sard_lora.evaluation.perceptual import PerceptualNetworks, load_networks, perceptual_figures
from sard_lora.evaluation.protocol import choose_pictures
from sard_lora.evaluation.results import Outcome
from sard_lora.evaluation.segmenters import Segmenter, load_segmenter
from sard_lora.evaluation.shortcut import shortcut_cell
from sard_lora.evaluation.start import common_start
from sard_lora.layouts import GOOD, Sample
from sard_lora.train.adapt import AdaptConfig, adapt

FIDELITY_NETWORK = ("real", "unet")
"""Method and segmenter whose network gives the features of fidelity."""


def segmenter_start(config: BenchmarkConfig, segmenter: str) -> Path | None:
    """Where a segmenter's weights come from; trained first, unless that was done before. None: from nowhere."""
    start = config.start(segmenter)
    return start and common_start(config.output / "start", start)


@dataclass(frozen=True)
class CategoryBenchmark:
    """Everything about one data set; what is there already is not made again.

    Files of the data set must not change while it is in use: each is read for its fingerprint once.
    """

    config: BenchmarkConfig
    category: Category

    @property
    def name(self) -> str:
        """The name of the data set."""
        return self.category.name

    @cached_property
    def splits(self) -> list[Split]:
        """The split of every seed. They differ in the few defects to train on; the tested sides are the same."""
        return [few_shot_split(self.category, self.config.shots, seed) for seed in range(self.config.seeds)]

    @cached_property
    def side(self) -> Side:
        """What is tested on."""
        tested = self.splits[0].held_back(self.config.split)
        return Side(self.config.split, tested, choose_pictures(tested))

    @cached_property
    def _trained_on(self) -> list[str]:
        """Fingerprints of all that decides a segmenter, but for the tested sides, of all seeds."""
        return [fingerprint([*split.train, *split.normals, *split.threshold]) for split in self.splits]

    @cached_property
    def _thresholds_from(self) -> str:
        """The fingerprint of the good parts that set thresholds: of all seeds, as `few_shot_split` has it."""
        return fingerprint(self.splits[0].threshold)

    def outcome(self, seed: int, method: str, segmenter: str) -> Outcome:
        """Train and test a cell, as far as that was not done before."""
        cell = self._cell(seed, method, segmenter)
        result = cell.tested(self.side)
        if result is None:
            result = self._trained(seed, method, segmenter).test(self.side, self.config.device)
        return Outcome(self.name, seed, method, segmenter, result, cell.predictions(self.side))

    def is_tested(self, seed: int, method: str, segmenter: str) -> bool:
        """Whether an earlier `outcome` kept its figures."""
        return self._cell(seed, method, segmenter).tested(self.side) is not None

    def _trained(self, seed: int, method: str, segmenter: str) -> Cell:
        """A cell whose segmenter is there; trained first, unless that was done before."""
        cell = self._cell(seed, method, segmenter)
        if not cell.trained:
            parts = parse_method(method)
            cell.train(
                self.config.training(segmenter, seed),
                evenly([self._sets(seed, part).samples(part) for part in parts]),
                self.splits[seed].normals,
                [sample for part in parts for sample in self._sets(seed, part).decoys(part)],
                segmenter_start(self.config, segmenter),
                self.splits[seed].threshold,
            )
        return cell

    def _cell(self, seed: int, method: str, segmenter: str) -> Cell:
        start = self.config.start(segmenter)
        parts = parse_method(method)
        revisions = [part.synthesis_revision for part in parts if part.generated]
        few = [self._maker(seed, self.config.base).split(part).train for part in parts if "shots" in dict(part.options)]
        return Cell(
            self.config.output / self.name / "cells" / f"seed{seed}" / method / segmenter,
            f"{self.name}, seed {seed}, {method}, {segmenter}",
            {
                "method": method,
                "revision": REVISION,
                "prediction": PREDICTION_REVISION,
                "training": asdict(self.config.training(segmenter, seed)),
                "start": start and asdict(start),
                "base": bases.describe(self.config.base).revision,
                "train": self._trained_on[seed],
                "threshold": self._thresholds_from,
                **{name: getattr(self.config, name) for name in ("adapt_steps", "count", "shots", "adapter_steps")},
                **({"synthesis": max(revisions)} if revisions else {}),
                **({"few": [fingerprint(samples) for samples in few]} if few else {}),
            },
        )

    def _sets(self, seed: int, part: Part) -> SetMaker:
        """What makes a part's set, with the adapted base if it is generated."""
        adapted = part.generated and self.config.adapt_steps
        return self._maker(seed, str(self.adapted_base()) if adapted else self.config.base)

    def _maker(self, seed: int, base: str) -> SetMaker:
        """The same one every time, for it reads the data set's files to name its folders."""
        if (seed, base) not in self._makers:
            self._makers[seed, base] = SetMaker(
                self.category,
                self.config.output / self.name / f"seed{seed}",
                base,
                seed,
                self.config.count,
                self.config.shots,
                training={"steps": self.config.adapter_steps},
                synthesis={},
            )
        return self._makers[seed, base]

    @cached_property
    def _makers(self) -> dict[tuple[int, str], SetMaker]:
        return {}

    def adapted_base(self) -> Path:
        """The base that was adapted to the normal images; made first, unless that was done before."""
        steps, revision = self.config.adapt_steps, bases.describe(self.config.base).revision
        key = hashlib.sha256(f"{steps} {revision} {fingerprint(self.splits[0].normals)}".encode()).hexdigest()[:10]
        folder = self.config.output / self.name / f"base-{key}"
        if not folder.exists():
            adapt(AdaptConfig(self.category.root, folder, base=self.config.base, steps=steps, resume=True))
        return folder

    def adapter_name(self, seed: int, part: Part) -> str:
        """What tells a part's adapter from others of this data set and seed."""
        return self._maker(seed, self.config.base).adapter_folder(part).name

    def set_name(self, seed: int, part: Part, fills: int = 0) -> str:
        """What tells a part's set, or a number of its fills, from others of this data set and seed."""
        return self._maker(seed, self.config.base).set_folder(part, fills or None, bool(fills)).name

    def train_adapter(self, seed: int, part: Part) -> None:
        """Train the adapter that a part's set is made with."""
        self._sets(seed, part).adapter(part)

    def make_set(self, seed: int, part: Part) -> None:
        """Make the images that segmenters are trained on."""
        self._sets(seed, part).samples(part)

    def make_fills(self, seed: int, part: Part, count: int) -> None:
        """Make fills, as decoys or for the shortcut test."""
        self._sets(seed, part).fills(part, count)

    def fidelity_methods(self) -> list[str]:
        """Those whose fidelity is measured: of one part, and none where no U-Net sees the real defects alone."""
        if not self.config.fidelity:
            return []
        methods, segmenters = split_names(self.config.methods), split_names(self.config.segmenters)
        if FIDELITY_NETWORK[0] not in methods or FIDELITY_NETWORK[1] not in segmenters:
            return []
        return [method for method in methods if len(parse_method(method)) == 1]

    def fidelity_rows(self) -> list[dict[str, Any]]:
        """How exact and how real the set of each such method is, of the first seed."""
        return [self._fidelity_row(method) for method in self.fidelity_methods()]

    def has_fidelity_rows(self) -> bool:
        """Whether an earlier `fidelity_rows` kept all of them."""
        return all(finished(self._fidelity_folder(m), self._fidelity_key(m)) for m in self.fidelity_methods())

    def has_fidelity_network(self) -> bool:
        """Whether the U-Net that sees the real defects alone is there, and not its figures only."""
        return self._cell(0, *FIDELITY_NETWORK).trained

    def _fidelity_row(self, method: str) -> dict[str, Any]:
        folder, key = self._fidelity_folder(method), self._fidelity_key(method)
        figures = finished(folder, key)
        if figures is None:
            segmenter, real = self._reference
            (part,) = parse_method(method)
            sets = self._sets(0, part)
            samples = sets.samples(part)
            figures = feature_figures(real, defect_features(segmenter, samples))
            if part.kind != "real":
                figures = exactness(samples, self.category.root) | figures
                if self.config.perceptual:
                    figures |= perceptual_figures(self._networks, sets.split(part).train, self._held_back, samples)
            figures = {"images": len(samples)} | {name: round(value, 4) for name, value in figures.items()}
            keep(folder, key, figures)
        return {"dataset": self.name, "method": method, **figures}

    def _fidelity_folder(self, method: str) -> Path:
        return self.config.output / self.name / "fidelity" / method / self.side.name

    def _fidelity_key(self, method: str) -> dict[str, Any]:
        return self._cell(0, method, FIDELITY_NETWORK[1]).key | {
            "network": self._cell(0, *FIDELITY_NETWORK).key,
            "test": self.side.fingerprint,
            "perceptual": self.config.perceptual,
        }

    @property
    def _held_back(self) -> list[Sample]:
        """The defects of the tested side."""
        return [sample for sample in self.side.samples if sample.defect != GOOD]

    @cached_property
    def _reference(self) -> tuple[Segmenter, torch.Tensor]:
        """That U-Net and its features of the held-back defects."""
        segmenter = load_segmenter(self._trained(0, *FIDELITY_NETWORK).segmenter)
        return segmenter, defect_features(segmenter, self._held_back)

    @cached_property
    def _networks(self) -> PerceptualNetworks:
        return load_networks(self.config.device)

    def shortcut_row(self, method: str) -> dict[str, Any]:
        """How well a method's fills are told from untouched normal images, in percent."""
        segmenter, figures = self._shortcut_segmenter, self._kept_shortcut(method)
        if figures is None:
            (part,) = parse_method(method)
            figures = shortcut_cell(
                self._shortcut_folder(method),
                self._shortcut_key(method),
                f"{self.name}, {method}, shortcut",
                self._sets(0, part).fills(part, self.config.fills),
                self.splits[0].normals,
                self.config.training(segmenter, 0),
                segmenter_start(self.config, segmenter),
            )
            keep(self._shortcut_folder(method) / "row", self._shortcut_key(method), figures)
        row = {"dataset": self.name, "method": method, "segmenter": segmenter, "fills": self.config.fills}
        return row | {name: round(100 * value, 3) for name, value in figures.items()}

    def has_shortcut_row(self, method: str) -> bool:
        """Whether an earlier `shortcut_row` kept its figures."""
        return self._kept_shortcut(method) is not None

    def _kept_shortcut(self, method: str) -> dict[str, Any] | None:
        return finished(self._shortcut_folder(method) / "row", self._shortcut_key(method))

    @property
    def _shortcut_segmenter(self) -> str:
        return split_names(self.config.segmenters)[0]

    def _shortcut_folder(self, method: str) -> Path:
        return self.config.output / self.name / "shortcut" / method / self._shortcut_segmenter

    def _shortcut_key(self, method: str) -> dict[str, Any]:
        return self._cell(0, method, self._shortcut_segmenter).key | {"fills": self.config.fills}
