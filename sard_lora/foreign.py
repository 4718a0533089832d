"""Something foreign on a surface: a drawn texture under a mask, as a defect of a kind that nobody has shown yet."""

import numpy as np

from sard_lora.textures import random_surface


def drawn_texture(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A random surface (H, W, 3), float from 0 to 255."""
    texture, _ = random_surface(max(shape), rng)
    return texture[: shape[0], : shape[1]] * 255


def blended(image: np.ndarray, texture: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`M (β I + (1 − β) A)` inside, β in 0.1 … 0.8 (DRAEM, Zavrtanik et al. 2021, eq. 1): (H, W, 3) uint8.

    `image` (H, W, 3) uint8, `texture` (H, W, 3) from 0 to 255, `mask` (H, W) bool. Grey on a grey part, where a
    coloured texture would be told by its colour alone.
    """
    if np.ptp(image, axis=2).max() == 0:
        texture = np.repeat(texture.mean(2, keepdims=True), 3, axis=2)
    beta = rng.uniform(0.1, 0.8)
    inside = np.rint(np.clip(beta * image + (1 - beta) * texture, 0, 255)).astype(np.uint8)
    return np.where(mask[..., None], inside, image)
