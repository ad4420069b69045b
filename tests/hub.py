"""The hub, played by a server on this machine: listings, commits, and redirects to where weights lie."""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Repository:
    """Files by their names, the commit of the main branch, and others that are still there."""

    files: dict[str, Path | bytes]
    commit: str = "a" * 40
    earlier: tuple[str, ...] = ()
    gated: bool = False
    licence: str = ""  # of its card

    def read(self, name: str) -> bytes:
        content = self.files[name]
        return content if isinstance(content, bytes) else content.read_bytes()

    def has(self, revision: str) -> bool:
        return revision in ("main", self.commit, *self.earlier)


@dataclass
class Hub:
    """What is served, and what was asked for."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    served: Counter[str] = field(default_factory=Counter)  # bytes, by `owner/name/file`
    address: str = ""
    elsewhere: str = ""  # the same server by another name, where large files lie

    def forget(self) -> None:
        self.requests.clear()
        self.served.clear()

    @property
    def fetched(self) -> list[str]:
        """Names of the files whose content was sent, without their repository."""
        return sorted("/".join(name.split("/")[2:]) for name in self.served)

    @property
    def weights(self) -> list[str]:
        return [name for name in self.fetched if not name.endswith((".json", ".txt"))]


class Handler(BaseHTTPRequestHandler):
    """The requests that huggingface_hub makes for a snapshot."""

    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *args) -> None:
        self.hub = hub
        super().__init__(*args)

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.requests.append(self.path)
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self.describe("/".join(parts[2:4]), parts[4:])
        elif parts[0] == "cdn":
            self.send_file("/".join(parts[1:3]), "/".join(parts[3:]))
        elif len(parts) > 4 and parts[2] == "resolve":
            self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self.fail(404, "RepoNotFound")

    def found(self, name: str, revision: str) -> Repository | None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            self.fail(401, "RepoNotFound")
        elif repository.gated:
            self.fail(403, "GatedRepo")
        elif not repository.has(revision):
            self.fail(404, "RevisionNotFound")
        else:
            return repository
        return None

    def describe(self, name: str, rest: list[str]) -> None:
        repository = self.found(name, rest[1] if len(rest) > 1 else "main")
        if repository is None:
            return
        commit = rest[1] if len(rest) > 1 and rest[1] != "main" else repository.commit
        if rest[:1] == ["tree"]:
            body = [
                {"type": "file", "path": file, "size": len(repository.read(file)), "oid": "0" * 40}
                for file in repository.files
            ]
        else:
            body = {"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in repository.files]}
            if repository.licence:
                body["cardData"] = {"license": repository.licence}
        self.answer(json.dumps(body).encode(), {"Content-Type": "application/json"})

    def resolve(self, name: str, revision: str, file: str) -> None:
        repository = self.found(name, revision)
        if repository is None:
            return
        if file not in repository.files:
            self.fail(404, "EntryNotFound")
            return
        commit = repository.commit if revision == "main" else revision
        content = repository.read(file)
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        if not file.endswith((".json", ".txt", ".md")):  # large files lie elsewhere
            self.send_response(302)
            self.send_header("Location", f"{self.hub.elsewhere}/cdn/{name}/{file}")
            self.send_header("X-Repo-Commit", commit)
            self.send_header("X-Linked-ETag", etag)
            self.send_header("X-Linked-Size", str(len(content)))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.command == "GET":
            self.hub.served[f"{name}/{file}"] += len(content)
        self.answer(content, {"ETag": etag, "X-Repo-Commit": commit})

    def send_file(self, name: str, file: str) -> None:
        content = self.hub.repositories[name].read(file)
        if self.command == "GET":
            self.hub.served[f"{name}/{file}"] += len(content)
        self.answer(content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'})

    def answer(self, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def fail(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve until the block ends; `hub.address` is then where."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, hub))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    hub.elsewhere = f"http://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def online(monkeypatch, hub: Hub, cache: Path) -> None:
    """Let this process ask that hub and no other, with an own cache and record."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "record"))
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache / "hub"))


def go_offline(monkeypatch) -> None:
    """As a user without network is."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def files_of(folder: Path, *, half: str = "keep", extra: tuple[str, ...] = ()) -> dict[str, Path | bytes]:
    """A folder's files as a repository has them, with `extra` ones that nobody may fetch.

    `half` "keep" leaves the names of the weights, "only" gives them their variant's name, and "both" adds
    that, with the same content.
    """
    found: dict[str, Path | bytes] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        name = path.relative_to(folder).as_posix()
        variant = name.replace(".safetensors", ".fp16.safetensors")
        if name.endswith(".safetensors") and half != "keep":
            found[variant] = path
        if half != "only" or name == variant:
            found[name] = path
    return found | dict.fromkeys(extra, b"nobody may fetch this")
