"""Every bundled config makes the set that its comments promise, and explains its keys."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from datasets import load_from_disk
from transformers import AutoTokenizer

from pipeline.cli.options import parse_config
from pipeline.config import PrepareConfig
from pipeline.job.prepare import prepare
from pipeline.sets.load import verify
from tests.conftest import ROOT

CONFIGS = ROOT / "configs"
TOKENIZER = "configs/tokenizer"

# In the order in which a newcomer reads them: a key is explained where it comes first.
# Lines, decision points, rows, rejects by code, rows by flag.
COUNTS: dict[str, tuple[int, int, int, dict[str, int], dict[str, int]]] = {
    "quickstart.yaml": (
        68,
        68,
        68,
        {},
        {"control_token_in_text": 1, "truncated": 1, "turn_cut": 1},
    ),
    "with_rejects.yaml": (7, 7, 5, {"bad_json": 1, "bad_decision_idx": 1}, {}),
    "agent_log.yaml": (5, 12, 11, {"no_end_of_turn": 1}, {"truncated": 1, "turns_dropped": 1}),
    "tool_calls.yaml": (6, 6, 6, {}, {}),
    "preference_pairs.yaml": (10, 20, 18, {"duplicate_id": 2}, {}),
    "large_run.yaml": (60, 60, 59, {"bad_json": 1}, {}),
}


def read_config(name: str, output: Path) -> PrepareConfig:
    return parse_config(["--config", f"configs/{name}", "--output", str(output)])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The set of each config, by its name; paths count from the root of the repository."""
    folder = tmp_path_factory.mktemp("configs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return {
            name: prepare(read_config(name, folder / Path(name).stem)).output for name in COUNTS
        }


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for split in load_from_disk(str(folder)).values() for row in split]


def test_no_config_is_left_out() -> None:
    assert {path.name for path in CONFIGS.glob("*.yaml")} == set(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_the_set_holds_the_rows_and_rejects_of_its_lines(made: dict[str, Path], name: str) -> None:
    lines, points, rows, by_code, by_flag = COUNTS[name]
    counts = json.loads((made[name] / "manifest.json").read_bytes())["counts"]
    assert (counts["lines"], counts["points"], counts["rows"]) == (lines, points, rows)
    assert (counts["by_code"], counts["by_flag"]) == (by_code, by_flag)
    assert len(rows_of(made[name])) == rows


@pytest.mark.parametrize("name", COUNTS)
def test_verify_finds_nothing_wrong(
    made: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert verify(made[name], tokenizer=TOKENIZER) == []


@pytest.mark.parametrize("name", COUNTS)
def test_the_output_lies_below_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = parse_config(["--config", f"configs/{name}"])
    assert config.output == f"out/{Path(name).stem.replace('_', '-')}"
    assert config.tokenizer == TOKENIZER


def test_every_key_is_explained_where_it_first_stands() -> None:
    explained: dict[str, str] = {}
    for name in COUNTS:
        lines = (CONFIGS / name).read_text(encoding="utf-8").splitlines()
        for above, line in itertools.pairwise(lines):
            if re.match(r"\w+:", line):
                explained.setdefault(line.split(":")[0], above)
    assert {key for key, above in explained.items() if not above.startswith("# ")} <= {
        "language",  # one comment for the three keys of the card
        "pretty_name",
    }


def test_the_allowed_share_covers_the_rejects(made: dict[str, Path]) -> None:
    for name, folder in made.items():
        manifest = json.loads((folder / "manifest.json").read_bytes())
        faults, points = manifest["counts"]["faults"], manifest["counts"]["points"]
        allowed = manifest["config"]["max_reject_rate"]
        assert faults / points <= allowed < 1, name


def test_the_agent_log_gives_a_row_for_each_answer_and_drops_a_whole_turn(
    made: dict[str, Path],
) -> None:
    rows = rows_of(made["agent_log.yaml"])
    points = Counter(row["id"] for row in rows)
    assert points == {
        "session-balance": 4,
        "session-two-files": 2,
        "session-rename": 4,
        "session-thinking": 1,
    }
    (shortened,) = [row for row in rows if row["dropped_tokens"]]
    text = AutoTokenizer.from_pretrained(CONFIGS / "tokenizer").decode(shortened["input_ids"])
    assert shortened["dropped_messages"] == 4
    assert "What is in src?" not in text
    assert text.startswith("<|im_start|>system\nYou are a coding agent")
    assert "rename section_1 to income" in text


def test_the_calls_of_a_continuation_are_trained_as_the_template_writes_them(
    made: dict[str, Path],
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(CONFIGS / "tokenizer")
    trained = {
        row["id"]: tokenizer.decode(row["input_ids"][row["context_len"] :])
        for row in rows_of(made["tool_calls.yaml"])
    }
    calls = {
        id_: [json.loads(found) for found in re.findall(r"<tool_call>\n(.*?)\n</tool_call>", text)]
        for id_, text in trained.items()
    }
    assert Counter(len(found) for found in calls.values()) == {0: 3, 1: 2, 2: 1}
    assert calls["rail-books"] == [
        {"name": "book_seat", "arguments": {"train": "B12", "quiet": True}}
    ]
    assert trained["rail-books"].startswith("<think>\nNothing was booked yet.")
    assert all(text.endswith("<|im_end|>") for text in trained.values())


def test_the_worse_continuation_of_a_pair_is_apart_and_has_the_context_of_the_better(
    made: dict[str, Path],
) -> None:
    splits = load_from_disk(str(made["preference_pairs.yaml"]))
    assert set(splits) == {"train", "validation", "rejected"}
    better = {row["id"]: row for name in ("train", "validation") for row in splits[name]}
    worse = {row["id"]: row for row in splits["rejected"]}
    assert better.keys() == worse.keys()
    for id_, row in better.items():
        assert (row["preference"], worse[id_]["preference"]) == ("chosen", "rejected")
        assert row["decision_idx"] == worse[id_]["decision_idx"]
        assert row["context_hash"] == worse[id_]["context_hash"]
        assert row["input_ids"] != worse[id_]["input_ids"]


def test_the_large_run_reads_all_three_kinds_of_files_and_makes_a_report(
    made: dict[str, Path],
) -> None:
    folder = made["large_run.yaml"]
    files = Counter(row["source"].rpartition(":")[0] for row in rows_of(folder))
    assert files == {"2024-05-01.jsonl": 20, "2024-05-02.jsonl.gz": 19, "2024-05-03.jsonl.zst": 20}
    assert (folder / "report.html").stat().st_size > 0
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "license: cc0-1.0" in card
    assert "pretty_name: Units, corrected" in card
