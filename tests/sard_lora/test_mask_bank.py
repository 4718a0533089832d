"""The bank of real masks: what is saved comes back, what is missing is named."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sard_lora.data import open_category
from sard_lora.mask_bank import BankMask, MaskBank, without_specks


def test_a_bank_comes_back_from_its_folder(mvtec: Path, tmp_path: Path):
    bank = MaskBank.from_samples(open_category(mvtec).anomalies)
    bank.save(tmp_path / "masks")
    loaded = MaskBank.load(tmp_path / "masks")
    assert bank.defects == loaded.defects == ("hole", "scratch")
    assert [entry.origin for entry in loaded.for_defect("hole")] == [f"hole/{n:03}" for n in range(7)]
    for before, after in zip(bank.masks, loaded.masks, strict=True):
        assert (before.defect, before.origin) == (after.defect, after.origin)
        assert np.array_equal(before.mask, after.mask) and after.mask.dtype == bool
    assert Image.open(tmp_path / "masks/hole/000.png").mode == "1"


def test_a_missing_bank_or_defect_is_named(mvtec: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"hole: no masks <defect>/<name>\.png\. Put them there"):
        MaskBank.load(mvtec / "ground_truth/hole")
    bank = MaskBank.from_samples(open_category(mvtec).anomalies)
    with pytest.raises(ValueError, match=r"'dent'.*hole, scratch"):
        bank.for_defect("dent")
    bank.save(tmp_path / "masks")
    with pytest.raises(ValueError, match=r"/masks: no masks of the defect 'dent'.*hole, scratch"):
        MaskBank.load(tmp_path / "masks").with_images([]).for_defect("dent")


def test_specks_are_left_out_unless_there_is_nothing_else():
    """A mask of two pixels beside one of fifty is a slip of the pen."""
    speck, spot = np.zeros((2, 20, 20), bool)
    speck[3, 4:6], spot[3:8, 5:15] = True, True
    stain = [BankMask(mask, "stain", f"stain/{number}") for number, mask in enumerate((speck, spot))]
    pinhole = BankMask(speck, "pinhole", "pinhole/0")
    bank = MaskBank((*stain, pinhole))
    assert bank.for_defect("stain") == (stain[1],)
    assert bank.for_defect("pinhole") == (pinhole,)


def test_segmenters_do_not_train_on_specks_either(mvtec: Path):
    anomalies = open_category(mvtec).anomalies
    assert without_specks(anomalies) == anomalies
    speck = np.zeros((32, 40), np.uint8)
    speck[5, 5] = 255
    Image.fromarray(speck).save(anomalies[0].mask)
    assert without_specks(anomalies) == anomalies[1:]
