"""A token of the Hub and a password in a URL reach the servers they are for, and nothing else."""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.conftest import ROOT, write_lines

TOKEN = "hf_" + "NotARealToken" * 2 + "Qx7"
PASSWORD = "correct-horse-battery"
SECRETS = [TOKEN, PASSWORD, base64.b64encode(f"someone:{PASSWORD}".encode()).decode()]
ROWS = [{"id": f"e{n}", "context": f"{n} and 1", "continuation": f"{n + 1}"} for n in range(5)]

INTERNAL_ERROR = """
import sys
from pipeline.cli import command as cli
from pipeline.job import build
def fail(*_): raise RuntimeError("a fault of ours")
build.assemble = fail
sys.argv[0] = "context-frozen"
sys.exit(cli.run_command())
"""


@dataclass
class Hub:
    """A Hub on the loopback that knows nobody, and the tokens that it was shown."""

    url: str = ""
    tokens: list[str | None] = field(default_factory=list)


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    known = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known.tokens.append(self.headers["Authorization"])
            self.send_response(401)
            self.send_header("X-Error-Message", "Invalid credentials")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Keep the test output free of the access log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    known.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield known
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def closed_port() -> int:
    """A port at which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that the commands of this module write, the caches of the Hub too."""
    folder = tmp_path_factory.mktemp("secrets")
    write_lines(folder / "good.jsonl", ROWS)
    write_lines(folder / "bad.jsonl", [*ROWS, '{"id": "torn'])
    return folder


def run(folder: Path, endpoint: str, *args: str, code: str = "") -> tuple[int, str]:
    """Run a command with the token in its environment; return its exit code and all it printed."""
    ended = subprocess.run(
        [sys.executable, *(["-c", code] if code else ["-m", "pipeline.cli.command"]), *args],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        env={
            **os.environ,
            "HF_TOKEN": TOKEN,
            "HF_ENDPOINT": endpoint,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(folder / "hf"),
        },
    )
    return ended.returncode, ended.stdout + ended.stderr


def assert_secret(folder: Path, printed: str) -> None:
    for secret in SECRETS:
        assert secret not in printed
        holding = [
            str(path)
            for path in folder.rglob("*")
            if path.is_file() and secret.encode() in path.read_bytes()
        ]
        assert holding == []


def test_what_a_job_writes_and_prints_holds_no_secret(
    folder: Path, hub: Hub, bundled_tokenizer: Path, closed_port: int
) -> None:
    output = folder / "good"
    args = ["--tokenizer", str(bundled_tokenizer), "--num_proc", "1"]
    job = ["prepare", "--input", str(folder / "good.jsonl"), "--output", str(output), *args]
    code, printed = run(folder, hub.url, *job, "--json")
    assert (code, (output / "report.html").is_file()) == (0, True), printed
    server = f"http://someone:{PASSWORD}@127.0.0.1:{closed_port}/v1"
    code, words = run(folder, hub.url, "verify", str(output), "--server", server)
    assert (code, f"http://127.0.0.1:{closed_port}" in words) == (1, True), words
    assert_secret(folder, printed + words)


def test_a_job_that_is_refused_tells_no_secret(
    folder: Path, hub: Hub, bundled_tokenizer: Path
) -> None:
    output = folder / "refused"
    args = ["--tokenizer", str(bundled_tokenizer), "--output", str(output), "--num_proc", "1"]
    code, printed = run(folder, hub.url, "prepare", "--input", str(folder / "bad.jsonl"), *args)
    assert (code, (folder / "refused.rejects.jsonl").is_file()) == (1, True), printed
    assert_secret(folder, printed)


@pytest.mark.parametrize("place", ["tokenizer", "input"])
def test_a_hub_that_does_not_know_the_token_is_told_of_without_it(
    folder: Path, hub: Hub, bundled_tokenizer: Path, place: str
) -> None:
    settings = {
        "input": str(folder / "good.jsonl"),
        "tokenizer": str(bundled_tokenizer),
        "output": str(folder / "none"),
        **{
            "tokenizer": {"tokenizer": "nobody/no-such-model"},
            "input": {"input": "hf://datasets/nobody/no-such-set"},
        }[place],
    }
    hub.tokens.clear()
    args = [word for name, value in settings.items() for word in (f"--{name}", value)]
    code, printed = run(folder, hub.url, "prepare", *args)
    assert (code, f"{place}: nobody/no-such" in printed or "no-such-set" in printed) == (2, True)
    assert f"Bearer {TOKEN}" in hub.tokens
    assert "Traceback" not in printed
    assert_secret(folder, printed)


def test_a_hub_that_is_not_there_is_told_of_without_the_token(
    folder: Path, closed_port: int
) -> None:
    endpoint = f"http://someone:{PASSWORD}@127.0.0.1:{closed_port}"
    settings = {"input": "good.jsonl", "tokenizer": "nobody/no-such-model", "output": "none"}
    args = [
        word
        for name, value in settings.items()
        for word in (f"--{name}", value if "/" in value else str(folder / value))
    ]
    code, printed = run(folder, endpoint, "prepare", *args)
    assert (code, "nobody/no-such-model" in printed) == (2, True), printed
    assert "Traceback" not in printed
    assert_secret(folder, printed)


def test_an_error_of_ours_shows_no_secret(folder: Path, hub: Hub, bundled_tokenizer: Path) -> None:
    args = ["--input", str(folder / "good.jsonl"), "--tokenizer", str(bundled_tokenizer)]
    output = ["--output", str(folder / "internal"), "--num_proc", "1"]
    code, printed = run(folder, hub.url, "prepare", *args, *output, code=INTERNAL_ERROR)
    assert (code, "a fault of ours" in printed) == (1, True), printed
    assert_secret(folder, printed)
