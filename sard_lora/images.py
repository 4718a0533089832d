"""Image and mask files of every kind that cameras and annotation tools write: read, or refused."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

DEFECT, FRINGE = 255, 127
"""Values of a mask: what is a defect, and what a synthetic defect fades out in beyond its outline."""

MASK_FIX = "Save the mask as an 8-bit PNG with 0 for normal and 255 for defect pixels"

# What Pillow's decoders raise on damaged files, depending on the format.
_DECODING_ERRORS = (OSError, SyntaxError, EOFError, ValueError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a data set: the file or folder, what is wrong with it, and the way out."""

    path: Path
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}. {self.fix}."


class DataError(ValueError):
    """Everything that is wrong with some files: one problem a line, each with the file and the way out."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = tuple(problems)
        lines = [str(problem) for problem in self.problems]
        super().__init__("\n".join(lines if len(lines) == 1 else [f"{len(lines)} problems:", *lines]))

    def __reduce__(self) -> tuple[type["DataError"], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)  # whole also from another process


def load_image(path: Path | str) -> Image.Image:
    """The picture as a person sees it in a viewer, as an 8-bit RGB image.

    - EXIF orientation is applied.
    - 16-bit grey is scaled by the range of its type (65535 -> 255), not clipped and not stretched: the same
      grey level means the same brightness in every image. A camera that fills only 0..4095 comes out dark.
    - Transparent pixels are composited on white; an opaque alpha channel is dropped.
    - Palette, bilevel, grey and CMYK images are converted. Of several pages the first is taken.

    Raises `FileNotFoundError`, and `DataError` for a file that cannot be decoded whole (empty, truncated, no
    image) or whose pixels have no known range (floating point, 32-bit).
    """
    path = Path(path)
    image = _decode(path, "Save or copy it again from the original, or take it out of the data set")
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise DataError(
                [
                    Problem(
                        path,
                        f"grey levels from {levels.min()} to {levels.max()} do not fit into 16 bits",
                        "Convert it to 8-bit or 16-bit unsigned grey, scaled alike for all images",
                    )
                ]
            )
        return Image.fromarray(np.rint(levels / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        what = "a floating-point image has no known range"
        raise DataError([Problem(path, what, "Convert it to 8-bit or 16-bit grey, scaled alike for all images")])
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def load_mask(path: Path | str, size: tuple[int, int] | None) -> Image.Image:
    """The anomaly mask as an "L" image of 0 (normal) and 255 (anomaly), with at least one pixel of 255.

    `size` is the image's (width, height) after its EXIF rotation, or None where it is not known. Accepted are
    masks with two values, 0 and any other: 0/255, 0/1 (which viewers show as black), bilevel, 16-bit, palette,
    RGB with equal channels. Those of synthetic images may hold 127 as well, around the 255, and keep it: there the
    defect fades out (`FRINGE`), beyond the outline that an annotator would draw.

    Raises `FileNotFoundError`, and `DataError` for a mask that is damaged, empty, of another size, or has
    more than two values (anti-aliased or JPEG-compressed edges, several classes).
    """
    path = Path(path)
    mask = _decode(path, MASK_FIX)
    if size is not None and mask.size != tuple(size):
        what = f"the mask is {mask.width} × {mask.height} pixels, its image {size[0]} × {size[1]}"
        if mask.size == tuple(size)[::-1]:
            what += " (swapped: was the image rotated, by EXIF perhaps, after the mask was drawn?)"
        raise DataError([Problem(path, what, "Export the mask at the image's own size, turned as the image is shown")])
    values = _mask_values(mask, path)
    marked = values != 0
    if not marked.any():
        fix = "Mark the defect's pixels with 255, or move the image to the normal images and delete this mask"
        raise DataError([Problem(path, "the mask is empty: no pixel marks a defect", fix)])
    if set(np.unique(values[marked])) == {FRINGE, DEFECT}:
        return Image.fromarray(values.astype(np.uint8))
    if (values[marked] != values[marked][0]).any():
        count = len(np.unique(values))
        fix = "Threshold it (for instance 255 where the value is above half of its maximum, 0 elsewhere)"
        what = f"the mask is not binary: it holds {count} different values, as anti-aliasing or JPEG leaves them"
        raise DataError([Problem(path, what, f"{fix} and save it as PNG")])
    return Image.fromarray(marked.astype(np.uint8) * 255)


def _mask_values(mask: Image.Image, path: Path) -> np.ndarray:
    """(H, W) values of the mask, 0 where nothing is marked."""
    if mask.mode == "P":
        colours = np.asarray(mask.convert("RGB"))
        if (colours == colours[..., :1]).all():
            return colours[..., 0]
        return np.asarray(mask)  # coloured palettes, as annotation tools write them, count from background 0
    if mask.has_transparency_data:
        mask = mask.convert("RGBA")
        if mask.getchannel("A").getextrema()[0] < 255:
            raise DataError([Problem(path, "the mask has transparent pixels", f"{MASK_FIX}, without transparency")])
        mask = mask.convert("RGB")
    values = np.asarray(mask)
    if values.ndim == 2:
        return values
    if (values != values[..., :1]).any():
        raise DataError([Problem(path, f"the mask is coloured ({mask.mode}) and not grey", MASK_FIX)])
    return values[..., 0]


def _decode(path: Path, fix: str) -> Image.Image:
    """The whole first page, decoded and turned upright."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file. Check the path, or restore the file from the original data.")
    if path.stat().st_size == 0:
        raise DataError([Problem(path, "the file is empty (0 bytes)", fix)])
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except Image.UnidentifiedImageError as error:
        raise DataError([Problem(path, "this is not an image that can be read", fix)]) from error
    except _DECODING_ERRORS as error:
        raise DataError([Problem(path, f"the image cannot be decoded ({error})", fix)]) from error
