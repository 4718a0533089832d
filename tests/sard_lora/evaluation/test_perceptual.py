"""KID and IC-LPIPS: by hand on stand-ins for their networks, which are not here; where they are missing, a way out."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from sard_lora.evaluation import benchmark as benchmark_module
from sard_lora.evaluation import category_benchmark, perceptual
from sard_lora.evaluation.benchmark import benchmark
from sard_lora.evaluation.benchmark_config import BenchmarkConfig
from sard_lora.evaluation.perceptual import (
    PerceptualNetworks,
    defect_windows,
    intra_cluster_distance,
    load_networks,
    perceptual_figures,
)
from sard_lora.labelled import LabelledSet
from sard_lora.layouts import Sample


def difference(first, second):
    return (first.float() - second.float()).abs().mean((1, 2, 3))


NETWORKS = PerceptualNetworks(lambda windows: windows.float().mean((2, 3)) / 255, difference)


def flat(*levels: int) -> torch.Tensor:
    """A window of every grey level."""
    return torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)


def test_windows_are_compared_with_those_of_the_same_centre():
    windows = flat(0, 10, 30, 200, 240)  # three near 0, two near 255
    assert intra_cluster_distance(flat(0, 255), windows, difference) == pytest.approx(((10 + 30 + 20) / 3 + 40) / 2)
    assert intra_cluster_distance(flat(0), flat(7, 7, 7), difference) == 0, "copies"
    assert intra_cluster_distance(flat(0, 255), flat(3, 250), difference) is None, "no two of the same"


def test_more_pairs_than_a_batch_holds_are_all_compared():
    levels = torch.arange(0, 100, 5).tolist()
    wanted = np.mean([abs(a - b) for i, a in enumerate(levels) for b in levels[:i]])
    assert intra_cluster_distance(flat(0), flat(*levels), difference) == pytest.approx(wanted)


def test_windows_are_twice_as_large_as_the_defect_without_its_fringe(tmp_path):
    pixels, mask = np.full((240, 300, 3), 100, np.uint8), np.zeros((240, 300), bool)
    mask[90:190, 90:190] = True
    core = np.zeros_like(mask)
    core[100:180, 100:180] = True
    pixels[core] = 250
    LabelledSet(tmp_path).add("spot", "000", Image.fromarray(pixels), mask, {"normal": "000.png"}, core)
    sample = Sample(tmp_path / "test/spot/000.png", tmp_path / "ground_truth/spot/000_mask.png", "spot", "000")
    (window,) = defect_windows([sample])
    assert window.shape == (3, 256, 256) and window.dtype == torch.uint8
    assert (window > 200).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert (window[:, 66:190, 66:190] > 200).all(), "in the middle"


def test_other_defects_are_farther_than_the_same(monkeypatch):
    """By hand, with the cubic kernel."""
    monkeypatch.setattr(perceptual, "defect_windows", lambda windows: windows)
    few, first, second = flat(100), flat(100, 100), flat(150, 150)
    networks = PerceptualNetworks(lambda windows: windows.float().mean((2, 3))[:, :1] / 100, difference)
    wanted = (1 * 1 + 1) ** 3 + (1.5 * 1.5 + 1) ** 3 - 2 * (1 * 1.5 + 1) ** 3
    figures = [perceptual_figures(networks, few, first, made) for made in (first, second)]
    assert figures[0]["kid"] == 0 and figures[1]["kid"] == pytest.approx(wanted)


def test_the_table_has_them_where_they_are_asked_for(mvtec, tmp_path, monkeypatch):
    for module in (benchmark_module, category_benchmark):
        monkeypatch.setattr(module, "load_networks", lambda device: NETWORKS)
    settings = {"methods": "real,paste", "segmenters": "unet", "seeds": 1, "count": 4, "start_steps": 0}
    settings |= {"unet_steps": 1, "output": tmp_path / "out"}
    plain = benchmark(BenchmarkConfig(mvtec, **settings))
    assert "kid" not in plain["fidelity"][1] and "kid" not in (tmp_path / "out/benchmark.md").read_text()
    real, paste = benchmark(BenchmarkConfig(mvtec, **settings, perceptual=True))["fidelity"]
    assert {"kid", "ic_lpips"} <= set(paste) and "kid" not in real
    assert "| kid | ic_lpips |" in (tmp_path / "out/benchmark.md").read_text()
    assert "<th>KID</th>" in (tmp_path / "out/index.html").read_text()


def test_without_the_package_a_benchmark_says_so_before_anything_is_trained(mvtec, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ValueError, match="pip install torch-fidelity"):
        benchmark(BenchmarkConfig(mvtec, tmp_path / "out", perceptual=True))
    assert not list((tmp_path / "out").iterdir())


def test_without_a_connection_it_says_so(monkeypatch):
    def offline(*_):
        raise OSError("no route to host")

    package = ModuleType("torch_fidelity")
    package.FeatureExtractorInceptionV3 = package.SampleSimilarityLPIPS = offline
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    with pytest.raises(ValueError, match=r"could not be downloaded \(no route to host"):
        load_networks("cpu")


def test_the_networks_of_the_package_are_called_as_it_wants(monkeypatch):
    class Inception(torch.nn.Module):
        def __init__(self, name, features):
            super().__init__()
            assert (name, features) == ("inception-v3-compat", ["2048"])

        def forward(self, windows):
            assert windows.dtype == torch.uint8
            return (windows.float().mean((2, 3)),)

    class Lpips(torch.nn.Module):
        def __init__(self, name):
            super().__init__()

        def forward(self, first, second):
            return difference(first, second)

    package = ModuleType("torch_fidelity")
    package.FeatureExtractorInceptionV3, package.SampleSimilarityLPIPS = Inception, Lpips
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    networks = load_networks("cpu")
    assert networks.features(flat(3, 5)).tolist() == [[3] * 3, [5] * 3]
    assert networks.distance(flat(3), flat(5)).tolist() == [2]
