"""Fixtures that several test files share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from pipeline.config import PrepareConfig, read_config_file
from pipeline.errors import Rejected
from pipeline.lines import plan as planning
from pipeline.lines.files import SourceFile
from pipeline.lines.plan import plan_shards
from pipeline.lines.tables import open_piece
from pipeline.lines.text import MAX_LINE_BYTES, PieceRecord, SourceLine

# The tests show that nothing needs the network: no file is looked for on the Hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Two workers share the cores already; torch's own threads would make each test wait for the other's.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Machines differ in speed: how long one case takes says nothing of the rule that it tests.
# CI tries the same cases each time, so that a red run can be repeated; the night tries new ones.
hypothesis.settings.register_profile("any-machine", deadline=None, derandomize=True)
# HYPOTHESIS_PROFILE=nightly: as many cases as a night has time for.
hypothesis.settings.register_profile("nightly", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "any-machine"))

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


# One of each kind of tokenizer: byte-level BPE of two families, SentencePiece.
_EVERY_DAY = frozenset({"qwen3", "llama-3.1", "mistral-v0.3"})


def name_tokenizers(names: Iterable[str]) -> list[Any]:
    """Return real tokenizers as parameters: one of each kind every day, the others at night."""
    return [
        name if name in _EVERY_DAY else pytest.param(name, marks=pytest.mark.nightly)
        for name in names
    ]


def require_shared(part: str) -> Path:
    """Return a folder or file of the large real test assets, or skip where they are absent."""
    path = SHARED / part
    if not path.exists():
        pytest.skip(f"the large test assets are not beside the repository: {part} is missing")
    return path


def talk(id_: str, *answers: str) -> dict[str, Any]:
    """Return an example whose question is answered again and again."""
    messages = [
        message
        for answer in answers
        for message in ({"role": "user", "content": "?"}, {"role": "assistant", "content": answer})
    ]
    return {"id": id_, "messages": messages}


def write_lines(path: Path, rows: Sequence[dict[str, Any] | str]) -> Path:
    """Write a JSONL file, a row given as text as it is, and return its path."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def read_train(folder: Path) -> Any:
    """Return the rows of the first split of a saved set, as `datasets` gives them."""
    import datasets

    return datasets.load_from_disk(str(folder))["train"]


@contextmanager
def asked_by_line(
    command: Sequence[str], stderr: int | None = None
) -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    """Yield a function that asks a process which answers each line of JSON with one."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        cwd=ROOT,
    )
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None

    def ask(question: dict[str, Any]) -> dict[str, Any]:
        stdin.write(json.dumps(question) + "\n")
        stdin.flush()
        return json.loads(stdout.readline())

    yield ask
    stdin.close()
    process.wait(30)
    stdout.close()


@contextmanager
def shards_of(size: int) -> Iterator[None]:
    """Cut inputs, however small, into shards of about ``size`` bytes."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(planning, "LEAST_SHARD_BYTES", size)
        patched.setattr(planning, "MOST_SHARD_BYTES", size)
        yield


@dataclass(frozen=True)
class ReadInput:
    """What reading an input gave, in order: its lines, each with its file, and its pieces."""

    lines: list[tuple[str, SourceLine]] = field(default_factory=list)
    pieces: list[PieceRecord] = field(default_factory=list)

    @property
    def places(self) -> list[tuple[str, int]]:
        """File and line of each line that is no reject."""
        return [(file, line.line) for file, line in self.lines if line.reject is None]

    @property
    def texts(self) -> list[str]:
        """The lines that are no rejects."""
        return [line.text for _, line in self.lines if line.text is not None]

    @property
    def rejects(self) -> list[tuple[str, int, Rejected]]:
        """File, line and reason of each reject."""
        return [(file, line.line, line.reject) for file, line in self.lines if line.reject]


def read_input(files: Sequence[SourceFile], max_line_bytes: int = MAX_LINE_BYTES) -> ReadInput:
    """Read files as a job does: piece by piece of their plan."""
    read = ReadInput()
    for piece in (piece for shard in plan_shards(files).shards for piece in shard.pieces):
        reading = open_piece(piece, max_line_bytes)
        read.lines.extend((piece.file.name, line) for line in reading)
        read.pieces.append(reading.record())
    return read


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of large real test assets (tokenizers, templates, conversations)."""
    return require_shared("assets").parent


@pytest.fixture(scope="session")
def bundled_tokenizer() -> Path:
    """The small byte-level tokenizer with its chat template."""
    return ROOT / "configs" / "tokenizer"


@pytest.fixture(scope="session")
def bundled_examples() -> Path:
    """The JSONL file of the quickstart."""
    return ROOT / "configs" / "data" / "examples.jsonl"


@pytest.fixture(scope="session")
def quickstart_set(
    tmp_path_factory: pytest.TempPathFactory, bundled_tokenizer: Path, bundled_examples: Path
) -> Path:
    """The set that the quickstart makes. Copy it (``shutil.copytree``) before changing it."""
    from pipeline.job.prepare import prepare

    values = read_config_file(str(ROOT / "configs" / "quickstart.yaml"))
    values |= {
        "input": (str(bundled_examples),),
        "tokenizer": str(bundled_tokenizer),
        "output": str(tmp_path_factory.mktemp("quickstart") / "set"),
        "num_proc": 1,
    }
    return prepare(PrepareConfig(**values)).output


def installed_command() -> list[str]:
    """Return a command that does what the installed ``context-frozen`` does, of this tree.

    The environment may have the package of another one, or none.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ((name, place),) = project["scripts"].items()
    module, function = place.split(":")
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv[0] = {name!r}; "
        f"from {module} import {function}; sys.exit({function}())"
    )
    return [sys.executable, "-c", code]


@pytest.fixture
def many_shards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make shards of a few lines, and as many processes as a config asks for."""
    from pipeline.job import shards

    monkeypatch.setattr(shards, "BYTES_PER_WORKER", 1)
    with shards_of(200):
        yield


@pytest.fixture
def make_config(tmp_path: Path, bundled_tokenizer: Path) -> Callable[..., PrepareConfig]:
    """Return a function that makes a config: bundled tokenizer, one process, output in ``tmp_path``.

    Without a report, whose pictures take longer than all else of a small job.
    """

    def make(input: str | Path | Sequence[str | Path], **settings: Any) -> PrepareConfig:
        paths = [input] if isinstance(input, (str, Path)) else input
        values: dict[str, Any] = {
            "tokenizer": str(bundled_tokenizer),
            "output": str(tmp_path / "set"),
            "num_proc": 1,
            "report": False,
            **settings,
        }
        return PrepareConfig(input=tuple(map(str, paths)), **values)

    return make


@pytest.fixture(scope="module")
def tokenizers_loaded_once() -> Iterator[None]:
    """Load each tokenizer folder once for a module whose tests only read it."""
    from pipeline.tokens.encoder import TextEncoder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextEncoder, "from_path", cache(TextEncoder.from_path))
        yield


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """Keep torch to one thread: for a tiny model, threads that share busy cores mostly wait."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
