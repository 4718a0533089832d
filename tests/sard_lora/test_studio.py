"""The studio without a browser: candidates as synthesis makes them, kept in a set like any other, nothing lost."""

import sys

import numpy as np
import pytest
from PIL import Image

from sard_lora.cli import main
from sard_lora.images import DEFECT, FRINGE, DataError
from sard_lora.labelled import LabelledSet
from sard_lora.product import foreground
from sard_lora.studio import Mask, Studio, StudioConfig, studio
from sard_lora.studio_page import _Actions
from sard_lora.synthesis import verify
from sard_lora.synthesizer import Synthesizer, outlined


@pytest.fixture
def workshop(adapter, tmp_path) -> Studio:
    config = StudioConfig(adapter.folder, tmp_path / "kept", num_inference_steps=2, min_visibility=0.0)
    return Studio(config)


@pytest.fixture
def picture(workshop, mvtec):
    return workshop.open(mvtec / "train/good/000.png")


def square(picture, side: int = 8) -> Mask:
    mask = np.zeros((picture.image.height, picture.image.width), bool)
    mask[10 : 10 + side, 12 : 12 + side] = True
    return Mask(mask)


def make(workshop, picture, mask, count=3, seed=0):
    return workshop.generate("adapter", "hole", picture, mask, count, guidance=3.0, seed=seed)


def test_kept_image_label_and_record_are_those_of_any_synthetic_set(workshop, picture, tmp_path):
    mask = square(picture)
    results = make(workshop, picture, mask)
    assert len({result.record["seed"] for result in results}) == 3
    assert [path.stem for path in workshop.keep(results[:2])] == ["studio-000000", "studio-000001"]
    assert [path.stem for path in workshop.keep(results[2:])] == ["studio-000002"]
    kept = LabelledSet(tmp_path / "kept")
    assert kept.count == 3 and len((tmp_path / "kept/metadata.jsonl").read_text().splitlines()) == 3
    assert verify(kept.root, kept.root) == {"pixels_changed_outside_mask": 0, "labels_equal_written_region": True}
    for record in kept.records():
        label, image = (Image.open(kept.root / record[name]) for name in ("mask_file_name", "file_name"))
        core = outlined(image, picture.image, mask.pixels)
        assert np.array_equal(np.asarray(label), np.where(core, DEFECT, np.where(mask.pixels, FRINGE, 0)))
        assert 0 < core.sum() < mask.pixels.sum(), "as synthesis labels what is drawn from noise"
        assert (record["mask_origin"], record["method"], record["normal"]) == ("painted", "sard", "train/good/000.png")
        assert (record["adapter"], record["guidance_scale"]) == ("adapter", 3.0)
    assert (kept.root / "train/good/000.png").read_bytes() == picture.path.read_bytes()


def test_nothing_is_kept_among_real_defects(workshop, picture, mvtec):
    workshop.config.output = mvtec
    before = sorted(mvtec.rglob("*"))
    with pytest.raises(ValueError, match=r"000.png: carries no record"):
        workshop.keep(make(workshop, picture, square(picture))[:1])
    assert sorted(mvtec.rglob("*")) == before


def test_same_arguments_give_the_same_candidates(workshop, picture):
    first, again, other = (make(workshop, picture, square(picture), seed=seed) for seed in (4, 4, 5))
    pixels = [[np.asarray(result.image) for result in results] for results in (first, again, other)]
    assert all(np.array_equal(*pair) for pair in zip(pixels[0], pixels[1], strict=True))
    assert not np.array_equal(pixels[0][0], pixels[2][0])


def test_what_cannot_be_seen_is_not_kept(workshop, picture, tmp_path):
    workshop.config.min_visibility = 1e9
    results = make(workshop, picture, square(picture))
    assert not any(result.visible for result in results)
    with pytest.raises(ValueError, match=r"less than 1e\+09: the defect cannot be seen.* Raise the guidance"):
        workshop.keep(results)
    assert LabelledSet(tmp_path / "kept").count == 0


def test_what_counts_as_seen_is_the_defect_and_not_its_fringe(workshop, picture, monkeypatch):
    pixels = np.zeros((picture.image.height, picture.image.width), bool)
    pixels[3:6, 3:6] = pixels[-9:-2, -9:-2] = True
    core = pixels.copy()
    core[10:] = False
    generate = Synthesizer.generate

    def larger_is_invisible(self, draws):
        return [[[c._replace(visibility=0.0) for c in larger], other] for larger, other in generate(self, draws)]

    monkeypatch.setattr(Synthesizer, "generate", larger_is_invisible)
    workshop.config.min_visibility = 1e-6
    for mask, seen in ((Mask(pixels), False), (Mask(pixels, "hole/000", core), True)):
        assert make(workshop, picture, mask, count=1)[0].visible == seen


def test_random_mask_is_on_the_part_and_names_its_origin(workshop, tmp_path):
    pixels = np.full((120, 160, 3), 230, np.uint8)
    pixels[30:90, 40:120] = np.random.default_rng(0).integers(60, 90, (60, 80, 1))
    Image.fromarray(pixels).save(tmp_path / "object.png")
    picture = workshop.open(tmp_path / "object.png")
    for _ in range(20):
        mask = workshop.random_mask("adapter", "hole", picture)
        assert mask.pixels.any() and not (mask.pixels & ~foreground(picture.image)).any()
        assert mask.origin.startswith("hole/") and np.array_equal(mask.core, mask.pixels), "it has no margin"
    workshop.adapters["adapter"].config.sampling.margins["hole"] = 3
    mask = workshop.random_mask("adapter", "hole", picture)
    assert not (mask.core & ~mask.pixels).any() and mask.core.sum() < mask.pixels.sum()


def test_random_mask_is_that_of_its_defect_alone(workshop, picture):
    """With another one chosen since it is a shape like any painted one: no origin, and no fringe of another defect."""
    actions = _Actions(workshop)
    workshop.adapters["adapter"].config.sampling.margins["hole"] = 3
    drawn, canvas, _ = actions.draw("adapter", "hole", picture)
    for defect, origin in (("hole", drawn[2].origin), ("scratch", "painted")):
        results, *_ = actions.generate("adapter", defect, picture, canvas["mask"], drawn, 1, 3.0, 0, False)
        assert results[0].record["defect"] == defect and results[0].record["mask_origin"] == origin


def test_two_pictures_of_one_name_are_both_kept(workshop, mvtec, tmp_path):
    for number, name in enumerate(("000.png", "001.png")):
        path = tmp_path / f"camera{number}" / "part.png"
        path.parent.mkdir()
        path.write_bytes((mvtec / "train/good" / name).read_bytes())
        picture = workshop.open(path)
        for _ in range(2):
            workshop.keep(make(workshop, picture, square(picture), count=1))
    names = sorted(record["normal"] for record in LabelledSet(tmp_path / "kept").records())
    assert names == ["train/good/part-2.png"] * 2 + ["train/good/part.png"] * 2
    assert verify(tmp_path / "kept", tmp_path / "kept")["pixels_changed_outside_mask"] == 0


def test_pictures_are_checked_like_any_other_input(workshop, mvtec, tmp_path, monkeypatch):
    whole = (mvtec / "train/good/000.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.png: the image cannot be decoded"):
        workshop.open(tmp_path / "cut.png")
    (tmp_path / "part.gif").write_bytes(whole)
    with pytest.raises(DataError, match=r"part\.gif: \.gif is no kind of image .* Save it as one of bmp, jpeg"):
        workshop.open(tmp_path / "part.gif")
    monkeypatch.setattr("sard_lora.studio.MAX_PIXELS", 1000)
    with pytest.raises(DataError, match=r"000\.png: 40 × 32 pixels are too many to paint on .* Crop it"):
        workshop.open(mvtec / "train/good/000.png")
    monkeypatch.undo()
    deep = np.full((32, 40), 25700, np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    picture = workshop.open(tmp_path / "deep.png")
    assert np.asarray(picture.image).max() == 100, "16 bits are scaled, not clipped"
    assert make(workshop, picture, square(picture), count=1)[0].image.mode == "L", "a grey picture stays grey"


def test_empty_mask_and_negative_seed_are_refused(workshop, picture):
    with pytest.raises(ValueError, match=r"mask is empty\. Paint one"):
        make(workshop, picture, Mask(np.zeros((32, 40), bool)))
    with pytest.raises(ValueError, match="seed is -1"):
        make(workshop, picture, square(picture), seed=-1)


def test_folder_of_adapters_keeps_a_set_for_every_category(adapter, mvtec, tmp_path):
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    adapter.folder.rename(shelf / "first")
    workshop = Studio(StudioConfig(shelf, tmp_path / "kept", num_inference_steps=2, min_visibility=0.0))
    assert list(workshop.adapters) == ["first"]
    picture = workshop.open(mvtec / "train/good/000.png")
    results = workshop.generate("first", "scratch", picture, square(picture), 1, 3.0, 0)
    assert workshop.keep(results) == [tmp_path / "kept/plate/test/scratch/studio-000000.png"]


def test_adapter_without_masks_still_takes_painted_ones(adapter, mvtec, tmp_path):
    import shutil

    shutil.rmtree(adapter.folder / "masks")
    workshop = Studio(StudioConfig(adapter.folder, tmp_path / "kept", num_inference_steps=2, min_visibility=0.0))
    picture = workshop.open(mvtec / "train/good/000.png")
    with pytest.raises(ValueError, match="shared without its masks"):
        workshop.random_mask("adapter", "hole", picture)
    assert len(make(workshop, picture, square(picture))) == 3


def test_no_adapter_no_gradio_no_port(adapter, tmp_path, monkeypatch, capsys):
    arguments = ["studio", "--adapters", str(tmp_path / "none"), "--output", str(tmp_path / "kept")]
    assert main(arguments) == 1
    assert "none: no adapter here" in capsys.readouterr().err
    with pytest.raises(ValueError, match="port=0 has to be between"):
        StudioConfig(adapter.folder, tmp_path, port=0)
    with pytest.raises(ValueError, match="num_inference_steps=0 has to be at least 1"):
        StudioConfig(adapter.folder, tmp_path, num_inference_steps=0)
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "sard_lora.studio_page", raising=False)
    with pytest.raises(ValueError, match=r"pip install 'sard-lora\[ui\]'"):
        studio(StudioConfig(adapter.folder, tmp_path / "kept"))
