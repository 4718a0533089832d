"""Cards: what an adapter makes and is worth, what a synthetic set holds, how to load them, and the Hub's metadata.

A card says nothing that is not in its folder; an adapter's figures are those that `sard-lora evaluate --adapter` put
there. Cards that carry `GENERATED` are written anew when their folder changes or is pushed; others are somebody's own.
"""

import json
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData, RepoCard

from sard_lora import bases
from sard_lora.adapter_config import CARD_FILE, EVALUATION_FILE, AdapterConfig, product_name
from sard_lora.atomic import write_text

GENERATED = "<!-- Written by sard-lora, and again with every change; without this line your own text is kept. -->"
ADAPTER_FOLDER = "ADAPTER_FOLDER"
"""Stands for a Hub id in the lines of code of a card, as long as there is none."""

TAGS = ["lora", "inpainting", "anomaly-synthesis", "defect-detection", "sard"]
DATA_SET_TAGS = ["synthetic", "defect-detection", "sard"]
FEW = 5
"""Below so many images of a defect the card warns of little variety."""

_METHODS = {
    "real": "the few real defects",
    "paste": "the real defects, cut out and pasted",
    "sard": "**images of this adapter**",
    "paste+real": "pasted and real defects",
    "sard+real": "**images of this adapter** and the real defects",
}


def evaluation_summary(report: dict[str, Any]) -> dict[str, Any]:
    """What a card needs of the report of `sard_lora.evaluation.protocol.evaluate`; figures are fractions."""
    rows = {}
    for method, result in report["methods"].items():
        means = {name: result["mean_of_defects"][name] for name in ("miou", "iou_defect", "ap")}
        rows[method] = {
            "train_images": result["train_images"],
            "false_alarms": result["overall"]["false_alarms"],
            **means,
        }
    told = {name: report[name] for name in ("category", "split", "segmenter", "test_images", "test_images_per_defect")}
    return told | {"steps": report["config"]["steps"], "methods": rows}


def write_card(folder: Path) -> None:
    """Write the card of an adapter folder, unless it has one that is somebody's own."""
    path = folder / CARD_FILE
    if not path.is_file() or is_generated(path.read_text(encoding="utf-8")):
        write_text(path, card_of(folder))


def is_generated(text: str) -> bool:
    """Whether a card is ours to write anew."""
    return GENERATED in text


def read_card(path: Path, kind: type[RepoCard] = ModelCard) -> RepoCard:
    """A card with its metadata. Raises ValueError, naming the file, for metadata that are no YAML."""
    return parse_card(path.read_text(encoding="utf-8"), path, kind)


def parse_card(text: str, path: Path, kind: type[RepoCard] = ModelCard) -> RepoCard:
    """As `read_card`, for the text of the card at `path`."""
    try:
        return kind(text)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: its metadata, between the --- lines, cannot be read ({error}). Correct it"
        ) from error


def card_of(folder: Path, name: str = ADAPTER_FOLDER, license: str | None = None) -> str:
    """The card of an adapter folder: `name` is its Hub id, `license` as the Hub spells it ("apache-2.0").

    Without `license` that of the card which is there stays. Raises ValueError for one with unreadable metadata.
    """
    held = {path.name for path in folder.iterdir()}
    if license is None and CARD_FILE in held:
        license = read_card(folder / CARD_FILE).data.get("license")
    evaluation = None
    if EVALUATION_FILE in held:
        evaluation = json.loads((folder / EVALUATION_FILE).read_text(encoding="utf-8"))
    return adapter_card(AdapterConfig.read(folder), held, evaluation, name, license)


def adapter_card(
    config: AdapterConfig,
    held: set[str],
    evaluation: dict[str, Any] | None = None,
    name: str = ADAPTER_FOLDER,
    license: str | None = None,
) -> str:
    """The text of a card; `held` are the names of what the adapter's folder holds."""
    shots = config.data["shots"]
    base = bases.hub_id(config.base.id, config.base.revision)
    counts = evaluation["test_images_per_defect"].items() if evaluation else ()
    return _render(
        "adapter_card.md",
        metadata=_metadata(base, evaluation, name, license).to_yaml(),
        marker=GENERATED,
        config=config,
        training=config.training,
        product=product_name(config.category),
        held=held,
        shots=shots,
        margins=[f"{width} pixels for {defect}" for defect, width in config.sampling.margins.items() if width],
        few=[defect for defect in config.defects if shots.get(defect, 0) < FEW],
        base=base,
        embedded=bases.BASES.get(config.base.id) == str(bases.EMBEDDED),
        evaluation=evaluation,
        counts=[f"{count} {defect}" for defect, count in counts],
        methods=_METHODS,
        name=name,
        license=license,
    )


def data_set_card(text: str | None, repo_id: str, name: str, rows: dict[str, int], license: str | None) -> str:
    """The card of a data set: `text`, or one that says what it is; either way with what the Hub must know to show it.

    `rows` are the numbers of "defects", of those "in_place" and "drawn", and of "normal" images. Raises ValueError for
    a `text` with unreadable metadata.
    """
    if text is None or is_generated(text):
        text = _render("data_set_card.md", marker=GENERATED, repo_id=repo_id, name=name, rows=rows)
    card = parse_card(text, Path(name) / CARD_FILE, DatasetCard)
    configs = [
        {"config_name": config, "data_files": [{"split": "train", "path": f"data/{kind}-*.parquet"}]}
        for config, kind in (("default", "defects"), ("normal", "normal"))
        if rows[kind]
    ]
    usual = {"pretty_name": name, "task_categories": ["image-segmentation"], "tags": DATA_SET_TAGS}
    own = card.data.to_dict() | ({"license": license} if license else {})
    told = {"size_categories": [_size_category(rows["defects"])], "configs": configs}
    card.data = DatasetCardData(**usual | own | told)
    return str(card)


def _size_category(count: int) -> str:
    """The Hub's word for a number of rows."""
    bounds = (("n<1K", 10**3), ("1K<n<10K", 10**4), ("10K<n<100K", 10**5), ("100K<n<1M", 10**6))
    return next((name for name, bound in bounds if count < bound), "1M<n<10M")


def _render(template: str, **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sard_lora"), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    environment.filters |= {"listed": _listed, "percent": lambda value: f"{100 * value:.1f}"}
    return environment.get_template(template).render(**values)


def _metadata(base: str | None, evaluation: dict[str, Any] | None, name: str, license: str | None) -> ModelCardData:
    """The Hub's metadata; measured figures of the adapter's own images are in its model index."""
    results = []
    for method, row in evaluation["methods"].items() if evaluation else ():
        if "sard" not in method.split("+"):
            continue
        for figure, metric in (("miou", "mean_iou"), ("ap", "average_precision")):
            results.append(
                EvalResult(
                    task_type="image-segmentation",
                    task_name=f"{evaluation['segmenter']} trained on {method}",
                    dataset_type=evaluation["category"],
                    dataset_name=f"{evaluation['category']}, held-back real defects ({evaluation['split']} half)",
                    metric_type=metric,
                    metric_value=round(100 * row[figure], 1),
                )
            )
    return ModelCardData(
        base_model=base,
        base_model_relation="adapter" if base else None,
        library_name="diffusers",
        pipeline_tag="image-to-image",
        license=license,
        tags=TAGS,
        model_name=name.split("/")[-1] if results else None,
        eval_results=results or None,
    )


def _listed(words: list[str]) -> str:
    words = [word.replace("_", " ") for word in words]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
