"""How adapters and data sets draw themselves in a notebook: a line of facts and a picture, in HTML."""

import base64
import tempfile
from collections import Counter
from collections.abc import Iterable
from html import escape
from pathlib import Path

from sard_lora.adapter_config import SAMPLES_FILE, AdapterConfig
from sard_lora.layouts import GOOD, Sample
from sard_lora.report import contact_sheet


def adapter_html(folder: Path, config: AdapterConfig) -> str:
    """An adapter: its product, defects with shots, base, and its samples where it has some."""
    shots = config.data["shots"]
    defects = ", ".join(f"{defect} ({shots.get(defect, 0)} images)" for defect in config.defects)
    facts = f"{defects}; on {config.base.id}, {config.base.resolution} px; {config.training['steps']} steps"
    samples = folder / SAMPLES_FILE
    return _figure(f"Adapter of {config.category}", facts, samples.read_bytes() if samples.is_file() else None)


def samples_html(name: str, samples: Iterable[Sample], columns: int = 6) -> str:
    """Labelled images: how many of each defect, and one line of each with its masks outlined."""
    samples = list(samples)
    counts = Counter(sample.defect for sample in samples)
    facts = ", ".join(f"{count} {defect}" for defect, count in sorted(counts.items(), key=lambda item: item[0] == GOOD))
    if not samples:
        return _figure(name, "empty", None)
    with tempfile.TemporaryDirectory() as folder:
        sheet = Path(folder) / "sheet.png"
        contact_sheet(samples, sheet, columns, limit=columns, cell=160)
        return _figure(name, facts, sheet.read_bytes())


def _figure(title: str, facts: str, png: bytes | None) -> str:
    text = f"<div><b>{escape(title)}</b>: {escape(facts)}"
    if png is not None:
        source = base64.b64encode(png).decode("ascii")
        text += f'<br><img style="max-width: 100%" src="data:image/png;base64,{source}" alt="{escape(title)}">'
    return text + "</div>"
