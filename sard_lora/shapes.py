"""Shapes that no real defect had: patches of thresholded Perlin noise, and winding strokes."""

import numpy as np
from scipy import ndimage


def perlin(shape: tuple[int, int], cell: float, rng: np.random.Generator) -> np.ndarray:
    """Gradient noise of about [-0.7, 0.7] whose features are `cell` pixels wide (Perlin 1985, 2002 fade)."""
    rows, columns = (np.arange(length, dtype=np.float32) / np.float32(cell) for length in shape)
    angles = rng.uniform(0, 2 * np.pi, (int(rows[-1]) + 2, int(columns[-1]) + 2)).astype(np.float32)
    slopes = np.sin(angles), np.cos(angles)
    y0, x0 = rows.astype(int)[:, None], columns.astype(int)[None]
    dy, dx = (rows % 1)[:, None], (columns % 1)[None]

    def corner(down: int, right: int) -> np.ndarray:
        y, x = (slope[y0 + down, x0 + right] for slope in slopes)
        return y * (dy - down) + x * (dx - right)

    fade_y, fade_x = (t**3 * (t * (6 * t - 15) + 10) for t in (dy, dx))
    top = corner(0, 0) * (1 - fade_x) + corner(0, 1) * fade_x
    bottom = corner(1, 0) * (1 - fade_x) + corner(1, 1) * fade_x
    return top * (1 - fade_y) + bottom * fade_y


def highest(field: np.ndarray, allowed: np.ndarray, area: int) -> np.ndarray:
    """The `area` allowed pixels where `field` is highest, all of them if they are fewer, more where values tie."""
    values = field[allowed]
    if len(values) <= area:
        return allowed.copy()
    # Taking all that tie, and not some of them, leaves no pinholes where the field is flat.
    return allowed & (field >= np.partition(values, len(values) - area)[len(values) - area])


def perlin_patch(foreground: np.ndarray, centre: tuple[int, int], area: int, rng: np.random.Generator) -> np.ndarray:
    """`area` foreground pixels around `centre`: an ellipse of random axes and direction with a ragged outline."""
    radius = np.sqrt(area / np.pi)
    stretch, angle = np.exp(rng.uniform(0, np.log(2.5)) / 2), rng.uniform(0, np.pi)
    window = _window(centre, int(4 * radius * stretch) + 2, foreground.shape)
    y, x = np.mgrid[window]
    y, x = y - centre[0], x - centre[1]
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    falloff = np.hypot(along / stretch, across * stretch) / max(radius, 1)
    noise = sum(perlin(y.shape, max(3.0, radius / 2**o), rng) / 2**o for o in range(3))
    result = np.zeros_like(foreground)
    result[window] = highest(noise - falloff, foreground[window], area)
    return result


def stroke(foreground: np.ndarray, centre: tuple[int, int], area: int, rng: np.random.Generator) -> np.ndarray:
    """`area` foreground pixels along a winding line from `centre`, 8 to 40 times as long as wide."""
    length = max(1.0, np.sqrt(area * np.exp(rng.uniform(np.log(8), np.log(40)))))
    window = _window(centre, int(length) + 2, foreground.shape)
    allowed = foreground[window]
    row, column = centre[0] - window[0].start, centre[1] - window[1].start
    path = np.zeros(allowed.shape, bool)
    path[row, column] = True
    heading, turn = rng.uniform(0, 2 * np.pi), 0.0
    y, x = float(row), float(column)
    for _ in range(int(2 * length)):
        turn = 0.9 * turn + rng.normal(0, 0.12 / np.sqrt(length))
        heading += turn
        ahead = y + np.sin(heading) / 2, x + np.cos(heading) / 2
        at = round(ahead[0]), round(ahead[1])
        if 0 <= at[0] < path.shape[0] and 0 <= at[1] < path.shape[1] and allowed[at]:
            y, x = ahead
            path[at] = True
        else:
            heading, turn = rng.uniform(0, 2 * np.pi), 0.0
    # A little noise makes the outline ragged; it also breaks the ties between pixels of one distance.
    ragged = rng.random(path.shape) * 0.7
    result = np.zeros_like(foreground)
    result[window] = highest(-ndimage.distance_transform_edt(~path) - ragged, allowed, area)
    return result


def _window(centre: tuple[int, int], radius: int, shape: tuple[int, int]) -> tuple[slice, slice]:
    """The part of an image within `radius` of `centre`."""
    return tuple(
        slice(max(0, c - radius), min(length, c + radius + 1)) for c, length in zip(centre, shape, strict=True)
    )
