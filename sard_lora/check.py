"""`sard-lora check`: what is in a data set and what is wrong with it, as text and as a contact sheet."""

from dataclasses import dataclass
from pathlib import Path

from sard_lora.data import inspect, open_category
from sard_lora.images import DataError
from sard_lora.report import check_report, contact_sheet


@dataclass
class CheckConfig:
    """What to look at."""

    data: Path
    """Data set: MVTec-AD, BTAD or paired folders; the category's folder or the one that holds it."""
    category: str | None = None
    """Category inside the data set; default: the folder itself."""
    output: Path | None = None
    """Picture (.png, .jpg) to draw the contact sheet to, or a folder to put it into; default: the current folder."""


def check(config: CheckConfig) -> str:
    """Print the report and draw the contact sheet; raises `DataError` when something is wrong with the data."""
    category = open_category(config.data, config.category)
    inspection = inspect(category)
    print(check_report(category, inspection))
    sheet = config.output or Path()
    if not sheet.suffix:
        sheet = sheet / f"check-{category.name}.png"
    contact_sheet(category.samples, sheet)
    print(f"contact sheet: {sheet}")
    if inspection.problems:
        raise DataError(inspection.problems)
    return str(sheet)
