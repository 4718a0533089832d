"""A Hugging Face Hub on the loopback address, for tests: the real protocol, spoken to the unmodified client.

    with LoopbackHub() as hub:
        hub.add_user("anna", token="hf_…")
        subprocess.run(["sard-lora", "push", …], env=os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_…"})
        hub.repository("model", "anna/tile").files()

It keeps what is pushed, checks every hash, hides private repositories, and misbehaves on request (`Fault`). Large
files travel by Xet where it is given a `XetStore`, else by plain LFS; then the client must run with
HF_HUB_DISABLE_XET=1, because it asks no server before it uses Xet.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from loopback_storage import File, Repository, XetStore, card_problems

KINDS = {"models": "model", "datasets": "dataset"}
NAME = r"(?P<name>[^/]+/[^/]+)"
API = rf"/api/(?P<kind>models|datasets)/{NAME}"
FILES = rf"(?:/(?P<kind>datasets))?/{NAME}"


@dataclass
class Fault:
    """What goes wrong with the next `times` requests of this method and path.

    Either an error status, or the line breaks: after some bytes of the request, or when all is done, before the answer.
    """

    method: str
    path: str
    times: int
    status: int = 0
    cut_after: int = 0
    loses_answer: bool = False


class Refusal(Exception):
    """An answer with an error status; `code` as the Hub's X-Error-Code."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str):
        super().__init__(message)
        self.status, self.headers = status, {"X-Error-Message": message, **headers}
        if code:
            self.headers["X-Error-Code"] = code


class LoopbackHub(ThreadingHTTPServer):
    """The server and its state; `requests` lists (method, path, status) of everything that was asked."""

    daemon_threads = True

    def __init__(self, xet: XetStore | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.xet = xet
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.storage = f"http://localhost:{self.server_port}/lfs"  # another host: the client sends it no token
        self.users: dict[str, tuple[str, bool]] = {}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.errors: list[str] = []
        self.requests: list[tuple[str, str, int]] = []
        self.lock = threading.RLock()

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
        assert not self.errors, self.errors

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep what went wrong here for the end; clients that hang up are no error."""
        if not isinstance(sys.exception(), ConnectionError):
            self.errors.append(traceback.format_exc())

    def add_user(self, name: str, token: str, write: bool = True) -> None:
        self.users[token] = (name, write)

    def receive(self, hashes: list[str]) -> None:
        """Take over what has come by Xet."""
        missing = [sha256 for sha256 in hashes if sha256 not in self.blobs]
        if missing and self.xet:
            self.blobs |= self.xet.contents(missing)

    def repository(self, kind: str, name: str) -> Repository:
        return self.repositories[kind, name]

    def asked(self, method: str, path: str) -> list[int]:
        """The statuses of all requests whose path matches; 0 for those that were cut."""
        return [status for m, p, status in self.requests if m == method and re.search(path, p)]


class Handler(BaseHTTPRequestHandler):
    """One request. Routes are the `on_…` methods, by method and pattern, in `ROUTES`."""

    protocol_version = "HTTP/1.1"
    server: LoopbackHub

    def log_message(self, *_: object) -> None:
        pass

    def handle_request(self) -> None:
        address = urlsplit(self.path)
        self.query = parse_qs(address.query)
        self.fault = self.next_fault(address.path)
        if self.fault and self.fault.cut_after:
            self.rfile.read1(self.fault.cut_after)
            return self.break_line()
        self.body = self.read_body()
        try:
            if self.fault and self.fault.status:
                raise Refusal(self.fault.status, "Something went wrong")
            for method, pattern, action in ROUTES:
                match = re.fullmatch(pattern, address.path)
                if match and self.command in (method, "HEAD" if method == "GET" else method):
                    with self.server.lock:
                        return action(self, **{key: unquote(value or "") for key, value in match.groupdict().items()})
            raise Refusal(404, f"no route {address.path}")
        except Refusal as refusal:
            content = {"error": str(refusal)}
            self.answer(content, refusal.status, **refusal.headers)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def next_fault(self, path: str) -> Fault | None:
        with self.server.lock:
            for fault in self.server.faults:
                if fault.times and fault.method == self.command and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None

    def break_line(self) -> None:
        self.server.requests.append((self.command, urlsplit(self.path).path, 0))
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
        self.close_connection = True

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        if self.fault and self.fault.loses_answer:
            return self.break_line()
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.server.requests.append((self.command, urlsplit(self.path).path, status))
        self.send_response(status)
        headers.setdefault("Content-Type", "application/octet-stream" if body is content else "application/json")
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value.replace("\n", " "))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def user(self) -> tuple[str, bool] | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.server.users:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.server.users.get(token)

    def found(self, kind: str, name: str) -> Repository:
        """The repository, if this user may know of it; the Hub answers 401 to strangers, 404 to the others."""
        repository, user = self.server.repositories.get((KINDS.get(kind, "model"), name)), self.user()
        if repository is None or (repository.private and (user is None or user[0] != name.split("/")[0])):
            if user is None:
                raise Refusal(401, "Invalid username or password.", "RepoNotFound")
            raise Refusal(404, "Repository not found", "RepoNotFound")
        return repository

    def writer(self, owner: str) -> None:
        user = self.user()
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        if user != (owner, True):
            raise Refusal(403, f"You don't have the rights to write under the namespace {owner}")

    def files(self, kind: str, name: str, revision: str) -> tuple[Repository, str, dict[str, File]]:
        repository = self.found(kind, name)
        sha = repository.sha(revision)
        if sha is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repository, sha, repository.files(sha)

    def on_whoami(self) -> None:
        user = self.user()
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        self.answer({"type": "user", "name": user[0], "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def on_create(self) -> None:
        wanted = json.loads(self.body)
        owner = wanted.get("organization") or (self.user() or ("",))[0]
        self.writer(owner)
        key = wanted.get("type") or "model", f"{owner}/{wanted['name']}"
        url = f"{self.server.endpoint}/{'datasets/' if key[0] == 'dataset' else ''}{key[1]}"
        if key in self.server.repositories:
            return self.answer({"error": f"You already created this {key[0]} repo", "url": url}, 409)
        self.server.repositories[key] = repository = Repository(*key, private=wanted.get("visibility") == "private")
        repository.commit("initial commit", {".gitattributes": File(b"*.parquet filter=lfs\n", lfs=False)})
        self.answer({"url": url, "name": key[1]})

    def on_info(self, kind: str, name: str, revision: str = "main") -> None:
        repository, sha, files = self.files(kind, name, revision)
        listed = [{"rfilename": path} for path in sorted(files)]
        info = {"_id": "0", "id": name, "author": name.split("/")[0], "sha": sha, "private": repository.private}
        info |= {"siblings": listed, "tags": [], "downloads": 0, "likes": 0, "gated": False, "disabled": False}
        self.answer(info | {"lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z"})

    def on_tree(self, kind: str, name: str, revision: str, path: str = "") -> None:
        _, sha, files = self.files(kind, name, revision)
        root, deep = (f"{path}/" if path else ""), self.query.get("recursive", [""])[0].lower() in ("true", "1")
        entries = {}
        for file in sorted(name for name in files if name.startswith(root)):
            parts = file[len(root) :].split("/")
            for depth in range(1, len(parts)):
                folder = root + "/".join(parts[:depth])
                entries[folder] = {"type": "directory", "path": folder, "oid": sha, "size": 0}
            entries[file] = _entry(file, files[file])
        if path and not entries:
            raise Refusal(404, f"{path} does not exist", "EntryNotFound")
        self.answer([e for e in entries.values() if deep or "/" not in e["path"][len(root) :]])

    def on_paths_info(self, kind: str, name: str, revision: str) -> None:
        _, sha, files = self.files(kind, name, revision)
        form = parse_qs(self.body.decode())
        paths = json.loads(self.body)["paths"] if self.body.startswith(b"{") else form.get("paths", [])
        found = [_entry(path, files[path]) for path in paths if path in files]
        folders = [path for path in paths if any(file.startswith(f"{path}/") for file in files)]
        self.answer(found + [{"type": "directory", "path": path, "oid": sha, "size": 0} for path in folders])

    def on_preupload(self, kind: str, name: str, revision: str) -> None:
        _, _, files = self.files(kind, name, revision)
        self.writer(name.split("/")[0])
        modes = []
        for file in json.loads(self.body)["files"]:
            binary = b"\0" in base64.b64decode(file["sample"]) or file["path"].endswith((".parquet", ".safetensors"))
            mode = {"path": file["path"], "uploadMode": "lfs" if binary else "regular", "shouldIgnore": False}
            there = files.get(file["path"])
            modes.append(mode | ({"oid": there.sha256 if there.lfs else there.blob_id} if there else {}))
        self.answer({"files": modes})

    def on_lfs_batch(self, kind: str, name: str) -> None:
        self.found(kind, name)
        self.writer(name.split("/")[0])
        wanted = json.loads(self.body)
        if "basic" not in wanted["transfers"] or wanted["hash_algo"] != "sha256":
            raise Refusal(422, "only basic transfers of sha256 objects")
        objects = []
        for item in wanted["objects"]:
            entry = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.server.blobs:
                upload = self.signed(item["oid"])
                verify = f"{self.server.endpoint}/{'datasets/' if kind else ''}{name}.git/info/lfs/objects/verify"
                entry["actions"] = {"upload": {"href": upload, "header": {}}, "verify": {"href": verify}}
            objects.append(entry)
        self.answer({"transfer": "basic", "objects": objects})

    def on_lfs_verify(self, kind: str, name: str) -> None:
        self.writer(name.split("/")[0])
        item = json.loads(self.body)
        if len(self.server.blobs.get(item["oid"], b"")) != item["size"]:
            raise Refusal(404, "the object was not uploaded whole")
        self.answer({})

    def on_lfs_put(self, oid: str) -> None:
        self.check_signature(oid)
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "the content is not what its hash says")
        self.server.blobs[oid] = self.body
        self.answer(b"", ETag=f'"{oid}"')

    def on_lfs_get(self, oid: str) -> None:
        self.check_signature(oid)
        self.answer_range(self.server.blobs[oid], ETag=f'"{oid}"')

    def on_commit(self, kind: str, name: str, revision: str) -> None:
        repository, sha, files = self.files(kind, name, revision)
        self.writer(name.split("/")[0])
        header, *operations = (json.loads(line) for line in self.body.splitlines())
        if header["value"].get("parentCommit", sha) != sha:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        self.server.receive([o["value"]["oid"] for o in operations if o["key"] == "lfsFile"])
        changed = dict(files)
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "deletedFile":
                if changed.pop(value["path"], None) is None:
                    raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
            elif operation["key"] == "lfsFile":
                content = self.server.blobs.get(value["oid"], b"")
                if len(content) != value["size"]:
                    raise Refusal(400, f"LFS pointer to an object that was not uploaded: {value['path']}")
                changed[value["path"]] = File(content, lfs=True)
            else:
                changed[value["path"]] = File(base64.b64decode(value["content"]), lfs=False)
        if "README.md" in changed and (problems := card_problems(changed["README.md"].content.decode())):
            raise Refusal(400, f"Invalid metadata in README.md: {'; '.join(problems)}")
        new = repository.commit(header["value"]["summary"], changed)
        url = f"{self.server.endpoint}/{'datasets/' if kind == 'datasets' else ''}{name}/commit/{new}"
        self.answer({"success": True, "commitOid": new, "commitUrl": url, "hookOutput": ""})

    def on_validate_yaml(self) -> None:
        problems = card_problems(json.loads(self.body)["content"])
        status = 400 if problems else 200
        if self.headers.get("Accept") == "text/plain":
            return self.answer("\n".join(problems).encode(), status, **{"Content-Type": "text/plain"})
        self.answer({"errors": [{"message": problem} for problem in problems], "warnings": []}, status)

    def on_resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        _, sha, files = self.files(kind, name, revision)
        file = files.get(path)
        if file is None:
            raise Refusal(404, f"{path} does not exist", "EntryNotFound", **{"X-Repo-Commit": sha})
        headers = {"X-Repo-Commit": sha, "ETag": f'"{file.blob_id}"'}
        if not file.lfs:
            return self.answer_range(file.content, **headers)
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
        if self.server.xet and (xet_hash := self.server.xet.hashes().get(file.sha256)):
            auth = f"{self.server.endpoint}/api/{kind or 'models'}/{name}/xet-read-token/{sha}"
            headers |= {"X-Xet-Hash": xet_hash, "Link": f'<{auth}>; rel="xet-auth"'}
        self.answer(b"", 302, Location=self.signed(file.sha256), **headers)

    def on_xet_token(self, kind: str, name: str, way: str, revision: str) -> None:
        self.files(kind, name, revision)
        if way == "write":
            self.writer(name.split("/")[0])
        if self.server.xet is None:
            raise Refusal(404, "this Hub has no Xet storage")
        token, expires = "xet_token", int(time.time()) + 3600
        headers = {"X-Xet-Cas-Url": self.server.xet.url, "X-Xet-Access-Token": token}
        content = {"casUrl": self.server.xet.url, "exp": expires, "accessToken": token}
        self.answer(content, **headers, **{"X-Xet-Token-Expiration": str(expires)})

    def answer_range(self, content: bytes, **headers: str) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        headers["Accept-Ranges"] = "bytes"
        if not wanted:
            return self.answer(content, **headers)
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self.answer(content[first : last + 1], 206, **headers)

    def signed(self, oid: str) -> str:
        return f"{self.server.storage}/{oid}?signature={hashlib.sha256(f'secret {oid}'.encode()).hexdigest()}"

    def check_signature(self, oid: str) -> None:
        if not self.signed(oid).endswith(self.path) or "Authorization" in self.headers:
            raise Refusal(403, "the signature is wrong, or the storage was sent a token of the Hub")


def _entry(path: str, file: File) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "oid": file.blob_id, "size": len(file.content)}
    return entry | ({"lfs": {"oid": file.sha256, "size": len(file.content), "pointerSize": 134}} if file.lfs else {})


ROUTES = [
    ("GET", r"/api/whoami-v2", Handler.on_whoami),
    ("POST", r"/api/repos/create", Handler.on_create),
    ("POST", r"/api/validate-yaml", Handler.on_validate_yaml),
    ("GET", API, Handler.on_info),
    ("GET", rf"{API}/revision/(?P<revision>[^/]+)", Handler.on_info),
    ("GET", rf"{API}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", Handler.on_tree),
    ("POST", rf"{API}/paths-info/(?P<revision>[^/]+)", Handler.on_paths_info),
    ("POST", rf"{API}/preupload/(?P<revision>[^/]+)", Handler.on_preupload),
    ("POST", rf"{API}/commit/(?P<revision>[^/]+)", Handler.on_commit),
    ("GET", rf"{API}/xet-(?P<way>read|write)-token/(?P<revision>[^/]+)", Handler.on_xet_token),
    ("POST", rf"{FILES}\.git/info/lfs/objects/batch", Handler.on_lfs_batch),
    ("POST", rf"{FILES}\.git/info/lfs/objects/verify", Handler.on_lfs_verify),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", Handler.on_lfs_put),
    ("GET", r"/lfs/(?P<oid>[0-9a-f]{64})", Handler.on_lfs_get),
    ("GET", rf"{FILES}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.on_resolve),
]
