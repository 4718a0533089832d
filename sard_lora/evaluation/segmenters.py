"""Segmentation networks that find defects: MONAI's U-Net, transformers' SegFormer, BiSeNet V2 behind one interface.

Every segmenter maps images (B, 3, H, W) in [0, 1] of any size to logits (B, 1, H, W); a logit above 0 says "defect".
"""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from monai.inferers import sliding_window_inference
from monai.networks.nets import UNet
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from sard_lora.atomic import atomic_folder
from sard_lora.evaluation.bisenet import BISENETV2_WIDTHS, BiSeNetV2, BiSeNetV2Width
from sard_lora.evaluation.metrics import without_faint_regions
from sard_lora.precision import mixed_precision

SegmenterName = Literal["unet", "segformer", "bisenetv2"]
SegmenterSize = Literal["small", "full"]

# The small one works from half of the resolution on: five times as fast a step, and it learns as much in each.
UNET_LEVELS = {
    "small": {"channels": [16, 32, 64, 128, 128], "strides": [2, 2, 2, 2]},
    "full": {"channels": [32, 32, 64, 128, 256, 512], "strides": [1, 2, 2, 2, 2]},
}
# The encoder of b0. Its decoder, four times as wide, took more than half of a step.
SEGFORMER_SMALL = {"decoder_hidden_size": 64}
SEGFORMER_FULL_ENCODER = "nvidia/mit-b2"

# Of the images that the pretrained encoders were trained on; a network from scratch does not mind.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Defects are rare: starting at a probability of 5 % spares the first steps the work of unlearning one half everywhere.
INITIAL_LOGIT = -3.0

# What is larger is predicted in overlapping tiles, where the segmenter was never trained on crops of one size.
TILE = 1024
_TILES_AT_ONCE = 8
_MIRRORS = ((), (2,), (3,), (2, 3))
"""Axes of a batch of images along which they are flipped; in training as often as not."""

_SETTINGS = "segmenter.json"
_WEIGHTS = "segmenter.safetensors"


class Segmenter(nn.Module):
    """A network behind normalisation and padding: images (B, 3, H, W) in [0, 1] -> logits (B, 1, H, W).

    `network` maps padded images to logits (B, 1, h, w) of any smaller or equal resolution, which are resized to the
    input's; `settings` is what `load_segmenter` needs to build the same network without the Hub.
    """

    def __init__(self, network: nn.Module, stride: int, settings: dict[str, Any]):
        super().__init__()
        self.network = network
        self.stride = stride
        self.settings = settings
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        padded = self._padded(images)
        return self._resized(self.network(self._normalised(padded)), padded, images)

    def training_logits(self, images: Tensor) -> list[Tensor]:
        """All logits that a loss should see, each (B, 1, H, W): the main ones first, then the auxiliary ones.

        Only BiSeNet V2 has auxiliary ones, and only in training mode; elsewhere this is `[forward(images)]`.
        Raises `ValueError` for a batch of one image where BiSeNet V2 is in training mode.
        """
        padded = self._padded(images)
        normalised = self._normalised(padded)
        if self.training and isinstance(self.network, BiSeNetV2):
            outputs = self.network.training_logits(normalised)
        else:
            outputs = [self.network(normalised)]
        return [self._resized(output, padded, images) for output in outputs]

    @property
    def tile(self) -> int:
        """Pixels that it wants to see at once, a side: as many as in training."""
        return self.settings.get("crop", TILE)

    @property
    def peak(self) -> float:
        """The logit that a region above 0 has to reach somewhere to be a defect; set after training."""
        return self.settings.get("peak", 0.0)

    @property
    def output_layers(self) -> list[nn.Conv2d]:
        """The layers whose bias is a constant of the logits: that of `forward` first, then the auxiliary ones."""
        if isinstance(self.network, BiSeNetV2):
            return [head.classifier for head in (self.network.head, *self.network.boosters)]
        if isinstance(self.network, UNet):
            return [[layer for layer in self.network.modules() if isinstance(layer, nn.Conv2d)][-1]]
        return [self.network.decode_head.classifier]

    def lower_logits(self, amount: float) -> None:
        """Subtract `amount` from every logit of `forward`."""
        with torch.no_grad():
            self.output_layers[0].bias -= amount

    def padding(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Pixels that the network sees left, right, above and below images of this size, as `torch.nn.functional.pad`
        takes them: up to a multiple of its stride."""
        # Two strides at least: a single value in the deepest layer cannot be normalised.
        bottom, right = (max(2 * self.stride, -(-side // self.stride) * self.stride) for side in (height, width))
        return 0, right - width, 0, bottom - height

    def _padded(self, images: Tensor) -> Tensor:
        return F.pad(images, self.padding(*images.shape[-2:]), mode="replicate")

    def _normalised(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std

    def _resized(self, output: Any, padded: Tensor, images: Tensor) -> Tensor:
        """The network's output at the resolution of `padded`, cut to the size of `images`: (B, 1, H, W)."""
        logits = getattr(output, "logits", output)
        if logits.shape[-2:] != padded.shape[-2:]:
            logits = F.interpolate(logits.float(), padded.shape[-2:], mode="bilinear", align_corners=False)
        return logits[..., : images.shape[-2], : images.shape[-1]]


def require_segmenter(name: str, size: str, pretrained: str | None) -> None:
    """Raise `ValueError` for an unknown name or size, and for `pretrained` where there is no such encoder."""
    if name not in get_args(SegmenterName):
        raise ValueError(f"segmenter={name!r}: choose one of {', '.join(get_args(SegmenterName))}")
    if size not in get_args(SegmenterSize):
        raise ValueError(f"size={size!r}: choose one of {', '.join(get_args(SegmenterSize))}")
    if pretrained is not None and (name, size) != ("segformer", "full"):
        raise ValueError(
            f"pretrained={pretrained!r}: only the full SegFormer starts from a pretrained encoder; "
            "use segmenter=segformer and size=full, or leave it out"
        )


def build_segmenter(name: SegmenterName, size: SegmenterSize = "small", pretrained: str | None = None) -> Segmenter:
    """A new segmenter. Its random weights come from torch's global generator: seed that first.

    `pretrained` names an encoder on the Hub (nvidia/mit-b0 … nvidia/mit-b5) or a folder of one, for the full
    SegFormer; None there means nvidia/mit-b2. All others start from scratch; the small ones have about 1 M (U-Net),
    3.4 M (SegFormer) and 0.9 M (BiSeNet V2) parameters.
    Raises `ValueError` as `require_segmenter` does.
    """
    require_segmenter(name, size, pretrained)
    if name == "unet":
        segmenter = _build({"name": "unet", **UNET_LEVELS[size]})
    elif name == "bisenetv2":
        # Through JSON, so that the settings are the same before and after a save: it has no tuples.
        width = json.loads(json.dumps(asdict(BISENETV2_WIDTHS[size])))
        segmenter = _build({"name": "bisenetv2", "width": width})
    else:
        if size == "small":
            segmenter = _build(
                {"name": "segformer", "config": _as_json(SegformerConfig(num_labels=1, **SEGFORMER_SMALL))}
            )
            _initialise(segmenter)
        else:
            segmenter = _pretrained_segformer(pretrained or SEGFORMER_FULL_ENCODER)
    for layer in segmenter.output_layers:
        nn.init.constant_(layer.bias, INITIAL_LOGIT)
    return segmenter


def _build(settings: dict[str, Any]) -> Segmenter:
    if settings["name"] == "unet":
        levels = {name: settings[name] for name in ("channels", "strides")}
        network = UNet(2, 3, 1, **levels, num_res_units=2, act="leakyrelu", norm="batch")
        return Segmenter(network, math.prod(settings["strides"]), settings)
    if settings["name"] == "bisenetv2":
        return Segmenter(BiSeNetV2(BiSeNetV2Width(**settings["width"])), 32, settings)
    network = SegformerForSemanticSegmentation(SegformerConfig.from_dict(settings["config"]))
    return Segmenter(network, 32, settings)


def _initialise(segmenter: Segmenter) -> None:
    """Weights as torch draws them, by each layer's inputs.

    transformers draws all of SegFormer's with a deviation of 0.02, convolutions of 9 inputs too: the perceptron of a
    block then gives 0.07 to 0.4 % of what goes into it, as torch draws them a tenth, and learning begins late.
    """
    for layer in segmenter.network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            layer.reset_parameters()


def _pretrained_segformer(encoder: str) -> Segmenter:
    try:
        # Only safetensors are read: the Hub converts a repository that has none.
        network = SegformerForSemanticSegmentation.from_pretrained(
            encoder, num_labels=1, use_safetensors=True, ignore_mismatched_sizes=True, dtype=torch.float32
        )
    except OSError as error:
        raise ValueError(
            f"{encoder}: no SegFormer encoder could be loaded from this name ({error}). Give a folder or a Hub id such "
            "as nvidia/mit-b0 and check the connection, or use size=small, which needs no download."
        ) from error
    return Segmenter(network, 32, {"name": "segformer", "config": _as_json(network.config)})


def _as_json(config: SegformerConfig) -> dict[str, Any]:
    return json.loads(config.to_json_string(use_diff=True))


def save_segmenter(segmenter: Segmenter, folder: Path | str) -> None:
    """Write `segmenter.safetensors` and `segmenter.json` into `folder`, whole or not at all."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in segmenter.state_dict().items()}
    with atomic_folder(folder) as temporary:
        save_file(state, temporary / _WEIGHTS)
        (temporary / _SETTINGS).write_text(json.dumps(segmenter.settings, indent=1), encoding="utf-8")


def load_segmenter(folder: Path | str) -> Segmenter:
    """The segmenter that `save_segmenter` wrote, in eval mode. Raises `FileNotFoundError` where there is none."""
    folder = Path(folder)
    for name in (_SETTINGS, _WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: missing; give a folder that save_segmenter wrote")
    segmenter = _build(json.loads((folder / _SETTINGS).read_text(encoding="utf-8")))
    segmenter.load_state_dict(load_file(folder / _WEIGHTS))
    return segmenter.eval()


def to_tensor(image: Image.Image) -> Tensor:
    """The pixels of an RGB image as `predict` takes them: (3, H, W) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@torch.inference_mode()
def predict(segmenter: Segmenter, image: Tensor) -> Tensor:
    """Logits (H, W), fp32 on the CPU, of one image (3, H, W), uint8 in [0, 255], at its own resolution.

    It is seen in overlapping tiles of the size of the training crops, whatever its own: attention over a whole image is
    another thing than over a crop. Every tile is seen four times, as it is and mirrored, as in training, and the logits
    are averaged: what one view alone takes for a defect seldom is one.

    What is marked as a defect lies above 0: regions that somewhere reach `segmenter.peak` (`without_faint_regions`).
    """
    segmenter.eval()
    device = next(segmenter.parameters()).device
    images = image.unsqueeze(0).to(device).float().div(255).contiguous(memory_format=torch.channels_last)
    # No larger than the image, or it would be filled up with black.
    tile = [min(segmenter.tile, side) for side in image.shape[-2:]]

    def mirrored(tiles: Tensor) -> Tensor:
        return sum(segmenter(tiles.flip(axes)).flip(axes) for axes in _MIRRORS) / len(_MIRRORS)

    with mixed_precision(device):
        logits = sliding_window_inference(images, tile, _TILES_AT_ONCE, mirrored, overlap=0.25, mode="gaussian")
    return without_faint_regions(logits[0, 0].float().cpu(), segmenter.peak)
