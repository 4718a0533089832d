"""The studio's page in a real browser: painted with the mouse, generated, kept; problems shown, nothing lost."""

import base64
import json
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from sard_lora.images import load_image
from sard_lora.labelled import LabelledSet
from sard_lora.studio import Studio, StudioConfig
from sard_lora.studio_page import serve
from sard_lora.synthesis import verify

WIDTH, HEIGHT = 160, 120
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1000",
)


class Page:
    """The page in a browser, by what a person does on it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def count(self, selector: str) -> int:
        return len(self.driver.find_elements(By.CSS_SELECTOR, selector))

    def wait(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"nothing came; the page says {self.says()!r}"
            time.sleep(0.05)

    def says(self) -> str:
        return self.find("#message").text

    def load(self, path: Path) -> None:
        self.find("input[type=file]").send_keys(str(path))

    def drop(self, path: Path) -> None:
        script = """
            const bytes = Uint8Array.from(atob(arguments[1]), (letter) => letter.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([bytes], arguments[0]));
            document.querySelector(".stage").dispatchEvent(new DragEvent("drop", { dataTransfer, cancelable: true }));
        """
        self.driver.execute_script(script, path.name, base64.b64encode(path.read_bytes()).decode())

    def point(self, x: float, y: float) -> ActionChains:
        """Move to a point of the picture, in its pixels."""
        canvas = self.find("canvas.mask")
        side = canvas.rect["width"] / WIDTH
        offset = round((x - WIDTH / 2) * side), round((y - HEIGHT / 2) * side)
        return ActionChains(self.driver, duration=50).move_to_element_with_offset(canvas, *offset)

    def stroke(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.point(*start).click_and_hold().perform()
        self.point(*end).release().perform()

    def press(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

    def undo(self) -> None:
        ActionChains(self.driver).key_down(Keys.CONTROL).send_keys("z").key_up(Keys.CONTROL).perform()

    def choose(self, label: str, option: str) -> None:
        self.find(f"input[aria-label={label}]").click()
        self.wait(lambda: self.count("li[role=option]") > 0)
        self.find(f"li[role=option][aria-label^={option}]").click()

    def addresses(self) -> set[str]:
        """Hosts that the page asked for anything."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return {url.split("/")[2].split(":")[0] for url in sent if url.startswith(("http", "ws"))}


@pytest.fixture
def browser(tmp_path):
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    assert all(programs), "chromium and chromedriver are missing: make browser"
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(programs[1]))
    yield driver
    driver.quit()


@pytest.fixture
def page(adapter, tmp_path, browser):
    """The page of two equal adapters, with the normal image `part.png` loaded: a part on a plain background."""
    shelf = tmp_path / "shelf"
    for name in ("first", "second"):
        shutil.copytree(adapter.folder, shelf / name)
    pixels = np.full((HEIGHT, WIDTH, 3), 230, np.uint8)
    pixels[20:100, 20:140] = np.random.default_rng(0).integers(80, 140, (80, 120, 3))
    Image.fromarray(pixels).save(tmp_path / "part.png")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    studio = Studio(StudioConfig(shelf, tmp_path / "kept", num_inference_steps=2, min_visibility=0.0))
    blocks = serve(studio, "127.0.0.1", port, block=False)
    browser.get(f"http://127.0.0.1:{port}")
    page = Page(browser)
    page.wait(lambda: page.count("#canvas .tools") > 0 and page.count("input[type=file]") > 0)
    page.load(tmp_path / "part.png")
    page.wait(lambda: page.find("canvas.mask").is_displayed())
    yield page
    blocks.close()


def kept(folder: Path) -> list[tuple[dict, np.ndarray, np.ndarray]]:
    """Record, mask and changed pixels of every image, after a check that the background is exact."""
    assert verify(folder, folder) == {"pixels_changed_outside_mask": 0, "labels_equal_written_region": True}
    found = []
    for record in LabelledSet(folder).records():
        mask = np.asarray(Image.open(folder / record["mask_file_name"])) > 0
        image, normal = (np.asarray(load_image(folder / record[key])) for key in ("file_name", "normal"))
        assert image.shape == normal.shape == (HEIGHT, WIDTH, 3)
        assert np.array_equal(image[~mask], normal[~mask])
        found.append((record, mask, (image != normal).any(-1)))
    return found


def test_painted_mask_is_kept_where_it_was_painted_and_every_other_pixel_is_the_normal_images(page, tmp_path):
    size = int(page.find(".tools output").text.removesuffix(" px"))
    page.stroke((40, 60), (110, 60))
    page.stroke((40, 90), (110, 90))
    page.undo()
    page.press("e")
    page.stroke((75, 50), (75, 70))
    page.press("g")
    page.wait(lambda: page.count("label.card") == 4)
    page.press("1")
    page.find("label.card:nth-of-type(3) img").click()
    page.find("#keep").click()
    page.wait(lambda: page.find("#tally").text.startswith("2 kept (hole 2) in "))
    assert "studio-000000.png, studio-000001.png" in page.says() and page.count(".card.kept") == 2

    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    near = np.hypot(rows - 60, columns - columns.clip(40, 110))
    erased = np.hypot(columns - 75, rows - rows.clip(50, 70))
    certain = (near < size / 2 - 1) & (erased > size / 2 + 1)
    possible = (near < size / 2 + 1) & (erased > size / 2 - 1)
    images = kept(tmp_path / "kept/plate")
    assert [record["file_name"] for record, _, _ in images] == [f"test/hole/studio-00000{n}.png" for n in (0, 1)]
    for record, mask, changed in images:
        assert mask[certain].all() and not mask[~possible].any()
        assert changed[mask].mean() > 0.5
        assert record["mask_origin"] == "painted" and record["visibility"] > 0 and record["critic_score"] != 0
    assert len((tmp_path / "kept/plate/metadata.jsonl").read_text().splitlines()) == 2
    assert page.addresses() == {"127.0.0.1"}, "nothing is fetched from, or sent to, anywhere else"


def test_random_mask_of_the_chosen_adapter_and_defect_lies_on_the_part(page, tmp_path):
    page.choose("Adapter", "second")
    page.wait(lambda: "second writes hole, scratch" in page.says())
    page.choose("Defect", "scratch")
    page.find("[data-do=random]").click()
    page.wait(lambda: "A mask like that of scratch/" in page.says())
    page.wait(lambda: page.find("[data-do=undo]").is_enabled())
    page.press("g")
    page.wait(lambda: page.count("label.card") == 4)
    page.press("2", "k")
    page.wait(lambda: page.find("#tally").text.startswith("1 kept (scratch 1)"))
    [(record, mask, _)] = kept(tmp_path / "kept/plate")
    assert record["defect"] == "scratch" and record["mask_origin"].startswith("scratch/")
    rows, columns = np.nonzero(mask)
    assert rows.min() >= 18 and rows.max() < 102 and columns.min() >= 18 and columns.max() < 142


def test_problems_are_said_on_the_page_and_lose_nothing(page, tmp_path):
    page.press("g")
    page.wait(lambda: "The mask is empty" in page.says())
    page.stroke((60, 50), (90, 50))
    cut = tmp_path / "cut.png"
    cut.write_bytes((tmp_path / "part.png").read_bytes()[:2000])
    page.load(cut)
    page.wait(lambda: "cut.png: the image cannot be decoded" in page.says())
    assert page.find("#message [role=alert]").text.startswith("cut.png"), "not the name of a temporary file"
    page.press("g")
    page.wait(lambda: page.count("label.card") == 4)
    page.press("k")
    page.wait(lambda: "No candidate is chosen" in page.says())
    page.press("4", "k")
    page.wait(lambda: page.find("#tally").text.startswith("1 kept"))
    [(record, mask, _)] = kept(tmp_path / "kept/plate")
    assert record["normal"] == "train/good/part.png" and mask[50, 60:90].all()


def test_brush_of_one_pixel_marks_one_pixel_of_a_dropped_picture(page, tmp_path):
    page.stroke((60, 50), (90, 50))
    shutil.copyfile(tmp_path / "part.png", tmp_path / "dropped.png")
    page.drop(tmp_path / "dropped.png")
    page.wait(lambda: page.says().startswith("dropped.png, 160 × 120 pixels"))
    assert not page.find("[data-do=undo]").is_enabled(), "another picture starts without a mask"
    page.press(*12 * "[")
    assert page.find(".tools output").text == "1 px"
    page.point(70.5, 40.5).click().perform()
    page.press("g")
    page.wait(lambda: page.count("label.card") == 4)
    page.press("1", "k")
    page.wait(lambda: page.find("#tally").text.startswith("1 kept"))
    [(record, mask, _)] = kept(tmp_path / "kept/plate")
    assert record["normal"] == "train/good/dropped.png"
    assert [places.tolist() for places in np.nonzero(mask)] == [[40], [70]]
