"""The benchmark: one row a method and segmenter, killed and started again ends with the same table."""

import json
import re
import shutil

import pytest

from sard_lora.data import few_shot_split, open_category
from sard_lora.evaluation import benchmark as module
from sard_lora.evaluation import category_benchmark, cells, methods
from sard_lora.evaluation.benchmark import benchmark, find_categories
from sard_lora.evaluation.benchmark_config import BenchmarkConfig
from sard_lora.evaluation.category_benchmark import CategoryBenchmark, Cell
from sard_lora.evaluation.methods import parse_method
from sard_lora.labelled import LabelledSet
from sard_lora.surfaces import write_category
from sard_lora.train.joint import AdapterTrainer
from sard_lora.train.segmenter import SegmenterConfig

TINY_SARD = "sard[batch_size=2,rank=2,candidates=1,num_inference_steps=2]"


@pytest.fixture
def small(monkeypatch, mvtec, tiny_base, tmp_path) -> BenchmarkConfig:
    """Two methods, two seeds, steps by the handful."""
    monkeypatch.setattr(
        BenchmarkConfig,
        "training",
        lambda self, segmenter, seed: SegmenterConfig(segmenter, steps=2, batch_size=2, crop=32, seed=seed),
    )
    return BenchmarkConfig(
        mvtec,
        tmp_path / "out",
        base=str(tiny_base),
        methods="real,paste+real",
        segmenters="unet",
        start_steps=0,
        seeds=2,
        count=3,
    )


def test_segformer_learns_from_more_and_smaller_steps_and_all_start_alike(mvtec):
    config = BenchmarkConfig(mvtec, segformer_steps=30, segformer_batch_size=3, unet_steps=20)
    segformer, unet = config.training("segformer", 1), config.training("unet", 1)
    assert (segformer.steps, segformer.batch_size) == (30, 3)
    assert (unet.steps, unet.batch_size) == (20, SegmenterConfig().batch_size)
    assert config.start("segformer").batch_size == config.start("unet").batch_size


def test_rows_hold_percentages_over_the_seeds(small, fp32):
    report = benchmark(small)
    assert [(row["method"], row["segmenter"], row["seeds"]) for row in report["rows"]] == [
        ("real", "unet", 2),
        ("paste+real", "unet", 2),
    ]
    for row in report["rows"]:
        assert {"dataset", "base", "images", "miou", "ap", "aupro", "false_alarms"} <= set(row)
        assert 0 <= row["miou"]["mean"] <= 100 and row["miou"]["std"] >= 0
        assert len(row["miou"]["values"]) == row["seeds"]
    assert json.loads((small.output / "benchmark.json").read_text())["rows"] == report["rows"]
    assert re.fullmatch(r"\d+ cores, \w.+", report["machine"]) and report["machine"] == f"{cells.machine()}, fp32"
    command = f"sard-lora benchmark --data plate --base {small.base} --methods real,paste+real --segmenters unet"
    assert report["command"] == f"{command} --seeds 2 --count 3 --start_steps 0"
    assert str(small.output.parent) not in json.dumps(report["settings"] | {"base": ""})
    table = (small.output / "benchmark.md").read_text()
    assert "| paste+real |" in table and f"`{report['command']}`" in table
    page = (small.output / "index.html").read_text()
    assert "paste+real" in page and "data:image/jpeg" in page


def test_thresholds_are_set_on_parts_that_nothing_else_sees(small, trainings):
    benchmark(small)
    assert len(trainings) == 4
    for anomalies, normals, *_, threshold in trainings:
        assert threshold == few_shot_split(open_category(small.data)).threshold != ()
        assert {*anomalies, *normals}.isdisjoint(threshold)


def test_killed_and_started_again_ends_with_the_same_table(small, monkeypatch, tmp_path):
    whole = benchmark(small)
    killed = BenchmarkConfig(**{**vars(small), "output": tmp_path / "killed"})
    train, calls = Cell.train, []

    def dies(*arguments, **settings):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train(*arguments, **settings)

    monkeypatch.setattr(Cell, "train", dies)
    with pytest.raises(KeyboardInterrupt):
        benchmark(killed)
    monkeypatch.setattr(Cell, "train", train)
    for part in ("rows", "fidelity"):
        assert benchmark(killed)[part] == whole[part]
    for folder in killed.output.rglob("predictions"):
        shutil.rmtree(folder)
    monkeypatch.setattr(Cell, "train", None)  # everything is there: nothing is trained or measured again
    monkeypatch.setattr(category_benchmark, "defect_features", None)
    for part in ("rows", "fidelity"):
        assert benchmark(killed)[part] == whole[part]


def test_killed_within_an_adapter_a_set_and_a_test_it_ends_with_the_same_table(small, monkeypatch, tmp_path):
    """What is half made is gone on with or made again; nothing is left out, and nothing is there twice."""
    small.methods, small.seeds, small.adapter_steps = f"{TINY_SARD},{TINY_SARD}+real,real", 1, 2
    whole = benchmark(small)
    killed = BenchmarkConfig(**{**vars(small), "output": tmp_path / "killed"})
    for place, name in ((AdapterTrainer, "step"), (LabelledSet, "add"), (cells, "predict")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, killed_at_the_second_call(getattr(place, name)))
            with pytest.raises(KeyboardInterrupt):
                benchmark(killed)
    for part in ("rows", "fidelity"):
        assert benchmark(killed)[part] == whole[part]


def killed_at_the_second_call(function):
    calls = []

    def dies(*arguments, **settings):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return function(*arguments, **settings)

    return dies


def test_several_processes_end_with_the_same_table(mvtec, tiny_base, tmp_path, monkeypatch):
    """They do all the work there is: an adapter and its set, cells, the shortcut test; nothing is left to train."""
    settings = {
        "data": mvtec,
        "base": str(tiny_base),
        "methods": f"{TINY_SARD},paste",
        "segmenters": "unet",
        "start_steps": 0,
        "seeds": 1,
        "count": 3,
        "adapter_steps": 1,
        "unet_steps": 2,
        "fills": 12,
    }
    together = BenchmarkConfig(**settings, output=tmp_path / "together", workers=2)
    with monkeypatch.context() as patch:  # in this process alone
        patch.setattr(
            cells, "train_segmenter", lambda *_: pytest.fail("trained by the process that should only collect")
        )
        found = benchmark(together)
    alone = benchmark(BenchmarkConfig(**settings, output=tmp_path / "alone"))
    for part in ("rows", "fidelity", "shortcut"):
        assert found[part] == alone[part]
    assert list((together.output / "logs").glob("*.log"))


def test_segmenters_wait_for_their_start_and_sets_for_their_adapter(small):
    small.start_steps, small.segmenters, small.seeds = 1, "unet,segformer", 1
    small.methods = "sard,sard[in_place=0]+real"
    benches = [CategoryBenchmark(small, category) for category in find_categories(small.data)]
    tasks = {task.name: task for task in module._tasks(small, benches)}
    assert tasks["start, segformer"].after == ("start, unet",), "they share the drawn surfaces"
    full, moved = (benches[0].set_name(0, *parse_method(name)) for name in ("sard", "sard[in_place=0]"))
    adapter = f"plate, seed 0, adapter {benches[0].adapter_name(0, *parse_method('sard'))}"
    for name in (full, moved):
        assert tasks[f"plate, seed 0, set {name}"].after == (adapter,), "one adapter for both"
    assert set(tasks["plate, seed 0, sard[in_place=0]+real, segformer"].after) == {
        f"plate, seed 0, set {moved}",
        "start, segformer",
    }


def test_what_was_measured_before_is_no_task_again(small, monkeypatch):
    """Neither its adapter nor its set are made on a machine that figures alone were brought to."""
    small.methods, small.seeds = "real,paste,paste+real", 1
    benches = [CategoryBenchmark(small, category) for category in find_categories(small.data)]
    assert "plate, fidelity" in {task.name for task in module._tasks(small, benches)}
    small.fidelity = False
    assert "plate, fidelity" not in {task.name for task in module._tasks(small, benches)}
    assert benchmark(small)["fidelity"] == []
    small.fidelity = True
    benchmark(small)
    for folder in (small.output / "plate").glob("seed0"):
        shutil.rmtree(folder)
    assert not module._tasks(small, benches)
    for folder in [*small.output.rglob("segmenter"), *small.output.rglob("fidelity")]:
        shutil.rmtree(folder)
    small.start_steps = 1  # another key, as if only figures of that were known
    with monkeypatch.context() as patch:
        patch.setattr(CategoryBenchmark, "is_tested", lambda *_: True)
        tasks = {task.name: task for task in module._tasks(small, benches)}
    assert "start, unet" in tasks["plate, fidelity"].after, "its network is trained again, from the common start"
    small.start_steps = 0
    benchmark(small)
    shutil.rmtree(small.output / "plate/cells/seed0/paste")
    (made, tested) = module._tasks(small, benches)
    assert made.name.startswith("plate, seed 0, set paste-") and tested.name == "plate, seed 0, paste, unet"


def test_no_folder_is_filled_by_two_tasks(small):
    """The set is the same with and without decoys, and so are the decoys and the shortcut test's fills."""
    small.methods, small.seeds, small.fills = "paste,paste[decoys=8],paste[decoys=8]+real", 1, 8
    names = [task.name for task in module._tasks(small, [CategoryBenchmark(small, *find_categories(small.data))])]
    assert sum(name.startswith("plate, seed 0, set paste-") for name in names) == 2


@pytest.mark.parametrize(("revision", "made"), [("SYNTHESIS_REVISION", "sard"), ("PIXELS_REVISION", "inpaint")])
def test_what_adapters_made_is_made_anew_when_synthesis_changes_and_nothing_else(small, monkeypatch, revision, made):
    bench = CategoryBenchmark(small, *find_categories(small.data))

    def names(method: str) -> tuple:
        parts = parse_method(method)
        adapters = [bench.adapter_name(0, part) for part in parts if part.generated]
        sets = [bench.set_name(0, part) for part in parts]
        return adapters, sets, bench._cell(0, method, "unet").key, bench._fidelity_key(method)

    tried = ("paste", "sard", "sard+real", "inpaint", "inpaint+real")
    before = {method: names(method) for method in tried}
    monkeypatch.setattr(methods, revision, getattr(methods, revision) + 10)
    for method, (adapters, sets, *keys) in before.items():
        assert names(method)[0] == adapters, "the adapter is as it was"
        changed = method.split("+")[0] == made
        assert (names(method)[1][0] != sets[0]) == changed
        assert [new != old for new, old in zip(names(method)[2:], keys, strict=True)] == [changed] * 2


def test_a_shortcut_segmenter_belongs_to_its_revisions(small, monkeypatch):
    small.methods, small.seeds, small.fills = "paste", 1, 8
    benchmark(small)
    monkeypatch.setattr(category_benchmark, "PREDICTION_REVISION", cells.PREDICTION_REVISION + 1)
    benches = [CategoryBenchmark(small, category) for category in find_categories(small.data)]
    with monkeypatch.context() as patch:
        patch.setattr(cells, "train_segmenter", lambda *_: pytest.fail("trained, as it has to be"))
        with pytest.raises(pytest.fail.Exception):
            benches[0].shortcut_row("paste")


def test_shots_of_a_method_belong_to_its_cell(small):
    bench = CategoryBenchmark(small, *find_categories(small.data))
    few, usual = (bench._cell(0, name, "unet").key for name in ("real[shots=1]", "real"))
    assert few["few"] and "few" not in usual


def test_good_parts_that_change_sides_make_another_cell(small, turn):
    """The same images in all, of which others set the threshold."""
    keys = []
    for places in (0, 1):
        turn(places)
        keys.append(CategoryBenchmark(small, *find_categories(small.data))._cell(0, "real", "unet").key)
    assert keys[0]["train"] == keys[1]["train"] and keys[0] != keys[1]


def test_only_what_adapters_make_waits_for_an_adapted_base(small, monkeypatch):
    monkeypatch.setattr(category_benchmark, "adapt", lambda config: pytest.fail("adapted for nothing"))
    small.adapt_steps, small.seeds = 1, 1
    benchmark(small)
    small.methods = "sard,paste"
    benches = [CategoryBenchmark(small, category) for category in find_categories(small.data)]
    tasks = {task.name: task for task in module._tasks(small, benches)}
    (adapter,) = (name for name in tasks if "adapter" in name)
    assert tasks[adapter].after == ("plate, adapted base",)


def test_an_adapted_base_belongs_to_its_steps(small, monkeypatch):
    monkeypatch.setattr(category_benchmark, "adapt", lambda config: config.output.mkdir(parents=True))
    (category,) = find_categories(small.data)
    bases = set()
    for small.adapt_steps in (1, 2, 1):
        bases.add(CategoryBenchmark(small, category).adapted_base())
    assert len(bases) == 2


def test_networks_of_kid_are_fetched_first_and_only_where_fidelity_is_measured(small, monkeypatch):
    small.perceptual, small.seeds, small.methods = True, 1, "real"
    monkeypatch.setattr(module, "load_networks", lambda device: pytest.fail("fetched"))
    with pytest.raises(pytest.fail.Exception, match="fetched"):
        benchmark(small)
    assert not list(small.output.rglob("result.json"))
    small.fidelity = False
    assert benchmark(small)["rows"]


def test_every_machine_that_trained_is_named(small):
    benchmark(small)
    (path,) = small.output.glob("*/cells/seed1/real/unet/test/result.json")
    kept = json.loads(path.read_text())
    kept["result"]["machine"] = "16 cores, x86_64, a GPU"
    path.write_text(json.dumps(kept))
    machines = benchmark(small)["machine"].split("; ")
    assert len(machines) == 2 and "16 cores, x86_64, a GPU" in machines


def test_what_needs_a_network_trains_it_again_where_only_its_figures_were_brought(small):
    small.methods, small.seeds = "real,paste", 1
    whole = benchmark(small)
    for folder in [*small.output.rglob("segmenter"), *small.output.rglob("fidelity")]:
        shutil.rmtree(folder)
    assert benchmark(small)["fidelity"] == whole["fidelity"]


def test_a_side_without_defects_is_refused_before_anything_is_trained(small):
    for path in sorted((small.data / "test").glob("*/*.png")):
        if path.parent.name != "good" and path.stem > "001":  # one group trains, one is on the test side
            path.unlink()
            (small.data / "ground_truth" / path.parent.name / f"{path.stem}_mask.png").unlink()
    small.split = "dev"
    with pytest.raises(ValueError, match="no defects on the dev side"):
        benchmark(small)


def test_both_halves_are_tested_with_the_same_segmenters(small, monkeypatch):
    small.seeds = 1
    test = benchmark(small)["rows"]
    monkeypatch.setattr(Cell, "train", None)  # nothing is trained again
    dev = benchmark(BenchmarkConfig(**vars(small) | {"split": "dev"}))["rows"]
    assert [row["images"] for row in dev] == [row["images"] for row in test]
    assert [row["aupro"] for row in dev] != [row["aupro"] for row in test]
    assert benchmark(small)["rows"] == test


def test_a_folder_of_data_sets_is_taken_whole(tmp_path):
    for product in ("leather", "washer"):
        write_category(product, tmp_path / "data" / product, normals=2, anomalies_per_defect=3, seed=0, size=48)
    assert [category.name for category in find_categories(tmp_path / "data")] == ["leather", "washer"]
    assert [category.name for category in find_categories(tmp_path / "data/washer")] == ["washer"]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_categories(tmp_path / "nowhere")
    (tmp_path / "data/washer/manifest.csv").write_text("file;group\n")
    with pytest.raises(ValueError, match=r"manifest.csv"):  # and not left out without a word
        find_categories(tmp_path / "data")


def test_bad_settings_are_named(mvtec):
    for wrong in ({"methods": "gan"}, {"segmenters": "vit"}, {"seeds": 0}, {"methods": ""}):
        with pytest.raises(ValueError, match=next(iter(wrong))[:6]):
            BenchmarkConfig(mvtec, **wrong)


def test_the_shortcut_test_stands_in_table_and_page_and_is_kept(small, monkeypatch):
    report = benchmark(BenchmarkConfig(**vars(small) | {"methods": "real,paste", "seeds": 1, "fills": 8}))
    assert [row["method"] for row in report["fidelity"]] == ["real", "paste"]
    assert report["fidelity"][1]["background_error"] == 0
    (row,) = report["shortcut"]
    assert (row["method"], row["fills"]) == ("paste", 8)
    assert 0 < row["chance"] < 100 and 0 <= row["ap"] <= 100
    assert "| plate | paste |" in (small.output / "benchmark.md").read_text()
    for name in ("seed0", "shortcut/paste/unet/segmenter"):  # as on a machine that figures alone were brought to
        shutil.rmtree(small.output / "plate" / name)
    with monkeypatch.context() as patch:
        patch.setattr(Cell, "train", None)
        again = benchmark(
            BenchmarkConfig(**vars(small) | {"methods": "real,paste", "seeds": 1, "fills": 8, "workers": 2})
        )
    assert again["shortcut"] == report["shortcut"]
    assert "Shortcut test" in (small.output / "index.html").read_text()
