"""How far defects reach beyond their masks, measured on the few real ones.

Annotators outline what they see best, and many real defects go on faintly beyond. What is cut off at such an outline
has a hard edge that no real defect has, and a segmenter learns the edge. So masks are widened, by this much and not
more: every pixel more is one of the background that is written anew.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from scipy import ndimage

from sard_lora.images import DEFECT, load_image, load_mask
from sard_lora.layouts import Sample

MOST = 6
"""The widest margin, in pixels."""
_FAINT = 0.2
"""Share of a defect's contrast that is left where it has faded out."""
_SURROUNDINGS = (10, 16)
"""What counts as the product around a defect: pixels this far from the mask."""


def fade_margins(samples: Iterable[Sample]) -> dict[str, int]:
    """For every defect, by how many pixels its masks have to be widened to hold it whole: 0 … `MOST`.

    Around every part of a mask lie rings, one pixel wide. In a ring, the share of the part's contrast to its
    surroundings is that of a least-squares fit over all parts of the defect, so that texture around faint ones does
    not count. The margin ends at the first ring with a share below a fifth. A defect that fills its images has none.
    Raises `DataError` for files that `load_image` or `load_mask` refuses.
    """
    contrasts: dict[str, list[np.ndarray]] = {}
    for sample in samples:
        contrasts.setdefault(sample.defect, []).extend(_ring_contrasts(sample))
    margins = {}
    for defect, found in sorted(contrasts.items()):
        all_parts = np.array(found or [np.zeros((1 + MOST, 3))])
        parts = all_parts[:, :1]
        shares = (parts * all_parts[:, 1:]).sum((0, 2)) / max((parts**2).sum(), 1e-9)
        margins[defect] = int(np.argmin(np.append(shares >= _FAINT, False)))
    return margins


def _ring_contrasts(sample: Sample) -> Iterator[np.ndarray]:
    """For every part of a mask that has surroundings: its colour, and that of each ring, less theirs (1 + MOST, 3)."""
    image = load_image(sample.image)
    pixels = np.asarray(image, np.float64)
    mask = np.asarray(load_mask(sample.mask, image.size)) == DEFECT
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    distance, (rows, columns) = ndimage.distance_transform_edt(~mask, return_indices=True)
    nearest = labels[rows, columns]  # where two parts are close, each pixel belongs to the one it is nearer to
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        near = tuple(slice(max(0, side.start - _SURROUNDINGS[1]), side.stop + _SURROUNDINGS[1]) for side in box)
        own, colours = np.where(nearest[near] == number, distance[near], np.inf), pixels[near]
        areas = [own == 0, *((own > ring) & (own <= ring + 1) for ring in range(MOST))]
        around = (own > _SURROUNDINGS[0]) & (own <= _SURROUNDINGS[1])
        if around.sum() >= 20 and all(area.sum() >= 3 for area in areas):
            yield np.array([colours[area].mean(0) for area in areas]) - colours[around].mean(0)
