"""The segmenter's training: repeatable, balanced, on crops that show what they should, and it learns."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from sard_lora.caching import Kept
from sard_lora.data import few_shot_split, open_category
from sard_lora.evaluation.segmenters import build_segmenter, predict, save_segmenter, to_tensor
from sard_lora.images import DEFECT, FRINGE, load_image
from sard_lora.labelled import DRAWN
from sard_lora.layouts import GOOD, Sample
from sard_lora.train import segmenter
from sard_lora.train.segmenter import CropSource, SegmenterConfig, segmentation_loss, train_segmenter

TINY = {"steps": 3, "batch_size": 2, "crop": 32, "device": "cpu"}


@pytest.fixture
def split(mvtec):
    return few_shot_split(open_category(mvtec))


def test_the_same_seed_gives_the_same_weights_to_the_bit(split):
    first, second = (train_segmenter(split.train, split.normals, SegmenterConfig(**TINY)) for _ in range(2))
    other = train_segmenter(split.train, split.normals, SegmenterConfig(**TINY, seed=1))
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name]), name
    assert any(not torch.equal(weight, other.state_dict()[name]) for name, weight in first.state_dict().items())


def test_training_leaves_the_global_generator_alone(split):
    torch.manual_seed(7)
    wanted = torch.rand(1)
    torch.manual_seed(7)
    train_segmenter(split.train, split.normals, SegmenterConfig(**TINY))
    assert torch.equal(torch.rand(1), wanted)


def test_every_step_is_taken_and_reported(split):
    seen = []
    train_segmenter(split.train, split.normals, SegmenterConfig(**TINY), lambda step, loss: seen.append(step))
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("name", ["unet", "segformer"])  # SegFormer has dropout
def test_a_killed_training_goes_on_to_the_same_weights(split, monkeypatch, tmp_path, name):
    config = SegmenterConfig(segmenter=name, **TINY | {"steps": 5})
    whole = train_segmenter(split.train, split.normals, config)
    monkeypatch.setattr(segmenter, "_CHECKPOINT_EVERY", 2)

    def dies(step: int, loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_segmenter(split.train, split.normals, config, dies, checkpoints=tmp_path)
    seen = []
    resumed = train_segmenter(
        split.train, split.normals, config, lambda step, loss: seen.append(step), checkpoints=tmp_path
    )
    assert seen == [3, 4, 5]
    for key, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[key]), key


def test_it_learns_to_find_the_defect(split):
    config = SegmenterConfig(steps=60, batch_size=4, crop=32, device="cpu")
    trained = train_segmenter(split.train, split.normals, config)
    assert trained.tile == 32
    sample = next(sample for sample in split.test if sample.defect == "hole")
    image = torch.from_numpy(np.array(Image.open(sample.image).convert("RGB"))).permute(2, 0, 1)
    mask = torch.from_numpy(np.array(Image.open(sample.mask)) > 0)
    predicted = predict(trained, image) > 0
    assert (predicted & mask).sum() / (predicted | mask).sum() > 0.5


def test_the_thresholds_are_set_on_their_own_images(split, monkeypatch):
    seen = []
    monkeypatch.setattr(segmenter, "_set_thresholds", lambda network, normals, config: seen.append(normals))
    train_segmenter(split.train, split.normals, SegmenterConfig(**TINY), threshold=split.normals[:2])
    train_segmenter(split.train, split.normals[:3], SegmenterConfig(**TINY))
    assert seen[0] == split.normals[:2] and {*seen[1]} == {*split.normals[:3]}


@pytest.mark.parametrize("name", ["unet", "segformer", "bisenetv2"])
def test_the_threshold_is_raised_until_few_pixels_of_good_parts_are_marked_and_never_lowered(split, name, fp32):
    images = [
        torch.from_numpy(np.array(Image.open(sample.image).convert("RGB"))).permute(2, 0, 1) for sample in split.normals
    ]
    new = build_segmenter(name).eval()

    def logits() -> torch.Tensor:
        return torch.stack([predict(new, image) for image in images])

    with torch.no_grad():  # before training they hardly differ
        new.output_layers[0].weight /= logits().std()
    new.lower_logits(logits().max().item() + 1)
    before = logits()
    assert (before < 0).all()
    config = SegmenterConfig(false_area=0.02, false_alarms=None)
    segmenter._set_thresholds(new, split.normals, config)
    assert torch.equal(logits(), before)
    new.lower_logits(before.min().item())
    segmenter._set_thresholds(new, split.normals, config)
    after = logits()
    assert 0 < (after >= 0).float().mean() <= 0.02
    assert (after - before).std() < 1e-4, "all logits by the same amount"


def test_few_regions_of_good_parts_are_marked_and_the_outline_of_the_others_stays(split):
    torch.manual_seed(0)
    new = build_segmenter("unet").eval()
    images = [to_tensor(load_image(sample.image)) for sample in split.normals]

    def marked() -> list[torch.Tensor]:
        return [predict(new, image) >= 0 for image in images]

    def regions() -> int:
        return sum(ndimage.label(mask, np.ones((3, 3)))[1] for mask in marked())

    with torch.no_grad():  # before training it hardly tells anything from anything
        new.output_layers[0].weight *= 100
    segmenter._set_thresholds(new, split.normals, SegmenterConfig(false_area=0.2, false_alarms=None))
    before = marked()
    assert regions() > len(images)
    segmenter._set_thresholds(new, split.normals, SegmenterConfig(false_area=0.2, false_alarms=0.5))
    assert 0 < regions() <= 0.5 * len(images)
    for mask, all_of_it in zip(marked(), before, strict=True):
        labels, count = ndimage.label(all_of_it, np.ones((3, 3)))
        assert all(len(mask[labels == region].unique()) == 1 for region in range(1, count + 1)), "whole or not at all"


def test_a_segmenter_that_goes_on_from_another_one_has_thresholds_of_its_own(split, tmp_path):
    start = build_segmenter("unet")
    start.settings["peak"] = 15.0
    save_segmenter(start, tmp_path / "start")
    trained = train_segmenter(split.train, [], SegmenterConfig(**TINY, anomaly_share=1), start=tmp_path / "start")
    assert trained.peak == 0


def test_the_share_of_crops_that_should_hold_a_defect_holds_one(split):
    source = CropSource(split.train, split.normals, SegmenterConfig(batch_size=8, crop=32, anomaly_share=0.25))
    for step in range(20):
        images, masks = source.batch(step)
        assert images.shape == (8, 3, 32, 32) and masks.shape == (8, 1, 32, 32)
        assert images.min() >= 0 and images.max() <= 1
        assert masks.amax((1, 2, 3)).tolist() == [1, 1, 0, 0, 0, 0, 0, 0]


def test_decoys_are_shown_where_they_were_written_and_labelled_normal(split):
    """A decoy here is a dark square that only decoys have: half of the normal crops show it, no mask covers it."""
    config = SegmenterConfig(batch_size=8, crop=32, anomaly_share=0.25)
    source = CropSource(split.train[:1], split.normals, config, decoys=split.train[1:2])
    shown = 0
    for step in range(20):
        images, masks = source.batch(step)
        assert not masks[2:].any()
        shown += (images[2:].amin((1, 2, 3)) < 0.2).sum().item()
    assert 30 < shown < 90


def test_drawn_textures_are_seen_as_often_as_their_share_of_the_images(split):
    """Not as often as a type of defect; here they are those whose whole image is the defect."""
    whole = split.train[0].mask.with_name("whole.png")
    Image.new("L", Image.open(split.train[0].image).size, 255).save(whole)
    drawn = [replace(split.train[0], defect=DRAWN, mask=whole)] * 2
    source = CropSource([*split.train[:1] * 8, *drawn], split.normals, SegmenterConfig(batch_size=8, crop=32))
    seen = sum(masks[:4].amin((1, 2, 3)).sum().item() for _, masks in map(source.batch, range(50)))
    assert 20 <= seen <= 60
    alone = CropSource(drawn, split.normals, SegmenterConfig(batch_size=8, crop=32))
    assert alone.batch(0)[1][:4].all()


def test_masks_stay_on_their_defects_through_crop_and_flip(split, monkeypatch):
    """The squares are the darkest thing on the surface, whatever brightness they were given, where all is in focus."""
    monkeypatch.setattr(segmenter, "gaussian_filter", lambda image, *_, **__: image)
    source = CropSource(split.train, split.normals, SegmenterConfig(batch_size=8, crop=32, anomaly_share=1))
    for step in range(10):
        images, masks = source.batch(step)
        for image, mask in zip(images.mean(1), masks[:, 0] > 0, strict=True):
            assert image[mask].max() < image[~mask].min()


def test_normal_crops_often_end_at_the_border_of_their_image():
    rows = np.repeat(np.arange(96, dtype=np.uint8)[:, None, None], 96, 1).repeat(3, 2)
    rng = np.random.default_rng(0)
    crops = [segmenter._random_crop(rows, np.zeros((96, 96), np.uint8), 32, rng)[0] for _ in range(300)]
    assert all(crop.shape == (32, 32, 3) for crop in crops)
    for border in (sum(crop.min() == 0 for crop in crops), sum(crop.max() == 95 for crop in crops)):
        assert 30 <= border <= 80  # a sixth: half of a crop of the image's length
    assert len({int(crop.min()) for crop in crops}) > 50


def test_half_of_the_crops_are_out_of_focus():
    edge = np.zeros((32, 32, 3), np.float32)
    edge[:, 16:] = 0.5
    steps = [np.abs(np.diff(segmenter._camera(edge, np.random.default_rng(n)), axis=1)).max() for n in range(60)]
    assert 15 <= sum(step < 0.4 for step in steps) <= 45


def test_a_grey_picture_is_worked_on_in_one_channel_with_the_same_crops(split, monkeypatch):
    config = SegmenterConfig(batch_size=8, crop=32)
    grey = CropSource(split.train, split.normals, config)
    images, masks = zip(*(grey.batch(step) for step in range(6)), strict=True)
    assert {image.shape[2] for image, _ in grey._load.results.values()} == {1}
    colour = CropSource(split.train, split.normals, config)
    for sample in (*split.train, *split.normals):
        image, mask = grey._load(sample)
        colour._load.results[sample] = image.repeat(3, 2), mask
    wanted, wanted_masks = zip(*(colour.batch(step) for step in range(6)), strict=True)
    assert torch.equal(torch.stack(masks), torch.stack(wanted_masks))
    assert (torch.stack(images) - torch.stack(wanted)).abs().max() < 0.02, "JPEG rounds colours, no more"


def test_smaller_images_are_continued_by_reflection_defects_and_all(split):
    source = CropSource(split.train, split.normals, SegmenterConfig(batch_size=2, crop=96))
    images, masks = source.batch(0)
    assert images.shape[-2:] == (96, 96)
    assert images[0].mean(0)[masks[0, 0] > 0].max() < images[0].mean(0)[masks[0, 0] == 0].min()


def test_what_does_not_fit_into_memory_is_decoded_again_with_the_same_result(split, monkeypatch):
    config = SegmenterConfig(batch_size=4, crop=32)
    wanted = [CropSource(split.train, split.normals, config).batch(step) for step in range(3)]
    monkeypatch.setattr(segmenter, "Kept", partial(Kept, limit=10_000))
    source = CropSource(split.train, split.normals, config)
    for step in range(3):
        images, masks = source.batch(step)
        assert torch.equal(images, wanted[step][0]) and torch.equal(masks, wanted[step][1])
    assert sum(image.nbytes + mask.nbytes for image, mask in source._load.results.values()) <= 10_000


def test_defect_types_are_drawn_evenly_however_many_images_they_have(tmp_path):
    samples = [_plain(tmp_path, "rare", 0, level=250)] + [_plain(tmp_path, "common", n, level=5) for n in range(1, 20)]
    source = CropSource(samples, [], SegmenterConfig(batch_size=8, crop=32, anomaly_share=1))
    rare = sum((source.batch(step)[0].mean((1, 2, 3)) > 0.5).sum().item() for step in range(40))
    assert 0.4 < rare / (40 * 8) < 0.6


def _plain(folder: Path, defect: str, number: int, level: int) -> Sample:
    image, mask = folder / f"{number}.png", folder / f"{number}_mask.png"
    Image.new("L", (32, 32), level).save(image)
    Image.fromarray(np.eye(32, dtype=np.uint8) * 255).save(mask)
    return Sample(image, mask, defect, str(number))


def test_small_defects_weigh_as_much_as_large_ones_in_dice():
    masks = torch.zeros(2, 1, 32, 32)
    masks[0, 0, :16] = 1
    masks[1, 0, 5, 5] = 1
    right = torch.where(masks > 0, 20.0, -20.0)
    missed = []
    for index in range(2):
        logits = right.clone()
        logits[index] = -20.0
        missed.append(
            segmentation_loss(logits, masks) - torch.nn.functional.binary_cross_entropy_with_logits(logits, masks)
        )
    assert segmentation_loss(right, masks) < 1e-3
    assert missed[0] == pytest.approx(missed[1].item(), abs=1e-3) == pytest.approx(0.5, abs=1e-3)


def test_the_fringe_of_a_defect_is_none_of_it(tmp_path):
    label = np.zeros((64, 64), np.uint8)
    label[20:40, 20:40], label[25:35, 25:35] = FRINGE, DEFECT
    Image.fromarray(label).save(tmp_path / "0_mask.png")
    Image.fromarray(label).save(tmp_path / "0.png")
    sample = Sample(tmp_path / "0.png", tmp_path / "0_mask.png", "spot", "0")
    config = SegmenterConfig(batch_size=8, crop=48, anomaly_share=1)
    areas = []
    for step in range(5):
        _, masks = CropSource([sample], [], config).batch(step)
        assert set(masks.unique().tolist()) == {0, 1}
        areas += masks.sum((1, 2, 3)).tolist()
    assert min(areas) > 0 and max(areas) == 100, "10 × 10, and not the 20 × 20 that were written"
    _, masks = CropSource([sample], [sample], SegmenterConfig(crop=32), decoys=[sample]).batch(0)
    assert not masks[4:].any(), "a decoy has no defect"


def test_crops_without_a_defect_are_still_taught():
    empty = torch.zeros(1, 1, 32, 32)
    assert segmentation_loss(torch.full_like(empty, -20.0), empty) < 1e-3 < segmentation_loss(empty, empty)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [({"steps": 0}, "steps=0"), ({"crop": 8}, "crop=8"), ({"anomaly_share": 1.5}, "anomaly_share=1.5")],
)
def test_bad_settings_are_named(wrong, word):
    with pytest.raises(ValueError, match=word):
        SegmenterConfig(**wrong)


def test_bisenet_needs_two_images_a_step():
    with pytest.raises(ValueError, match="batch_size=1"):
        SegmenterConfig(segmenter="bisenetv2", batch_size=1)


def test_nothing_to_train_on_is_said_at_once(split):
    with pytest.raises(ValueError, match="no anomaly images"):
        train_segmenter([], split.normals, SegmenterConfig(**TINY))
    with pytest.raises(ValueError, match="no normal images"):
        train_segmenter(split.train, [], SegmenterConfig(**TINY))
    assert all(sample.defect == GOOD for sample in split.normals)
