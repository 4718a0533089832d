"""Small procedural categories in the three layouts, written fresh for each test that asks for one."""

from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image
from tiny_base import write_tiny_base

from sard_lora import precision

WIDTH, HEIGHT = 40, 32


def surface(seed: int) -> Image.Image:
    """A grey surface with grain, (HEIGHT, WIDTH)."""
    grain = np.random.default_rng(seed).normal(120, 10, (HEIGHT, WIDTH, 1))
    return Image.fromarray(np.repeat(grain, 3, axis=2).clip(0, 255).astype(np.uint8))


def blemish(seed: int) -> tuple[Image.Image, Image.Image]:
    """A surface with a dark square on it, and its mask."""
    x, y = np.random.default_rng(seed).integers(4, 20, 2)
    image, mask = np.array(surface(seed)), np.zeros((HEIGHT, WIDTH), np.uint8)
    image[y : y + 6, x : x + 6] = 20
    mask[y : y + 6, x : x + 6] = 255
    return Image.fromarray(image), Image.fromarray(mask)


def save(image: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    """A category in MVTec-AD layout: 6 + 3 normal images, 7 holes and 6 scratches."""
    root = tmp_path / "plate"
    for number in range(6):
        save(surface(number), root / f"train/good/{number:03}.png")
    for number in range(3):
        save(surface(100 + number), root / f"test/good/{number:03}.png")
    for defect, count in (("hole", 7), ("scratch", 6)):
        for number in range(count):
            image, mask = blemish(200 + number)
            save(image, root / f"test/{defect}/{number:03}.png")
            save(mask, root / f"ground_truth/{defect}/{number:03}_mask.png")
    return root


@pytest.fixture
def btad(tmp_path: Path) -> Path:
    """A category in BTAD layout: 5 + 2 normal images, 6 defects, bitmap files."""
    root = tmp_path / "01"
    for number in range(5):
        save(surface(number), root / f"train/ok/{number:04}.bmp")
    for number in range(2):
        save(surface(100 + number), root / f"test/ok/{number:04}.bmp")
    for number in range(6):
        image, mask = blemish(200 + number)
        save(image, root / f"test/ko/{number:04}.bmp")
        save(mask, root / f"ground_truth/ko/{number:04}.{'bmp' if number % 2 else 'png'}")
    return root


@pytest.fixture
def paired(tmp_path: Path) -> Path:
    """A category in paired folders: 10 normal images, 6 defects."""
    root = tmp_path / "cup"
    for number in range(10):
        save(surface(number), root / f"good/part{number}.jpg")
    for number in range(6):
        image, mask = blemish(200 + number)
        save(image, root / f"images/shot{number}.jpg")
        save(mask, root / f"masks/shot{number}.png")
    return root


@pytest.fixture
def one_bad_file(mvtec: Path):
    """Break one file of a sound category through `change(image_path, mask_path)` and get the problems' text."""
    from sard_lora.data import find_problems, open_category

    def problems_after(change) -> str:
        change(mvtec / "test/hole/002.png", mvtec / "ground_truth/hole/002_mask.png")
        found = find_problems(open_category(mvtec))
        assert len(found) == 1, found
        return str(found[0])

    return problems_after


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    """A 9-channel base of random weights, 64 pixels."""
    return write_tiny_base(tmp_path_factory.mktemp("bases") / "nine")


@pytest.fixture
def adapter(mvtec: Path, tiny_base: Path, tmp_path: Path):
    """An untrained adapter with a critic and the mask bank of two defects."""
    from accelerate import Accelerator

    from sard_lora.adapter import save_adapter
    from sard_lora.train.adapter_train_config import AdapterTrainConfig
    from sard_lora.train.joint import AdapterTrainer

    config = AdapterTrainConfig(
        data=mvtec, output=tmp_path / "adapter", base=str(tiny_base), rank=4, critic_channels=8, min_side=16, cpu=True
    )
    trainer = AdapterTrainer(config, Accelerator(cpu=True))
    return save_adapter(
        config.output, trainer.adapter_config(1.0), trainer.pipe.unet, trainer.critic_model, trainer.source.bank
    )


@pytest.fixture(autouse=True)
def fresh_accelerator_state():
    """accelerate keeps one state a process; every test starts without it."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.fixture
def fp32(monkeypatch):
    """No bf16, whatever the machine: for what is compared more closely than bf16 rounds."""
    monkeypatch.setattr(precision, "bf16_is_fast", lambda device: False)
