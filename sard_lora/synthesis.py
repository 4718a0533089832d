"""Adapter + normal images + masks → a labelled data set: best of k by the critic, invisible defects drawn again.

Everything random about sample i comes from (seed, i), and samples are made in fixed batches, so the same command
gives the same bytes, whether it ran through or was killed and started again.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from sard_lora.adapter import Adapter
from sard_lora.atomic import make_folder, write_text
from sard_lora.data import category_folder, fingerprint, normal_images
from sard_lora.images import load_image
from sard_lora.labelled import DRAWN, SETTINGS, LabelledSet
from sard_lora.layouts import Sample
from sard_lora.mask_bank import MaskBank
from sard_lora.synthesize_config import (
    SynthesizeConfig,
    chosen_shares,
    chosen_strength,
    default_candidates,
    has_starts,
    starting_point,
)
from sard_lora.synthesizer import Candidate, Draw, Job, Synthesizer, compose, is_chosen, mask_bank, mask_digest


def synthesize(config: SynthesizeConfig) -> dict[str, Any]:
    """Make the labelled data set that `config` describes; returns the report that is also in `synthesis.json`.

    The same call after a kill completes the set. Raises ValueError, naming the folder, when the output holds a set
    that was made with other settings, or anything else, and when no image showed a defect.
    """
    begun = time.monotonic()
    adapter = Adapter.from_pretrained(config.adapter)
    unknown = sorted(set(config.defects or ()) - set(adapter.config.defects))
    if unknown:
        raise ValueError(
            f"{config.adapter}: knows no defect {', '.join(unknown)}; it knows {', '.join(adapter.config.defects)}"
        )
    bank = mask_bank(adapter, config)
    for defect in config.defects or adapter.config.defects:
        bank.for_defect(defect)
    normals = normal_images(config.data, config.category)
    config = replace(config, **chosen_shares(config, bank, normals))
    drawn = config.drawn if has_starts(config, bank) else 0.0
    if drawn and DRAWN in adapter.config.defects:
        raise ValueError(
            f"{config.adapter}: knows a defect {DRAWN!r}, the name under which drawn textures are filed; give --drawn 0"
        )
    settings = _settings(config, adapter, bank, normals)
    seconds_before = _check_same_settings(make_folder(config.output), settings)
    labelled = LabelledSet(config.output)
    if config.copy_normals:
        labelled.missing_normals(normals)  # two of one name are refused before the work, not after it
    if not labelled.count:
        write_text(config.output / SETTINGS, json.dumps({"settings": settings}, indent=2) + "\n")
    print(starting_point(config, bank))
    jobs = _plan(config, adapter, drawn)
    per_batch = max(1, config.batch_size // settings["candidates"])
    batches = [jobs[start : start + per_batch] for start in range(0, len(jobs), per_batch)]
    bar = tqdm(total=len(jobs), desc="synthesize")
    synthesizer = None
    for batch in batches:
        if not all(labelled.has(job.folder, job.name) for job in batch):
            synthesizer = synthesizer or Synthesizer(adapter, config)
            _make_batch(synthesizer, batch, normals, labelled)
        bar.update(len(batch))
    bar.close()
    if config.copy_normals:
        labelled.add_normals(normals)
    labelled.write_metadata()
    report = _report(labelled, jobs, settings, seconds_before + time.monotonic() - begun)
    write_text(config.output / SETTINGS, json.dumps(report, indent=2) + "\n")
    print(
        f"{report['synthesized']} images in {config.output}; {report['rejected']} candidates rejected as invisible, "
        f"{report['given_up']} images given up after {config.max_attempts} masks each"
    )
    if not report["synthesized"]:
        raise ValueError(
            f"{config.output}: no image was made, for no defect could be seen. Lower --min_visibility, raise "
            "--guidance_scale, or train the adapter longer"
        )
    return report


def verify(root: Path, normals_root: Path) -> dict[str, Any]:
    """Read a synthetic set back from disk and compare every image with the picture that it was written into.

    Returns `pixels_changed_outside_mask` (their number over the whole set) and `labels_equal_written_region`: every
    label is the mask that was written into, and every changed pixel lies in it.
    """
    outside, labels_hold = 0, True
    for record in LabelledSet(root).records():
        image = np.asarray(Image.open(root / record["file_name"]).convert("RGB"))
        label = np.asarray(Image.open(root / record["mask_file_name"])) > 0
        normal = np.asarray(load_image(normals_root / record["normal"]))
        changed = (image != normal).any(-1)
        outside += int((changed & ~label).sum())
        labels_hold &= mask_digest(label) == record["mask_sha256"] and bool(changed.any())
    return {"pixels_changed_outside_mask": outside, "labels_equal_written_region": labels_hold and outside == 0}


def _make_batch(
    synthesizer: Synthesizer, batch: Sequence[Job], normals: Sequence[Sample], labelled: LabelledSet
) -> None:
    """Make all jobs of a batch; write the missing ones.

    A part of a mask none of whose candidates can be seen is left out of image and label; where that is more than half
    of the defect, another mask is drawn.
    """
    config, waiting = synthesizer.config, list(batch)
    for attempt in range(config.max_attempts):
        draws = [synthesizer.draw(job, attempt, normals) for job in waiting]
        for draw, parts in zip(draws, synthesizer.generate(draws), strict=True):
            job, best = draw.job, []
            for part, candidates in zip(draw.parts, parts, strict=True):
                seen = config.fills or draw.in_place  # not to be seen, or seen as it is
                visible = [c for c in candidates if seen or c.visibility >= config.min_visibility]
                job.rejected += len(candidates) - len(visible)
                if visible:
                    best.append((part, max(visible, key=lambda candidate: candidate.score)))
            if 2 * sum(np.count_nonzero(part & draw.core) for part, _ in best) < np.count_nonzero(draw.core):
                continue
            waiting.remove(job)
            if not labelled.has(job.folder, job.name):
                _write(synthesizer, draw, best, labelled)
        if not waiting:
            return


def _write(
    synthesizer: Synthesizer, draw: Draw, best: Sequence[tuple[np.ndarray, Candidate]], labelled: LabelledSet
) -> None:
    """Add one image with the best candidate of every part to the set."""
    config, job = synthesizer.config, draw.job
    image, mask, core, record = compose(synthesizer, draw, best)
    record |= {"normal": draw.source.relative_to(category_folder(config.data, config.category)).as_posix()}
    labelled.add(job.folder, job.name, image, mask, record, core)


def _plan(config: SynthesizeConfig, adapter: Adapter, drawn: float = 0.0) -> list[Job]:
    """All images of the set, a share of them `drawn`; a larger set begins with those of a smaller one."""
    defects = config.defects or adapter.config.defects
    jobs: list[Job] = []
    known, others = 0, 0
    while known < config.count * len(defects) if config.per_defect else len(jobs) < config.count:
        if is_chosen(len(jobs), drawn):
            jobs.append(Job(len(jobs), defects[others % len(defects)], f"{others:06d}", drawn=True))
            others += 1
        else:
            turn, kind = divmod(known, len(defects))
            jobs.append(Job(len(jobs), defects[kind], f"{turn:06d}", turn))
            known += 1
    return jobs


def _settings(config: SynthesizeConfig, adapter: Adapter, bank: MaskBank, normals: Sequence[Sample]) -> dict[str, Any]:
    """What decides the bytes of a sample; a set may be continued to a larger count, not with other settings."""
    # `base` is a place: another base than the adapter's own is refused.
    ignored = ("output", "count", "per_defect", "copy_normals", "device", "adapter", "data", "base")
    values = {key: value for key, value in asdict(config).items() if key not in ignored}
    strength = chosen_strength(config, bank)
    return values | {
        "category": adapter.config.category,
        "defects": list(config.defects or adapter.config.defects),
        "adapter_sha256": adapter.sha256(),
        "sampling": asdict(adapter.config.sampling),
        "normals_sha256": fingerprint(normals),
        "starts_sha256": _starts_digest(bank) if has_starts(config, bank) else None,
        "mask_bank": _bank_digest(bank) if config.mask_bank else None,
        "strength": strength,
        "candidates": config.candidates or default_candidates(strength),
    }


def _check_same_settings(output: Path, settings: dict[str, Any]) -> float:
    """Seconds that earlier calls took for this set, as far as they came to their end.

    Raises ValueError when images in it were made with other settings, and for a folder that holds anything but such a
    set.
    """
    path = output / SETTINGS
    if path.is_file():
        there = json.loads(path.read_text(encoding="utf-8"))
        wanted = json.loads(json.dumps(settings))  # as they are read back: lists for tuples
        noted = there["settings"]  # of older versions not all
        different = [key for key in wanted if noted.get(key, wanted[key]) != wanted[key]]
        if different and LabelledSet(output).count:
            raise ValueError(
                f"{output}: holds a set made with another {', '.join(different)}. Choose another --output, or delete it"
            )
        return there.get("seconds", 0.0)
    if others := sorted(path.name for path in output.iterdir() if not path.name.startswith(".")):
        raise ValueError(
            f"{output}: holds {others[0]} but no {SETTINGS}, so it was not made here and is left alone. Choose an "
            "empty folder, or a new one, as --output"
        )
    return 0.0


def _report(labelled: LabelledSet, jobs: Sequence[Job], settings: dict[str, Any], seconds: float) -> dict[str, Any]:
    records = list(labelled.records())
    done = {(record["defect"], Path(record["file_name"]).stem) for record in records}
    missing = [job for job in jobs if (job.folder, job.name) not in done]
    kinds = [*settings["defects"], *([DRAWN] if settings["drawn"] else [])]
    return {
        "settings": settings,
        "synthesized": len(records),
        "rejected": sum(record["rejected"] for record in records) + sum(job.rejected for job in missing),
        "given_up": len(missing),
        "per_defect": {d: sum(record["defect"] == d for record in records) for d in kinds},
        "seconds": round(seconds, 1),
    }


def _starts_digest(bank: MaskBank) -> str:
    """Tells the pictures of the real defects that images start from."""
    digest = hashlib.sha256()
    for entry in bank.masks:
        digest.update(f"{entry.origin} {hashlib.sha256(entry.image.read_bytes()).hexdigest()}".encode())
    return digest.hexdigest()[:16]


def _bank_digest(bank: MaskBank) -> str:
    """Tells one bank of masks from another."""
    digest = hashlib.sha256()
    for entry in bank.masks:
        digest.update(f"{entry.origin} {entry.mask.shape} {mask_digest(entry.mask)}".encode())
    return digest.hexdigest()[:16]
