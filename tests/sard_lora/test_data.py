import shutil
from collections import Counter
from pathlib import Path

import pytest
from manifest import manifest
from PIL import Image

from sard_lora.data import (
    GOOD,
    DataError,
    Sample,
    few_shot_split,
    find_problems,
    fingerprint,
    normal_images,
    open_category,
    require_sound,
)


def counts(samples: tuple[Sample, ...]) -> dict[str, int]:
    return dict(Counter(sample.defect for sample in samples))


def names(samples: tuple[Sample, ...], defect: str) -> list[str]:
    return [sample.image.stem for sample in samples if sample.defect == defect]


# Layouts


def test_mvtec_layout(mvtec: Path):
    category = open_category(mvtec)
    assert (category.name, category.layout, category.defects) == ("plate", "mvtec", ("hole", "scratch"))
    assert (len(category.train_normals), len(category.test_normals), len(category.anomalies)) == (6, 3, 13)
    first = category.anomalies[0]
    assert first == Sample(
        mvtec / "test/hole/000.png",
        mvtec / "ground_truth/hole/000_mask.png",
        "hole",
        "test/hole/000.png",
    )
    assert {sample.defect for sample in category.train_normals} == {GOOD}
    assert find_problems(category) == []


def test_mvtec_masks_may_be_named_like_their_images(mvtec: Path):
    for path in list(mvtec.glob("ground_truth/*/*_mask.png")):
        path.rename(path.with_name(path.name.replace("_mask", "")))
    category = open_category(mvtec)
    assert all(sample.mask for sample in category.anomalies)
    assert find_problems(category) == []


def test_btad_layout(btad: Path):
    category = open_category(btad)
    assert (category.name, category.layout, category.defects) == ("01", "btad", ("ko",))
    assert (len(category.train_normals), len(category.test_normals), len(category.anomalies)) == (5, 2, 6)
    assert category.anomalies[1].mask == btad / "ground_truth/ko/0001.bmp"
    assert find_problems(category) == []


def test_paired_layout_keeps_every_fifth_normal_image_for_testing(paired: Path):
    category = open_category(paired)
    assert (category.name, category.layout, category.defects) == ("cup", "paired", ("defect",))
    assert names(category.test_normals, GOOD) == ["part4", "part9"]
    assert (len(category.train_normals), len(category.anomalies)) == (8, 6)
    assert find_problems(category) == []


def test_paired_layout_with_a_subfolder_per_defect(paired: Path):
    for kind in ("images", "masks"):
        (paired / kind / "chip").mkdir()
        for path in list((paired / kind).glob("shot[0-2].*")):
            path.rename(path.parent / "chip" / path.name)
    (paired / "good").rename(paired / "images" / "good")
    category = open_category(paired)
    assert counts(category.anomalies) == {"defect": 3, "chip": 3}
    assert len(category.train_normals) == 8
    assert find_problems(category) == []


def test_a_category_is_found_by_name_in_the_folder_that_holds_it(mvtec: Path):
    assert open_category(mvtec.parent, "plate").root == mvtec
    assert open_category(mvtec, "steel plate").name == "steel plate"


def test_the_name_of_a_category_leads_nowhere_else(mvtec: Path):
    for name in (f"{mvtec.name}/", f"../{mvtec.name}", ".."):
        for root in (mvtec, mvtec.parent):
            with pytest.raises(ValueError, match="has to be the name of a folder"):
                open_category(root, name)


def test_what_stands_beside_the_layout_is_ignored(mvtec: Path):
    before = open_category(mvtec)
    Image.new("L", (4, 4)).save(mvtec / "licence.png")
    for folder in ("class_map/hole", "test/.cache"):
        (mvtec / folder).mkdir(parents=True)
        Image.new("L", (4, 4)).save(mvtec / folder / "000.png")
    for name in ("test/hole/Thumbs.db", "test/hole/.000.png", "train/good/readme.txt", "ground_truth/hole/x.txt"):
        (mvtec / name).write_bytes(b"no image")
    assert open_category(mvtec) == before
    assert find_problems(before) == []
    assert normal_images(mvtec, None) == few_shot_split(before).normals


def test_a_folder_of_images_is_taken_whole_unless_it_lies_in_a_data_set(mvtec: Path, paired: Path, tmp_path: Path):
    plain = shutil.copytree(mvtec / "train/good", tmp_path / "photos")
    assert [sample.image.name for sample in normal_images(plain, None)] == [f"{number:03}.png" for number in range(6)]
    for root, folder in ((mvtec, "train/good"), (mvtec, "test/hole"), (paired, "good")):
        with pytest.raises(ValueError, match=rf"{folder}: lies in the data set .*{root.name}, .* Give .*{root.name}$"):
            normal_images(root / folder, None)


def test_a_folder_without_a_layout_says_what_was_looked_for_and_what_is_there(tmp_path: Path, mvtec: Path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(ValueError, match=r"photos.*Looked for train/good.*found nothing.*Arrange") as error:
        open_category(tmp_path / "photos")
    assert "images + masks" in str(error.value)
    with pytest.raises(ValueError, match=r"found photos/, plate/.*choose one of plate"):
        open_category(tmp_path)
    with pytest.raises(ValueError, match=r"no category 'plaet'.*choose one of plate"):
        open_category(tmp_path, "plaet")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_category(tmp_path / "nowhere")


# Problems


def test_all_problems_are_listed_at_once_each_with_its_file_and_the_way_out(mvtec: Path):
    (mvtec / "ground_truth/hole/000_mask.png").unlink()
    (mvtec / "test/hole/001.png").unlink()
    (mvtec / "test/hole/002.png").write_bytes(b"")
    Image.new("L", (40, 32)).save(mvtec / "ground_truth/scratch/003_mask.png")
    (mvtec / "train/good/004.png").write_bytes((mvtec / "train/good/004.png").read_bytes()[:300])
    with pytest.raises(DataError) as error:
        require_sound(open_category(mvtec))
    lines = str(error.value).splitlines()
    assert lines[0] == "5 problems:"
    for file, word in {
        "test/hole/000.png": "without its mask",
        "ground_truth/hole/001_mask.png": "without its image",
        "test/hole/002.png": "0 bytes",
        "ground_truth/scratch/003_mask.png": "empty",
        "train/good/004.png": "decoded",
    }.items():
        (line,) = [line for line in lines if line.startswith(str(mvtec / file))]
        assert word in line and line.count(". ") >= 1


def test_masks_of_a_defect_whose_images_are_gone_are_a_problem(mvtec: Path):
    for path in mvtec.glob("test/scratch/*"):
        path.unlink()
    assert len(find_problems(open_category(mvtec))) == 6


def test_two_masks_or_two_images_of_one_name_are_a_problem(mvtec: Path):
    Image.new("L", (40, 32), 255).save(mvtec / "ground_truth/hole/000.png")
    Image.new("RGB", (40, 32)).save(mvtec / "test/scratch/000.jpg")
    found = [problem.what for problem in find_problems(open_category(mvtec))]
    assert found == ["two masks: 000_mask.png and 000.png", "2 images share this name and so one mask"]


def test_an_image_in_images_without_a_mask_is_a_problem_and_not_a_normal_image(paired: Path):
    (paired / "masks/shot3.png").unlink()
    (problem,) = find_problems(open_category(paired))
    assert problem.path == paired / "images/shot3.jpg"
    assert "masks" in problem.fix and len(open_category(paired).train_normals) == 8


def test_the_manifest_is_compared_with_the_files(mvtec: Path):
    manifest(mvtec, {})
    text = (mvtec / "manifest.csv").read_text()
    text = text.replace("test/hole/000.png", "test/hole/gone.png", 1) + "\ntest/hole/001.png,other\n,nothing"
    (mvtec / "manifest.csv").write_text(text)
    found = {str(problem.path.name): problem.what for problem in find_problems(open_category(mvtec))}
    whats = [problem.what for problem in find_problems(open_category(mvtec))]
    assert found["000.png"] == "not listed in manifest.csv"
    assert any("gone.png, which is not there" in what for what in whats)
    assert any("into group other, an earlier line into test/hole/001.png" in what for what in whats)
    assert any("no path or no group" in what for what in whats)
    assert len(whats) == 4
    (mvtec / "manifest.csv").write_text("file,part\n")
    with pytest.raises(ValueError, match=r"manifest.csv: needs the columns path and group"):
        open_category(mvtec)


@pytest.mark.parametrize("content", ["path,group\na.png,Müller\n".encode("cp1252"), b"path,group\n" + b"a" * 200_000])
def test_a_manifest_that_cannot_be_read_is_named(mvtec: Path, content: bytes):
    (mvtec / "manifest.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"manifest\.csv: cannot be read .*Save it as CSV in UTF-8"):
        open_category(mvtec)


def test_normal_images_none_of_which_may_be_trained_on_are_a_problem(mvtec: Path):
    lots = {s.image.relative_to(mvtec).as_posix(): "lot2" for s in open_category(mvtec).samples}
    lot1 = [f"test/{defect}/{number:03}.png" for defect in ("hole", "scratch") for number in range(3)]
    normals = [name for name in lots if name.startswith("train/good")]
    for groups, excluded in ((lots | dict.fromkeys(lot1, "lot1"), []), ({}, normals)):
        manifest(mvtec, groups, excluded)
        (problem,) = find_problems(open_category(mvtec))
        assert problem.path == mvtec / "manifest.csv" and problem.what.startswith("leaves no normal image to train on")
        with pytest.raises(DataError, match=r"manifest\.csv: leaves no normal image.*Add images of other good parts"):
            normal_images(mvtec, None)


def test_excluded_images_may_be_broken(mvtec: Path):
    manifest(mvtec, {}, ["test/hole/003.png"])
    (mvtec / "test/hole/003.png").write_bytes(b"not an image")
    assert find_problems(open_category(mvtec)) == []


def test_the_fingerprint_follows_names_and_bytes_but_not_order_or_place(mvtec: Path):
    samples = open_category(mvtec).anomalies
    before = fingerprint(samples)
    assert fingerprint(reversed(samples)) == before != fingerprint(samples[1:])
    moved = mvtec.rename(mvtec.with_name("moved"))
    assert fingerprint(open_category(moved).anomalies) == before
    Image.new("L", (40, 32), 255).save(moved / "ground_truth/hole/000_mask.png")
    assert fingerprint(open_category(moved).anomalies) != before
