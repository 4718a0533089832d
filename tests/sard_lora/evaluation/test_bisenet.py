"""BiSeNet V2 has the paper's shape: resolutions, widths, boosters in training only; and it learns."""

import pytest
import torch
import torch.nn.functional as F

from sard_lora.evaluation.bisenet import BISENETV2_WIDTHS, BiSeNetV2, BiSeNetV2Width


@pytest.fixture
def network():
    torch.manual_seed(0)
    return BiSeNetV2(BISENETV2_WIDTHS["small"])


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (37, 61)])
def test_each_output_has_the_resolution_that_the_paper_gives_it(network, size):
    images = torch.rand(2, 3, *size)
    context, stages = network.semantic(images)
    shrunk = {stride: tuple(-(-side // stride) for side in size) for stride in (4, 8, 16, 32)}
    assert network.detail(images).shape == (2, 64, *shrunk[8])
    assert [stage.shape[1:] for stage in stages] == [
        (channels, *shrunk[stride]) for channels, stride in ((8, 4), (16, 8), (32, 16), (48, 32))
    ]
    assert context.shape == stages[-1].shape
    assert network(images).shape == (2, 1, *shrunk[8])
    assert [logits.shape for logits in network.training_logits(images)] == [
        (2, 1, *shrunk[stride]) for stride in (8, 4, 8, 16, 32)
    ]


@pytest.mark.parametrize(("size", "low", "high"), [("small", 0.8e6, 1.0e6), ("full", 5.5e6, 6.5e6)])
def test_sizes_have_the_parameters_that_they_promise(size, low, high):
    with torch.device("meta"):
        network = BiSeNetV2(BISENETV2_WIDTHS[size])
    assert low < sum(p.numel() for p in network.parameters()) < high


def test_the_defaults_are_the_papers_channels():
    with torch.device("meta"):
        network = BiSeNetV2(BISENETV2_WIDTHS["full"])
    convolutions = [module for module in network.detail.modules() if isinstance(module, torch.nn.Conv2d)]
    assert [(layer.out_channels, layer.stride[0]) for layer in convolutions] == [
        (64, 2), (64, 1), (64, 2), (64, 1), (64, 1), (128, 2), (128, 1), (128, 1)
    ]  # fmt: skip
    widened = [stage[0].layers[0][0] for stage in list(network.semantic.stages)[1:]]
    assert [(layer.in_channels, layer.out_channels) for layer in widened] == [(16, 96), (32, 192), (64, 384)]


def test_every_weight_learns_from_the_sum_of_the_logits(network):
    sum(logits.sum() for logits in network.training_logits(torch.rand(2, 3, 64, 64))).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_a_distant_pixel_reaches_every_logit(network):
    """The context embedding sees the whole image, however tall: its top moves the logits at its bottom."""
    network.eval()
    images = torch.rand(1, 3, 640, 64)
    changed = images.clone()
    changed[..., :32, :] = 1 - changed[..., :32, :]
    with torch.no_grad():
        assert not torch.equal(network(images)[..., -1, :], network(changed)[..., -1, :])


def test_a_few_steps_find_a_bright_square_on_dark_noise(network):
    torch.manual_seed(1)
    images, masks = torch.rand(4, 3, 96, 96) * 0.2, torch.zeros(4, 1, 96, 96)
    for index, corner in enumerate((8, 24, 40, 56)):
        masks[index, :, corner : corner + 32, corner : corner + 32] = 1
    images = images + 0.7 * masks
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    losses = []
    for _ in range(12):
        outputs = [F.interpolate(out, masks.shape[-2:], mode="bilinear") for out in network.training_logits(images)]
        parts = [F.binary_cross_entropy_with_logits(logits, masks) for logits in outputs]
        optimizer.zero_grad()
        sum(parts).backward()
        optimizer.step()
        losses.append([part.item() for part in parts])
    assert losses[-1][0] < 0.25 * losses[0][0]
    # A booster at 1/32 sees a square of one pixel: it can only learn roughly where that is.
    assert all(last < 0.75 * first for first, last in zip(losses[0], losses[-1], strict=True))


def test_a_batch_of_one_trains_nothing_and_says_so(network):
    with pytest.raises(ValueError, match="batch_size of at least 2"):
        network(torch.rand(1, 3, 64, 64))
    assert network.eval()(torch.rand(1, 3, 64, 64)).shape == (1, 1, 8, 8)


@pytest.mark.parametrize(
    ("width", "words"),
    [
        ({"detail": (64, 64)}, r"detail=\(64, 64\): give 3"),
        ({"semantic": (16, 32, 0, 128)}, r"semantic=.*0.*give 4"),
        ({"semantic": (15, 32, 64, 128)}, "even"),
        ({"expansion": 0}, "expansion=0"),
    ],
)
def test_impossible_widths_are_refused_by_name(width, words):
    with pytest.raises(ValueError, match=words):
        BiSeNetV2Width(**width)
