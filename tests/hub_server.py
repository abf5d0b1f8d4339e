"""A Hub on the loopback, for the real client: the routes that push and pull need, and faults on demand.

Repositories live in memory. Every commit is kept by its id; branches and pull requests name commits.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import secrets
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

TOKEN = "hf_RecognisableTokenOfTheTests"


@dataclass
class Repo:
    """One data set repository: the files of every commit, and what branches point to."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit("main", {".gitattributes": b"*.parquet filter=lfs\n"})

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        # No two servers have a commit in common: the client keeps what it fetched.
        sha = secrets.token_hex(20)
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def find(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.branches["main"]]


@dataclass
class Fault:
    """What happens in place of an answer, ``times`` times, where method and path match ``request``.

    With ``meanwhile`` that is done, and the answer is the usual one.
    """

    request: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "a fault of the test"
    times: int = 1
    after: int = 0
    meanwhile: Callable[[], object] | None = None


@dataclass
class Hub:
    """The state of the server: what it holds, what it was asked, what is to fail (status 0: a drop)."""

    repos: dict[str, Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)
    token: str = TOKEN
    url: str = ""

    def count(self, request: str) -> int:
        """Return how many requests match."""
        return sum(bool(re.match(request, each)) for each in self.requests)


class Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    # An answer is one packet: else each waits 40 ms for the client's delayed acknowledgement.
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_any(self) -> None:
        parts = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(parts.path)
        self.query = urllib.parse.parse_qs(parts.query)
        self.hub.requests.append(f"{self.command} {path}")
        fault = next((each for each in self.hub.faults if self.is_hit(each, path)), None)
        if fault and fault.meanwhile:
            fault.meanwhile()
            fault = None
        if fault and not fault.status:
            # In the middle of an upload: part of the body is read, and nothing is answered.
            self.rfile.read(min(10, int(self.headers.get("Content-Length") or 0)))
            self.close_connection = True
            return self.connection.close()
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault:
            return self.fail(fault.status, "", fault.message, fault.headers)
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}" and "/lfs/" not in path:
            return self.fail(401, "", "Invalid credentials in Authorization header")
        for pattern, answer in ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                return answer(self, *match.groups())
        raise AssertionError(f"the client asked for {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_PUT = do_any

    def is_hit(self, fault: Fault, path: str) -> bool:
        if not re.match(fault.request, f"{self.command} {path}"):
            return False
        fault.after -= 1
        if fault.after >= 0 or fault.times <= 0:
            return False
        fault.times -= 1
        return True

    # ---- answers

    def say(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def fail(
        self, status: int, code: str, message: str = "", headers: dict[str, str] | None = None
    ) -> None:
        named = {"X-Error-Code": code} if code else {}
        self.say(
            {"error": message or code},
            status,
            {**named, "X-Error-Message": message or code, **(headers or {})},
        )

    def find(self, name: str, revision: str) -> tuple[Repo, str] | None:
        repo = self.hub.repos.get(name)
        sha = repo.find(revision) if repo else None
        if repo and sha:
            return repo, sha
        self.fail(404, "RevisionNotFound" if repo else "RepoNotFound")
        return None

    # ---- routes

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        url = f"{self.hub.url}/datasets/{name}"
        if name in self.hub.repos:
            return self.say({"error": "You already created this dataset repo", "url": url}, 409)
        self.hub.repos[name] = Repo(asked["visibility"] == "private")
        self.say({"url": url, "name": name})

    def describe(self, name: str, revision: str | None) -> None:
        if found := self.find(name, revision or "main"):
            repo, sha = found
            siblings = [{"rfilename": file} for file in repo.commits[sha]]
            self.say({"id": name, "sha": sha, "private": repo.private, "siblings": siblings})

    def branch(self, name: str, branch: str) -> None:
        start = json.loads(self.body).get("startingPoint", "main")
        if found := self.find(name, start):
            repo, sha = found
            if branch in repo.branches:
                return self.fail(409, "", "Reference already exists")
            repo.branches[branch] = sha
            self.say({})

    def preupload(self, name: str, revision: str) -> None:
        if not (found := self.find(name, revision)):
            return
        asked, files = json.loads(self.body), found[0].commits[found[1]]
        ignored = asked.get("gitIgnore") or files.get(".gitignore", b"").decode()
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".parquet") else "regular",
                "shouldIgnore": any(file["path"].startswith(each) for each in ignored.split()),
                "oid": name_object(file["path"], files.get(file["path"])),
            }
            for file in asked["files"]
        ]
        self.say({"files": modes})

    def batch(self, name: str) -> None:
        objects: list[dict[str, Any]] = json.loads(self.body)["objects"]
        for each in objects:
            if each["oid"] not in self.hub.blobs:
                each["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}"}}
        self.say({"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.blobs[oid] = self.body
        self.say({})

    def take_commit(self, name: str, revision: str) -> None:
        repo = self.hub.repos.get(name)
        head = repo.branches.get(revision) if repo else None
        if repo is None or head is None:
            return self.fail(404, "RevisionNotFound" if repo else "RepoNotFound")
        header, *operations = map(json.loads, self.body.splitlines())
        parent: str = header["value"].get("parentCommit", head)
        # A pull request begins where its parent is.
        if parent not in repo.commits or ("create_pr" not in self.query and parent != head):
            return self.fail(412, "", "A commit has happened since. Please refresh and try again.")
        files = dict(repo.commits[parent])
        changed: set[str] = set()
        for operation in operations:
            value = operation["value"]
            path: str = value["path"]
            if path in changed:
                return self.fail(400, "", f"{path} is changed twice")
            changed.add(path)
            match operation["key"]:
                case "file":
                    files[path] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in self.hub.blobs:
                        return self.fail(400, "", f"LFS pointer of {path} points to no file")
                    files[path] = self.hub.blobs[value["oid"]]
                case "deletedFile":
                    if path not in files:
                        return self.fail(
                            404, "EntryNotFound", "A file with this name doesn't exist"
                        )
                    del files[path]
                case key:
                    raise AssertionError(key)
        pull = ""
        if "create_pr" in self.query:
            number = 1 + sum(branch.startswith("refs/pr/") for branch in repo.branches)
            revision = f"refs/pr/{number}"
            pull = f"{self.hub.url}/datasets/{name}/discussions/{number}"
        sha = repo.commit(revision, files)
        url = f"{self.hub.url}/datasets/{name}/commit/{sha}"
        self.say({"commitUrl": url, "commitOid": sha, "pullRequestUrl": pull or None})

    def tree(self, name: str, revision: str, folder: str | None) -> None:
        if found := self.find(name, revision):
            entries = list(entries_below(found[0].commits[found[1]], folder or ""))
            if folder and not entries:
                return self.fail(404, "EntryNotFound")
            self.say(entries)

    def paths(self, name: str, revision: str) -> None:
        if found := self.find(name, revision):
            is_json = "json" in self.headers["Content-Type"]
            text = self.body.decode()
            asked = (json.loads(text) if is_json else urllib.parse.parse_qs(text))["paths"]
            files = found[0].commits[found[1]]
            names = {*files, *(file.rpartition("/")[0] for file in files)}
            folders = {each.rpartition("/")[0] for each in names}
            below = [entry for each in folders for entry in entries_below(files, each)]
            self.say([entry for entry in below if entry["path"] in asked])

    def resolve(self, name: str, revision: str, file: str) -> None:
        if found := self.find(name, revision):
            repo, sha = found
            content = repo.commits[sha].get(file)
            if content is None:
                return self.fail(404, "EntryNotFound")
            tag = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": sha}
            if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
                end = int(match[2]) + 1 if match[2] else len(content)
                return self.say(content[int(match[1]) : end], 206, tag)
            self.say(content, 200, tag)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def name_object(path: str, content: bytes | None) -> str | None:
    """Return what the Hub knows a file by: LFS by its sha256, others as git does."""
    if content is None:
        return None
    if path.endswith(".parquet"):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entries_below(files: dict[str, bytes], folder: str) -> Iterator[dict[str, Any]]:
    """Yield the files and folders right below a folder, as the Hub lists them."""
    start = f"{folder}/" if folder else ""
    inside = {name.removeprefix(start): name for name in files if name.startswith(start)}
    for name in sorted({each.partition("/")[0] for each in inside if "/" in each}):
        yield {"type": "directory", "path": start + name, "oid": "d" * 40}
    for short, name in inside.items():
        if "/" not in short:
            content = files[name]
            entry = {"type": "file", "path": name, "size": len(content), "oid": "c" * 40}
            if name.endswith(".parquet"):
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
            yield entry


_REPO = r"([\w.-]+/[\w.-]+)"
_REVISION = r"(refs/pr/\d+|[^/]+)"
ROUTES: list[tuple[str, Any]] = [
    # The client asks which programs it may run under.
    (r"GET /api/agent-harnesses", lambda handler: handler.say([])),
    (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", lambda handler: handler.say({"errors": [], "warnings": []})),
    (rf"GET /api/datasets/{_REPO}(?:/revision/{_REVISION})?", Handler.describe),
    (rf"POST /api/datasets/{_REPO}/branch/(.+)", Handler.branch),
    (rf"POST /api/datasets/{_REPO}/preupload/{_REVISION}", Handler.preupload),
    (rf"POST /datasets/{_REPO}\.git/info/lfs/objects/batch", Handler.batch),
    (r"PUT /lfs/(\w+)", Handler.upload),
    (rf"POST /api/datasets/{_REPO}/commit/{_REVISION}", Handler.take_commit),
    (rf"GET /api/datasets/{_REPO}/tree/{_REVISION}(?:/(.*))?", Handler.tree),
    (rf"POST /api/datasets/{_REPO}/paths-info/{_REVISION}", Handler.paths),
    (rf"(?:GET|HEAD) /datasets/{_REPO}/resolve/{_REVISION}/(.+)", Handler.resolve),
]


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Run a Hub without repositories on a free port of the loopback."""
    hub = Hub()
    handler = type("HubHandler", (Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def hub_of_this_process(cache: Path) -> Iterator[Hub]:
    """Run a Hub that the client in this process talks to, logged in; it never really waits.

    What the client reads from the environment is read when it is imported, so its constants change.
    """
    import datasets.config
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    from pipeline.sets.hub import remote_set

    with serve_hub() as hub, pytest.MonkeyPatch.context() as patch:
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        for module, name, value in (
            (constants, "ENDPOINT", hub.url),
            (constants, "HUGGINGFACE_CO_URL_TEMPLATE", template),
            (constants, "HF_HUB_CACHE", str(cache)),
            (constants, "HF_HUB_DISABLE_XET", True),
            (constants, "HF_HUB_OFFLINE", False),
            (datasets.config, "HF_ENDPOINT", hub.url),
            (datasets.config, "HF_HUB_OFFLINE", False),
            (datasets.config, "HF_DATASETS_CACHE", str(cache / "datasets")),
            (_http, "time", SimpleNamespace(sleep=hub.slept.append, time=time.time)),
            (remote_set, "time", SimpleNamespace(sleep=hub.slept.append)),
        ):
            patch.setattr(module, name, value)
        patch.setenv("HF_TOKEN", TOKEN)
        _http.close_session()
        yield hub
        _http.close_session()
