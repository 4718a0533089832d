"""Segmenters take images of any size and come back from disk equal to the bit."""

import pickle

import pytest
import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from sard_lora.evaluation import segmenters
from sard_lora.evaluation.segmenters import build_segmenter, load_segmenter, predict, save_segmenter


@pytest.mark.parametrize("name", ["unet", "segformer", "bisenetv2"])
@pytest.mark.parametrize("size", [(1, 1), (37, 61), (96, 64)])
def test_any_size_goes_in_and_comes_out(name, size):
    torch.manual_seed(0)
    segmenter = build_segmenter(name).eval()
    with torch.no_grad():
        assert segmenter(torch.rand(2, 3, *size)).shape == (2, 1, *size)


def test_padding_does_not_move_the_image():
    """The logits of a picture whose sides are no multiples of the stride lie over the picture, not beside it."""
    torch.manual_seed(0)
    segmenter = build_segmenter("unet").eval()
    segmenter.network = torch.nn.Sequential(_FirstChannel())
    image = torch.rand(1, 3, 37, 61)
    assert torch.allclose(segmenter(image), (image[:, :1] - segmenter.mean[:, :1]) / segmenter.std[:, :1])


class _FirstChannel(torch.nn.Module):
    def forward(self, images):
        return images[:, :1]


def test_the_small_unet_has_about_a_million_parameters():
    assert 0.8e6 < sum(p.numel() for p in build_segmenter("unet").parameters()) < 1.5e6


def test_blocks_of_the_small_segformer_are_heard_before_training():
    """Drawn with a deviation of 0.02, as transformers does, they give 0.4 % of their input at most."""
    segmenter = build_segmenter("segformer").eval()
    network = segmenter.network.segformer
    passed = {}
    for number, block in enumerate(block for stage in network.stages for block in stage.blocks):
        block.mlp.register_forward_hook(lambda _, given, out, n=number: passed.update({n: (given[0], out)}))
    with torch.no_grad():
        segmenter(torch.rand(1, 3, 64, 64))
    assert len(passed) == 8
    for given, out in passed.values():
        assert out.std() > 0.02 * given.std()


@pytest.mark.parametrize(("name", "count"), [("unet", 1), ("segformer", 1), ("bisenetv2", 5)])
def test_only_bisenet_in_training_has_auxiliary_logits_and_all_are_the_inputs_size(name, count):
    torch.manual_seed(0)
    segmenter = build_segmenter(name).train()
    images = torch.rand(2, 3, 70, 101)
    assert [logits.shape for logits in segmenter.training_logits(images)] == [(2, 1, 70, 101)] * count
    assert segmenter(images).shape == (2, 1, 70, 101)
    (logits,) = segmenter.eval().training_logits(images)
    assert torch.equal(logits, segmenter(images))


def test_the_first_training_logits_are_those_of_forward():
    torch.manual_seed(0)
    segmenter = build_segmenter("bisenetv2").train()
    images = torch.rand(2, 3, 70, 101)
    main, *auxiliary = segmenter.training_logits(images)
    assert torch.equal(main, segmenter(images))
    assert all((main - other).abs().max() > 0.1 for other in auxiliary)


@pytest.mark.parametrize("name", ["unet", "bisenetv2"])
def test_before_training_all_logits_call_defects_rare(name):
    torch.manual_seed(0)
    for logits in build_segmenter(name).train().training_logits(torch.rand(2, 3, 64, 64)):
        assert abs(logits.mean() - segmenters.INITIAL_LOGIT) < 1.5


@pytest.mark.parametrize("name", ["unet", "segformer", "bisenetv2"])
def test_eval_gives_the_same_logits_twice(name):
    torch.manual_seed(0)
    segmenter = build_segmenter(name).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(segmenter(images), segmenter(images))


@pytest.mark.parametrize("name", ["unet", "segformer", "bisenetv2"])
def test_a_saved_segmenter_predicts_the_same_to_the_bit(name, tmp_path, monkeypatch):
    torch.manual_seed(0)
    segmenter = build_segmenter(name)
    segmenter.train()(torch.rand(2, 3, 64, 64))  # moves the running statistics of batch norm
    segmenter.settings["peak"] = 0.25
    save_segmenter(segmenter, tmp_path / "saved")
    monkeypatch.setattr(pickle, "load", lambda *_: pytest.fail("something was unpickled"))
    image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    loaded = load_segmenter(tmp_path / "saved")
    assert torch.equal(predict(loaded, image), predict(segmenter, image))
    assert loaded.settings == segmenter.settings
    assert {path.suffix for path in (tmp_path / "saved").iterdir()} == {".json", ".safetensors"}


@pytest.mark.parametrize("name", ["unet", "segformer", "bisenetv2"])
def test_a_mirrored_image_is_predicted_as_the_mirror_image(name, fp32):
    torch.manual_seed(0)
    segmenter = build_segmenter(name)
    image = torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)
    for axis in (1, 2):
        assert torch.allclose(predict(segmenter, image.flip(axis)), predict(segmenter, image).flip(axis - 1), atol=1e-4)


def test_images_are_predicted_in_tiles_of_the_training_crops_that_agree_with_the_whole(fp32):
    segmenter = build_segmenter("unet").eval()
    segmenter.network = torch.nn.Sequential(_FirstChannel(), torch.nn.Conv2d(1, 1, 1))
    image = torch.randint(0, 256, (3, 300, 310), dtype=torch.uint8)
    whole = predict(segmenter, image)
    segmenter.settings["crop"] = 128
    sizes = set()
    segmenter.register_forward_pre_hook(lambda _, inputs: sizes.add(tuple(inputs[0].shape[-2:])))
    assert torch.allclose(predict(segmenter, image), whole, atol=0.02)
    assert sizes == {(128, 128)}
    sizes.clear()
    line = image[:, :100]  # shorter than a tile: no black is put above and below it
    assert torch.allclose(predict(segmenter, line), whole[:100], atol=0.02)
    assert sizes == {(100, 128)}


def test_the_full_segformer_starts_from_a_pretrained_encoder(tmp_path):
    torch.manual_seed(0)
    config = SegformerConfig(hidden_sizes=[8, 8, 8, 8], num_attention_heads=[1, 1, 1, 1], decoder_hidden_size=8)
    pretrained = SegformerForSemanticSegmentation(config)
    pretrained.save_pretrained(tmp_path / "encoder")
    segmenter = build_segmenter("segformer", "full", str(tmp_path / "encoder"))
    wanted = pretrained.segformer.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in segmenter.network.segformer.state_dict().items())
    save_segmenter(segmenter, tmp_path / "saved")
    assert load_segmenter(tmp_path / "saved").settings == segmenter.settings


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("unet++",), "segmenter='unet\\+\\+'.*unet, segformer, bisenetv2"),
        (("unet", "huge"), "size='huge'"),
        (("unet", "full", "nvidia/mit-b0"), "nvidia/mit-b0.*SegFormer"),
        (("bisenetv2", "full", "nvidia/mit-b0"), "nvidia/mit-b0.*SegFormer"),
    ],
)
def test_unknown_names_are_refused_by_name(arguments, words):
    with pytest.raises(ValueError, match=words):
        build_segmenter(*arguments)


def test_an_encoder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no-such-folder.*size=small"):
        build_segmenter("segformer", "full", str(tmp_path / "no-such-folder"))
    with pytest.raises(FileNotFoundError, match=r"segmenter\.json"):
        load_segmenter(tmp_path)
