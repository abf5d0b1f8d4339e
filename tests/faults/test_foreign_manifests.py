"""Manifests of others: whatever stands in one, each verb ends with an answer or one line of words."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.command import main
from pipeline.cli.seeing import run_diff, run_inspect, run_report
from pipeline.errors import ContextFrozenError
from pipeline.job.append import open_earlier_set
from pipeline.sets.damage import hash_manifest
from pipeline.sets.load import load, verify
from pipeline.sets.manifest import MANIFEST
from tests.conftest import write_lines

Capture = pytest.CaptureFixture[str]

_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 7, 2**31, 2**63, 10**30, 0.5, -0.0, float("nan"), 1e400),
    *(
        "",
        "x",
        "train",
        "a" * 5000,
        "\x1b[31mred",
        "\u202eevil",
        "<script>alert(1)</script>",
        "`|`",
    ),
    *("../../../../etc/passwd", "/etc/passwd", "..", ".", "a\0b", "é\n# title", "0" * 64, "é"),
    *([], {}, [1, 2], ["x"], [None], {"": 1}, {"a": {"b": []}}, [{}], {"../x": {"bytes": 1}}),
)
_NAMES: tuple[str, ...] = (
    *(
        "new",
        "",
        "..",
        "../../etc/passwd",
        "/etc/passwd",
        "\x1b[2J",
        "<b>",
        "sha256",
        "bytes",
    ),
    *("train", "columns", "trust_remote_code", "__class__", "left_out", "files", "rows", "é"),
)


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the place of every value in a manifest, that of the whole apart."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found: list[tuple[Any, ...]] = []
    for name, item in items if isinstance(value, (dict, list)) else ():
        found.append((*at, name))
        if isinstance(item, (dict, list)):
            found += _places(item, (*at, name))
    return found


def _change(manifest: dict[str, Any], chance: random.Random) -> None:
    """Change one thing: a value, its type, a key that goes or comes, something deep, something long."""
    *path, name = chance.choice(_places(manifest))
    holder: Any = manifest
    for step in path:
        holder = holder[step]
    match chance.choice(("value", "value", "value", "gone", "new", "swap", "deep", "long", "name")):
        case "value":
            holder[name] = copy.deepcopy(chance.choice(_VALUES))
        case "gone":
            del holder[name]
        case "new":
            new = copy.deepcopy(chance.choice(_VALUES))
            if isinstance(holder, dict):
                holder[chance.choice(_NAMES)] = new
            else:
                holder.insert(chance.randrange(len(holder) + 1), new)
        case "swap":
            other = manifest
            for step in chance.choice(_places(manifest)):
                other = other[step]
            holder[name] = copy.deepcopy(other)
        case "deep":
            for _ in range(chance.choice((5, 90, 150, 400))):
                holder[name] = [holder[name]] if chance.random() < 0.5 else {"a": holder[name]}
        case "long":
            holder[name] = chance.choice(("x" * 300_000, [0] * 50_000, 10**4000))
        case _:
            if isinstance(holder, dict):
                holder[chance.choice(_NAMES)] = holder.pop(name)


def _mutate(sealed: dict[str, Any], chance: random.Random) -> bytes:
    manifest = copy.deepcopy(sealed)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        _change(manifest, chance)
    if chance.random() < 0.8:
        # As somebody does who wants it to be believed: most checks come after that one.
        manifest["sha256"] = hash_manifest(manifest)
    if chance.random() < 0.4 and isinstance(manifest.get("seal"), dict):
        from pipeline.sets.seal import hash_seal

        try:
            manifest["seal"]["key"] = hash_seal(manifest["seal"])
            manifest["sha256"] = hash_manifest(manifest)
        except (LookupError, TypeError, AttributeError):
            pass
    text = json.dumps(manifest).encode()
    if chance.random() < 0.05:
        text = text[: chance.randrange(len(text))]
    return text


@pytest.fixture(scope="module")
def ask_all(
    quickstart_set: Path, tmp_path_factory: pytest.TempPathFactory, repository: Path
) -> Callable[[bytes, bool], list[tuple[str, int, str]]]:
    """Return a function that asks every reader of a set with a given manifest: verb, code, words."""
    folder = tmp_path_factory.mktemp("foreign")
    more = write_lines(folder / "more.jsonl", [{"id": "m", "context": "a", "continuation": "b"}])
    foreign = folder / "set"
    settings = ("--tokenizer", str(repository / "configs/tokenizer"), "--num_proc", "1")
    settings += ("--overlong", "cut_left", "--max_len", "768", "--no_report")
    seal = json.loads((quickstart_set / MANIFEST).read_bytes())["seal"]
    readers: dict[str, Callable[[], object]] = {
        "report": lambda: run_report([str(foreign)]),
        "inspect": lambda: run_inspect([str(foreign), "--rows", "1"]),
        "diff": lambda: run_diff([str(quickstart_set), str(foreign), "--rows", "1"]),
        "verify": lambda: verify(foreign),
        "load": lambda: load(foreign),
        "append": lambda: open_earlier_set(foreign, seal),
    }
    verbs = {
        "report --html": ["report", str(foreign), "--html", str(folder / "page.html")],
        "append": [
            "prepare",
            "--append",
            "--input",
            str(more),
            "--output",
            str(foreign),
            *settings,
        ],
    }

    def ask(manifest: bytes, thorough: bool) -> list[tuple[str, int, str]]:
        shutil.rmtree(foreign, ignore_errors=True)
        shutil.copytree(quickstart_set, foreign)
        (foreign / MANIFEST).write_bytes(manifest)
        answers: list[tuple[str, int, str]] = []
        for name, read in readers.items():
            try:
                read()
            except ContextFrozenError as error:
                answers.append((name, error.exit_code, str(error)))
        if thorough:
            answers += [(name, main(args), "") for name, args in verbs.items()]
        return answers

    return ask


@pytest.mark.parametrize(
    "number", [60, pytest.param(1000, marks=[pytest.mark.nightly, pytest.mark.timeout(7200)])]
)
def test_no_manifest_makes_a_verb_fail_with_more_than_a_line(
    number: int,
    quickstart_set: Path,
    ask_all: Callable[[bytes, bool], list[tuple[str, int, str]]],
    capsys: Capture,
    tokenizers_loaded_once: None,
) -> None:
    sealed = json.loads((quickstart_set / MANIFEST).read_bytes())
    start = int(os.environ.get("CONTEXT_FROZEN_SEED", "0"))
    for seed in range(start, start + number):
        content = _mutate(sealed, random.Random(seed))
        try:
            answers = ask_all(content, number == 1000 and seed % 10 == 0)
        except Exception as error:  # noqa: BLE001
            pytest.fail(f"seed {seed}: {type(error).__name__}: {str(error)[:200]}")
        written = capsys.readouterr()
        assert all(code in (0, 1, 2) for _, code, _ in answers), (seed, answers)
        for text in (written.out, written.err):
            assert all(char.isprintable() or char == "\n" for char in text), seed
        for line in (*written.err.split("\n"), *(words for *_, words in answers)):
            assert len(line) < 1000, seed
            assert "\n" not in line, seed
