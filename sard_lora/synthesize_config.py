"""Settings of a synthetic data set, and what those left open come to for an adapter and its data."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sard_lora.layouts import Sample
from sard_lora.mask_bank import MaskBank
from sard_lora.masks import SOURCES
from sard_lora.pipelines.sard_inpaint import BACKGROUNDS, COMPOSITES, REGIONS
from sard_lora.precision import choose_device
from sard_lora.product import are_aligned

STRENGTH = 0.3
"""How much of the way to noise a real defect is taken before it is drawn anew."""
CANDIDATES = 3
"""How many are made for each mask of a defect from noise alone."""
IN_PLACE_SHARE = 0.5
"""How many of the images are in place, where parts are aligned."""
DRAWN_SHARE = 0.25
"""How many of the images show a drawn texture, where parts are not aligned."""


@dataclass
class SynthesizeConfig:
    """Settings of one synthetic data set."""

    adapter: Path
    """Adapter folder, or user/name on the Hugging Face Hub."""
    data: Path
    """Normal images: a data set (its training side is used) or a plain folder of images."""
    output: Path
    """Where the labelled data set goes (MVTec-AD layout)."""
    category: str | None = None
    """Category inside the data set; default: the folder itself."""
    count: int = 100
    """Labelled images to make."""
    per_defect: bool = False
    """Make COUNT images of every defect, instead of COUNT in all."""
    defects: list[str] | None = None
    """Defects to make; default: all that the adapter knows."""
    base: str | None = None
    """Where the adapter's base lies, when not at its own name."""
    candidates: int | None = None
    """Candidates for each mask; the critic keeps the best one that can be seen. Default: 3 from noise, 1 that starts
    from a real defect, for these differ little."""
    min_visibility: float = 2.0
    """Least change inside the mask, over the error of a VAE round trip; fainter ones are rejected. A defect that is
    drawn anew in its place was there before, and is kept."""
    min_snr: float = 4.0
    """How much a real defect that is moved, or a drawn one, stands out at its place, at least: the signal-to-noise
    ratio of the filter matched to its shape (`sard_lora.detectability`). Where it does not, it is put elsewhere, and at
    last where it did most: for what can't be seen teaches a segmenter to mark anything."""
    max_attempts: int = 6
    """Masks tried for one image before it is given up."""
    fills: bool = False
    """Fill the masks with the product as it should be (the no-defect prompt, and where others start from a real defect
    a piece of another good picture), in place of a defect: to see whether a segmenter can tell what was written from
    what was not, and to teach it that this is no defect."""
    masks: str = "real"
    """Where masks come from: real (the few-shot ones, transformed), perlin, stroke or mixed."""
    mask_bank: Path | None = None
    """Folder of masks, <defect>/<name>.png, in place of the adapter's own."""
    background: str | None = None
    """Background mode of RCD; default: the adapter's."""
    composite: str = "change"
    """Write the change that diffusion makes (change), only where the defect makes it (defect), only what the defect
    makes of it (contrast), or decoded pixels (pixels)."""
    region: str = "window"
    """Generate in a window around the mask, or in the full image: window or full."""
    guidance_scale: float | None = None
    """Defect guidance; 1 is none. Default: the adapter's, or 1 where diffusion starts from real defects."""
    strength: float | None = None
    """How much diffusion changes the real defects that it starts from, moved along with their masks; 1 draws from noise
    alone. Default: 0.3 where DATA holds the few defects that the adapter was trained on, else 1."""
    contrast: tuple[float, float] | None = (0.7, 1.2)
    """A thin real defect that is moved changes its new place, whose grain stays, as it did its own; so many times as
    strong, drawn from this range evenly on a logarithmic scale. Fainter ones taught segmenters more false alarms, and
    to find no more; stronger ones helped on solar cells and harmed on magnetic tiles (`benchmarks/NOTES.md`). None: it
    is moved pixel by pixel, as wide ones are."""
    in_place: float | None = None
    """Share of the images, of those that start from real defects, that are the defective pictures themselves, each with
    its defect drawn anew where it is; every picture in turn. Default: 0.5 where good parts look alike place by place,
    as objects in one pose do, else 0 (`sard_lora.product.are_aligned`)."""
    drawn: float | None = None
    """Share of the images that show none of the known defects but a drawn texture under a mask of any shape, on which
    diffusion goes on: for what looks as none of the few defects does. They are a defect of their own, `drawn`. Default:
    0.25 where diffusion starts from real defects of all kinds and parts do not look alike place by place, else 0."""
    from_noise: float = 0.0
    """Where images start from real defects: share of those not in place that are from noise alone all the same, under
    masks of all kinds (mixed), for shapes that the few defects do not have."""
    num_inference_steps: int | None = None
    """Steps of the reverse diffusion; default: the adapter's."""
    batch_size: int = 12
    """Windows generated at once."""
    copy_normals: bool = True
    """Also copy the normal images to train/good, so that the set stands alone."""
    seed: int = 0
    """Seed of everything random."""
    device: str | None = None
    """Where to run; default: the GPU when there is one."""

    def __post_init__(self) -> None:
        choose_device(self.device)
        for name, value, known in (
            ("background", self.background, (None, *BACKGROUNDS)),
            ("composite", self.composite, COMPOSITES),
            ("region", self.region, REGIONS),
            ("masks", self.masks, SOURCES),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(str(item) for item in known if item)}")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise ValueError(f"strength={self.strength} has to be above 0 and at most 1")
        if self.contrast is not None and not 0 < self.contrast[0] <= self.contrast[1]:
            raise ValueError(f"contrast={self.contrast} has to be two factors above 0, the smaller one first")
        for name in ("min_snr", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} has to be at least 0")
        if not 0 <= (self.drawn or 0) < 1:
            raise ValueError(f"drawn={self.drawn} has to be from 0 to below 1")
        for name in ("in_place", "from_noise"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} has to be from 0 to 1")
        for name in ("count", "candidates", "max_attempts", "batch_size", "num_inference_steps", "guidance_scale"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} has to be at least 1")


def chosen_strength(config: SynthesizeConfig, bank: MaskBank) -> float:
    """The strength asked for, or the default. Raises ValueError where there are no real defects to start from."""
    known = config.masks == "real" and all(entry.image for entry in bank.masks)
    if config.strength is None:
        return STRENGTH if known else 1.0
    if config.strength < 1 and not known:
        raise ValueError(
            f"strength={config.strength} starts from the real defects that the adapter was trained on, and "
            f"{config.data} does not hold them all under the adapter's masks. Give the data set that it was trained on "
            "and masks=real, or strength=1"
        )
    return config.strength


def has_starts(config: SynthesizeConfig, bank: MaskBank) -> bool:
    """Whether defects are made from something that shows one; raises as `chosen_strength`."""
    return chosen_strength(config, bank) < 1 and not config.fills


def chosen_shares(config: SynthesizeConfig, bank: MaskBank, normals: Sequence[Sample]) -> dict[str, float]:
    """The shares `in_place` and `drawn` asked for, or the defaults.

    These are 0 where none starts from a real defect, and for fills; `drawn` also where some defects are asked for.
    """
    asked = {"in_place": config.in_place, "drawn": 0.0 if config.defects and config.drawn is None else config.drawn}
    if has_starts(config, bank) and None in asked.values():
        aligned = are_aligned([sample.image for sample in normals])
        default = {"in_place": IN_PLACE_SHARE * aligned, "drawn": DRAWN_SHARE * (not aligned)}
    else:
        default = dict.fromkeys(asked, 0.0)
    return {name: default[name] if share is None else share for name, share in asked.items()}


def starting_point(config: SynthesizeConfig, bank: MaskBank) -> str:
    """What diffusion starts from, in a line, and which of the settings that were given are then without effect."""
    if config.fills:
        return "fills masks with the product as it should be"
    if has_starts(config, bank):
        count = sum(len(bank.for_defect(defect)) for defect in config.defects or bank.defects)
        drawn = f", {100 * config.drawn:.0f} % of the images from drawn textures" if config.drawn else ""
        return f"starts from the {count} real defects of {config.data}{drawn}"
    why = f"{config.data} does not hold the defects that the adapter was trained on"
    if config.strength == 1:
        why = "strength=1"
    elif config.masks != "real":
        why = f"masks={config.masks}"
    elif config.mask_bank:
        why = f"the masks in {config.mask_bank} come without images"
    given = {name: getattr(config, name) for name in ("in_place", "drawn", "from_noise")}
    given |= {name: getattr(config, name) != getattr(SynthesizeConfig, name) for name in ("contrast", "min_snr")}
    idle = ", ".join(name for name, value in given.items() if value)
    return f"from noise: {why}{f'; without effect: {idle}' if idle else ''}"


def default_candidates(strength: float) -> int:
    """As many candidates as are worth their time: where much is left of a real defect, they differ little."""
    return 1 if strength < 1 else CANDIDATES
