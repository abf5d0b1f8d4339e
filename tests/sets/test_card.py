"""The card of a set: its numbers are the set's, nothing is invented, and text of the data stays text."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import PrepareConfig
from pipeline.job.prepare import prepare
from pipeline.sets.card import fence, name_size
from pipeline.sets.meanings import COLUMN_MEANINGS
from pipeline.types import NUMERIC_COLUMNS, ROW_SCHEMA
from tests.conftest import talk, write_lines

ConfigMaker = Callable[..., PrepareConfig]


@pytest.fixture
def make_card(tmp_path: Path, make_config: ConfigMaker) -> Callable[..., DatasetCard]:
    """Return a function that prepares rows and returns the card that the set got."""

    def make(*rows: dict[str, Any] | str, **settings: Any) -> DatasetCard:
        lines = write_lines(tmp_path / "logs.jsonl", rows or [talk("a", "Yes.")])
        output = prepare(make_config(lines, **settings)).output
        return DatasetCard((output / "README.md").read_text("utf-8"))

    return make


def manifest_of(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "set" / "manifest.json").read_bytes())


# ---- what it says


def test_licence_languages_and_name_are_never_invented(
    make_card: Callable[..., DatasetCard],
) -> None:
    assert make_card().data.to_dict() == {
        "size_categories": ["n<1K"],
        "task_categories": ["text-generation"],
        "tags": ["context-frozen"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "train/data-*.arrow"}],
            }
        ],
    }


@pytest.mark.parametrize("language", ["de", ["de", "en"]])
def test_licence_languages_and_name_are_those_of_the_settings(
    make_card: Callable[..., DatasetCard], language: Any
) -> None:
    card = make_card(license="cc-by-4.0", language=language, pretty_name="Talks: of *boots*")
    data = card.data.to_dict()
    assert data["license"] == "cc-by-4.0"
    assert data["language"] == (["de"] if language == "de" else ["de", "en"])
    assert data["pretty_name"] == "Talks: of *boots*"
    assert "\n# Talks: of *boots*\n" in card.text


def test_settings_of_the_card_leave_digest_and_seal_as_they_are(
    tmp_path: Path, make_config: ConfigMaker
) -> None:
    lines = write_lines(tmp_path / "logs.jsonl", [talk("a", "Yes.")])
    plain = prepare(make_config(lines, output=str(tmp_path / "plain")))
    named = prepare(make_config(lines, license="mit", language="en", pretty_name="x"))
    assert named.digest == plain.digest
    assert named.manifest["seal"] == plain.manifest["seal"]


def test_the_numbers_are_those_of_the_manifest(
    make_card: Callable[..., DatasetCard], tmp_path: Path
) -> None:
    rows = [talk(f"e{at}", "Yes. " * (at + 1)) for at in range(20)]
    card = make_card(*rows, "no example", max_reject_rate=1.0, max_len=40, validation_fraction=0.3)
    manifest = manifest_of(tmp_path)
    counts, splits = manifest["counts"], manifest["counts"]["rows_by_split"]
    parts = ", ".join(f"{number} {name}" for name, number in splits.items())
    assert f"| rows | {counts['rows']} ({parts}) |" in card.text
    assert (
        f"| tokens | {counts['tokens']['total']:,}: {counts['tokens']['context']:,} context, "
        f"{counts['tokens']['continuation']:,} continuation |"
    ) in card.text
    assert counts["rejects"] >= 1
    assert (
        f"| made from | {counts['lines']} input lines; {counts['rejects']} rejected (" in card.text
    )
    for code, number in counts["by_code"].items():
        assert f"`{code}` {number}" in card.text
    assert f"{counts['rows_as_served']} of {counts['rows']} contexts are as they were" in card.text
    assert f"| digest | `{manifest['digest']}` |" in card.text
    assert f"| key | `{manifest['seal']['key']}` |" in card.text


@pytest.mark.parametrize("columns", ["full", "train"])
def test_every_column_of_the_set_is_described_and_no_other(
    make_card: Callable[..., DatasetCard], columns: str
) -> None:
    text = make_card(columns=columns).text
    table = text[text.index("## Columns") : text.index("## Loading")]
    described = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", table, re.M)
    expected = ROW_SCHEMA.names if columns == "full" else list(NUMERIC_COLUMNS)
    assert [name for name, _, _ in described] == expected


def test_every_column_has_its_meaning() -> None:
    assert list(COLUMN_MEANINGS) == ROW_SCHEMA.names


def test_the_command_made_the_set(make_card: Callable[..., DatasetCard], tmp_path: Path) -> None:
    text = make_card(max_len=77, language="en").text
    (line,) = (line for line in text.splitlines() if line.startswith("context-frozen prepare "))
    words = shlex.split(line)
    assert words[2] == "--input"
    given = {flag: words[at + 1 : at + 3] for at, flag in enumerate(words) if flag.startswith("--")}
    assert given["--max_len"][0] == "77"
    # A list of one, and the next flag or the end.
    language, *rest = given["--language"]
    assert (language, [word[:2] for word in rest]) in [("en", []), ("en", ["--"])]


@pytest.mark.parametrize(
    ("server", "words"),
    [
        ("vllm", r"follow the rules of vllm 0\.33\.0"),
        ("sglang", r"follow the rules of sglang "),
        ("plain", r"no server's rewriting of a request is reproduced"),
    ],
)
def test_the_verdict_names_the_rules(
    make_card: Callable[..., DatasetCard], server: str, words: str
) -> None:
    assert re.search(words, make_card(server=server).text)


@pytest.mark.parametrize(
    ("rows", "size"),
    [
        (0, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (9999, "1K<n<10K"),
        (10**5, "100K<n<1M"),
        (10**9 - 1, "100M<n<1B"),
        (10**12 - 1, "100B<n<1T"),
        (10**12, "n>1T"),
        (10**15, "n>1T"),
    ],
)
def test_the_size_is_a_class_of_the_hub(rows: int, size: str) -> None:
    assert name_size(rows) == size


def test_a_set_without_rows_has_a_card(make_card: Callable[..., DatasetCard]) -> None:
    card = make_card("no example", max_reject_rate=1.0, report=True)
    assert "| rows | 0 (0 train) |" in card.text
    assert "lengths.svg" not in card.text
    assert "## One row" not in card.text


# ---- the picture


def test_the_picture_stands_beside_the_card_of_a_set_with_a_report(
    make_card: Callable[..., DatasetCard], tmp_path: Path
) -> None:
    assert "](lengths.svg)" in make_card(report=True).text
    assert (tmp_path / "set" / "lengths.svg").read_bytes().startswith(b"<svg xmlns=")
    assert "lengths.svg" in manifest_of(tmp_path)["files"]


def test_without_a_report_there_is_no_picture(
    make_card: Callable[..., DatasetCard], tmp_path: Path
) -> None:
    assert "lengths.svg" not in make_card(report=False).text
    assert not (tmp_path / "set" / "lengths.svg").exists()


def test_the_same_set_has_the_same_card_and_picture(
    tmp_path: Path, make_config: ConfigMaker
) -> None:
    lines = write_lines(tmp_path / "logs.jsonl", [talk(f"e{at}", "Yes.") for at in range(5)])
    outputs = [tmp_path / name / "set" for name in ("a", "b")]
    for output in outputs:
        prepare(make_config(lines, output=str(output), report=True))
    cards = [
        (output / "README.md").read_text("utf-8").replace(str(output), "OUTPUT")
        for output in outputs
    ]
    assert cards[0] == cards[1]
    first, second = ((output / "lengths.svg").read_bytes() for output in outputs)
    assert first == second


# ---- text of the data


@given(st.text())
def test_nothing_ends_a_block_of_code_from_inside(text: str) -> None:
    opening, *lines, closing = fence(text, "text").split("\n")
    marks = opening.removesuffix("text")
    assert marks == closing
    assert set(marks) == {"`"}
    assert "\n".join(lines) == text
    assert marks not in text


HOSTILE = "```\n<script>alert(1)</script>\n````\n# A title\n\x1b[31mred \u202e {{ 7*7 }}\n---\n"


def test_hostile_text_stays_in_its_block(make_card: Callable[..., DatasetCard]) -> None:
    messages = [{"role": "user", "content": HOSTILE}]
    card = make_card({"id": "a", "messages": messages, "continuation": HOSTILE})
    block = re.search(r"^(`{5,})text\n(.*?)^\1$", card.text, re.M | re.S)
    assert block is not None
    assert block[2].count("<script>alert(1)</script>") == 2
    assert block[2].count("# A title") == 2
    outside = card.text.replace(block[2], "")
    assert "script" not in outside
    assert "A title" not in outside
    assert "{{ 7*7 }}" in block[2]
    assert r"\x1b[31mred \u202e" in block[2]
    assert not {"\x1b", "\u202e"} & set(card.text)
    assert "context-frozen" in card.data.to_dict()["tags"]


def test_the_row_shown_is_the_first_with_its_boundary(
    make_card: Callable[..., DatasetCard],
) -> None:
    text = make_card(talk("a", "The answer.")).text
    shown = text[text.index("## One row") :]
    before, after = shown.split("▌")[-2:]
    assert before.endswith("<|im_start|>assistant\n")
    assert after.startswith("The answer.<|im_end|>\n```")


def test_a_name_with_marks_of_python_and_of_a_shell_is_quoted(
    tmp_path: Path, make_config: ConfigMaker
) -> None:
    lines = write_lines(tmp_path / "logs.jsonl", [talk("a", "Yes.")])
    output = prepare(make_config(lines, output=str(tmp_path / 'a "set" $x'))).output
    text = (output / "README.md").read_text("utf-8")
    assert 'load_from_disk("a \\"set\\" $x")' in text
    assert "context-frozen verify 'a \"set\" $x' --server URL" in text
