"""What the loopback Hub keeps: repositories with their commits, a Xet store; and what it finds wrong with a card."""

import hashlib
import re
import shutil
import struct
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import hf_xet
import yaml

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
LICENSES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0", "openrail", "other")


@dataclass(frozen=True)
class File:
    """A file of a commit; large ones are stored as LFS."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def blob_id(self) -> str:
        """Git's name of what is stored: the content, or the pointer that stands for it."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        stored = pointer.encode() if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()


@dataclass
class Repository:
    """Commits, oldest first: (sha, message, files by path)."""

    kind: str
    name: str
    private: bool
    commits: list[tuple[str, str, dict[str, File]]] = field(default_factory=list)

    def commit(self, message: str, files: dict[str, File]) -> str:
        parent = self.commits[-1][0] if self.commits else ""
        content = [parent, message, *sorted(f"{path} {file.blob_id}" for path, file in files.items())]
        self.commits.append((hashlib.sha1("\n".join(content).encode()).hexdigest(), message, files))
        return self.commits[-1][0]

    def files(self, revision: str = "main") -> dict[str, File] | None:
        """The files of a branch or commit; None when there is no such revision."""
        sha = self.sha(revision)
        return next((files for commit, _, files in self.commits if commit == sha), None)

    def sha(self, revision: str) -> str | None:
        if revision == "main":
            return self.commits[-1][0]
        return next((sha for sha, _, _ in self.commits if sha == revision), None)


@dataclass(frozen=True)
class XetStore:
    """Xet storage in a folder, which hf_xet itself writes to and reads from at an address `local://`."""

    folder: Path

    @property
    def url(self) -> str:
        return f"local://{self.folder}"

    def hashes(self) -> dict[str, str]:
        """Xet hashes of the stored files by their SHA-256, from the shards' file sections.

        In 48-byte rows: a header; for every file its hash with flags and a number of segments, these segments, as many
        verification rows (flag 31) and one row with the SHA-256 (flag 30); 0xff to the end. Hashes are four words.
        """
        found = {}
        for shard in self.folder.rglob("shards/*.mdb"):
            content = shard.read_bytes()
            rows = [content[start : start + 48] for start in range(48, len(content), 48)]
            while rows[0][:32] != b"\xff" * 32:
                flags, segments = struct.unpack("<II", rows[0][32:40])
                last = segments * (2 if flags >> 31 else 1) + (flags >> 30 & 1)
                if flags >> 30 & 1:
                    found[_hex(rows[last])] = _hex(rows[0])
                rows = rows[last + 1 :]
        return found

    def contents(self, wanted: list[str]) -> dict[str, bytes]:
        """The files of these SHA-256, fetched by hf_xet; those that were not uploaded are missing.

        From a copy of the store: the client may hold the lock of its own, with the next files on their way.
        """
        hashes, found = self.hashes(), {}
        with tempfile.TemporaryDirectory() as temporary:
            copy, files = Path(temporary) / "store", Path(temporary) / "files"
            shutil.copytree(self.folder, copy)
            expires = int(time.time()) + 3600
            with hf_xet.XetSession().new_file_download_group(f"local://{copy}", "token", expires) as group:
                for sha256 in hashes.keys() & set(wanted):
                    group.start_download_file(hf_xet.XetFileInfo(hashes[sha256]), str(files / sha256))
            for path in files.glob("*"):
                content = path.read_bytes()
                found[hashlib.sha256(content).hexdigest()] = content
        return found


def _hex(row: bytes) -> str:
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", row[:32]))


def card_problems(content: str) -> list[str]:
    """What the Hub finds wrong with the metadata of a README.md."""
    block = re.match(r"---\r?\n(.*?)\r?\n---", content, re.DOTALL)
    try:
        metadata = yaml.safe_load(block[1]) if block else {}
    except yaml.YAMLError as error:
        return [f"YAML: {error}"]
    if not isinstance(metadata or {}, dict):
        return ['"metadata" must be an object']
    problems = []
    for key, place in (("base_model", "models"), ("datasets", "datasets")):
        values = (metadata or {}).get(key, [])
        for value in values if isinstance(values, list) else [values]:
            if not HUB_ID.fullmatch(str(value)):
                problems.append(f'"{key}" with value "{value}" is not valid. Use an id from https://hf.co/{place}.')
    for key in ("tags", "task_categories", "size_categories", "configs"):
        if not isinstance((metadata or {}).get(key, []), list):
            problems.append(f'"{key}" must be an array')
    if (metadata or {}).get("license", "mit") not in LICENSES:
        problems.append(f'"license" must be one of [{", ".join(LICENSES)}]')
    return problems
