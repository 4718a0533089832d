"""BiSeNet V2, a two-branch segmentation network, written from the paper: Yu et al. 2020, arXiv 2004.02147.

A shallow wide branch keeps the details at 1/8 of the input's resolution, a deep narrow one sees the context at 1/32;
each gates the other, and one head reads the result. Section, table and figure numbers below are the paper's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class BiSeNetV2Width:
    """Channels of a BiSeNet V2; the defaults are the paper's (Table 1).

    The paper leaves the heads' widths open ("C_t", Section 4.4): they trade accuracy for computation.
    """

    detail: Sequence[int] = (64, 64, 128)
    """Of the detail branch's stages S1 … S3, at 1/2, 1/4 and 1/8 of the input's resolution."""
    semantic: Sequence[int] = (16, 32, 64, 128)
    """Of the semantic branch's stem and stages S3 … S5, at 1/4, 1/8, 1/16 and 1/32; the paper's λ is 1/4."""
    expansion: int = 6
    """How much wider a gather-and-expansion layer is inside; the paper's ε."""
    head: int = 1024
    """Of the segmentation head's hidden layer."""
    booster: int = 128
    """Of the booster heads' hidden layers."""

    def __post_init__(self) -> None:
        for name, count in (("detail", 3), ("semantic", 4)):
            channels = getattr(self, name)
            if len(channels) != count or min(channels) < 1:
                raise ValueError(f"{name}={channels}: give {count} positive numbers of channels")
        for name in ("expansion", "head", "booster"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.semantic[0] % 2:
            raise ValueError(f"semantic={self.semantic}: the stem halves its channels, the first number must be even")


BISENETV2_WIDTHS = {
    # Half of the paper's channels, and the last stage, which holds most of the weights, narrower still.
    "small": BiSeNetV2Width(detail=(32, 32, 64), semantic=(8, 16, 32, 48), head=128, booster=32),
    "full": BiSeNetV2Width(),
}


class BiSeNetV2(nn.Module):
    """Images (B, 3, H, W) -> logits (B, 1, ⌈H/8⌉, ⌈W/8⌉) of a binary segmentation (Section 4, Figure 3).

    >>> BiSeNetV2(BISENETV2_WIDTHS["small"]).eval()(torch.zeros(1, 3, 96, 64)).shape
    torch.Size([1, 1, 12, 8])
    """

    def __init__(self, width: BiSeNetV2Width):
        super().__init__()
        self.detail = _detail_branch(width.detail)
        self.semantic = SemanticBranch(width.semantic, width.expansion)
        self.aggregation = BilateralGuidedAggregation(width.detail[-1], width.semantic[-1])
        self.head = SegmentationHead(width.detail[-1], width.head)
        self.boosters = nn.ModuleList(SegmentationHead(channels, width.booster) for channels in width.semantic)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # Section 5, "Training"
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """The main logits (B, 1, ⌈H/8⌉, ⌈W/8⌉), in training mode too. Raises as `training_logits` does."""
        context, _ = self.semantic(images)
        return self._main_logits(images, context)

    def training_logits(self, images: Tensor) -> list[Tensor]:
        """The main logits first, then the boosters', at 1/4, 1/8, 1/16 and 1/32 of the resolution (Section 4.4).

        The boosters teach the semantic branch at every depth; outside training nothing needs them.
        Raises `ValueError` in training mode for a batch of one image.
        """
        context, stages = self.semantic(images)
        boosted = [booster(stage) for booster, stage in zip(self.boosters, stages, strict=True)]
        return [self._main_logits(images, context), *boosted]

    def _main_logits(self, images: Tensor, context: Tensor) -> Tensor:
        return self.head(self.aggregation(self.detail(images), context))


def _detail_branch(channels: Sequence[int]) -> nn.Sequential:
    """Images (B, 3, H, W) -> details (B, C3, ⌈H/8⌉, ⌈W/8⌉) through eight plain convolutions (Section 4.1, Table 1)."""
    first, second, third = channels
    return nn.Sequential(
        _conv(3, first, stride=2),
        _conv(first, first),
        _conv(first, second, stride=2),
        _conv(second, second),
        _conv(second, second),
        _conv(second, third, stride=2),
        _conv(third, third),
        _conv(third, third),
    )


class SemanticBranch(nn.Module):
    """Images (B, 3, H, W) -> context (B, C5, ⌈H/32⌉, ⌈W/32⌉) and the four stages that lead to it (Section 4.2).

    The stages (Table 1) are (B, C_i, ·, ·) at 1/4, 1/8, 1/16 and 1/32, the last one without the context embedding.
    """

    def __init__(self, channels: Sequence[int], expansion: int):
        super().__init__()
        stem, third, fourth, fifth = channels
        self.stages = nn.ModuleList(
            [
                StemBlock(stem),
                _gather_and_expansion_stage(stem, third, expansion, layers=2),
                _gather_and_expansion_stage(third, fourth, expansion, layers=2),
                _gather_and_expansion_stage(fourth, fifth, expansion, layers=4),
            ]
        )
        self.context = ContextEmbedding(fifth)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        stages = []
        features = images
        for stage in self.stages:
            features = stage(features)
            stages.append(features)
        return self.context(features), stages


class StemBlock(nn.Module):
    """Images (B, 3, H, W) -> (B, C, ⌈H/4⌉, ⌈W/4⌉): a convolution, then two ways to shrink, merged (Figure 4a)."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = _conv(3, channels, stride=2)
        self.convolved = nn.Sequential(
            _conv(channels, channels // 2, kernel=1), _conv(channels // 2, channels, stride=2)
        )
        self.pooled = nn.MaxPool2d(3, stride=2, padding=1)
        self.merge = _conv(2 * channels, channels)

    def forward(self, images: Tensor) -> Tensor:
        features = self.first(images)
        return self.merge(torch.cat([self.convolved(features), self.pooled(features)], dim=1))


def _gather_and_expansion_stage(inputs: int, outputs: int, expansion: int, layers: int) -> nn.Sequential:
    rest = [GatherAndExpansion(outputs, outputs, expansion) for _ in range(layers - 1)]
    return nn.Sequential(GatherAndExpansion(inputs, outputs, expansion, stride=2), *rest)


class GatherAndExpansion(nn.Module):
    """(B, C, h, w) -> (B, C', ⌈h/stride⌉, ⌈w/stride⌉), an inverted bottleneck (Section 4.2, Figure 5b and 5c).

    A 3×3 convolution gathers and widens to εC, depth-wise convolutions work there, a 1×1 convolution projects back.
    With stride 2 there are two depth-wise convolutions, and the shortcut is a separable convolution.
    """

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int = 1):
        super().__init__()
        wide = expansion * inputs
        layers = [_conv(inputs, wide), _depthwise(wide, stride)]
        self.shortcut: nn.Module = nn.Identity()
        if stride == 2:
            layers.append(_depthwise(wide))
            self.shortcut = nn.Sequential(_depthwise(inputs, stride), _conv(inputs, outputs, kernel=1, relu=False))
        self.layers = nn.Sequential(*layers, _conv(wide, outputs, kernel=1, relu=False))

    def forward(self, features: Tensor) -> Tensor:
        return F.relu(self.layers(features) + self.shortcut(features))


class ContextEmbedding(nn.Module):
    """(B, C, h, w) -> the same shape, the whole image's mean features added everywhere (Section 4.2, Figure 4b)."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.embed = _conv(channels, channels, kernel=1)
        self.merge = _conv(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        if self.training and len(features) == 1:
            raise ValueError(
                "a batch of one image: BiSeNet V2 normalises one value per image over the batch; train it with a "
                "batch_size of at least 2"
            )
        pooled = self.norm(features.mean((2, 3), keepdim=True))
        return self.merge(features + self.embed(pooled))


class BilateralGuidedAggregation(nn.Module):
    """Details (B, D, h, w) and context (B, S, ⌈h/4⌉, ⌈w/4⌉) -> (B, D, h, w): each branch gates the other (Figure 6).

    They meet twice, at the details' resolution and at the context's (Section 4.3).
    """

    def __init__(self, detail: int, semantic: int):
        super().__init__()
        self.detail_kept = nn.Sequential(_depthwise(detail), nn.Conv2d(detail, detail, 1))
        self.detail_shrunk = nn.Sequential(
            _conv(detail, detail, stride=2, relu=False),
            # Zeros beyond the border would dim the features there, in small images nearly all of them.
            nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
        )
        self.semantic_kept = nn.Sequential(_depthwise(semantic), nn.Conv2d(semantic, detail, 1))
        self.semantic_grown = _conv(semantic, detail, relu=False)
        self.merge = _conv(detail, detail, relu=False)

    def forward(self, details: Tensor, context: Tensor) -> Tensor:
        size = details.shape[-2:]
        fine = self.detail_kept(details) * _resize(self.semantic_grown(context), size).sigmoid()
        coarse = self.detail_shrunk(details) * self.semantic_kept(context).sigmoid()
        return self.merge(fine + _resize(coarse, size))


class SegmentationHead(nn.Module):
    """(B, C, h, w) -> logits (B, 1, h, w) (Section 4.4, Figure 7; resizing is left to the caller)."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.hidden = _conv(channels, hidden)
        self.classifier = nn.Conv2d(hidden, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.classifier(self.hidden(features))


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, relu: bool = True) -> nn.Sequential:
    """Convolution, batch norm and, where the paper has one, ReLU: (B, C, h, w) -> (B, C', ⌈h/stride⌉, ⌈w/stride⌉)."""
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if relu else nn.Sequential(*layers)


def _depthwise(channels: int, stride: int = 1) -> nn.Sequential:
    """A 3×3 convolution of each channel by itself and batch norm: (B, C, h, w) -> (B, C, ⌈h/stride⌉, ⌈w/stride⌉)."""
    convolution = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels))


def _resize(features: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(features, size, mode="bilinear", align_corners=False)
