"""The embedded data set: procedural products with defects and exact masks, in MVTec-AD layout.

    write_category("leather", Path("data/leather"), normals=100, anomalies_per_defect=12)

Pictures are drawn from a seed by `textures.py` and `defects.py`; one seed always gives the same bytes.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from sard_lora.atomic import atomic_folder, is_occupied
from sard_lora.defects import add_defect
from sard_lora.textures import (
    Field,
    Generator,
    band_noise,
    cells,
    coordinates,
    normalise,
    power_noise,
    sensor,
    warp,
)


@dataclass(frozen=True)
class Product:
    """One kind of part under one camera, and what goes wrong with it."""

    name: str
    draw: Callable[[int, Generator], tuple[Field, Field]]
    """(size, generator) -> a clean part (H, W, 3) in 0..1 and where its surface is (H, W) bool."""
    defects: dict[str, tuple[float, float]]
    """Defect -> its smallest and largest extent, as a share of the picture's side."""


def _brushed_steel(size: int, rng: Generator) -> tuple[Field, Field]:
    fine = power_noise(size, rng, 0.9, 40.0) - 0.5
    broad = power_noise(size, rng, 1.6, 12.0) - 0.5
    _, x = coordinates(size)
    sheen = 0.12 * np.exp(-(((x - rng.uniform(-0.5, 0.5)) / 0.6) ** 2))
    grey = 0.5 + 0.35 * fine + 0.15 * broad + sheen
    return grey[..., None] * np.float32([0.97, 1.0, 1.03]), np.ones((size, size), bool)


def _leather(size: int, rng: Generator) -> tuple[Field, Field]:
    y, x = warp(size, rng, 0.05)
    _, border, kind = cells(y, x, rng, 30)
    height = np.minimum(border * 1.6, 1) ** 0.7 + 0.2 * kind + 0.5 * power_noise(size, rng, 1.2)
    dy, dx = np.gradient(gaussian_filter(height, size / 300))
    lit = 0.5 + (dx + 0.7 * dy) * size / 150  # one lamp, always from the same side
    shade = 0.3 + 0.5 * lit + 0.12 * np.minimum(border * 4, 1)
    shade = shade * (0.85 + 0.3 * power_noise(size, rng, 2.2))
    colour = np.float32([0.78, 0.5, 0.32])
    return np.clip(shade, 0, 1)[..., None].astype(np.float32) * colour, np.ones((size, size), bool)


def _printed_tile(size: int, rng: Generator) -> tuple[Field, Field]:
    """A glazed tile with a printed ornament, which lies a little differently in every picture."""
    y, x = coordinates(size)
    turn, (cy, cx) = rng.normal(0, 0.02), rng.normal(0, 0.02, 2)
    u = np.cos(turn) * (x - cx) + np.sin(turn) * (y - cy)
    v = np.cos(turn) * (y - cy) - np.sin(turn) * (x - cx)
    soft = 3 / size
    within = lambda distance: np.clip(distance / soft + 0.5, 0, 1)[..., None]  # noqa: E731
    a, b = (u * 2 + 1) % 2 - 1, (v * 2 + 1) % 2 - 1  # four repeats across
    petals = 0.62 + 0.22 * np.cos(4 * np.arctan2(b, a)) - np.hypot(a, b)
    ring = 0.06 - np.abs(np.hypot(a, b) - 0.28)
    frame = np.maximum(np.abs(a), np.abs(b)) - 0.94
    glaze = 0.9 + 0.03 * (power_noise(size, rng, 2.2) - 0.5) + 0.05 * (power_noise(size, rng, 0.8) - 0.5)
    tile = glaze[..., None] * np.float32([0.93, 0.91, 0.85])
    for inside, colour in ((petals, (0.16, 0.3, 0.52)), (ring, (0.85, 0.62, 0.25)), (frame, (0.3, 0.42, 0.4))):
        ink = np.float32(colour) * (1 + 0.12 * (power_noise(size, rng, 1.0)[..., None] - 0.5))
        tile = tile + within(inside) * (ink - tile)
    return tile.astype(np.float32), np.ones((size, size), bool)


def _washer(size: int, rng: Generator) -> tuple[Field, Field]:
    """A turned steel washer on a dark mat, at about the same place."""
    y, x = coordinates(size)
    cy, cx = rng.normal(0, 0.03, 2)
    radius = np.hypot(y - cy, x - cx)
    angle = np.arctan2(y - cy, x - cx)
    inside = np.minimum(0.78 - radius, radius - 0.34)
    # Turning marks run around: noise that depends on the radius, and a highlight that wanders with the angle.
    marks = power_noise(512, rng, 0.7)[0]
    groove = np.interp(radius, np.linspace(0, 1.5, 512), marks) - 0.5
    sheen = 0.16 * np.cos(2 * (angle - rng.uniform(0, np.pi))) + 0.06 * np.cos(5 * angle + rng.uniform(0, 6))
    bevel = np.exp(-((inside / 0.025) ** 2)) * 0.22 * np.cos(angle + 0.8)
    metal = 0.55 + 0.3 * groove + sheen + bevel + 0.08 * (power_noise(size, rng, 0.6) - 0.5)
    mat = 0.13 + 0.06 * (normalise(band_noise(size, rng, size / 5, 0.4)) - 0.5)
    coverage = np.clip(inside * size / 4 + 0.5, 0, 1)
    shadow = gaussian_filter(np.roll(coverage, (size // 50, size // 70), (0, 1)), size / 40)
    grey = mat * (1 - 0.6 * shadow) * (1 - coverage) + metal * coverage
    return grey[..., None] * np.float32([1.0, 0.99, 0.96]), coverage > 0.9


PRODUCTS: dict[str, Product] = {
    product.name: product
    for product in (
        Product(
            "brushed_steel",
            _brushed_steel,
            {"scratch": (0.15, 0.4), "pit": (0.08, 0.16), "stain": (0.12, 0.3)},
        ),
        Product("leather", _leather, {"crack": (0.15, 0.35), "hole": (0.1, 0.22), "fibre": (0.12, 0.3)}),
        Product("printed_tile", _printed_tile, {"crack": (0.2, 0.5), "chip": (0.1, 0.25), "smear": (0.15, 0.3)}),
        Product("washer", _washer, {"chip": (0.1, 0.2), "scratch": (0.12, 0.3), "stain": (0.1, 0.25)}),
    )
}


def _product(name: str) -> Product:
    if name not in PRODUCTS:
        raise ValueError(f"product {name!r} is not drawn here; known: {', '.join(PRODUCTS)}")
    return PRODUCTS[name]


def _shoot(image: Field, rng: Generator) -> np.ndarray:
    """The camera of all products: nearly constant light, a little noise. To uint8."""
    y, x = coordinates(image.shape[0])
    angle = rng.uniform(0, 2 * np.pi)
    falloff = 1 + rng.uniform(0, 0.06) * (np.cos(angle) * x + np.sin(angle) * y) - 0.08 * (x**2 + y**2)
    lit = image * (rng.uniform(0.95, 1.05) * falloff)[..., None]
    return (sensor(np.clip(lit, 0, 1), rng, 0.012) * 255 + 0.5).astype(np.uint8)


def draw_normal(product: str, rng: Generator, size: int = 256) -> np.ndarray:
    """A photograph of a good part, (size, size, 3) uint8."""
    image, _ = _product(product).draw(size, rng)
    return _shoot(image, rng)


def draw_anomaly(product: str, defect: str, rng: Generator, size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """A photograph of a part with one defect, (size, size, 3) uint8, and its mask (size, size) bool.

    Raises:
        ValueError: an unknown product, or a defect that this product does not have.
    """
    kind = _product(product)
    if defect not in kind.defects:
        raise ValueError(f"{product} has no defect {defect!r}; known: {', '.join(kind.defects)}")
    image, foreground = kind.draw(size, rng)
    damaged, mask = add_defect(image, defect, rng, size * rng.uniform(*kind.defects[defect]), foreground)
    return _shoot(damaged, rng), mask


def write_category(
    product: str,
    root: Path | str,
    normals: int = 100,
    anomalies_per_defect: int = 12,
    seed: int = 0,
    size: int = 256,
    test_normals: int | None = None,
) -> Path:
    """Write the category's folder `root` in MVTec-AD layout as PNGs, whole or not at all, and answer its path.

    `normals` pictures go to train/good; `test_normals` (a quarter of them, at least one, when left out) to test/good.
    Masks are 8-bit {0, 255}. A picture depends on the seed and its own number only, not on how many there are.

    Raises:
        ValueError: an unknown product, a count below 1, or a `root` that holds something already.
    """
    kind, root = _product(product), Path(root)
    if is_occupied(root):
        raise ValueError(f"{root}: is not empty, and nothing is overwritten. Choose another folder")
    test_normals = max(1, normals // 4) if test_normals is None else test_normals
    counts = {"normals": normals, "anomalies_per_defect": anomalies_per_defect, "test_normals": test_normals}
    for what, count in counts.items():
        if count < 1:
            raise ValueError(f"{what}={count}: at least one picture is needed")

    def generator(folder: str, n: int) -> Generator:
        return np.random.default_rng([seed, zlib.crc32(f"{product}/{folder}".encode()), n])

    with atomic_folder(root) as folder:
        for part, count in (("train/good", normals), ("test/good", test_normals)):
            (folder / part).mkdir(parents=True)
            for n in range(count):
                picture = draw_normal(product, generator(part, n), size)
                Image.fromarray(picture).save(folder / part / f"{n:03d}.png")
        for defect in kind.defects:
            images, masks = folder / "test" / defect, folder / "ground_truth" / defect
            images.mkdir(parents=True)
            masks.mkdir(parents=True)
            for n in range(anomalies_per_defect):
                picture, mask = draw_anomaly(product, defect, generator(defect, n), size)
                Image.fromarray(picture).save(images / f"{n:03d}.png")
                Image.fromarray(mask.astype(np.uint8) * 255).save(masks / f"{n:03d}_mask.png")
    return root
