"""Procedural surfaces, drawn from a seed: fields of grey (H, W), and the colour, light and sensor that finish them.

Every function takes the side of the picture in pixels and a `numpy.random.Generator`, and answers in float32 with
0 = black and 1 = white. Nothing is read from a file, and one seed always draws one picture.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import scipy.fft
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

Field = np.ndarray
Generator = np.random.Generator


@lru_cache(maxsize=16)
def _frequencies(size: int) -> tuple[Field, Field]:
    """Cycles per picture, (size, size // 2 + 1) each."""
    fy = (np.fft.fftfreq(size) * size).astype(np.float32)[:, None]
    fx = (np.fft.rfftfreq(size) * size).astype(np.float32)[None, :]
    return fy, fx


@lru_cache(maxsize=16)
def coordinates(size: int) -> tuple[Field, Field]:
    """Pixel centres as (y, x) in -1..1, (size, size) each; shared between callers, so never written to."""
    line = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    y, x = np.meshgrid(line, line, indexing="ij")
    y.setflags(write=False)
    x.setflags(write=False)
    return y, x


def normalise(field: Field) -> Field:
    """Shift and scale to mean 0.5 and standard deviation 1/6, clipped to 0..1 (so the clip is at three sigma)."""
    return np.clip((field - field.mean()) / (6 * field.std() + 1e-6) + 0.5, 0, 1, dtype=np.float32)


def _spectral(size: int, rng: Generator, amplitude: Field) -> Field:
    white = scipy.fft.rfft2(rng.standard_normal((size, size), dtype=np.float32))
    return normalise(scipy.fft.irfft2(white * amplitude, s=(size, size)).astype(np.float32))


def power_noise(size: int, rng: Generator, alpha: float, stretch: float = 1.0, angle: float = 0.0) -> Field:
    """Noise with a 1/f^alpha amplitude spectrum: 0 is white, 1 natural, 2 cloudy.

    With `stretch` above 1 its grains are that much longer along `angle` (radians, 0 = along x).
    """
    fy, fx = _frequencies(size)
    along = (fx * np.cos(angle) + fy * np.sin(angle)) * stretch
    across = fy * np.cos(angle) - fx * np.sin(angle)
    return _spectral(size, rng, (along**2 + across**2 + 1) ** (-alpha / 2))


def band_noise(size: int, rng: Generator, cycles: float, width: float, angle: float | None = None) -> Field:
    """Noise of about `cycles` per picture (a band as wide as `width` × that): wavelet-like, along `angle` if given."""
    fy, fx = _frequencies(size)
    radius = np.sqrt(fx**2 + fy**2)
    amplitude = np.exp(-(((radius - cycles) / (cycles * width)) ** 2))
    if angle is not None:
        direction = np.abs(fx * np.cos(angle) + fy * np.sin(angle)) / (radius + 1e-3)
        amplitude = amplitude * direction**8
    return _spectral(size, rng, amplitude)


def relief(height: Field, rng: Generator, strength: float) -> Field:
    """A height field lit from one side: the mean is 0.5, slopes towards the light are brighter."""
    angle = rng.uniform(0, 2 * np.pi)
    dy, dx = np.gradient(height)
    return np.clip(0.5 + strength * (np.cos(angle) * dx + np.sin(angle) * dy), 0, 1, dtype=np.float32)


def warp(size: int, rng: Generator, amount: float, alpha: float = 2.0) -> tuple[Field, Field]:
    """The picture's coordinates (y, x), bent by cloudy noise by up to `amount` of half the picture."""
    y, x = coordinates(size)
    first = power_noise(size, rng, alpha) - 0.5
    second = power_noise(size, rng, alpha) - 0.5
    return y + 2 * amount * first, x + 2 * amount * second


def cells(y: Field, x: Field, rng: Generator, count: float) -> tuple[Field, Field, Field]:
    """Worley cells, `count` across: distance to the nearest seed, to the border (F2 − F1), and one value a cell."""
    span = int(count) + 8
    jitter = rng.uniform(0, 1, (span, span, 2)).astype(np.float32)
    value = rng.uniform(0, 1, (span, span)).astype(np.float32)
    gy, gx = (y + 1) * count / 2 + 3, (x + 1) * count / 2 + 3
    iy, ix = np.floor(gy).astype(np.int32), np.floor(gx).astype(np.int32)
    first = np.full(gy.shape, 9.0, np.float32)
    second = first.copy()
    kind = np.zeros(gy.shape, np.float32)
    for oy in (-1, 0, 1):
        for ox in (-1, 0, 1):
            cy, cx = np.clip(iy + oy, 0, span - 1), np.clip(ix + ox, 0, span - 1)
            at = jitter[cy, cx]
            distance = np.hypot(cy + at[..., 0] - gy, cx + at[..., 1] - gx)
            nearer = distance < first
            second = np.where(nearer, first, np.minimum(second, distance))
            kind = np.where(nearer, value[cy, cx], kind)
            first = np.minimum(first, distance)
    return first, second - first, kind


def _angle(rng: Generator) -> float:
    """Any direction, but often along an axis, as parts lie under a camera."""
    return float(rng.choice([0.0, np.pi / 2, rng.uniform(0, np.pi)]))


def noise_surface(size: int, rng: Generator) -> Field:
    field = power_noise(size, rng, rng.uniform(0.3, 2.2), np.exp(rng.uniform(0, 2)), _angle(rng))
    return relief(field, rng, rng.uniform(2, 8)) if rng.random() < 0.3 else field


def brushed_surface(size: int, rng: Generator) -> Field:
    angle = _angle(rng)
    fine = power_noise(size, rng, rng.uniform(0.6, 1.3), rng.uniform(20, 80), angle)
    broad = power_noise(size, rng, 1.8, rng.uniform(1, 8), angle)
    return 0.5 + rng.uniform(0.4, 1) * (fine - 0.5) + rng.uniform(0, 0.8) * (broad - 0.5)


def cast_surface(size: int, rng: Generator) -> Field:
    height = power_noise(size, rng, rng.uniform(1.0, 1.7))
    bumps = band_noise(size, rng, size / rng.uniform(4, 16), 0.5)
    return relief(height + rng.uniform(0, 0.5) * bumps, rng, rng.uniform(1.5, 4))


def wavelet_surface(size: int, rng: Generator) -> Field:
    cycles = size / np.exp(rng.uniform(np.log(3), np.log(40)))
    return band_noise(size, rng, cycles, rng.uniform(0.1, 0.7), _angle(rng) if rng.random() < 0.5 else None)


def weave_surface(size: int, rng: Generator) -> Field:
    """Threads over and under; the threads' width and brightness vary a little, as they do in cloth."""
    period = size / np.exp(rng.uniform(np.log(5), np.log(22)))
    angle = _angle(rng)
    y, x = warp(size, rng, rng.uniform(0, 0.05))
    u = (np.cos(angle) * x + np.sin(angle) * y) * size / 2 / period
    v = (np.cos(angle) * y - np.sin(angle) * x) * size / 2 / period * rng.uniform(0.6, 1.6)
    warp_thread, weft_thread = np.abs(np.sin(np.pi * u)), np.abs(np.sin(np.pi * v))
    twill = int(rng.choice([2, 2, 3, 4]))
    over = (np.floor(u) + np.floor(v)) % twill < twill / 2
    field = np.where(over, warp_thread * rng.uniform(0.7, 1), weft_thread * rng.uniform(0.7, 1)) ** rng.uniform(0.4, 1)
    return 0.15 + 0.7 * field + 0.3 * (power_noise(size, rng, 0.6) - 0.5)


def leather_surface(size: int, rng: Generator) -> Field:
    y, x = warp(size, rng, rng.uniform(0.02, 0.12))
    _, border, kind = cells(y, x, rng, size / np.exp(rng.uniform(np.log(5), np.log(20))))
    dome = np.minimum(border * rng.uniform(1, 4), 1) ** 0.5
    field = 0.6 * dome + 0.15 * kind + rng.uniform(0.1, 0.5) * (power_noise(size, rng, 1.0) - 0.5)
    return relief(field, rng, rng.uniform(0.5, 1.5)) if rng.random() < 0.4 else field


def crystal_surface(size: int, rng: Generator) -> Field:
    """Flat grains of different brightness with sharp borders, as in etched metal or silicon."""
    y, x = warp(size, rng, rng.uniform(0, 0.15))
    y, x = (y, x * rng.uniform(0.4, 1)) if rng.random() < 0.5 else (y, x)
    _, border, kind = cells(y, x, rng, np.exp(rng.uniform(np.log(3), np.log(14))))
    dark = np.exp(-border * rng.uniform(8, 30)) * rng.uniform(0, 0.5)
    return 0.3 + 0.5 * kind - dark + 0.3 * (power_noise(size, rng, rng.uniform(0.5, 1.5)) - 0.5)


def wood_surface(size: int, rng: Generator) -> Field:
    angle = _angle(rng)
    y, x = warp(size, rng, rng.uniform(0.02, 0.1))
    u = np.cos(angle) * x + np.sin(angle) * y
    v = np.cos(angle) * y - np.sin(angle) * x
    rings = np.hypot(v + rng.uniform(-2, 2), u * rng.uniform(0.02, 0.25) + rng.uniform(-2, 2))
    phase = rings * rng.uniform(4, 24)
    pores = power_noise(size, rng, 0.8, rng.uniform(10, 40), angle) - 0.5
    return 0.5 + 0.25 * ((phase % 1) ** rng.uniform(0.5, 3) - 0.4) + rng.uniform(0.3, 0.9) * pores


def leaves_surface(size: int, rng: Generator) -> Field:
    """Dead leaves: shapes that cover each other, their sizes by a power law, as edges in photographs are."""
    scale = 2
    canvas = Image.new("L", (size * scale, size * scale), int(rng.integers(30, 225)))
    draw = ImageDraw.Draw(canvas)
    radii = size * scale * 0.02 * rng.pareto(1.3, 260).clip(0, 20) + 2
    for radius in np.sort(radii)[::-1] if rng.random() < 0.3 else radii:
        cy, cx = rng.uniform(0, size * scale, 2)
        grey = int(rng.integers(0, 256))
        if rng.random() < 0.4:
            draw.ellipse((cx - radius, cy - radius * rng.uniform(0.4, 1), cx + radius, cy + radius * 0.8), fill=grey)
        else:
            turns = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 7)))
            draw.polygon([(cx + radius * np.cos(a), cy + radius * np.sin(a)) for a in turns], fill=grey)
    flat = np.asarray(canvas.reduce(scale), np.float32) / 255
    return 0.15 + 0.7 * flat + rng.uniform(0, 0.4) * (power_noise(size, rng, rng.uniform(0.3, 1.5)) - 0.5)


def printed_surface(size: int, rng: Generator) -> Field:
    """Lines, grids, dots and signs printed on a plain ground."""
    scale = 2
    side = size * scale
    canvas = Image.new("L", (side, side), 40)
    draw = ImageDraw.Draw(canvas)
    pitch = side / np.exp(rng.uniform(np.log(2.5), np.log(16)))
    width = max(1, int(pitch * rng.uniform(0.04, 0.45)))
    starts = np.arange(rng.uniform(0, pitch), side + pitch, pitch)
    kind = rng.integers(0, 4)
    if kind in (0, 1):
        for start in starts:
            draw.line((start, 0, start, side), fill=215, width=width)
            if kind == 1:
                draw.line((0, start, side, start), fill=int(rng.choice([215, 130])), width=width)
    else:
        for cy in starts:
            for cx in starts:
                half = max(1.0, pitch * rng.uniform(0.1, 0.4)) if kind == 3 else max(1, width)
                box = (cx - half, cy - half, cx + half, cy + half)
                (draw.ellipse if kind == 2 or rng.random() < 0.3 else draw.rectangle)(
                    box, fill=int(rng.integers(120, 256))
                )
    ink = np.asarray(canvas.rotate(np.degrees(_angle(rng)), Image.Resampling.BILINEAR).reduce(scale), np.float32) / 255
    ink = 1 - ink if rng.random() < 0.5 else ink
    return ink + rng.uniform(0, 0.4) * (power_noise(size, rng, rng.uniform(0.3, 1.6)) - 0.5)


def tile_surface(size: int, rng: Generator) -> Field:
    """Tiles or bricks with joints, each a little different."""
    rows, columns = rng.uniform(1.2, 6, 2)
    y, x = warp(size, rng, rng.uniform(0, 0.02))
    v = (y + 1) * rows / 2 + rng.uniform()
    u = (x + 1) * columns / 2 + rng.uniform() + (np.floor(v) % 2) * rng.choice([0, 0.5])
    edge = np.minimum(np.minimum(u % 1, 1 - u % 1) / columns, np.minimum(v % 1, 1 - v % 1) / rows)
    joint = np.clip(edge / rng.uniform(0.004, 0.03), 0, 1)
    shade = rng.uniform(0, 1, (16, 16))[np.floor(v).astype(int) % 16, np.floor(u).astype(int) % 16]
    face = 0.6 + 0.25 * (shade - 0.5) + rng.uniform(0.1, 0.6) * (power_noise(size, rng, rng.uniform(0.5, 2)) - 0.5)
    return (face * joint + rng.uniform(0, 1) * (1 - joint)).astype(np.float32)


def granular_surface(size: int, rng: Generator) -> Field:
    """Grit, granulate or beads: round bodies lit from one side."""
    y, x = warp(size, rng, rng.uniform(0, 0.05))
    near, _, kind = cells(y, x, rng, size / np.exp(rng.uniform(np.log(4), np.log(28))))
    height = np.sqrt(np.clip(1 - (near / rng.uniform(0.5, 0.9)) ** 2, 0, 1))
    lit = relief(height, rng, rng.uniform(0.5, 1.5))
    return 0.6 * lit + 0.3 * kind * (height > 0) + 0.2 * power_noise(size, rng, 0.8)


def smooth_surface(size: int, rng: Generator) -> Field:
    """Paint, glass or plastic: hardly anything but light."""
    return 0.5 + rng.uniform(0.05, 0.6) * (power_noise(size, rng, rng.uniform(1.8, 3)) - 0.5)


SURFACES: dict[str, Callable[[int, Generator], Field]] = {
    "rough surface": noise_surface,
    "brushed metal": brushed_surface,
    "cast metal": cast_surface,
    "textured surface": wavelet_surface,
    "woven fabric": weave_surface,
    "leather": leather_surface,
    "crystalline wafer": crystal_surface,
    "wood": wood_surface,
    "pile of parts": leaves_surface,
    "printed pattern": printed_surface,
    "tile": tile_surface,
    "granulate": granular_surface,
    "painted panel": smooth_surface,
}


def silhouette(size: int, rng: Generator) -> Field:
    """The outline of one object as coverage 0..1 with soft edges: a disc, ring, slab, bar, star or pebble."""
    y, x = coordinates(size)
    angle, (cy, cx) = rng.uniform(0, 2 * np.pi), rng.uniform(-0.25, 0.25, 2)
    u = np.cos(angle) * (x - cx) + np.sin(angle) * (y - cy)
    v = np.cos(angle) * (y - cy) - np.sin(angle) * (x - cx)
    radius, turn = np.hypot(u, v), np.arctan2(v, u)
    kind = rng.integers(0, 5)
    if kind == 0:
        inside = rng.uniform(0.4, 1.0) - radius
    elif kind == 1:
        outer = rng.uniform(0.5, 1.0)
        inside = np.minimum(outer - radius, radius - outer * rng.uniform(0.2, 0.7))
    elif kind == 2:
        half = rng.uniform(0.15, 1.1, 2)
        inside = np.minimum(half[0] - np.abs(u), half[1] - np.abs(v))
    elif kind == 3:
        teeth = rng.integers(3, 24)
        inside = rng.uniform(0.4, 0.9) * (1 + rng.uniform(0.03, 0.2) * np.sign(np.sin(teeth * turn))) - radius
    else:
        bumps = sum(rng.uniform(-0.15, 0.15) / k * np.cos(k * turn + rng.uniform(0, 6)) for k in range(1, 6))
        inside = rng.uniform(0.4, 0.9) * (1 + bumps) - radius
    softness = rng.uniform(1, 4) / size
    return np.clip(inside / softness + 0.5, 0, 1).astype(np.float32)


def colourise(field: Field, rng: Generator, colourful: float) -> Field:
    """(H, W) -> (H, W, 3) along a ramp between two colours; `colourful` 0 keeps it grey."""
    dark, bright = np.sort(rng.uniform(0, 1, 2)) if rng.random() < 0.5 else (0.15, 0.85)
    spread = max(bright - dark, 0.2)
    tint = 1 + colourful * rng.uniform(-0.5, 0.5, (2, 3))
    low = np.clip(dark * tint[0], 0, 1)
    high = np.clip((dark + spread) * tint[1], 0, 1)
    ramp = np.clip(field, 0, 1)[..., None]
    return (low + (high - low) * ramp).astype(np.float32)


def light(size: int, rng: Generator, strength: float) -> Field:
    """Uneven illumination (H, W) to multiply with: a slope, a vignette and a cloud, about 1 in the middle."""
    y, x = coordinates(size)
    angle = rng.uniform(0, 2 * np.pi)
    slope = np.cos(angle) * x + np.sin(angle) * y
    vignette = (x - rng.uniform(-0.3, 0.3)) ** 2 + (y - rng.uniform(-0.3, 0.3)) ** 2
    return 1 + strength * (rng.uniform(-0.4, 0.4) * slope - rng.uniform(-0.1, 0.5) * vignette).astype(np.float32)


def photograph(image: Field, rng: Generator) -> Field:
    """Light, exposure, focus and sensor noise of one shot: (H, W, 3) in 0..1, to the same."""
    size = image.shape[0]
    if rng.random() < 0.6:
        image = image * light(size, rng, rng.uniform(0, 1))[..., None]
    image = np.clip(image * rng.uniform(0.55, 1.25) + rng.uniform(-0.08, 0.15), 0, 1) ** rng.uniform(0.7, 1.5)
    if rng.random() < 0.5:
        image = gaussian_filter(image, (rng.uniform(0.3, 1.5),) * 2 + (0,))
    return sensor(image, rng, rng.choice([0.0, 0.005, rng.uniform(0.005, 0.04)]))


def shot(image: Field, rng: Generator) -> np.ndarray:
    """What the camera writes of `photograph`: (H, W, 3) uint8."""
    return (photograph(image, rng) * 255 + 0.5).astype(np.uint8)


def sensor(image: Field, rng: Generator, sigma: float) -> Field:
    """Sensor noise of standard deviation `sigma`, more of it in the light; the same in all channels when grey."""
    grey = np.ptp(image[::8, ::8], axis=2).max() < 1e-3
    shape = (*image.shape[:2], 1 if grey else 3)
    noise = rng.standard_normal(shape, dtype=np.float32)
    if rng.random() < 0.3:  # compression and interpolation in the camera correlate neighbouring pixels
        noise = gaussian_filter(noise, (0.7, 0.7, 0)) * 2
    return np.clip(image + sigma * np.sqrt(0.3 + image) * noise, 0, 1).astype(np.float32)


def random_surface(size: int, rng: Generator) -> tuple[Field, str]:
    """One picture of any surface or object, (size, size, 3) in 0..1, not yet photographed, and its English name."""
    names = list(SURFACES)
    name = names[rng.integers(len(names))]
    colourful = rng.choice([0.0, rng.uniform(0.2, 1.8)])
    image = colourise(SURFACES[name](size, rng), rng, colourful)
    if rng.random() < 0.15:  # a second material over or under the first: coatings, joints, layers
        other = colourise(SURFACES[names[rng.integers(len(names))]](size, rng), rng, colourful)
        share = np.clip((power_noise(size, rng, 2.2) - rng.uniform(0.35, 0.65)) * rng.uniform(4, 40) + 0.5, 0, 1)
        image = image + share[..., None] * (other - image)
    if rng.random() < 0.3:
        ground = colourise(smooth_surface(size, rng), rng, colourful) * rng.uniform(0.1, 1.1)
        shape = silhouette(size, rng)[..., None]
        image = ground * (1 - 0.5 * gaussian_filter(shape, (size / 40, size / 40, 0))) * (1 - shape) + image * shape
        name = f"{name} part"
    if rng.random() < 0.12:  # busbars, seams and rulers: straight bars across everything
        image = _bars(image, rng)
    return np.clip(image, 0, 1).astype(np.float32), name


def _bars(image: Field, rng: Generator) -> Field:
    size = image.shape[0]
    bars = np.zeros(size, np.float32)
    for centre in rng.uniform(0, size, rng.integers(1, 6)):
        half = rng.uniform(0.5, 0.04 * size)
        bars = np.maximum(bars, np.clip(half - np.abs(np.arange(size) - centre) + 0.5, 0, 1))
    bars = (bars[:, None] if rng.random() < 0.5 else bars[None, :])[..., None]
    return image + bars * (rng.uniform(0, 1, 3 if rng.random() < 0.3 else 1).astype(np.float32) - image) * rng.uniform(
        0.4, 1
    )
