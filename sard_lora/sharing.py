"""`sard-lora push` and `pull`: adapters and synthetic data sets on the Hugging Face Hub.

What is pushed is staged in a temporary folder first: the card gets the repository's name, local paths go, and your
folder stays as it is.
"""

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, DatasetCard, DatasetCardData, ModelCard

from sard_lora.adapter_config import SETTINGS_FILE
from sard_lora.atomic import atomic_folder
from sard_lora.bases import hub_id
from sard_lora.card import ADAPTER_FOLDER, EVALUATION_FILE, card_of
from sard_lora.hub import CARD, Contents, check_name, commit_folder, files_in, find, matching, snapshot
from sard_lora.shards import DEFECTS, NORMAL, read_shards, write_shards

LORA, SAMPLES = "pytorch_lora_weights.safetensors", "samples.png"
"""Names in an adapter folder, as in `sard_lora.adapter`, which takes seconds to import."""
METADATA, REPORT = "metadata.jsonl", "synthesis.json"
"""Names in a synthetic data set."""

ADAPTER = Contents(
    name="an adapter",
    repo_type="model",
    marker=SETTINGS_FILE,
    files=(SETTINGS_FILE, LORA, "critic.safetensors", "masks/*/*.png", "pipeline.py", SAMPLES, EVALUATION_FILE, CARD),
)
DATA_SET = Contents(
    name="a synthetic data set",
    repo_type="dataset",
    marker=f"data/{DEFECTS}-*.parquet",
    files=(f"data/{DEFECTS}-*.parquet", f"data/{NORMAL}-*.parquet", REPORT, CARD),
)


@dataclass
class PushConfig:
    """What goes to the Hub."""

    source: Path
    """Adapter folder or synthetic data set; its content says which."""
    repo: str
    """Repository, user/name; created when it is not there."""
    private: bool = False
    """Create it as a private one."""
    masks: bool = True
    """Push an adapter's few-shot masks; without them nobody can synthesize a data set with it, only single images."""
    samples: bool = False
    """Push an adapter's samples.png, which shows your product."""
    license: str | None = None
    """Licence of what is pushed, as the Hub spells it (apache-2.0, cc-by-4.0, …), for the card; yours to choose."""
    message: str | None = None
    """Commit message; default: what was pushed."""


@dataclass
class PullConfig:
    """What comes from the Hub."""

    repo: str
    """Repository, user/name."""
    output: Path
    """Folder to write to."""
    revision: str | None = None
    """Branch, tag or commit; default: main."""
    overwrite: bool = False
    """Replace an adapter or data set at OUTPUT."""


def push(config: PushConfig) -> CommitInfo:
    """Push the adapter or data set at `config.source`; ValueError when it is neither."""
    kind = _kind(config.source)
    if kind is ADAPTER:
        commit = push_adapter(
            config.source,
            config.repo,
            private=config.private,
            masks=config.masks,
            samples=config.samples,
            license=config.license,
            commit_message=config.message,
        )
    elif kind is DATA_SET:
        if not config.masks:
            raise ValueError(f"{config.source}: a data set without its masks has no labels. Leave --no-masks away")
        commit = push_data_set(
            config.source, config.repo, private=config.private, license=config.license, commit_message=config.message
        )
    else:
        raise ValueError(
            f"{config.source}: neither an adapter folder ({SETTINGS_FILE} is missing) nor a synthetic data set "
            f"({METADATA} is missing)"
        )
    print(f"pushed {kind.name}: {commit.repo_url} (commit {commit.oid[:8]})")
    return commit


def pull(config: PullConfig) -> Path:
    """Write the adapter or data set of a repository to `config.output`, whole or not at all."""
    output = config.output
    if output.exists() and not config.overwrite:
        raise ValueError(f"{output}: exists already. Choose another folder, or pass --overwrite")
    if output.exists() and _kind(output) is None and (output.is_file() or any(output.iterdir())):
        raise ValueError(f"{output}: is neither an adapter nor a data set, so it is not overwritten. Choose another")
    kind, commit = find(config.repo, (ADAPTER, DATA_SET), config.revision)
    source = snapshot(config.repo, kind, commit)
    with atomic_folder(output) as folder:
        if kind is DATA_SET:
            read_shards(source / "data", folder)
        _copy(source, folder, ADAPTER.files if kind is ADAPTER else (REPORT, CARD))
    print(f"pulled {kind.name}: {output} (commit {commit[:8]})")
    return output


def push_adapter(
    source: Path,
    repo_id: str,
    *,
    private: bool = False,
    masks: bool = True,
    samples: bool = False,
    license: str | None = None,
    token: str | None = None,
    commit_message: str | None = None,
) -> CommitInfo:
    """Push an adapter folder, as `Adapter.push_to_hub` says."""
    check_name(repo_id)
    if not (source / LORA).is_file():
        raise ValueError(f"{source / LORA}: missing; the adapter is incomplete. Train it again, or copy it whole")
    with tempfile.TemporaryDirectory(prefix="sard-lora-push-") as temporary:
        folder = Path(temporary)
        _copy(source, folder, ADAPTER.files)
        if not masks:
            shutil.rmtree(folder / "masks", ignore_errors=True)
        if not samples:
            (folder / SAMPLES).unlink(missing_ok=True)
        settings = json.loads((source / SETTINGS_FILE).read_text(encoding="utf-8"))
        shown = shareable(settings)
        (folder / SETTINGS_FILE).write_text(json.dumps(shown, indent=2) + "\n", encoding="utf-8")
        (folder / CARD).write_text(_adapter_card(source, folder, repo_id, license), encoding="utf-8")
        message = commit_message or f"Adapter of {settings['category']}"
        return commit_folder(folder, repo_id, ADAPTER, private=private, token=token, message=message)


def push_data_set(
    source: Path,
    repo_id: str,
    *,
    private: bool = False,
    license: str | None = None,
    token: str | None = None,
    commit_message: str | None = None,
) -> CommitInfo:
    """Push a labelled set as parquet, with a card; a README.md in the folder keeps its text and metadata.

    Raises:
        ValueError, OSError: as `sard_lora.hub.commit_folder`; ValueError also for a set that does not make a table.
    """
    check_name(repo_id)
    with tempfile.TemporaryDirectory(prefix="sard-lora-push-") as temporary:
        folder = Path(temporary)
        rows = write_shards(source, folder / "data")
        _copy(source, folder, (REPORT, CARD))
        text = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else None
        (folder / CARD).write_text(data_set_card(text, repo_id, source.name, rows, license), encoding="utf-8")
        message = commit_message or f"{rows[DEFECTS]} synthetic images"
        return commit_folder(folder, repo_id, DATA_SET, private=private, token=token, message=message)


def shareable(settings: dict[str, Any]) -> dict[str, Any]:
    """`sard_config.json` without paths of this machine: of a folder only its name is left.

    A base in a folder must not look like a Hub id either: `bases/tile` would be fetched from a stranger's account.
    """
    base, training = settings["base"], dict(settings["training"])
    if hub_id(base["id"], base["revision"]) is None:
        base = base | {"id": Path(base["id"]).name}
    training |= {key: Path(training[key]).name for key in ("data", "output") if training.get(key)}
    if training.get("base"):
        training["base"] = base["id"]
    return settings | {"base": base, "training": training}


def _adapter_card(source: Path, staged: Path, repo_id: str, license: str | None) -> str:
    """The card of what is staged; one that was rewritten by hand keeps its text, with the repository's name in it."""
    text = (source / CARD).read_text(encoding="utf-8") if (source / CARD).is_file() else None
    if text is None or text == card_of(source):
        return card_of(staged, repo_id, license)
    card = ModelCard(text.replace(ADAPTER_FOLDER, repo_id))
    if license is not None:
        card.data.license = license
    return str(card)


def data_set_card(text: str | None, repo_id: str, name: str, rows: dict[str, int], license: str | None = None) -> str:
    """The card of a data set: `text`, or one that says what it is; either way with what the Hub must know to show it.

    Without `license` that field stays as it is in `text`, or away: it is for whoever publishes to choose.
    """
    card = DatasetCard(text if text is not None else _DATA_SET_TEXT.format(name=name, repo_id=repo_id, **rows))
    known = card.data.to_dict()
    configs = [
        {"config_name": name, "data_files": [{"split": "train", "path": f"data/{kind}-*.parquet"}]}
        for name, kind in (("default", DEFECTS), ("normal", NORMAL))
        if rows[kind]
    ]
    card.data = DatasetCardData(
        **{"task_categories": ["image-segmentation"], "tags": ["synthetic", "defect-detection", "sard"]}
        | known
        | ({"license": license} if license else {})
        | {"size_categories": [_size_category(rows[DEFECTS])], "configs": configs}
    )
    return str(card)


_DATA_SET_TEXT = """---
pretty_name: {name}
---

# {name}: synthetic defects with pixel masks

{defects} images of defects, made by [sard-lora](https://arxiv.org/abs/2508.03143): each is a normal image with a
defect written inside its mask; every pixel outside the mask is the pixel of the normal image. Masks are 255 on the
defect and 0 elsewhere. The subset `normal` holds the normal images that came with the set: {normal}.

```python
from datasets import load_dataset

data = load_dataset("{repo_id}", split="train")
data[0]["image"], data[0]["mask"], data[0]["defect"]
```

The same in MVTec-AD layout, with the bytes of the original files: `sard-lora pull {repo_id} FOLDER`.

| column | |
|---|---|
| image, mask | the picture and its label, of equal size |
| defect, prompt, seed | what was asked for |
| normal | the normal image it was written into |
| critic_score, visibility | the critic's opinion; the change inside the mask over the error of a VAE round trip |
"""


def _size_category(count: int) -> str:
    """The Hub's word for a number of rows."""
    bounds = (("n<1K", 10**3), ("1K<n<10K", 10**4), ("10K<n<100K", 10**5), ("100K<n<1M", 10**6))
    return next((name for name, bound in bounds if count < bound), "1M<n<10M")


def _kind(folder: Path) -> Contents | None:
    """What a local folder holds; None for anything else."""
    if (folder / SETTINGS_FILE).is_file():
        return ADAPTER
    return DATA_SET if (folder / METADATA).is_file() else None


def _copy(source: Path, target: Path, patterns: tuple[str, ...]) -> None:
    """Copy the files that match from folder to folder; hidden ones, and all others, stay behind."""
    for path in matching(files_in(source), patterns):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, target / path)
