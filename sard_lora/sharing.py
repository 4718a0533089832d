"""`sard-lora push` and `pull`: adapters and synthetic data sets on the Hugging Face Hub.

What is pushed is staged in a temporary folder first: the card gets the repository's name, paths of this machine go, and
your folder stays as it is. What an earlier push said and this one does not, its licence or that masks are withheld,
stays so.
"""

import json
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo

from sard_lora.adapter_config import (
    CARD_FILE,
    CRITIC_FILE,
    EVALUATION_FILE,
    LORA_FILE,
    MASKS_FOLDER,
    PIPELINE_FILE,
    SAMPLES_FILE,
    SETTINGS_FILE,
    AdapterConfig,
)
from sard_lora.atomic import atomic_folder, is_occupied, require_free
from sard_lora.bases import BASES, hub_id
from sard_lora.card import ADAPTER_FOLDER, card_of, data_set_card, is_generated, parse_card, read_card
from sard_lora.hub import Contents, check_name, commit_folder, files_in, find, matching, published, snapshot
from sard_lora.labelled import DRAWN, IN_PLACE, METADATA, LabelledSet
from sard_lora.labelled import SETTINGS as REPORT
from sard_lora.shards import DEFECTS, NORMAL, read_shards, write_shards

_MASKS = f"{MASKS_FOLDER}/*/*.png"
_PARTS = (SETTINGS_FILE, LORA_FILE, CRITIC_FILE, _MASKS, PIPELINE_FILE, SAMPLES_FILE, EVALUATION_FILE, CARD_FILE)
ADAPTER = Contents(name="an adapter", repo_type="model", marker=SETTINGS_FILE, files=_PARTS)
DATA_SET = Contents(
    name="a synthetic data set",
    repo_type="dataset",
    marker=f"data/{DEFECTS}-*.parquet",
    files=(f"data/{DEFECTS}-*.parquet", f"data/{NORMAL}-*.parquet", REPORT, CARD_FILE),
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
    masks: bool | None = None
    """Push an adapter's few-shot masks, or leave them out (--no-masks); default: as in the repository, or all of them.
    Without them a data set can be synthesized only with masks of one's own."""
    samples: bool = False
    """Push an adapter's samples.png, which shows your product (--with-samples)."""
    license: str | None = None
    """Licence as the Hub spells it (apache-2.0, cc-by-4.0, …), yours to choose; default: that of the card, if any."""
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
        if config.masks is False:
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
    require_free(output, config.overwrite)
    if is_occupied(output) and _kind(output) is None:
        raise ValueError(f"{output}: is neither an adapter nor a data set, so it is not overwritten. Choose another")
    kind, commit = find(config.repo, (ADAPTER, DATA_SET), config.revision)
    source = snapshot(config.repo, kind, commit)
    with atomic_folder(output) as folder:
        if kind is DATA_SET:
            read_shards(source / "data", folder)
        _copy(source, folder, ADAPTER.files if kind is ADAPTER else (REPORT, CARD_FILE))
    print(f"pulled {kind.name}: {output} (commit {commit[:8]})")
    return output


def push_adapter(
    source: Path,
    repo_id: str,
    *,
    private: bool = False,
    masks: bool | None = None,
    samples: bool = False,
    license: str | None = None,
    token: str | None = None,
    commit_message: str | None = None,
) -> CommitInfo:
    """Push an adapter folder, as `Adapter.push_to_hub` says."""
    check_name(repo_id)
    config = AdapterConfig.read(source)
    if not (source / LORA_FILE).is_file():
        raise ValueError(f"{source / LORA_FILE}: missing; the adapter is incomplete. Train it again, or copy it whole")
    there = published(repo_id, ADAPTER, token)
    earlier, had_masks = ADAPTER.recognised(there.files), bool(matching(there.files, (_MASKS,)))
    if masks is None and earlier and not had_masks:
        print(f"{repo_id}: holds no masks, so they are left out again. To push them, say so: --masks true")
    masks = (had_masks or not earlier) if masks is None else masks
    with tempfile.TemporaryDirectory(prefix="sard-lora-push-") as temporary:
        folder = Path(temporary)
        _copy(source, folder, ADAPTER.files)
        if not masks:
            shutil.rmtree(folder / MASKS_FOLDER, ignore_errors=True)
        if not samples:
            (folder / SAMPLES_FILE).unlink(missing_ok=True)
        settings = json.loads((source / SETTINGS_FILE).read_text(encoding="utf-8"))
        (folder / SETTINGS_FILE).write_text(json.dumps(shareable(settings), indent=2) + "\n", encoding="utf-8")
        card = _staged_card(folder, repo_id, license, there.license, settings)
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
        message = commit_message or f"Adapter of {config.category}"
        commit = commit_folder(folder, repo_id, ADAPTER, private=private, token=token, message=message)
    if had_masks and not masks:
        print(f"{repo_id}: earlier commits still hold the masks. To withdraw them, delete the repository on the Hub")
    if hub_id(config.base.id, config.base.revision) is None and config.base.id not in BASES:
        print(f"{repo_id}: its base {config.base.id} is a folder of yours. Whoever uses the adapter needs that too")
    return commit


def push_data_set(
    source: Path,
    repo_id: str,
    *,
    private: bool = False,
    license: str | None = None,
    token: str | None = None,
    commit_message: str | None = None,
) -> CommitInfo:
    """Push a labelled set as parquet, with a card; a README.md that is your own keeps its text and metadata.

    Raises:
        ValueError, OSError: as `sard_lora.hub.commit_folder`; ValueError also for a set that does not make a table.
    """
    check_name(repo_id)
    there = published(repo_id, DATA_SET, token)
    with tempfile.TemporaryDirectory(prefix="sard-lora-push-") as temporary:
        folder = Path(temporary)
        rows = write_shards(source, folder / "data")
        methods = Counter(record.get("method") for record in LabelledSet(source).records())
        rows |= {"in_place": methods[IN_PLACE], "drawn": methods[DRAWN]}
        _copy(source, folder, (REPORT,))
        _strip_path_of_base(folder / REPORT)
        text, own = None, None
        if (source / CARD_FILE).is_file():
            text = (source / CARD_FILE).read_text(encoding="utf-8")
            own = parse_card(text, source / CARD_FILE).data.get("license")
        card = data_set_card(text, repo_id, source.resolve().name, rows, license or own or there.license)
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
        message = commit_message or f"{rows[DEFECTS]} synthetic images"
        return commit_folder(folder, repo_id, DATA_SET, private=private, token=token, message=message)


def shareable(settings: dict[str, Any]) -> dict[str, Any]:
    """`sard_config.json` without paths of this machine: of a folder only its name is left.

    A base in a folder must not look like a Hub id either: `bases/tile` would be fetched from a stranger's account.
    """
    base, training = dict(settings["base"]), dict(settings["training"])
    if hub_id(base["id"], base["revision"]) is None:
        base["id"] = Path(base["id"]).name
    if base["adapted_from"] is not None:
        base["adapted_from"] = _without_path(base["adapted_from"])
    training |= {key: Path(training[key]).name for key in ("data", "output") if training.get(key)}
    if training.get("base"):
        training["base"] = base["id"]
    return settings | {"base": base, "training": training}


def _strip_path_of_base(report: Path) -> None:
    """Leave of `settings.base` in the report of a set, where that is a folder, its name."""
    content = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
    base = content.get("settings", {}).get("base")
    if base and _without_path(base) != base:
        content["settings"]["base"] = _without_path(base)
        report.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _without_path(name: str) -> str:
    """The name of a base that may be a folder's path; Hub ids and short names stay."""
    return Path(name).name if Path(name).is_absolute() or Path(name).is_dir() else name


def _staged_card(folder: Path, repo_id: str, license: str | None, earlier: str | None, settings: dict[str, Any]) -> str:
    """The card of a staged adapter; one that is somebody's own keeps its text, with the repository's name in it."""
    path = folder / CARD_FILE
    if not path.is_file():
        return card_of(folder, repo_id, license or earlier)
    license = license or read_card(path).data.get("license") or earlier
    text = path.read_text(encoding="utf-8")
    if is_generated(text):
        return card_of(folder, repo_id, license)
    shown = shareable(settings)
    names = {ADAPTER_FOLDER: repo_id}
    names |= {settings["base"][key]: shown["base"][key] for key in ("id", "adapted_from") if settings["base"][key]}
    for name, public in names.items():
        text = text.replace(name, public)
    card = parse_card(text, path)
    if license is not None:
        card.data.license = license
    return str(card)


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
