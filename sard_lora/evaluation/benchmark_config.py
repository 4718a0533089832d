"""What `sard-lora benchmark` compares, and how long everything trains."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from sard_lora.evaluation.methods import parse_method, split_names
from sard_lora.evaluation.segmenters import SegmenterName, SegmenterSize
from sard_lora.train.segmenter import SegmenterConfig

METHODS = "real,paste,cutpaste,draem,inpaint,sard,paste+real,sard+real"


@dataclass
class BenchmarkConfig:
    """What is compared."""

    data: Path
    """A data set, or a folder of data sets."""
    output: Path = Path("runs/benchmark")
    """Where adapters, sets, finished cells and the results go."""
    base: str = "sard-tiny"
    """Base model of every diffusion method."""
    adapt_steps: int = 0
    """Steps of `sard-lora base adapt` on the normal images first, for every diffusion method alike; 0 leaves it out."""
    methods: str = METHODS
    """What to train segmenters on; settings may be changed for ablations, as in sard[guidance_scale=1,critic=false]."""
    segmenters: str = "unet,segformer"
    """Segmenters: unet, segformer, bisenetv2."""
    size: SegmenterSize = "small"
    """"small" segmenters train on a CPU; "full" ones are for a GPU, SegFormer with a pretrained encoder."""
    seeds: int = 3
    """Runs of everything: adapters, sets and segmenters."""
    count: int = 200
    """Synthetic images of each set, over all defects together."""
    shots: int | None = None
    """Parts of each defect, other ones for every seed as long as there are; by default a third of the groups."""
    adapter_steps: int = 500
    """Optimizer steps of every adapter."""
    start_steps: int = 4000
    """Steps that every segmenter first trains on drawn surfaces with drawn defects, once for all methods and seeds
    (`sard_lora.evaluation.start`); 0 starts from random weights."""
    unet_steps: int = 3000
    """Training steps of the U-Net, from there."""
    segformer_steps: int = 6000
    """Training steps of SegFormer, from there."""
    segformer_batch_size: int = 4
    """Crops of each of them: at one price SegFormer learns more from 4 than from 8 or 2; the others train on 8."""
    bisenetv2_steps: int = 3000
    """Training steps of BiSeNet V2, from there."""
    fills: int = 0
    """Fills of every method for the shortcut test (`sard_lora.evaluation.shortcut`), with the first segmenter and
    seed; 0 leaves it out."""
    fidelity: bool = True
    """How exact and how real the set of every method is, of the first seed (`sard_lora.evaluation.fidelity`)."""
    perceptual: bool = False
    """With fidelity, KID and IC-LPIPS of every set: needs `pip install torch-fidelity`, downloads its networks once."""
    split: Literal["dev", "test"] = "test"
    """Which half of the held-back images: choices are made on dev, final figures on test."""
    device: str = "auto"
    """Where segmenters train: "cpu", "cuda", …; "auto" takes a GPU where there is one."""
    workers: int = 1
    """Processes that make sets and train segmenters side by side, on the same GPU where there is one."""

    def __post_init__(self) -> None:
        for name in split_names(self.methods):
            parse_method(name)
        for name in split_names(self.segmenters):
            if name not in get_args(SegmenterName):
                raise ValueError(f"segmenters: {name!r} is not one of {', '.join(get_args(SegmenterName))}")
        if not split_names(self.methods) or not split_names(self.segmenters):
            raise ValueError("methods and segmenters have to name at least one each")
        positive = ("unet_steps", "segformer_steps", "segformer_batch_size", "bisenetv2_steps")
        for name in ("seeds", "count", "adapter_steps", *positive, "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} has to be at least 1")
        for name in ("adapt_steps", "start_steps", "fills"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} has to be at least 0")

    def training(self, segmenter: str, seed: int) -> SegmenterConfig:
        """How one segmenter is trained."""
        config = self._training(segmenter, getattr(self, f"{segmenter}_steps"), seed)
        return replace(config, batch_size=self.segformer_batch_size) if segmenter == "segformer" else config

    def start(self, segmenter: str) -> SegmenterConfig | None:
        """How it is trained on drawn surfaces before; None: not at all, from random weights."""
        return self._training(segmenter, self.start_steps, seed=0) if self.start_steps else None

    def _training(self, segmenter: str, steps: int, seed: int) -> SegmenterConfig:
        return SegmenterConfig(segmenter=segmenter, size=self.size, steps=steps, seed=seed, device=self.device)
