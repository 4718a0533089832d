"""Procedural defects: each is drawn onto a picture of a surface, and its mask is exactly what was changed.

A painter takes the picture (H, W, 3) in 0..1, a generator, the defect's centre (y, x) and its extent in pixels. It
answers its coverage (H, W) in 0..1 and what the surface looks like under full coverage, (H, W, 3).
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter, map_coordinates

from sard_lora.textures import Field, Generator, power_noise

Painter = Callable[[Field, Generator, tuple[float, float], float], tuple[Field, Field]]

COVERED = 0.2
"""A pixel belongs to the mask from this coverage on; below it nothing is written."""
VISIBLE = 0.07
"""Least mean change inside the mask (of 1): what is fainter is drawn again."""


def add_defect(
    image: Field, name: str, rng: Generator, extent: float, where: Field | None = None
) -> tuple[Field, Field]:
    """Draw one defect called `name` of about `extent` pixels: (image (H, W, 3), mask (H, W) bool).

    The mask is what was written, never empty, and lies within `where` (H, W) bool (the product's foreground).
    Outside the mask the picture is unchanged, to the bit.

    Raises:
        ValueError: an unknown defect, or an empty `where`.
    """
    if name not in DEFECTS:
        raise ValueError(f"defect {name!r} is not drawn here; known: {', '.join(DEFECTS)}")
    size = image.shape[0]
    allowed = np.ones((size, size), bool) if where is None else where
    inside = np.argwhere(allowed)
    if not len(inside):
        raise ValueError(f"no room for a {name}: the foreground is empty")
    # Away from the picture's border where there is room: a defect cut off there is hardly one.
    margin = int(min(extent / 2.5, size / 3))
    central = inside[((inside >= margin) & (inside < size - margin)).all(1)]
    centres = central if len(central) else inside
    best: tuple[float, Field, Field] | None = None
    for _ in range(8):
        centre = tuple(centres[rng.integers(len(centres))] + rng.uniform(0, 1, 2))
        coverage, changed = DEFECTS[name](image, rng, centre, extent)
        mask = (coverage > COVERED) & allowed
        if not mask.any():
            continue
        result = np.where(mask[..., None], image + coverage[..., None] * (changed - image), image)
        result = np.clip(result, 0, 1).astype(np.float32)
        visible = float(np.abs(result - image)[mask].mean())
        if best is None or visible > best[0]:
            best = (visible, result, mask)
        if visible >= VISIBLE:
            break
    if best is None:  # the foreground is thinner than the defect's parts: write one dot, contrasting
        mask = np.zeros_like(allowed)
        mask[tuple(inside[rng.integers(len(inside))])] = True
        return np.where(mask[..., None], 1 - image, image).astype(np.float32), mask
    return best[1], best[2]


def path(
    rng: Generator, centre: tuple[float, float], length: float, wiggle: float, angle: float | None = None
) -> Field:
    """A walk of about `length` pixels around `centre`, (n, 2) as (y, x); `wiggle` in radians over its length."""
    steps = int(np.clip(length / 3, 6, 80))
    angle = rng.uniform(0, 2 * np.pi) if angle is None else angle
    heading = angle + np.cumsum(rng.normal(0, wiggle / np.sqrt(steps), steps))
    points = np.cumsum(np.stack([np.sin(heading), np.cos(heading)], 1), 0) * length / steps
    return points - points.mean(0) + np.asarray(centre)


def stroke(size: int, lines: list[tuple[Field, Field]]) -> Field:
    """Coverage (size, size) of polylines with a width at every point, drawn at 4 × and averaged."""
    scale = 4
    canvas = Image.new("L", (size * scale, size * scale))
    draw = ImageDraw.Draw(canvas)
    for points, widths in lines:
        for (y0, x0), (y1, x1), width in zip(points[:-1] * scale, points[1:] * scale, widths * scale, strict=False):
            draw.line((x0, y0, x1, y1), fill=255, width=max(1, round(width)))
            radius = width / 2
            if radius >= 2:
                draw.ellipse((x1 - radius, y1 - radius, x1 + radius, y1 + radius), fill=255)
    return np.asarray(canvas.reduce(scale), np.float32) / 255


def blob(size: int, rng: Generator, centre: tuple[float, float], extent: float, rough: float) -> Field:
    """Signed height (size, size) of an irregular patch, positive inside, about 1 in the middle."""
    y, x = np.ogrid[0:size, 0:size]
    angle, aspect = rng.uniform(0, np.pi), np.exp(rng.uniform(-0.5, 0.5))
    dy, dx = (y - centre[0]) * 2 / extent, (x - centre[1]) * 2 / extent
    u = (np.cos(angle) * dx + np.sin(angle) * dy) * aspect
    v = (np.cos(angle) * dy - np.sin(angle) * dx) / aspect
    # The outline is bent at the patch's own scale, whatever the picture's.
    bend = power_noise(128, rng, 1.6) - 0.5
    at = np.stack([(64 + dy * 40 + 0 * dx) % 127, (64 + dx * 40 + 0 * dy) % 127])
    near = map_coordinates(bend, at, order=1) if extent < size else power_noise(size, rng, 1.6) - 0.5
    return (1 - np.hypot(u, v) + 4 * rough * near).astype(np.float32)


def _edge(height: Field, extent: float, pixels: float) -> Field:
    """Coverage from a signed height: a ramp `pixels` wide at its zero."""
    return np.clip(height * extent / 2 / pixels + 0.5, 0, 1)


def _contrast(image: Field, centre: tuple[float, float], rng: Generator, darker: float = 0.5) -> Field:
    """A grey or tinted colour (3,) that stands out from the picture around `centre`."""
    y, x = (int(np.clip(c, 0, image.shape[0] - 1)) for c in centre)
    here = image[max(y - 4, 0) : y + 5, max(x - 4, 0) : x + 5].mean((0, 1))
    mean = here.mean()
    dark = mean > 0.75 or (mean > 0.3 and rng.random() < darker)
    return here * rng.uniform(0.05, 0.45) if dark else here + (1 - here) * rng.uniform(0.45, 0.95)


def scratch(image: Field, rng: Generator, centre: tuple[float, float], extent: float) -> tuple[Field, Field]:
    """One to three almost straight grooves, a bright flank beside a dark one."""
    size, angle = image.shape[0], rng.uniform(0, 2 * np.pi)
    lines = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        points = path(rng, centre, extent * rng.uniform(0.6, 1.2), rng.uniform(0.05, 0.6), angle + rng.normal(0, 0.05))
        points = points + rng.normal(0, extent * 0.06, 2)
        taper = np.sin(np.linspace(0.15, np.pi - 0.15, len(points))) ** 0.5
        lines.append((points, np.maximum(rng.uniform(1.0, 1.2 + size / 110) * taper, 0.8)))
    coverage = np.minimum(stroke(size, lines) * 1.4, 1)
    colour = _contrast(image, centre, rng, darker=0.3)
    shift = rng.choice([-1, 1], 2)
    flank = np.clip(coverage - np.roll(coverage, shift, (0, 1)), 0, 1)[..., None]
    changed = colour * (0.85 + 0.3 * power_noise(size, rng, 0.5)[..., None]) * (1 - 0.5 * flank)
    return coverage, changed.astype(np.float32)


def crack(image: Field, rng: Generator, centre: tuple[float, float], extent: float) -> tuple[Field, Field]:
    """A jagged dark line that branches and tapers."""
    size = image.shape[0]
    width = rng.uniform(1.0, 1.2 + size / 90)
    trunk = path(rng, centre, extent * rng.uniform(0.8, 1.4), rng.uniform(0.5, 2.5))
    trunk = trunk + rng.normal(0, rng.uniform(0.4, 1.2), trunk.shape)
    lines = [(trunk, np.linspace(width, max(width * 0.4, 0.8), len(trunk)))]
    for _ in range(rng.integers(0, 4)):
        start = trunk[rng.integers(len(trunk))]
        branch = path(rng, (0, 0), extent * rng.uniform(0.2, 0.5), rng.uniform(1, 4))
        lines.append((branch - branch[0] + start, np.linspace(width * 0.7, 0.6, len(branch))))
    coverage = np.minimum(stroke(size, lines) * 1.3, 1)
    y, x = (int(np.clip(c, 0, size - 1)) for c in centre)
    dark = image[y, x].mean() > 0.22
    colour = image * rng.uniform(0.05, 0.35) if dark else image + (1 - image) * rng.uniform(0.4, 0.8)
    return coverage, colour.astype(np.float32)


def pit(image: Field, rng: Generator, centre: tuple[float, float], extent: float) -> tuple[Field, Field]:
    """A small crater or a few: dark inside, one rim in the light."""
    size = image.shape[0]
    height = np.full((size, size), -9.0, np.float32)
    for _ in range(rng.choice([1, 1, 2, 3, 5])):
        at = np.asarray(centre) + rng.normal(0, extent * 0.3, 2)
        height = np.maximum(height, blob(size, rng, tuple(at), max(extent * rng.uniform(0.2, 0.45), 4), 0.12))
    angle = rng.uniform(0, 2 * np.pi)
    dy, dx = np.gradient(np.clip(gaussian_filter(height, 0.7), -0.3, 0.8))
    slope = np.clip((np.cos(angle) * dx + np.sin(angle) * dy) * extent * 0.25, -1, 1)[..., None]
    depth = np.clip(height, 0, 0.7)[..., None]
    changed = image * (1 - 0.4 - 0.6 * depth) + 0.5 * slope
    return _edge(height + 0.15, extent * 0.35, 1.2), changed


def stain(image: Field, rng: Generator, centre: tuple[float, float], extent: float) -> tuple[Field, Field]:
    """A dried spill: the surface shows through, tinted, with a darker tide line."""
    size = image.shape[0]
    height = blob(size, rng, centre, extent, rng.uniform(0.1, 0.3))
    tint = rng.uniform(0.25, 0.8) * (1 + rng.choice([0.0, 0.35]) * rng.uniform(-1, 1, 3))
    tide = np.exp(-((height / 0.12) ** 2)) * rng.uniform(0, 0.5)
    cloud = 0.3 * (power_noise(size, rng, 1.6) - 0.5)
    share = np.clip(1 + cloud - 0.35 * np.clip(height, 0, 1), 0.3, 1)[..., None]
    if image.mean() > 0.3:
        changed = image * (1 - share * (1 - tint)) * (1 - tide[..., None])
    else:
        changed = image + share * (1 - image) * (0.2 + 0.5 * tint)
    return _edge(height, extent, rng.uniform(1, 4)), changed


def hole(image: Field, rng: Generator, centre: tuple[float, float], extent: float) -> tuple[Field, Field]:
    """A hole through the material: nearly black with a torn or lit rim."""
    size = image.shape[0]
    height = blob(size, rng, centre, max(extent * rng.uniform(0.3, 0.6), 4), rng.uniform(0.05, 0.2))
    ground = rng.uniform(0, 0.12) if image.mean() > 0.25 else rng.uniform(0.6, 1)
    rim = np.exp(-((height / 0.2) ** 2))[..., None] * rng.uniform(0, 0.7)
    changed = ground + 0.05 * power_noise(size, rng, 1.5)[..., None] + rim * (image * 1.3 - ground)
    return _edge(height + 0.1, extent * 0.45, 1.0), changed * np.ones(3, np.float32)


def chip(image: Field, rng: Generator, centre: tuple[float, float], extent: float) -> tuple[Field, Field]:
    """A piece broken out along facets: rough, of another brightness, one edge in shadow."""
    size = image.shape[0]
    y, x = np.ogrid[0:size, 0:size]
    turns = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(5, 9)))
    faces = [
        (x - centre[1]) * np.cos(a) + (y - centre[0]) * np.sin(a) - extent * rng.uniform(0.15, 0.45) for a in turns
    ]
    height = -np.max(faces, 0) * 2 / extent + 0.35 * (power_noise(size, rng, 1.3) - 0.5)
    angle = rng.uniform(0, 2 * np.pi)
    facet = np.argmax(faces, 0)
    shade = np.cos(turns - angle)[facet] * rng.uniform(0.1, 0.3)
    colour = _contrast(image, centre, rng)
    rough = 0.5 * (power_noise(size, rng, rng.uniform(0.6, 1.3)) - 0.5)
    border = np.exp(-((height / 0.1) ** 2)) * rng.uniform(0, 0.35)
    changed = colour + (shade + rough - border)[..., None]
    return _edge(height.astype(np.float32), extent, 1.0), changed


def missing_piece(image: Field, rng: Generator, centre: tuple[float, float], extent: float) -> tuple[Field, Field]:
    """A piece broken away to the ground behind it: flat, with a straight or a curved outline and a shadow along it."""
    size = image.shape[0]
    if rng.random() < 0.5:
        height = blob(size, rng, centre, extent, rng.uniform(0.02, 0.15))
    else:
        y, x = np.ogrid[0:size, 0:size]
        angle, aspect = rng.uniform(0, np.pi), rng.uniform(0.4, 1)
        u = (x - centre[1]) * np.cos(angle) + (y - centre[0]) * np.sin(angle)
        v = (y - centre[0]) * np.cos(angle) - (x - centre[1]) * np.sin(angle)
        height = 1 - np.maximum(np.abs(u), np.abs(v) / aspect) * 2 / extent + 0.1 * (power_noise(size, rng, 1.5) - 0.5)
    ground = _contrast(image, centre, rng, darker=0.75)
    shadow = np.exp(-np.clip(height, 0, None) / 0.15) * rng.uniform(0, 0.6)
    changed = ground * (1 - shadow[..., None]) + 0.04 * (power_noise(size, rng, 1.5)[..., None] - 0.5)
    return _edge(height.astype(np.float32), extent, 1.0), changed.astype(np.float32)


def fibre(image: Field, rng: Generator, centre: tuple[float, float], extent: float) -> tuple[Field, Field]:
    """A hair or thread lying on the surface, curled, with a faint shadow."""
    size = image.shape[0]
    points = path(rng, centre, extent * rng.uniform(1, 2.2), rng.uniform(1, 5))
    smooth = gaussian_filter(points, (2, 0), mode="nearest")
    width = np.full(len(smooth), rng.uniform(1.0, 1.2 + size / 120))
    core = np.minimum(stroke(size, [(smooth, width)]) * 1.4, 1)
    offset = tuple(rng.choice([-1, 1], 2) * max(1, size // 128))
    shadow = gaussian_filter(np.roll(core, offset, (0, 1)), 0.6) * rng.uniform(0, 0.5)
    colour = _contrast(image, centre, rng, darker=0.4) * (1 + rng.choice([0.0, 0.5]) * rng.uniform(-1, 0.3, 3))
    coverage = np.maximum(core, shadow)
    share = (core / np.maximum(coverage, 1e-3))[..., None]
    return coverage, (share * colour + (1 - share) * image * 0.3).astype(np.float32)


def dent(image: Field, rng: Generator, centre: tuple[float, float], extent: float) -> tuple[Field, Field]:
    """The surface pressed in: light on one flank, shadow on the other, its texture kept."""
    size = image.shape[0]
    height = blob(size, rng, centre, extent, 0.08)
    bowl = gaussian_filter(np.clip(height, 0, 1) ** 1.5, max(1.0, extent / 25))
    angle = rng.uniform(0, 2 * np.pi)
    dy, dx = np.gradient(bowl)
    slope = (np.cos(angle) * dx + np.sin(angle) * dy) * extent * rng.uniform(0.1, 0.25)
    changed = image * (1 + np.clip(slope, -0.85, 1.2))[..., None] + 0.25 * slope[..., None]
    return _edge(height, extent, 1.5), changed


def scuff(image: Field, rng: Generator, centre: tuple[float, float], extent: float) -> tuple[Field, Field]:
    """Rubbed in one direction: a patch of fine streaks."""
    size = image.shape[0]
    height = blob(size, rng, centre, extent, rng.uniform(0.1, 0.2))
    streaks = power_noise(size, rng, 0.8, rng.uniform(8, 30), rng.uniform(0, np.pi))
    coverage = _edge(height, extent, extent / 10) * np.clip((streaks - rng.uniform(0.35, 0.55)) * 8, 0, 1)
    return coverage, _contrast(image, centre, rng, darker=0.25) * np.ones_like(image)


def contamination(image: Field, rng: Generator, centre: tuple[float, float], extent: float) -> tuple[Field, Field]:
    """Dirt: a scatter of grains, dense in the middle."""
    size = image.shape[0]
    canvas = Image.new("L", (size * 4, size * 4))
    draw = ImageDraw.Draw(canvas)
    for y, x in (np.asarray(centre) + rng.normal(0, extent * 0.3, (rng.integers(6, 40), 2))) * 4:
        ry, rx = rng.uniform(2, 4 + size / 40, 2)
        draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=255)
    coverage = np.asarray(canvas.reduce(4), np.float32) / 255
    return coverage, _contrast(image, centre, rng, darker=0.7) * np.ones_like(image)


def smear(image: Field, rng: Generator, centre: tuple[float, float], extent: float) -> tuple[Field, Field]:
    """The surface's own pattern dragged, as print that was touched wet or thread that was pulled."""
    size = image.shape[0]
    height = blob(size, rng, centre, extent, rng.uniform(0.1, 0.25))
    angle, reach = rng.uniform(0, 2 * np.pi), extent * rng.uniform(0.2, 0.6)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    push = np.clip(height, 0, 1) * reach
    bend = (power_noise(size, rng, 1.8) - 0.5) * reach * 2 * np.clip(height, 0, 1)
    at = [y - np.sin(angle) * push + bend, x - np.cos(angle) * push - bend]
    moved = np.stack([map_coordinates(image[..., c], at, order=1, mode="reflect") for c in range(3)], -1)
    return _edge(height, extent, 1.5), moved * rng.uniform(0.6, 1.2) + rng.uniform(-0.05, 0.1)


DEFECTS: dict[str, Painter] = {
    "scratch": scratch,
    "crack": crack,
    "pit": pit,
    "stain": stain,
    "hole": hole,
    "chip": chip,
    "missing piece": missing_piece,
    "fibre": fibre,
    "dent": dent,
    "scuff": scuff,
    "contamination": contamination,
    "smear": smear,
}
