"""Fixtures that several test files share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from pipeline.config import PrepareConfig, read_config_file

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


def require_shared(part: str) -> Path:
    """Return a folder or file of the large real test assets, or skip where they are absent."""
    path = SHARED / part
    if not path.exists():
        pytest.skip(f"the large test assets are not beside the repository: {part} is missing")
    return path


def write_lines(path: Path, rows: Sequence[dict[str, Any] | str]) -> Path:
    """Write a JSONL file, a row given as text as it is, and return its path."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


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


@pytest.fixture
def make_config(tmp_path: Path, bundled_tokenizer: Path) -> Callable[..., PrepareConfig]:
    """Return a function that makes a config: bundled tokenizer, one process, output in ``tmp_path``."""

    def make(input: str | Path | Sequence[str | Path], **settings: Any) -> PrepareConfig:
        paths = [input] if isinstance(input, (str, Path)) else input
        values: dict[str, Any] = {
            "tokenizer": str(bundled_tokenizer),
            "output": str(tmp_path / "set"),
            "num_proc": 1,
            **settings,
        }
        return PrepareConfig(input=tuple(map(str, paths)), **values)

    return make
