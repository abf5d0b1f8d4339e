"""Two builds side by side: equal or not, what changed in which rows, and how that is shown."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli.command import main
from pipeline.config import PrepareConfig
from pipeline.errors import UsageError
from pipeline.job.prepare import prepare
from pipeline.sets.diff import compare_sets
from pipeline.sets.load import load, open_splits, read_manifest
from pipeline.sets.row_prints import match_rows
from tests.conftest import write_lines

Change = Callable[[dict[str, Any]], None]

EXAMPLES = [
    {
        "id": f"e{number}",
        "messages": [
            {"role": "user", "content": f"question {number}?"},
            {"role": "assistant", "content": "wrong"},
            {"role": "user", "content": "Are you sure?"},
        ],
        "continuation": f"The answer is {number}.",
        "memories": ["m"],
    }
    for number in range(6)
]


@pytest.fixture
def build(make_config: Callable[..., PrepareConfig], tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes a set of examples in a folder of that name."""

    def make(name: str, examples: Any = EXAMPLES, **settings: Any) -> Path:
        folder = tmp_path / f"{name}-in"
        folder.mkdir(exist_ok=True)
        lines = write_lines(folder / "in.jsonl", examples)
        config = make_config(lines, output=str(tmp_path / name), **settings)
        return prepare(config, quiet=True).output

    return make


@pytest.fixture
def changed(build: Callable[..., Path], tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """Return a function that makes a set, and another in which rows of it were changed."""

    def change(changes: Mapping[int, Change], **settings: Any) -> tuple[str, str]:
        before = build("before", **settings)
        after = tmp_path / "after"
        splits = open_splits(before)
        rows = [dict(row) for row in splits["train"]]
        for number, apply in changes.items():
            apply(rows[number])
        other = datasets.Dataset.from_list(rows, features=splits["train"].features)
        datasets.DatasetDict({"train": other}).save_to_disk(str(after))
        shutil.copy(before / "manifest.json", after)
        return str(before), str(after)

    return change


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[\d;]*m", "", text)


# ---- what differs


def test_two_builds_of_the_same_input_are_equal(build: Callable[..., Path]) -> None:
    found = compare_sets(str(build("before")), str(build("after")))
    assert found.is_equal
    assert (found.rows.same, found.rows.changed_by) == (6, {})
    assert {each.name for each in found.settings if each.differs} == {
        "config.input",
        "config.output",
    }
    assert not any(each.differs for each in found.counts)


def test_added_and_gone_rows_are_told_from_changed_ones(build: Callable[..., Path]) -> None:
    other = [*EXAMPLES[2:], {**EXAMPLES[0], "id": "new"}]
    found = compare_sets(str(build("before")), str(build("after", other)), first=1)
    rows = found.rows
    assert (rows.gone, rows.added) == (2, 1)
    assert found.before.name_of(rows.first_gone[0]).startswith("id e0")
    assert found.after.name_of(rows.first_added[0]).startswith("id new")
    # Their lines have moved up.
    assert rows.changed_by == {"origin": 4}


def _set(name: str, value: Any) -> Change:
    def apply(row: dict[str, Any]) -> None:
        row[name] = value

    return apply


def _replace_token(place: int) -> Change:
    def apply(row: dict[str, Any]) -> None:
        row["input_ids"][place] += 1
        if place >= row["context_len"] or place < 0:
            row["labels"][place] += 1

    return apply


def _move_boundary(row: dict[str, Any]) -> None:
    row["labels"][row["context_len"]] = -100
    row["context_len"] += 1


@pytest.mark.parametrize(
    ("change", "aspects"),
    [
        (_replace_token(0), {"tokens"}),
        (_replace_token(-1), {"tokens", "labels"}),
        (_move_boundary, {"boundary", "labels"}),
        (lambda row: row["labels"].__setitem__(-1, -100), {"labels"}),
        (lambda row: row["attention_mask"].__setitem__(0, 0), {"labels"}),
        (_set("flags", ["truncated"]), {"flags"}),
        (_set("dropped_tokens", 5), {"shortening"}),
        (_set("weight", 0.5), {"weight"}),
        (_set("reason", "another"), {"notes"}),
        (_set("memories", ["m", ""]), {"notes"}),
        (_set("source", "in.jsonl:9"), {"origin"}),
    ],
)
def test_what_changed_in_a_row_is_named(
    changed: Callable[..., tuple[str, str]], change: Change, aspects: set[str]
) -> None:
    found = compare_sets(*changed({3: change}))
    assert not found.is_equal
    assert found.rows.changed_by == dict.fromkeys(found.rows.changed_by, 1)
    assert set(found.rows.changed_by) == aspects
    assert [(row.before, row.after) for row in found.rows.first_changed] == [(3, 3)]


def test_a_row_that_went_to_another_split_is_changed(build: Callable[..., Path]) -> None:
    before = build("before", validation_fraction=0.5)
    after = build("after", validation_fraction=0.0)
    found = compare_sets(str(before), str(after))
    moved = read_manifest(before)["counts"]["rows_by_split"]["validation"]
    assert 0 < moved < 6
    assert found.rows.changed_by == {"split": moved}


def test_another_order_is_told_and_is_no_difference(
    changed: Callable[..., tuple[str, str]],
) -> None:
    before, after = changed({})
    shuffled = load(before)["train"].select([3, 1, 2, 0, 5, 4])
    shutil.rmtree(Path(after) / "train")
    datasets.DatasetDict({"train": shuffled}).save_to_disk(after)
    found = compare_sets(before, after)
    assert found.is_equal
    assert found.rows.is_reordered


def test_rows_without_ids_are_matched_by_place(build: Callable[..., Path]) -> None:
    full, train = build("before"), build("after", columns="train")
    found = compare_sets(str(full), str(train))
    assert found.is_equal
    assert found.rows.matched_by == "place"
    assert "reason" in found.rows.not_compared
    shorter = build("after", EXAMPLES[:4], columns="train", overwrite=True)
    assert compare_sets(str(full), str(shorter)).rows.gone == 2


def test_a_changed_template_changes_the_tokens(
    build: Callable[..., Path], bundled_tokenizer: Path, tmp_path: Path
) -> None:
    text = (bundled_tokenizer / "chat_template.jinja").read_text("utf-8")
    template = tmp_path / "other.jinja"
    template.write_text("{{- '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}" + text, "utf-8")
    before, after = build("before"), build("after", chat_template=str(template))
    found = compare_sets(str(before), str(after))
    assert found.rows.changed_by == {"tokens": 6, "boundary": 6}
    names = {each.name for each in found.settings if each.differs}
    assert {"digest", "chat_template", "templates.default"} <= names


KEYS = st.lists(st.integers(0, 3), max_size=12)


@given(KEYS, KEYS)
def test_each_row_has_at_most_one_partner_and_the_nth_has_the_nth(
    before: list[int], after: list[int]
) -> None:
    ours, theirs = match_rows(
        *(
            np.array([[key, key + 1] for key in keys], np.uint64).reshape(-1, 2)
            for keys in (before, after)
        )
    )
    pairs = list(zip(ours.tolist(), theirs.tolist(), strict=True))
    expected = []
    for place, key in enumerate(before):
        turn = before[:place].count(key)
        others = [number for number, other in enumerate(after) if other == key]
        if turn < len(others):
            expected.append((place, others[turn]))
    assert pairs == expected


# ---- how it is shown


def test_exit_codes_are_0_1_and_2(
    changed: Callable[..., tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = changed({0: _set("weight", 2.0)})
    assert main(["diff", before, before]) == 0
    assert "6 the same, 0 added, 0 gone, 0 changed" in capsys.readouterr().out
    assert main(["diff", before, after]) == 1
    assert "weight: 1.0 → 2.0" in capsys.readouterr().out
    assert main(["diff", before, f"{after}-not-there"]) == 2
    assert main(["diff", before, after, "--rows", "-1"]) == 2
    assert "rows: found -1" in capsys.readouterr().err


def test_the_first_difference_is_shown_in_its_surroundings(
    build: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    other = [{**EXAMPLES[0], "continuation": "The answer is not 0. 🙂"}, *EXAMPLES[1:]]
    before, after = str(build("before")), str(build("after", other))
    assert main(["diff", before, after]) == 1
    shown = capsys.readouterr().out
    assert "changed: id e0  decision_idx 3  source in.jsonl:1  tokens, labels" in shown
    assert re.search(r"^- .*Are you sure\?.*▌The answer is 0\.<\|im_end\|>$", shown, re.MULTILINE)
    assert re.search(r"^\+ .*▌The answer is not 0\. 🙂<\|im_end\|>$", shown, re.MULTILINE)
    row = load(before)["train"][0]
    other_row = load(after)["train"][0]
    pairs = zip(row["input_ids"], other_row["input_ids"], strict=False)
    place = next(at for at, (left, right) in enumerate(pairs) if left != right)
    assert f"first difference at token {place}:" in shown


def test_settings_that_differ_are_shown_and_all_on_demand(
    build: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = str(build("before")), str(build("after", max_len=999))
    assert main(["diff", before, after]) == 0
    shown = capsys.readouterr().out
    assert "settings.max_len" in shown
    assert "settings.overlong" not in shown
    main(["diff", before, after, "--all"])
    assert "settings.overlong" in capsys.readouterr().out


def test_machines_get_the_same_as_json(
    changed: Callable[..., tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = changed({2: _replace_token(-1)})
    assert main(["diff", before, after, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["equal"] is False
    assert found["rows"]["changed_by"] == {"tokens": 1, "labels": 1}
    assert found["rows"]["first_changed"] == [
        {"row": "id e2  decision_idx 3  source in.jsonl:3", "aspects": ["tokens", "labels"]}
    ]
    assert found["settings"] == {}


def test_each_set_is_decoded_with_its_own_tokenizer(
    build: Callable[..., Path],
    bundled_tokenizer: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = shutil.copytree(bundled_tokenizer, tmp_path / "other")
    file = other / "tokenizer.json"
    state = json.loads(file.read_text("utf-8"))
    # A vocabulary of single bytes: the same texts in other, and more, tokens.
    state["model"]["merges"] = []
    state["model"]["vocab"] = {
        token: id_ for token, id_ in state["model"]["vocab"].items() if len(token) == 1
    } | {token["content"]: token["id"] for token in state["added_tokens"]}
    file.write_text(json.dumps(state), "utf-8")
    before, after = str(build("before")), str(build("after", tokenizer=str(other)))
    assert main(["diff", before, after, "--rows", "1"]) == 1
    shown = capsys.readouterr().out
    window = re.findall(r"^([-+]) <\|im_start\|>.*user⏎question", shown, re.MULTILINE)
    assert window == ["-", "+"]


def test_a_tokenizer_that_changed_since_is_not_used_to_decode(
    changed: Callable[..., tuple[str, str]],
    bundled_tokenizer: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tokenizer = shutil.copytree(bundled_tokenizer, tmp_path / "t")
    before, after = changed({0: _replace_token(0)}, tokenizer=str(tokenizer))
    file = tokenizer / "tokenizer.json"
    kept = file.read_text("utf-8")
    file.write_text(kept.replace("<tool_response>", "<tool_answer>"), "utf-8")
    assert main(["diff", before, after]) == 1
    shown = capsys.readouterr().out
    assert "its tokens are shown as ids" in shown
    assert re.search(r"^- \d+ \d+ ", shown, re.MULTILINE)
    places = ["--tokenizer_before", str(bundled_tokenizer), "--tokenizer_after", str(tokenizer)]
    assert main(["diff", before, after, *places]) == 1
    assert "seal.tokenizer" in capsys.readouterr().err
    places[-1] = str(bundled_tokenizer)
    assert main(["diff", before, after, *places]) == 1
    assert re.search(r"^- <\|im_start\|>", capsys.readouterr().out, re.MULTILINE)


def test_text_of_the_data_cannot_act_on_the_terminal(
    changed: Callable[..., tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = changed({0: _set("reason", "x\x1b[31my\u202e"), 1: _set("source", "a\x1b[2J")})
    assert main(["diff", before, after]) == 1
    shown = capsys.readouterr().out
    assert "x\\x1b[31my\\u202e" in shown
    assert "\x1b" not in plain(shown)


def test_no_set_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no manifest\.json there"):
        compare_sets(str(tmp_path), str(tmp_path))
