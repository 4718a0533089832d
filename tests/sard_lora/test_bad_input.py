"""What people really feed in is read right, or refused by name with the way out; nothing is half-written."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sard_lora import atomic
from sard_lora.data import DataError, find_problems, open_category, require_sound
from sard_lora.images import Problem, load_image, load_mask
from sard_lora.labelled import LabelledSet
from sard_lora.report import contact_sheet


def spot(width: int = 40, height: int = 32) -> np.ndarray:
    """(H, W) bool mask with one spot, near the upper left corner."""
    mask = np.zeros((height, width), bool)
    mask[3:9, 5:12] = True
    return mask


def saved(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)
    return path


# Masks


def test_a_missing_mask(one_bad_file):
    text = one_bad_file(lambda image, mask: mask.unlink())
    assert "test/hole/002.png: a defect image without its mask" in text
    assert "ground_truth" in text and "move the image to the normal images" in text


def test_a_mask_without_its_image(one_bad_file):
    text = one_bad_file(lambda image, mask: image.unlink())
    assert "ground_truth/hole/002_mask.png: a mask without its image" in text and "delete the mask" in text


def test_an_empty_mask(one_bad_file):
    text = one_bad_file(lambda image, mask: saved(mask, spot() & False))
    assert "002_mask.png: the mask is empty" in text and "255" in text


def test_a_mask_of_another_size(one_bad_file):
    text = one_bad_file(lambda image, mask: saved(mask, spot(20, 16)))
    assert "002_mask.png: the mask is 20 × 16 pixels, its image 40 × 32" in text and "own size" in text


def test_a_grey_scale_mask_tells_how_to_threshold(one_bad_file):
    soft = np.linspace(0, 255, 32 * 40).reshape(32, 40).astype(np.uint8)
    text = one_bad_file(lambda image, mask: saved(mask, soft))
    assert "002_mask.png: the mask is not binary" in text and "Threshold it" in text


def test_a_jpeg_compressed_mask_is_not_binary(tmp_path: Path):
    with pytest.raises(DataError, match=r"mask.jpg: the mask is not binary.*JPEG"):
        load_mask(saved(tmp_path / "mask.jpg", spot() * np.uint8(255)), (40, 32))


def test_a_coloured_mask(tmp_path: Path):
    pixels = np.zeros((32, 40, 3), np.uint8)
    pixels[spot()] = (255, 0, 0)
    with pytest.raises(DataError, match=r"mask.png: the mask is coloured"):
        load_mask(saved(tmp_path / "mask.png", pixels), (40, 32))


def test_a_transparent_mask(tmp_path: Path):
    pixels = np.zeros((32, 40, 4), np.uint8)
    pixels[spot()] = 255
    with pytest.raises(DataError, match=r"mask.png: the mask has transparent pixels"):
        load_mask(saved(tmp_path / "mask.png", pixels), (40, 32))


@pytest.mark.parametrize(
    ("pixels", "mode"),
    [
        (spot().astype(np.uint8), None),  # 0/1: black in every viewer
        (spot() * np.uint8(255), None),
        (spot() * np.uint8(100), None),
        (spot(), None),  # 1 bit
        (spot() * np.uint16(65535), None),
        (spot() * np.uint8(255), "RGB"),
        (spot() * np.uint8(255), "RGBA"),
        (spot() * np.uint8(255), "LA"),
        (spot() * np.uint8(255), "P"),
    ],
    ids=["0-1", "0-255", "0-100", "1-bit", "16-bit", "RGB", "RGBA", "LA", "P"],
)
def test_masks_of_two_values_come_out_as_0_and_255(tmp_path: Path, pixels: np.ndarray, mode: str | None):
    mask = load_mask(saved(tmp_path / "mask.png", pixels, mode), (40, 32))
    assert mask.mode == "L"
    assert np.array_equal(np.asarray(mask), spot() * np.uint8(255))


def test_a_coloured_palette_mask_counts_from_background_0(tmp_path: Path):
    mask = Image.fromarray(spot().astype(np.uint8)).convert("P")
    mask.putpalette([0, 0, 0, 0, 128, 0])
    mask.save(tmp_path / "mask.png")
    assert Image.open(tmp_path / "mask.png").mode == "P"
    assert np.array_equal(np.asarray(load_mask(tmp_path / "mask.png", (40, 32))) > 0, spot())


def test_a_grey_palette_mask_is_read_by_its_greys(tmp_path: Path):
    mask = Image.fromarray((~spot()).astype(np.uint8)).convert("P")
    mask.putpalette([255, 255, 255, 0, 0, 0])  # number 1 is black: the background
    mask.save(tmp_path / "mask.png")
    assert np.array_equal(np.asarray(load_mask(tmp_path / "mask.png", (40, 32))) > 0, spot())


# Images


def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path):
    levels = np.linspace(0, 65535, 32 * 40).reshape(32, 40).astype(np.uint16)
    for name in ("image.png", "image.tif"):
        image = load_image(saved(tmp_path / name, levels))
        assert image.mode == "RGB"
        for channel in np.moveaxis(np.asarray(image), 2, 0):
            assert np.array_equal(channel, np.rint(levels / 257).astype(np.uint8))


def test_32_bit_and_floating_point_images_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"float.tif: a floating-point image.*Convert"):
        load_image(saved(tmp_path / "float.tif", np.zeros((4, 4), np.float32)))
    with pytest.raises(DataError, match=r"int.tif: grey levels from 0 to 99999.*Convert"):
        load_image(saved(tmp_path / "int.tif", np.array([[0, 99999]], np.int32)))


def test_rgba_lies_on_white_and_an_opaque_alpha_changes_nothing(tmp_path: Path):
    pixels = np.full((4, 4, 4), (10, 20, 30, 255), np.uint8)
    assert (np.asarray(load_image(saved(tmp_path / "opaque.png", pixels))) == (10, 20, 30)).all()
    pixels[0, 0, 3] = 0
    found = np.asarray(load_image(saved(tmp_path / "holes.png", pixels)))
    assert tuple(found[0, 0]) == (255, 255, 255) and tuple(found[1, 1]) == (10, 20, 30)


def test_cmyk_palette_bilevel_and_grey_images_become_rgb(tmp_path: Path):
    colour = Image.new("RGB", (16, 16), (200, 40, 40))
    for mode, name in (("CMYK", "image.jpg"), ("P", "image.png"), ("L", "grey.jpg"), ("1", "bilevel.png")):
        colour.convert(mode).save(tmp_path / name)
        found = load_image(tmp_path / name)
        assert found.mode == "RGB"
        wanted = np.asarray(colour.convert(mode).convert("RGB"), int)
        assert np.abs(np.asarray(found, int) - wanted).max() <= 3
    red = np.asarray(load_image(tmp_path / "image.jpg"), int)
    assert np.abs(red - (200, 40, 40)).max() <= 3


def test_an_exif_rotated_image_is_turned_and_its_mask_compared_with_what_one_sees(one_bad_file, tmp_path: Path):
    pixels = np.zeros((40, 32, 3), np.uint8)
    pixels[:10] = 200  # stored on top: seen on the right, after a quarter turn to the right
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    seen = np.asarray(load_image(tmp_path / "turned.jpg"))
    assert seen.shape == (32, 40, 3) and seen[:, 32:].min() > 150 and seen[:, :28].max() < 50
    assert load_mask(saved(tmp_path / "seen.png", spot()), (40, 32)).size == (40, 32)

    def turn(image: Path, mask: Path) -> None:
        Image.fromarray(pixels).save(image, exif=exif)
        saved(mask, spot(32, 40))  # drawn on the image as stored

    assert "swapped: was the image rotated, by EXIF" in one_bad_file(turn)


def test_a_truncated_jpeg(mvtec: Path):
    path = mvtec / "train/good/cut.jpg"
    saved(path, np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:1500])
    (problem,) = find_problems(open_category(mvtec))
    assert problem.path == path and "truncated" in problem.what and "from the original" in problem.fix


def test_a_zero_byte_file(one_bad_file):
    text = one_bad_file(lambda image, mask: image.write_bytes(b""))
    assert "test/hole/002.png: the file is empty (0 bytes)" in text and "from the original" in text


def test_a_text_file_that_calls_itself_an_image(one_bad_file):
    text = one_bad_file(lambda image, mask: image.write_text("<html>404</html>"))
    assert "test/hole/002.png: this is not an image" in text


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"gone.png: no such file"):
        load_image(tmp_path / "gone.png")


# Whole data sets


def test_no_normal_images(mvtec: Path):
    for path in mvtec.glob("train/good/*"):
        path.unlink()
    with pytest.raises(DataError, match=r"train/good: no normal images. Put images of good parts there"):
        require_sound(open_category(mvtec))


def test_no_defects(btad: Path):
    for path in [*btad.glob("test/ko/*"), *btad.glob("ground_truth/ko/*")]:
        path.unlink()
    with pytest.raises(DataError, match=r"test/ko: no defect images. Put images with a defect there"):
        require_sound(open_category(btad))


# Output


def test_a_place_that_cannot_be_written_to(mvtec: Path, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    image, mask = Image.new("RGB", (40, 32)), spot()
    with pytest.raises(OSError, match=r"file/set.*cannot write here.*Choose another --output"):
        LabelledSet(tmp_path / "file/set").add("crack", "000000", image, mask, {})
    with pytest.raises(OSError, match=r"file.*cannot write here"):
        contact_sheet(open_category(mvtec).anomalies, tmp_path / "file/sheet.png")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_full_disk_leaves_no_half_written_label(tmp_path: Path, monkeypatch):
    labelled = LabelledSet(tmp_path / "set")
    labelled.add("crack", "000000", Image.new("RGB", (40, 32)), spot(), {})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        labelled.add("crack", "000001", Image.new("RGB", (40, 32)), spot(), {})
    monkeypatch.undo()
    files = sorted(path.name for path in (tmp_path / "set").rglob("*") if path.is_file())
    assert files == ["000000.png", "000000_mask.png"]


def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path):
    saved(tmp_path / "sheet.png", spot() * np.uint8(255))
    before = (tmp_path / "sheet.png").read_bytes()
    with pytest.raises(KeyboardInterrupt), atomic.atomic_file(tmp_path / "sheet.png") as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert (tmp_path / "sheet.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_problems_are_readable_also_from_another_process():
    error = DataError(
        [Problem(Path("a.png"), "damaged", "Save it again"), Problem(Path("b.png"), "empty", "Take it out")]
    )
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) and again.problems == error.problems
