"""Train the downstream segmenter: a fixed number of steps on random crops, the same for every kind of training data.

Nothing is selected on any data: no validation, no early stopping, the last weights are the result. Only the thresholds
are set in the end, on normal images of other parts than it was trained on, where it is given some.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from sard_lora.caching import Kept
from sard_lora.data import THRESHOLD_IMAGES
from sard_lora.evaluation.metrics import ScoreHistogram, logit_of_share, peak_of_count
from sard_lora.evaluation.segmenters import (
    Segmenter,
    SegmenterName,
    SegmenterSize,
    build_segmenter,
    load_segmenter,
    predict,
    require_segmenter,
    to_tensor,
)
from sard_lora.images import DEFECT, load_image, load_mask
from sard_lora.labelled import DRAWN
from sard_lora.layouts import Sample
from sard_lora.precision import choose_device, mixed_precision
from sard_lora.train.checkpoint import load_optimizer_tensors, load_state, optimizer_tensors, save_state

_CHECKPOINT_EVERY = 500
"""Steps."""


@dataclass
class SegmenterConfig:
    """How a segmenter is built and trained."""

    segmenter: SegmenterName = "unet"
    """Which network: MONAI's U-Net learns fastest from scratch; SegFormer and BiSeNet V2 are the paper's."""
    size: SegmenterSize = "small"
    """"small" trains on a CPU; "full" is for a GPU, SegFormer with a pretrained encoder."""
    pretrained: str | None = None
    """Hub id or folder of the full SegFormer's encoder; by default nvidia/mit-b2."""
    steps: int = 1000
    """Training steps; always all of them."""
    batch_size: int = 8
    """Crops a step."""
    crop: int = 160
    """Side of the square crops, in pixels; smaller images are continued by reflection."""
    learning_rate: float | None = None
    """Peak learning rate; default: 2e-3 for U-Net and BiSeNet V2, 5e-4 for SegFormer, 6e-5 where it is pretrained."""
    anomaly_share: float = 0.5
    """Share of the crops that hold a defect; the others come from normal images."""
    false_area: float = 0.0005
    """Share of the pixels of normal images that may lie above the threshold, which is raised until no more do. 1 leaves
    it where the loss puts it."""
    false_alarms: float | None = 0.25
    """Regions that may be marked on a normal image, in the mean: those that are nowhere sure enough are left out until
    no more remain. None leaves out none."""
    seed: int = 0
    """Seeds the initial weights and every step's crops."""
    device: str = "auto"
    """"cpu", "cuda", … ; "auto" takes a GPU where there is one."""

    def __post_init__(self) -> None:
        require_segmenter(self.segmenter, self.size, self.pretrained)
        choose_device(self.device)
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.segmenter == "bisenetv2" and self.batch_size < 2:
            raise ValueError("batch_size=1: BiSeNet V2 normalises one value an image, over at least 2 images")
        if self.crop < 32:
            raise ValueError(f"crop={self.crop}: must be at least 32 pixels")
        if not 0 < self.anomaly_share <= 1:
            raise ValueError(f"anomaly_share={self.anomaly_share}: must be above 0 and at most 1")
        if not 0 < self.false_area <= 1:
            raise ValueError(f"false_area={self.false_area}: must be above 0 and at most 1")
        if self.false_alarms is not None and self.false_alarms < 0:
            raise ValueError(f"false_alarms={self.false_alarms}: must be at least 0")
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise ValueError(f"learning_rate={self.learning_rate}: must be above 0")

    @property
    def peak_learning_rate(self) -> float:
        if self.learning_rate is not None:
            return self.learning_rate
        if self.segmenter in ("unet", "bisenetv2"):
            return 2e-3
        return 5e-4 if self.size == "small" else 6e-5


def train_segmenter(
    anomalies: Sequence[Sample],
    normals: Sequence[Sample],
    config: SegmenterConfig,
    progress: Callable[[int, float], None] | None = None,
    decoys: Sequence[Sample] = (),
    start: Path | None = None,
    checkpoints: Path | None = None,
    threshold: Sequence[Sample] = (),
) -> Segmenter:
    """A segmenter trained for `config.steps` steps, in eval mode, on the CPU or GPU that it was trained on.

    `anomalies` have masks; defect types are drawn evenly, then an image of the type. `decoys` are normal images that
    were written into where their mask is, with nothing that is a defect: half of the normal crops show one, labelled
    normal, so that the writing itself is no sign of a defect. `start` is a folder that `save_segmenter` wrote: training
    goes on from those weights, in place of random ones. `threshold` are normal images to set the thresholds on, without
    them some of `normals`, and then too low: a network knows by heart what it was trained on. `progress` is called with
    the step (from 1) and its loss. The same samples, config and thread count give the same weights, also where the
    training was killed: with a folder for `checkpoints`, which has to be this training's own, it goes on from the
    newest one there.
    Raises `ValueError` without anomalies, without normals where a share of them is asked for, and for a loss of NaN.
    """
    crops = CropSource(anomalies, normals, config, decoys)
    device = choose_device(config.device)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        segmenter = (
            load_segmenter(start) if start else build_segmenter(config.segmenter, config.size, config.pretrained)
        )
        segmenter.settings["crop"] = config.crop
        segmenter.to(device, memory_format=torch.channels_last).train()
        optimizer = torch.optim.AdamW(segmenter.parameters(), weight_decay=0.01)
        first = _resume(checkpoints, segmenter, optimizer) if checkpoints else 0
        for step in range(first, config.steps):
            for group in optimizer.param_groups:
                group["lr"] = config.peak_learning_rate * _warmup_cosine(step, config.steps)
            images, masks = (batch.to(device) for batch in crops.batch(step))
            images = images.to(memory_format=torch.channels_last)
            with mixed_precision(device):
                outputs = segmenter.training_logits(images)
            loss = sum(segmentation_loss(logits.float(), masks) for logits in outputs)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(segmenter.parameters(), 1.0)
            optimizer.step()
            if not math.isfinite(loss.item()):
                raise ValueError(f"the segmenter's loss is {loss.item()} at step {step + 1}; lower learning_rate")
            if progress is not None:
                progress(step + 1, loss.item())
            if checkpoints and (step + 1) % _CHECKPOINT_EVERY == 0:
                save_state(checkpoints, step + 1, _state(segmenter, optimizer), keep=1)
    if not threshold:
        drawn = np.random.default_rng(config.seed).permutation(len(normals))[:THRESHOLD_IMAGES]
        threshold = [normals[index] for index in drawn]
    segmenter.settings["peak"] = 0.0  # not that of the segmenter it started from
    if threshold:
        _set_thresholds(segmenter, threshold, config)
    return segmenter.eval()


def _state(segmenter: Segmenter, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All that the next step depends on, but for its crops; with the random numbers of dropout."""
    tensors = {f"segmenter.{name}": tensor for name, tensor in segmenter.state_dict().items()}
    tensors |= {f"optimizer.{name}": tensor for name, tensor in optimizer_tensors(optimizer).items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if (device := next(segmenter.parameters()).device).type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    return tensors


def _resume(folder: Path, segmenter: Segmenter, optimizer: torch.optim.Optimizer) -> int:
    """Put back what `_state` gave to the newest checkpoint in `folder`; the number of its step, 0 without one."""
    found = load_state(folder)
    if found is None:
        return 0
    step, tensors = found
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        part, _, name = key.partition(".")
        parts.setdefault(part, {})[name] = tensor
    segmenter.load_state_dict(parts["segmenter"])
    load_optimizer_tensors(optimizer, parts["optimizer"])
    torch.set_rng_state(parts["random"]["cpu"])
    if "cuda" in parts["random"]:
        torch.cuda.set_rng_state(parts["random"]["cuda"], next(segmenter.parameters()).device)
    return step


def _set_thresholds(segmenter: Segmenter, normals: Sequence[Sample], config: SegmenterConfig) -> None:
    """Lower all logits, and set the peak, until as much of normal images is marked as `config` allows.

    Half of the crops in training hold a defect, next to none of the pixels at the line: what training calls even odds
    marks far too much there. So the thresholds are set, as at the line, on good parts: one for the outline, by the
    area that is marked, and one that a region has to reach somewhere, by the number of regions, each of which a person
    looks at in vain.
    """

    def predictions() -> Iterator[Tensor]:
        return (predict(segmenter, to_tensor(load_image(sample.image))) for sample in normals)

    scores = ScoreHistogram()
    for logits in predictions():
        scores.add(logits, torch.zeros_like(logits, dtype=torch.bool))
    segmenter.lower_logits(max(0.0, logit_of_share(scores, config.false_area)))
    if config.false_alarms is not None:
        segmenter.settings["peak"] = peak_of_count(predictions(), config.false_alarms)


def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Binary cross-entropy over all pixels plus Dice over the crops that hold a defect; both (B, 1, H, W).

    Masks are 1 on a defect and 0 elsewhere. Dice is taken per crop, so that a pinhole weighs as much as a stain; a crop
    without a defect has no Dice.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, masks)
    probability = logits.sigmoid()
    overlap = (probability * masks).sum((1, 2, 3))
    total = probability.sum((1, 2, 3)) + masks.sum((1, 2, 3))
    holds_defect = masks.amax((1, 2, 3))
    dice = ((1 - 2 * overlap / total.clamp(min=1)) * holds_defect).sum() / holds_defect.sum().clamp(min=1)
    return cross_entropy + dice


class CropSource:
    """Random augmented crops of samples; images are decoded when they are first drawn and kept as uint8."""

    def __init__(
        self,
        anomalies: Sequence[Sample],
        normals: Sequence[Sample],
        config: SegmenterConfig,
        decoys: Sequence[Sample] = (),
    ):
        self.batch_size, self.crop, self.seed = config.batch_size, config.crop, config.seed
        self.anomaly_count = max(1, round(config.batch_size * config.anomaly_share))
        if not anomalies:
            raise ValueError("no anomaly images to train the segmenter on: give at least one image with its mask")
        if not normals and self.anomaly_count < config.batch_size:
            raise ValueError("no normal images to train the segmenter on: give some, or set anomaly_share=1")
        # What is drawn is no type of defect: it is seen as often as its share of the images, not as a type is.
        self.drawn = [sample for sample in anomalies if sample.defect == DRAWN]
        self.drawn_share = len(self.drawn) / len(anomalies)
        defects = sorted({sample.defect for sample in anomalies} - ({DRAWN} if self.drawn_share < 1 else set()))
        self.by_defect = [[sample for sample in anomalies if sample.defect == defect] for defect in defects]
        self.normals, self.decoys = list(normals), list(decoys)
        self._load = Kept(self._decode, lambda decoded: sum(array.nbytes for array in decoded))

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images (B, 3, crop, crop) in [0, 1] and masks (B, 1, crop, crop) of step `step`, for `segmentation_loss`.

        The fringe of a synthetic defect is none of it: annotators' outlines leave it out too, and a segmenter that is
        not told so marks it. A pure function of samples, seed and step.
        """
        rng = np.random.default_rng([self.seed, step])
        images, masks = [], []
        for index in range(self.batch_size):
            is_anomaly = index < self.anomaly_count
            if is_anomaly:
                pool = self.by_defect[rng.integers(len(self.by_defect))]
                if self.drawn and rng.random() < self.drawn_share:
                    pool = self.drawn
            else:
                pool = self.decoys if self.decoys and rng.random() < 0.5 else self.normals
            image, mask = self._load(pool[rng.integers(len(pool))])
            image, mask = _random_crop(image, mask, self.crop, rng)
            image, mask = _random_flip(image, mask * is_anomaly, rng)
            images.append(torch.from_numpy(_camera(_jitter(image, rng), rng)).permute(2, 0, 1).expand(3, -1, -1))
            masks.append(torch.from_numpy(np.float32(mask == DEFECT)).unsqueeze(0))
        return torch.stack(images), torch.stack(masks)

    def _decode(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """uint8 image (H, W, 3), (H, W, 1) if grey, and `load_mask`'s mask (H, W); both sides are at least `crop`."""
        image = load_image(sample.image)
        mask = np.zeros((image.height, image.width), np.uint8)
        if sample.mask is not None:
            mask = np.asarray(load_mask(sample.mask, image.size))
        pixels = np.asarray(image)
        if (pixels == pixels[..., :1]).all():
            pixels = pixels[..., :1]  # a third of the work for every crop of it
        return _reflect_to(pixels, mask, self.crop)


def _reflect_to(image: np.ndarray, mask: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    padding = []
    for length in mask.shape:
        missing = max(0, side - length)
        padding.append((missing // 2, missing - missing // 2))
    return np.pad(image, [*padding, (0, 0)], mode="reflect"), np.pad(mask, padding, mode="reflect")


def _random_crop(
    image: np.ndarray, mask: np.ndarray, side: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A crop that holds a random pixel of the defect, anywhere in it; without a mask, a crop about any pixel at all.

    That is moved into the image, so that it often ends at its border. Defects that touch the border are always seen
    there, and where normal crops hardly ever are, the border itself becomes the sign of a defect.
    """
    pixels = np.flatnonzero(mask == DEFECT)
    origin = []
    if pixels.size:
        centre = np.unravel_index(pixels[rng.integers(pixels.size)], mask.shape)
        for position, length in zip(centre, mask.shape, strict=True):
            low, high = max(0, position - side + 1), min(position, length - side)
            origin.append(rng.integers(low, high + 1))
    else:
        origin = [np.clip(rng.integers(length) - side // 2, 0, length - side) for length in mask.shape]
    window = tuple(slice(start, start + side) for start in origin)
    return image[window], mask[window]


def _random_flip(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    for axis in (0, 1):
        if rng.random() < 0.5:
            image, mask = np.flip(image, axis), np.flip(mask, axis)
    return image, mask


def _jitter(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 -> fp32 in [0, 1] with contrast scaled by 0.8 … 1.25 about the crop's mean and brightness moved by ±0.1."""
    image = image.astype(np.float32) / 255
    contrast, brightness = np.float32(1.25 ** rng.uniform(-1, 1)), np.float32(rng.uniform(-0.1, 0.1))
    mean = image.mean()
    return np.clip((image - mean) * contrast + mean + brightness, 0, 1)


def _camera(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Half of the crops out of focus by up to 1.5 px, half with sensor noise of up to 3 %, half compressed as JPEG of
    quality 50 to 95; fp32 in [0, 1].

    What was written into a picture is as sharp and clean as it was made, its surroundings carry the lens's blur, the
    camera's noise and the blocks of a JPEG: a segmenter would learn to tell these apart, and find nothing in real
    pictures. So all get new ones.
    """
    if rng.random() < 0.5:
        image = gaussian_filter(image, (*[rng.uniform(0, 1.5)] * 2, 0), mode="nearest")
    if rng.random() < 0.5:
        grey = rng.standard_normal((*image.shape[:2], 1), dtype=np.float32)
        image = np.clip(image + np.float32(rng.uniform(0, 0.03)) * grey, 0, 1)
    if rng.random() < 0.5:
        compressed = BytesIO()
        pixels = np.rint(image * 255).astype(np.uint8)
        Image.fromarray(pixels.squeeze()).save(compressed, "JPEG", quality=int(rng.integers(50, 96)))
        image = (np.asarray(Image.open(compressed), np.float32) / 255).reshape(image.shape)
    return image


def _warmup_cosine(step: int, steps: int) -> float:
    warmup = max(1, min(100, steps // 10))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
