"""What a notebook shows of adapters and data sets."""

import base64
import io
import re

import numpy as np
from PIL import Image

from sard_lora.labelled import LabelledSet


def pictures(html: str) -> list[Image.Image]:
    sources = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(source))) for source in sources]


def test_labelled_set_shows_counts_and_pictures_with_outlines(tmp_path):
    made = LabelledSet(tmp_path / "set <1>")
    assert "empty" in made._repr_html_() and not pictures(made._repr_html_())
    mask = np.zeros((32, 40), bool)
    mask[10:14, 10:20] = True
    for number in range(3):
        made.add("dent", f"{number}", Image.new("RGB", (40, 32), (90, 90, 90)), mask, {})
    html = made._repr_html_()
    assert "3 dent" in html and "<1>" not in html
    (sheet,) = pictures(html)
    red = (np.asarray(sheet.convert("RGB")).astype(int) @ [1, -1, 0]) > 100
    assert red.any()


def test_adapter_shows_its_defects_and_samples_where_it_has_some(adapter):
    html = adapter._repr_html_()
    assert "hole (2 images), scratch (2 images)" in html and not pictures(html)
    Image.new("RGB", (7, 5)).save(adapter.folder / "samples.png")
    assert pictures(adapter._repr_html_())[0].size == (7, 5)
