from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sard_lora.data import inspect, open_category
from sard_lora.report import RED, check_report, contact_sheet, grid, outline


def test_the_outline_surrounds_the_mask_and_covers_none_of_it():
    image = Image.new("RGB", (60, 40), "grey")
    mask = np.zeros((40, 60), bool)
    mask[10:20, 15:30] = True
    for distance in (0, 3):
        pixels = np.asarray(outline(image, mask, distance=distance))
        red = (pixels == RED).all(axis=2)
        assert not red[mask].any() and (pixels[mask] == 128).all()
        assert red[9 - distance, 15:30].all() and red[20 + distance, 15:30].all()
        assert red[10:20, 14 - distance].all() and red[10:20, 30 + distance].all()
        assert red.sum() < 100


def test_the_outline_of_nothing_is_the_image():
    image = Image.new("L", (30, 20), 77)
    assert (np.asarray(outline(image, np.zeros((20, 30), bool))) == 77).all()
    assert (np.asarray(outline(image, np.ones((20, 30), bool))) == 77).all()


def test_a_grid_puts_pictures_under_their_headers_with_white_between(tmp_path: Path):
    rows = [[Image.new("RGB", (8, 8), colour) for colour in row] for row in (["red", "lime"], ["blue", "black"])]
    grid(rows, ["normal", "result"], tmp_path / "grid.png", cell=64)
    sheet = np.asarray(Image.open(tmp_path / "grid.png"))
    top = sheet.shape[0] - 2 * 70
    assert sheet.shape[1] == 2 * 70 + 6
    assert tuple(sheet[top + 32, 6 + 32]) == (255, 0, 0) and tuple(sheet[top + 32, 76 + 32]) == (0, 255, 0)
    assert tuple(sheet[top + 102, 6 + 32]) == (0, 0, 255) and tuple(sheet[top + 102, 76 + 32]) == (0, 0, 0)
    assert (sheet[top + 64 : top + 70] == 255).all() and (sheet[:, 70:76] == 255).all()
    for start in (6, 76):  # both headers are written, in dark letters
        assert (sheet[:top, start : start + 64].max(axis=2) < 80).sum() > 30


def test_small_masks_are_enlarged_without_new_grey_levels(tmp_path: Path):
    mask = np.zeros((16, 16), np.uint8)
    mask[4:9, 5:7] = 255
    grid([[Image.fromarray(mask)]], ["mask"], tmp_path / "grid.png", cell=160)
    shown = np.asarray(Image.open(tmp_path / "grid.png"))[-166:-6, 6:166, 0]
    assert np.array_equal(shown, np.kron(mask, np.ones((10, 10), np.uint8)))


def test_a_grid_of_uneven_rows_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"grid.png: rows of \[1\] pictures under 2 headers"):
        grid([[Image.new("L", (4, 4))]], ["normal", "result"], tmp_path / "grid.png")
    with pytest.raises(ValueError, match="no pictures"):
        grid([], ["normal"], tmp_path / "grid.png")
    assert not list(tmp_path.iterdir())


def test_a_contact_sheet_outlines_every_defect(mvtec: Path, tmp_path: Path):
    category = open_category(mvtec)
    contact_sheet(category.anomalies, tmp_path / "sheet.png", columns=4, limit=4, cell=120)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    red = (sheet == RED).all(axis=2)
    lines = [rows for rows in np.split(red, np.flatnonzero(np.diff(red.any(axis=1))) + 1) if rows.any()]
    outlined = [column.any() for column in np.array_split(red[:, 6:], 4, axis=1)]
    assert len(lines) >= 2 and all(outlined)
    contact_sheet(category.test_normals, tmp_path / "normals.png", columns=4, limit=4, cell=120)
    assert not (np.asarray(Image.open(tmp_path / "normals.png")) == RED).all(axis=2).any()


def test_the_limit_of_a_contact_sheet_is_per_defect(mvtec: Path, tmp_path: Path):
    heights = []
    for limit in (2, 4, 7):
        contact_sheet(open_category(mvtec).samples, tmp_path / "sheet.png", columns=2, limit=limit, cell=60)
        heights.append(Image.open(tmp_path / "sheet.png").height)
    # Two columns: limit 2 gives one line each for hole, scratch and good; 4 gives two; 7 gives 4, 3 and 4.
    line = (heights[1] - heights[0]) / 3
    assert heights[2] - heights[1] == 5 * line > 0


def test_a_broken_file_leaves_a_field_in_the_contact_sheet(mvtec: Path, tmp_path: Path):
    (mvtec / "test/hole/003.png").write_bytes(b"")
    contact_sheet(open_category(mvtec).anomalies, tmp_path / "sheet.png")
    assert (np.asarray(Image.open(tmp_path / "sheet.png")) == 211).all(axis=2).sum() > 10_000


def test_the_check_reports_counts_sizes_areas_and_the_split(mvtec: Path):
    category = open_category(mvtec)
    lines = check_report(category, inspect(category)).splitlines()
    assert "plate" in lines[0] and "mvtec layout, 22 images in 22 groups" in lines[0]
    rows = {line.split()[0]: line.split() for line in lines if line.strip()}
    assert rows["hole"][1:8] == ["7", "7", "2", "0", "2", "3", "0"]
    assert rows["good"][1:8] == ["9", "9", "5", "1", "1", "2", "0"]
    assert "median 2.8 (2.8 to 2.8)" in "\n".join(lines)  # 6 × 6 of 40 × 32 pixels
    assert "image sizes: all 40 × 32" in lines
    assert lines[-1] == "no problems found"


def test_the_check_counts_the_problems_and_still_reports_the_rest(mvtec: Path):
    (mvtec / "ground_truth/hole/002_mask.png").unlink()
    Image.new("RGB", (10, 10)).save(mvtec / "train/good/000.png")
    category = open_category(mvtec)
    text = check_report(category, inspect(category))
    assert "problems: 1" in text
    assert "10 to 40 × 10 to 32, 2 different; most often 40 × 32 (21)" in text


def test_the_check_says_why_there_is_no_split(mvtec: Path):
    for number in range(1, 7):
        (mvtec / f"test/hole/{number:03}.png").unlink()
        (mvtec / f"ground_truth/hole/{number:03}_mask.png").unlink()
    category = open_category(mvtec)
    inspection = inspect(category)
    assert "hole: a single group of images" in "\n".join(map(str, inspection.problems))
    assert "problems: 1" in check_report(category, inspection)


def test_the_check_says_that_thresholds_have_no_images_of_their_own(mvtec: Path):
    def told() -> bool:
        category = open_category(mvtec)
        return "no good parts to set thresholds on" in check_report(category, inspect(category))

    assert not told()
    (mvtec / "train/good/004.png").unlink()
    (mvtec / "train/good/005.png").unlink()
    assert told(), "there are four"


def test_the_check_counts_excluded_images(mvtec: Path):
    category = open_category(mvtec)
    rows = [
        f"{s.image.relative_to(mvtec).as_posix()},{n},{'blurred' * (n < 2)}" for n, s in enumerate(category.samples)
    ]
    (mvtec / "manifest.csv").write_text("\n".join(["path,group,exclude", *rows]))
    category = open_category(mvtec)
    assert "excluded by manifest.csv, and so unused: 2" in check_report(category, inspect(category)).splitlines()
