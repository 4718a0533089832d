"""The Hugging Face Hub: a folder to a repository in one commit, a repository to a folder, and errors with a way out.

The account is huggingface_hub's own (`hf auth login`, or the variable HF_TOKEN). No token is printed or written here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    snapshot_download,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # of the HTTP library that huggingface_hub is built on: connections that fail or break
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects, validate_repo_id

from sard_lora.adapter_config import CARD_FILE
from sard_lora.card import read_card


@dataclass(frozen=True)
class Contents:
    """What a repository of ours holds."""

    name: str
    """For messages."""
    repo_type: str
    """The Hub's word: model or dataset."""
    marker: str
    """Pattern of a file by which it is recognised."""
    files: tuple[str, ...]
    """Patterns of all its files; nothing else is pushed or fetched."""

    def recognised(self, paths: list[str]) -> bool:
        """Whether these are the files of such a repository."""
        return bool(matching(paths, (self.marker,)))


def commit_folder(
    folder: Path, repo_id: str, contents: Contents, *, private: bool, token: str | None, message: str
) -> CommitInfo:
    """Make the repository what `folder` is, in one commit, so that nobody ever sees half of it.

    The repository is created where it is missing. Files of an earlier push that are no longer in the folder go;
    files that are none of `contents` stay. `upload_folder` is not used: it splits large folders into several commits.

    Raises:
        ValueError: a name that is none, a card that the Hub does not accept, a repository that holds something else
            or that is public though `private` was asked for.
        OSError: no permission, no connection, or the Hub has a problem. The push is there whole or not at all.
    """
    check_name(repo_id)
    api = HfApi(token=token, library_name="sard-lora")
    kind = contents.repo_type
    added = matching(files_in(folder), contents.files)
    with explained(repo_id, "On the Hub is all of this push or nothing, and your folder is as it was: push again"):
        check_card(folder / CARD_FILE, kind)
        api.create_repo(repo_id, repo_type=kind, private=private or None, exist_ok=True)
        info = api.repo_info(repo_id, repo_type=kind)
        there = [file.rfilename for file in info.siblings or ()]
        _refuse_other(repo_id, contents, there)
        if private and not info.private:
            raise ValueError(f"{repo_id}: is there already, and public. Make it private on the Hub, or rename yours")
        gone = sorted(set(matching(there, contents.files)) - set(added))
        operations = [CommitOperationDelete(path) for path in gone]
        operations += [CommitOperationAdd(path, folder / path) for path in added]
        return api.create_commit(repo_id, operations, commit_message=message, repo_type=kind, parent_commit=info.sha)


@dataclass(frozen=True)
class Published:
    """What a repository holds of `Contents` now, and the licence on its card; nothing where there is none yet."""

    files: list[str]
    license: str | None


def published(repo_id: str, contents: Contents, token: str | None) -> Published:
    """What an earlier push left there. Raises OSError without permission or connection."""
    api = HfApi(token=token, library_name="sard-lora")
    with explained(repo_id, "Nothing has been pushed: push again"):
        try:
            info = api.repo_info(repo_id, repo_type=contents.repo_type)
        except RepositoryNotFoundError:
            return Published([], None)
        there = [file.rfilename for file in info.siblings or ()]
        license = None
        if CARD_FILE in there:
            card = api.hf_hub_download(repo_id, CARD_FILE, repo_type=contents.repo_type, revision=info.sha)
            license = read_card(Path(card)).data.get("license")
        return Published(matching(there, contents.files), license)


def find(repo_id: str, kinds: tuple[Contents, ...], revision: str | None = None) -> tuple[Contents, str]:
    """Which of `kinds` the repository holds, and the commit that `revision` (default: main) names.

    A name can stand for a model and for a data set on the Hub; both are looked at.

    Raises:
        ValueError: it holds none of them, or it is two repositories that hold one each.
        OSError: no such repository or revision, none that this account may see, or no connection.
    """
    check_name(repo_id)
    api = HfApi(library_name="sard-lora")
    found, failure = [], None
    with explained(repo_id, "Try again later"):
        for contents in kinds:
            try:
                info = api.repo_info(repo_id, repo_type=contents.repo_type, revision=revision)
            except (RepositoryNotFoundError, RevisionNotFoundError) as error:
                if failure is None or isinstance(error, RevisionNotFoundError):
                    failure = error
                continue
            if contents.recognised([file.rfilename for file in info.siblings or ()]):
                found.append((contents, info.sha))
            else:
                failure = ValueError(f"{repo_id}: holds neither {' nor '.join(k.name for k in kinds)} of sard-lora")
        if not found:
            raise failure
    if len(found) > 1:
        raise ValueError(
            f"{repo_id}: names {' and '.join(contents.name for contents, _ in found)}. Rename one of them on the Hub, "
            "or give the commit of the one you want as --revision"
        )
    return found[0]


def snapshot(repo_id: str, contents: Contents, revision: str | None = None, token: str | None = None) -> Path:
    """The repository's files in huggingface_hub's cache; only what `contents` names is fetched.

    Without a connection the copy of an earlier call serves.

    Raises:
        ValueError: it holds something else.
        OSError: no such repository or revision, none that this account may see, or no connection.
    """
    check_name(repo_id)
    with explained(repo_id, "Try again: what has been fetched is kept"):
        folder = Path(
            snapshot_download(
                repo_id,
                repo_type=contents.repo_type,
                revision=revision,
                token=token,
                allow_patterns=list(contents.files),
                library_name="sard-lora",
            )
        )
    if not contents.recognised(files_in(folder)):
        raise ValueError(f"{repo_id}: is not {contents.name} of sard-lora ({contents.marker} is missing)")
    return folder


def files_in(folder: Path) -> list[str]:
    """The files below a folder, relative and with slashes, sorted; hidden ones are left out."""
    paths = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return [path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)]


def matching(paths: list[str], patterns: tuple[str, ...]) -> list[str]:
    """Those of `paths` that match one of `patterns`."""
    return list(filter_repo_objects(paths, allow_patterns=list(patterns)))


def check_name(repo_id: str) -> None:
    """Raise ValueError unless `repo_id` is shaped like user/name."""
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id!r}: not a repository on the Hub. Give it as user/name")
    validate_repo_id(repo_id)


def check_card(card: Path, repo_type: str) -> None:
    """Ask the Hub whether it accepts the metadata of this README.md, if there is one; ValueError when it does not."""
    if not card.is_file():
        return
    parsed = read_card(card)
    try:
        parsed.validate(repo_type=repo_type)
    except ValueError as error:
        raise ValueError(
            f"{card.name}: the Hub does not accept its metadata: {error}. Correct the block between the --- lines"
        ) from error


@contextmanager
def explained(repo_id: str, otherwise: str) -> Iterator[None]:
    """Turn the failures of huggingface_hub and its transports into an OSError that names the repository and a way out.

    `otherwise` is the advice when it is the Hub or the connection that fails.
    """
    try:
        yield
    except (HTTPError, OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise  # a full disk or an unreadable file: the message names it already
        raise OSError(f"{repo_id}: {_way_out(error, otherwise)}") from error


def _refuse_other(repo_id: str, contents: Contents, there: list[str]) -> None:
    others = [path for path in there if path not in (".gitattributes", CARD_FILE)]
    if others and not contents.recognised(there):
        raise ValueError(
            f"{repo_id}: is there already and holds something else ({others[0]}, …), not {contents.name}. "
            "Choose another name"
        )


def _way_out(error: BaseException, otherwise: str) -> str:
    cause = error
    while cause.__cause__ is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
    if isinstance(cause, OfflineModeIsEnabled):
        return "the Hub is switched off here (HF_HUB_OFFLINE). Unset it to push or fetch"
    if isinstance(cause, GatedRepoError):
        return "is gated. Ask for access on its page, then log in: hf auth login"
    if isinstance(cause, RevisionNotFoundError):
        return "has no such revision. Give a branch, a tag or a commit of it"
    if isinstance(cause, RepositoryNotFoundError):
        return (
            "is not there, or is private and your token may not see it. Check the name; for a private repository log "
            "in with `hf auth login` or set HF_TOKEN"
        )
    if status == 401:
        return "you are not logged in, or your token is no good. Log in with `hf auth login`, or correct HF_TOKEN"
    said = f" (it says: {cause.server_message})" if isinstance(cause, HfHubHTTPError) and cause.server_message else ""
    if status == 403:
        return (
            f"you may not do this{said}. Use a token that may write there (https://huggingface.co/settings/tokens, "
            "then `hf auth login`), or a name of your own"
        )
    if status in (409, 412):
        return "was changed by someone else meanwhile. Look at it, then push again"
    if status is None:
        return f"no connection ({type(cause).__name__}: {cause}). {otherwise}"
    if status < 500:
        return f"the Hub refuses, with {status}{said}. Nothing was changed there, and your folder is as it was"
    return f"the Hub answered {status}{said}. {otherwise}"
