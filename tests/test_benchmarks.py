"""The benchmarks run from end to end, on a few small pictures."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from sard_lora.data import few_shot_split, open_category
from sard_lora.evaluation.benchmark import benchmark
from sard_lora.evaluation.benchmark_config import BenchmarkConfig
from sard_lora.evaluation.cells import Cell
from sard_lora.surfaces import write_category

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import adapters as adapters_benchmark
import base as base_benchmark
import figures
import parts


def test_the_base_is_measured_beside_its_references(tiny_base, tmp_path):
    write_category("leather", tmp_path / "data/leather", normals=4, anomalies_per_defect=4, seed=0, size=64)
    config = base_benchmark.BaseBenchmarkConfig(
        tmp_path / "data", tmp_path / "out", str(tiny_base), holes=3, adapt_steps=1, num_inference_steps=2, device="cpu"
    )
    base_benchmark.benchmark(config)
    rows = json.loads((tmp_path / "out/base.json").read_text())["data"]["leather"]
    assert set(rows["inpainting"]) == {"border mean", "biharmonic", str(tiny_base), "adapted"}
    assert all(np.isfinite(list(row.values())).all() for row in rows["inpainting"].values())
    assert rows["vae"]["psnr"] > 0 and rows["adapted"]["steps"] == 1
    assert (tmp_path / "out/base-leather.jpg").is_file()
    assert "| leather | biharmonic |" in (tmp_path / "out/base.md").read_text()


def test_a_perfect_fill_has_no_distance_and_a_smooth_one_has():
    rng = np.random.default_rng(0)
    picture = np.repeat(rng.integers(60, 200, (64, 64, 1), dtype=np.uint8), 3, axis=2)
    hole = np.zeros((64, 64), bool)
    hole[20:40, 10:40] = True
    region = base_benchmark.Region(picture, hole)
    assert set(base_benchmark.distances(region, picture).values()) == {0}
    (flat,) = base_benchmark.border_mean([region])
    assert (flat[~hole] == picture[~hole]).all()
    far = base_benchmark.distances(region, flat)
    assert far["spectrum"] > 5 and far["variance"] > 20
    (smooth,) = base_benchmark.biharmonic([region])
    assert (smooth[~hole] == picture[~hole]).all() and (smooth[hole] != flat[hole]).any()


@pytest.mark.parametrize("count", [5, 12])
def test_holes_are_the_same_every_time(count):
    images = [np.zeros((64, 64, 3), np.uint8)] * 2
    first, second = (base_benchmark.regions(images, count) for _ in range(2))
    assert all((a.hole == b.hole).all() and 0 < a.hole.mean() <= 0.3 for a, b in zip(first, second, strict=True))


def test_switching_adapters_gives_each_its_own_predictions_whatever_the_way(tiny_base, tmp_path):
    config = adapters_benchmark.AdaptersBenchmarkConfig(tmp_path, str(tiny_base), adapters=3, rank=2)
    report = adapters_benchmark.benchmark(config)
    assert report["all_ways_give_the_same"] and report["different_predictions"] == 3
    assert set(report["ways"]) == {"resident", "swapped", "anew"}
    assert all(row["switch"] > 0 for row in report["ways"].values())


def test_a_benchmark_goes_on_from_its_figures_alone(mvtec, tmp_path, monkeypatch):
    settings = {
        "methods": "real,paste",
        "segmenters": "unet",
        "seeds": 1,
        "count": 3,
        "start_steps": 0,
        "unet_steps": 1,
    }
    first = benchmark(BenchmarkConfig(mvtec, tmp_path / "first", **settings))
    file = tmp_path / "figures.json"
    assert figures.pack(tmp_path / "first", file) == 4, "two cells, and the fidelity of both sets"
    assert figures.pack(tmp_path / "first", file) == 4, "nothing is there twice"
    assert figures.unpack(tmp_path / "second", file) == 4 and figures.unpack(tmp_path / "second", file) == 0
    monkeypatch.setattr(Cell, "train", None)  # nothing is trained again
    second = benchmark(BenchmarkConfig(mvtec, tmp_path / "second", **settings))
    assert (second["rows"], second["fidelity"]) == (first["rows"], first["fidelity"])
    with pytest.raises(ValueError, match="no figures"):
        figures.pack(tmp_path / "nothing", file)


def test_ablations_on_the_test_side_and_half_written_figures_are_not_packed(tmp_path):
    for place in ("real/unet/test", "sard[rank=2]/unet/dev", "sard[rank=2]/unet/test", "real/unet/.test.x.old/test"):
        path = tmp_path / "out" / place / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"key": {}, "result": {}}))
    figures.pack(tmp_path / "out", tmp_path / "figures.json")
    assert list(json.loads((tmp_path / "figures.json").read_text())) == ["real/unet/test", "sard[rank=2]/unet/dev"]


@pytest.mark.parametrize("part", ["revision", "synthesis", "prediction"])
def test_figures_of_an_earlier_revision_do_not_replace_later_ones(tmp_path, part):
    for folder, revision in (("old", {part: 2}), ("new", {part: 3})):
        path = tmp_path / folder / "cell" / "test" / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"key": {"revision": 4} | revision, "result": {"from": folder}}))
    file = tmp_path / "figures.json"
    figures.pack(tmp_path / "new", file)
    figures.pack(tmp_path / "old", file)
    assert '"from": "new"' in file.read_text()
    (tmp_path / "old/cell/test/predictions").mkdir()
    assert figures.unpack(tmp_path / "old", file) == 1
    assert not (tmp_path / "old/cell/test/predictions").exists(), "they are the old ones"
    assert json.loads((tmp_path / "old/cell/test/result.json").read_text())["result"] == {"from": "new"}


def test_what_is_tested_is_seen_on_no_other_side(tmp_path):
    """A cell that was photographed again a few steps later; the sides of all other images stay as they are."""
    write_category("leather", tmp_path / "cells", normals=24, anomalies_per_defect=9, seed=0, size=64)
    category = open_category(tmp_path / "cells")
    split = few_shot_split(category)
    tested, dev, train, normal, kept = split.test[0], split.dev[0], split.train[0], split.normals[0], split.normals[1]
    threshold = split.threshold[0]
    names = {
        sample.image.relative_to(category.root).as_posix(): f"img/A{number}X{100 * number + 10}_1.jpg"
        for number, sample in enumerate(category.samples)
    }
    steps = {tested: 20, dev: 30, train: 12, normal: 55, kept: 56, threshold: 81}
    names |= {s.image.relative_to(category.root).as_posix(): f"img/FSEC_5GC{step}_7.jpg" for s, step in steps.items()}
    lines = [f"{path},{source},{path}" for path, source in names.items()]
    (category.root / "manifest.csv").write_text("\n".join(["path,source,group", *lines]))
    assert parts.write_data_set(category.root, tmp_path / "out") == 4
    left = few_shot_split(open_category(tmp_path / "out"))
    assert {s.image.name for s in split.test} == {s.image.name for s in left.test}
    assert len(left.dev) == len(split.dev) - 1 and len(left.train) == len(split.train) - 1
    assert len(left.normals) == len(split.normals) - 1 and len(left.threshold) == len(split.threshold) - 1
    images = {s.image.relative_to(tmp_path / "out") for s in (*left.dev, *left.train, *left.normals, *left.threshold)}
    assert {s.image.relative_to(category.root) for s in (dev, train, normal, threshold)}.isdisjoint(images)
    assert kept.image.relative_to(category.root) in images, "26 steps from the next one that is tested or chosen on"


def test_a_data_set_of_another_kind_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"manifest.csv: not there"):
        parts.write_data_set(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match=r"img.png: its source .*cell.jpg does not end"):
        parts.cell_seen({"path": "img.png", "source": "cell.jpg"})


def test_groups_of_the_same_tile_are_one_part():
    seen = [parts.tile_seen({"group": name}) for name in ("crack_002", "crack_005", "crack_006")]
    assert seen[0] == seen[1] != seen[2]
