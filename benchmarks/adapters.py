"""A hundred adapters on one loaded base: what a switch costs in time and memory, beside loading the pipeline anew.

    python benchmarks/adapters.py --output runs/adapters-benchmark

The adapters are LoRAs of random weights, as large as trained ones. `resident` keeps all of them on the base and
switches with `set_adapters`; `swapped` keeps one, deletes it and loads the next from disk; `anew` loads base and
adapter each time.
"""

import json
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, get_peft_model_state_dict

from sard_lora import bases
from sard_lora.adapter_config import LORA_FILE
from sard_lora.atomic import make_folder, write_text
from sard_lora.config import parse
from sard_lora.evaluation.cells import machine
from sard_lora.pipelines.sard_inpaint import SardInpaintPipeline
from sard_lora.train.lora import ATTENTION_TARGETS, RESNET_TARGETS


@dataclass
class AdaptersBenchmarkConfig:
    """What to measure."""

    output: Path = Path("runs/adapters-benchmark")
    """Where the adapters and the result go."""
    base: str = "sard-tiny"
    """Base model: sard-tiny (embedded), a named one, a folder, or a Hub id."""
    adapters: int = 100
    """How many adapters."""
    rank: int = 32
    """Rank of each LoRA."""


def load(base: str) -> SardInpaintPipeline:
    """The base, ready to use."""
    pipe = SardInpaintPipeline.from_pretrained(bases.resolve(base), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def write_adapters(config: AdaptersBenchmarkConfig) -> list[Path]:
    """Folders of LoRAs of random weights, other ones in each."""
    pipe = load(config.base)
    pipe.unet.add_adapter(
        LoraConfig(r=config.rank, lora_alpha=config.rank, target_modules=list(ATTENTION_TARGETS + RESNET_TARGETS))
    )
    layers = get_peft_model_state_dict(pipe.unet)
    metadata = _collate_lora_metadata({"unet": pipe.unet})
    folders = []
    for number in range(config.adapters):
        generator = torch.Generator().manual_seed(number)
        random = {name: 0.01 * torch.randn(value.shape, generator=generator) for name, value in layers.items()}
        folders.append(config.output / "adapters" / f"{number:03}")
        SardInpaintPipeline.save_lora_weights(folders[-1], unet_lora_layers=random, **metadata)
    return folders


def output_of(pipe: SardInpaintPipeline) -> torch.Tensor:
    """One prediction of the UNet, which differs from adapter to adapter."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, pipe.unet.config.in_channels, pipe.unet.config.sample_size, pipe.unet.config.sample_size)
    words = torch.zeros(1, 77, pipe.unet.config.cross_attention_dim)
    with torch.no_grad():
        return pipe.unet(torch.randn(shape, generator=generator), 500, words).sample


def timed(step: Callable[[], None]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def megabytes() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def benchmark(config: AdaptersBenchmarkConfig) -> dict:
    """Measure the three ways, and that each way gives the same predictions."""
    make_folder(config.output)
    folders = write_adapters(config)
    results, predictions = {}, {}  # swapped first: freed memory of the others would hide what it takes

    pipe = load(config.base)
    pipe.load_lora_weights(str(folders[0]), adapter_name="current")
    empty, switching, ours = megabytes(), [], []
    for folder in reversed(folders):

        def swap(f: Path = folder) -> None:
            pipe.delete_adapters("current")
            pipe.load_lora_weights(str(f), adapter_name="current")

        switching.append(timed(swap))
        ours.append(output_of(pipe))
    results["swapped"] = {"switch": median(switching), "memory": megabytes() - empty}
    predictions["swapped"] = ours

    pipe = load(config.base)
    empty = megabytes()
    loading = [timed(lambda f=f: pipe.load_lora_weights(str(f), adapter_name=f"a{f.name}")) for f in folders]
    held = megabytes()
    switching, ours = [], []
    for folder in reversed(folders):
        switching.append(timed(lambda f=folder: pipe.set_adapters(f"a{f.name}")))
        ours.append(output_of(pipe))
    results["resident"] = {"switch": median(switching), "load once": median(loading), "memory": held - empty}
    predictions["resident"] = ours

    switching, ours = [], []
    for folder in list(reversed(folders))[:10]:
        began = time.perf_counter()
        pipe = load(config.base)
        pipe.load_lora_weights(str(folder))
        switching.append(time.perf_counter() - began)
        ours.append(output_of(pipe))
    results["anew"] = {"switch": median(switching)}
    predictions["anew"] = ours

    pairs = [*zip(predictions["resident"], predictions["swapped"], strict=True)]
    pairs += zip(predictions["resident"], predictions["anew"], strict=False)  # of these only some
    same = all(torch.equal(one, other) for one, other in pairs)
    distinct = len({tuple(p.flatten()[:8].tolist()) for p in predictions["resident"]})
    report = {
        "command": f"python benchmarks/adapters.py --adapters {config.adapters} --rank {config.rank}",
        "base": config.base,
        "machine": f"{machine('cpu')}, torch {torch.__version__}",
        "megabytes_of_one": round((folders[0] / LORA_FILE).stat().st_size / 2**20, 1),
        "ways": {way: {name: round(value, 4) for name, value in row.items()} for way, row in results.items()},
        "times_faster_than_anew": {
            way: round(results["anew"]["switch"] / results[way]["switch"], 1) for way in ("resident", "swapped")
        },
        "all_ways_give_the_same": same,
        "different_predictions": distinct,
    }
    write_text(config.output / "adapters.json", json.dumps(report, indent=2) + "\n")
    return report


if __name__ == "__main__":
    done = benchmark(parse(AdaptersBenchmarkConfig, "python benchmarks/adapters.py", __doc__))
    print(json.dumps(done, indent=2))
