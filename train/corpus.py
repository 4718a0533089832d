"""What `sard-tiny` is trained on, drawn on the fly: pictures, and windows with a hole, a caption and often a defect."""

import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import binary_dilation

from sard_lora.defects import DEFECTS, add_defect, blob
from sard_lora.textures import SURFACES, Field, random_surface, shot

Item = TypeVar("Item")
DEFECT_NAMES = tuple(DEFECTS)
ANY_PRODUCT = ("surface", "part", "product", "object", "material")
WITH_DEFECT = (
    "a photo of a {product} with a {defect} defect",
    "a photo of a {product} with a {defect}",
    "a {product} with a {defect}",
    "a {defect} on a {product}",
)
WITHOUT_DEFECT = ("a {product} without a defect", "a photo of a {product} without a defect", "a good {product}")
PLAIN = ("a photo of a {product}", "a {product}")


@dataclass(frozen=True)
class Window:
    """One training example: picture (H, W, 3) uint8, hole (H, W) bool, and the words for what is inside the hole."""

    picture: np.ndarray
    hole: np.ndarray
    caption: str


def all_captions() -> list[str]:
    """Every word that captions are made of, for the tokenizer."""
    products = [*SURFACES, *ANY_PRODUCT, *(f"{name} part" for name in SURFACES), "sample", "image", "defect"]
    templates = [*WITH_DEFECT, *WITHOUT_DEFECT, *PLAIN]
    return [t.format(product=p, defect=d) for t in templates for p in products for d in DEFECT_NAMES]


def draw_picture(size: int, rng: np.random.Generator) -> np.ndarray:
    """One photograph of a random surface or object, with a defect now and then, (size, size, 3) uint8."""
    image, _ = random_surface(size, rng)
    if rng.random() < 0.4:
        image, _ = add_defect(image, DEFECT_NAMES[rng.integers(len(DEFECT_NAMES))], rng, size * rng.uniform(0.1, 0.6))
    return shot(image, rng)


def draw_crop(picture: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A square of `size` pixels of a larger picture, turned and mirrored; sometimes the whole, made smaller."""
    side = picture.shape[0]
    if side % size == 0 and rng.random() < 0.25:
        factor = side // size
        crop = picture.reshape(size, factor, size, factor, 3).mean((1, 3)).astype(np.uint8)
    else:
        top, left = rng.integers(0, side - size + 1, 2)
        crop = picture[top : top + size, left : left + size]
    crop = np.rot90(crop, rng.integers(4))
    return crop[:, ::-1] if rng.random() < 0.5 else crop


def draw_window(size: int, rng: np.random.Generator) -> Window:
    """A window of a random surface whose hole holds a defect (half of them) or the undisturbed surface."""
    image, product = random_surface(size, rng)
    spoken = rng.random()
    if spoken < 0.3:
        product = ANY_PRODUCT[rng.integers(len(ANY_PRODUCT))]
    elif spoken < 0.45:  # a name nobody knows: users' products are called all sorts of things
        product = "".join(rng.choice(list(string.ascii_lowercase), rng.integers(3, 10)))
    image, hole, caption = open_hole(image, product, 0.5, rng)
    return Window(shot(image, rng), hole, caption)


def open_hole(
    image: Field, product: str, defect_share: float, rng: np.random.Generator
) -> tuple[Field, np.ndarray, str]:
    """Put a hole over an undisturbed picture (H, W, 3) in 0..1, now and then with a defect drawn in it.

    Answers picture, hole (H, W) bool and caption. Holes have the same shapes with and without a defect: a defect's own,
    or strokes, boxes and blobs as in LaMa (Suvorov et al. 2022). So the hole's shape does not tell what is in it; only
    the caption does.
    """
    size = image.shape[0]
    defect = DEFECT_NAMES[rng.integers(len(DEFECT_NAMES))]
    damaged, mask = add_defect(image, defect, rng, size * rng.uniform(0.12, 0.7))
    has_defect = rng.random() < defect_share
    shape = rng.random()
    # Blur in the camera carries the defect a little over its border; the hole takes that in.
    hole = binary_dilation(mask, iterations=int(rng.integers(2, 9)))
    if shape < 0.2:
        rows, columns = np.nonzero(hole)
        hole = hole.copy()
        hole[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    elif shape < 0.55:
        drawn = draw_hole(size, rng)
        hole = hole | drawn if has_defect else drawn
    templates = WITH_DEFECT if has_defect else WITHOUT_DEFECT if rng.random() < 0.8 else PLAIN
    caption = templates[rng.integers(len(templates))].format(product=product, defect=defect)
    return (damaged if has_defect else image), hole, caption


def draw_hole(size: int, rng: np.random.Generator) -> np.ndarray:
    """An irregular hole (size, size) bool over 1 % to 60 % of the window: strokes, boxes or a blob."""
    for _ in range(20):
        kind = rng.integers(3)
        if kind == 0:
            canvas = Image.new("1", (size, size))
            draw = ImageDraw.Draw(canvas)
            for _ in range(rng.integers(1, 6)):
                turns = np.cumsum(rng.normal(0, 0.9, rng.integers(3, 9))) + rng.uniform(0, 2 * np.pi)
                steps = np.stack([np.cos(turns), np.sin(turns)], 1) * size * rng.uniform(0.03, 0.2)
                points = rng.uniform(0, size, 2) + np.cumsum(steps, 0)
                draw.line(
                    [tuple(p) for p in points],
                    fill=1,
                    width=int(rng.integers(size // 64 + 2, size // 6)),
                    joint="curve",
                )
            hole = np.asarray(canvas)
        elif kind == 1:
            hole = np.zeros((size, size), bool)
            for _ in range(rng.integers(1, 5)):
                height, width = rng.integers(size // 16, size // 2, 2)
                top, left = rng.integers(0, size - height), rng.integers(0, size - width)
                hole[top : top + height, left : left + width] = True
        else:
            centre = tuple(rng.uniform(0.15, 0.85, 2) * size)
            hole = blob(size, rng, centre, size * rng.uniform(0.15, 0.9), rng.uniform(0.05, 0.3)) > 0
        if 0.01 <= hole.mean() <= 0.6:
            return hole
    hole = np.zeros((size, size), bool)
    hole[size // 4 : size // 2, size // 4 : size // 2] = True
    return hole


class Pool(Generic[Item]):
    """The last `size` of an endless series of items, of which every training step adds `fresh`.

    Item n depends on nothing but the seed and n, so a resumed run finds the pool that it left.
    """

    def __init__(self, draw: Callable[[np.random.Generator], Item], size: int, fresh: int, seed: int):
        self.draw, self.size, self.fresh, self.seed = draw, size, fresh, seed
        self.items: dict[int, Item] = {}

    def at(self, step: int) -> list[Item]:
        """The pool of one step; quick when the steps come in order."""
        wanted = range(step * self.fresh, step * self.fresh + self.size)
        self.items = {
            n: self.items[n] if n in self.items else self.draw(np.random.default_rng([self.seed, n])) for n in wanted
        }
        return list(self.items.values())
