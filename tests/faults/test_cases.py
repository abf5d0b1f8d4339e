"""What becomes of faulty input: one expected outcome, a row or a code, per input line.

``expected.jsonl`` is for the case files beside the repository (lines are named, not copied);
``own.jsonl`` holds lines of the project's own, each with its outcome.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import load_from_disk

from pipeline import prepare
from pipeline.config import PrepareConfig
from pipeline.errors import UnreadableFile
from tests.conftest import require_shared

pytestmark = pytest.mark.usefixtures("tokenizers_loaded_once")

HERE = Path(__file__).parent
MAX_LEN = {"overlong_continuation.jsonl": 32, "overlong_context.jsonl": 64}


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    # Not splitlines: it would cut at U+2028, which stands inside the texts here.
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def outcomes_of(config: PrepareConfig) -> dict[int, dict[str, Any]]:
    """Prepare, and return by line number what became of it; the counts must add up."""
    prepared = prepare(config)
    counts = prepared.counts
    assert counts["lines"] == counts["rows"] + counts["rejects"]
    outcomes: dict[int, dict[str, Any]] = {}
    for row in load_from_disk(str(prepared.output))["train"]:
        assert row["total_len"] <= config.max_len
        outcomes[int(row["source"].rpartition(":")[2])] = {
            "id": row["id"],
            "outcome": "row",
            "flags": row["flags"],
        }
    for reject in read_jsonl(prepared.output / "rejects.jsonl"):
        outcomes[reject["line"]] = {"id": reject["id"], "outcome": reject["code"], "flags": []}
        assert reject["reason"]
    return outcomes


def expected_by_file() -> dict[str, list[dict[str, Any]]]:
    files: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for item in read_jsonl(HERE / "expected.jsonl"):
        files[item["file"]].append(item)
    return dict(files)


@pytest.mark.parametrize("name", sorted(expected_by_file()))
def test_a_case_file_ends_as_expected(name: str, make_config: Callable[..., PrepareConfig]) -> None:
    expected = expected_by_file()[name]
    config = make_config(
        require_shared(f"cases/{name}"),
        tokenizer=str(require_shared("assets/tokenizers/qwen2.5")),
        max_reject_rate=1.0,
        max_len=MAX_LEN.get(name, 8192),
    )
    if expected[0]["outcome"] == "unreadable_file":
        with pytest.raises(UnreadableFile) as caught:
            prepare(config)
        assert (caught.value.file, caught.value.line) == (name, expected[0]["line"])
        assert not Path(config.output).exists()
        return
    found = outcomes_of(config)
    assert found == {
        item["line"]: {key: item[key] for key in ("id", "outcome", "flags")} for item in expected
    }


def test_every_case_file_has_an_expected_outcome() -> None:
    cases = {path.name for path in require_shared("cases").iterdir()}
    assert cases == set(expected_by_file())


def test_own_faulty_lines_end_as_expected(
    tmp_path: Path, make_config: Callable[..., PrepareConfig]
) -> None:
    items = read_jsonl(HERE / "own.jsonl")
    file = tmp_path / "own.jsonl"
    file.write_text("".join(item["line"] + "\n" for item in items), encoding="utf-8")
    found = outcomes_of(make_config(file, max_reject_rate=1.0, max_len=64, overlong="cut_left"))
    wrong = {
        number: (item["line"][:80], found[number])
        for number, item in enumerate(items, 1)
        if (found[number]["outcome"], found[number]["flags"]) != (item["outcome"], item["flags"])
    }
    assert not wrong


@pytest.mark.parametrize("max_len", range(4, 31))
def test_no_row_is_over_max_len_and_flagged_only_where_cut(
    max_len: int, make_config: Callable[..., PrepareConfig]
) -> None:
    config = make_config(
        require_shared("cases/fit_edges.jsonl"),
        tokenizer=str(require_shared("assets/tokenizers/qwen2.5")),
        max_reject_rate=1.0,
        max_len=max_len,
    )
    for row in load_from_disk(str(prepare(config).output))["train"]:
        assert 1 <= row["context_len"] < row["total_len"] <= max_len
        assert ("truncated" in row["flags"]) == (row["dropped_tokens"] > 0)
