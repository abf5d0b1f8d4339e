"""Rows as coloured tokens: every token its own piece, the boundary visible, no text acts."""

from __future__ import annotations

import re
import shutil
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pipeline.cli.command import main
from pipeline.errors import SealMismatch, UsageError
from pipeline.sets.load import load
from pipeline.sets.pieces import show_text, split_row, split_tokens
from pipeline.sets.row_choice import RowChoice
from pipeline.tokens.encoder import TextEncoder
from pipeline.view.inspection import inspect_set, print_inspection
from pipeline.view.tokens import view_head, view_row
from tests.conftest import ROOT, name_tokenizers, require_shared
from tests.tokens.test_encoder import sentencepiece

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@lru_cache
def encoder() -> TextEncoder:
    return TextEncoder.from_path(str(ROOT / "configs" / "tokenizer"))


def pieces_of(encoder: TextEncoder, text: str) -> list[tuple[str, bool]]:
    ids = encoder.encode_continuations([text])[0].tolist()
    pieces = list(split_tokens(ids, encoder))
    assert [id_ for piece in pieces for id_ in piece.ids] == ids
    return [(piece.text, piece.kind == "control") for piece in pieces]


def row_of(context: str, continuation: str, **values: Any) -> dict[str, Any]:
    first = encoder().encode([context])[0].tolist()
    second = encoder().encode_continuations([continuation])[0].tolist()
    numbers = {
        "input_ids": first + second,
        "context_len": len(first),
        "total_len": len(first) + len(second),
        "dropped_tokens": 0,
    }
    return {**numbers, "id": "a", "source": "a.jsonl:1", "flags": [], **values}


def show(capsys: pytest.CaptureFixture[str], folder: Path, **choices: Any) -> str:
    """Return what is printed of a set, without the styles."""
    places = {name: choices.pop(name) for name in ("split", "tokenizer") if name in choices}
    print_inspection(inspect_set(str(folder), RowChoice(**choices), **places))
    return capsys.readouterr().out


# ---- splitting


@given(TEXTS)
def test_pieces_joined_are_the_text_whatever_it_is(text: str) -> None:
    assert "".join(piece for piece, _ in pieces_of(encoder(), text)) == text


@pytest.mark.parametrize("prepend", [False, True])
@given(text=TEXTS)
def test_pieces_joined_are_the_text_for_sentencepiece_too(prepend: bool, text: str) -> None:
    text = text.replace("▁", "_")
    assert "".join(piece for piece, _ in pieces_of(_sentencepiece(prepend), text)) == text


@lru_cache
def _sentencepiece(prepend: bool) -> TextEncoder:
    return sentencepiece(prepend)


@pytest.mark.parametrize("prepend", [False, True])
def test_a_leading_space_of_a_continuation_is_shown(prepend: bool) -> None:
    # The decoder of SentencePiece strips it from what begins a text.
    assert pieces_of(_sentencepiece(prepend), " x x") == [(" x", False), (" x", False)]
    assert pieces_of(_sentencepiece(prepend), "x x") == [("x", False), (" x", False)]


def test_every_token_of_plain_text_is_a_piece() -> None:
    text = "The cat sat on the mat, and the dog did not."
    ids = encoder().encode([text])[0]
    assert len(pieces_of(encoder(), text)) == len(ids)


@pytest.mark.parametrize(
    "text", ["🙂", "𓀀𓀁", "你好世界", "👨\u200d👩\u200d👧", "नमस्ते", "\ufffd x", "a\ufffd\ufffd🙂b"]
)
def test_a_character_of_several_tokens_stays_whole(text: str) -> None:
    pieces = [piece for piece, _ in pieces_of(encoder(), text)]
    assert "".join(pieces) == text
    assert "".join(pieces).count("\ufffd") == text.count("\ufffd")


def test_a_real_replacement_character_does_not_swallow_what_follows() -> None:
    pieces = [piece for piece, _ in pieces_of(encoder(), "a\ufffd the cat sat on the mat")]
    assert len(pieces) > 5


def test_ids_that_are_no_text_at_all_are_shown() -> None:
    # Half a character, as a cut from the left leaves it.
    ids = encoder().encode(["🙂"])[0].tolist()
    assert len(ids) > 1
    assert "".join(piece.text for piece in split_tokens(ids[1:], encoder()))


def test_control_tokens_and_marks_are_pieces_of_their_own() -> None:
    pieces = pieces_of(encoder(), "<|im_start|>user\n<think>x</think><|im_end|>")
    control = [piece for piece, is_control in pieces if is_control]
    assert control == ["<|im_start|>", "<think>", "</think>", "<|im_end|>"]
    assert ("x", False) in pieces


def test_no_ids_are_no_pieces() -> None:
    assert list(split_tokens([], encoder())) == []


@pytest.mark.parametrize(
    "name",
    name_tokenizers(["mistral-v0.3", "llama-2", "mistral-v0.1", "phi-3", "gemma-3", "qwen3"]),
)
def test_tokens_of_the_families_are_told_apart(name: str) -> None:
    family = TextEncoder.from_path(str(require_shared(f"assets/tokenizers/{name}")))
    ids = family.encode_continuations([" Hello there, how are you? 你好"])[0].tolist()
    pieces = list(split_tokens(ids, family))
    assert len(pieces) == len(ids)
    assert "".join(piece.text for piece in pieces) == " Hello there, how are you? 你好"


# ---- one row


def test_the_boundary_is_between_context_and_continuation() -> None:
    text = view_row(row_of("<|im_start|>assistant\n", "Hello<|im_end|>"), encoder())
    assert text.plain == "<|im_start|>assistant\n▌Hello<|im_end|>"


def test_context_and_continuation_have_other_styles_and_neighbours_other_shades() -> None:
    text = view_row(row_of("one two three four", "five six seven<|im_end|>"), encoder())
    boundary = text.plain.index("▌")
    before = {str(span.style) for span in text.spans if span.end <= boundary}
    after = {str(span.style) for span in text.spans if span.start > boundary}
    assert len(before) == 2
    assert len(after) == 3
    assert before.isdisjoint(after)
    neighbours = [str(span.style) for span in text.spans if span.end <= boundary]
    assert all(left != right for left, right in pairwise(neighbours))


@pytest.mark.parametrize(
    "escape", ["\x1b[31m", "\x1b]0;title\x07", "\x9b31m", "\r", "\x08", "\u202e", "\x00", "\x7f"]
)
@pytest.mark.parametrize("place", ["context", "continuation", "id", "source"])
def test_text_of_the_data_cannot_act_on_the_terminal(
    capsys: pytest.CaptureFixture[str], escape: str, place: str
) -> None:
    values = {"context": "x", "continuation": "y", "id": "a", "source": "b"}
    row = row_of(**{**values, place: f"a{escape}b"})
    console = Console(
        force_terminal=True, color_system="truecolor", highlight=False, soft_wrap=True
    )
    console.print(view_head(0, row))
    console.print(view_row(row, encoder()))
    shown = capsys.readouterr().out
    assert escape not in shown
    # The escapes that are left are the console's own colours.
    plain = re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert "a" + escape.encode("unicode_escape").decode() + "b" in plain
    assert all(char.isprintable() or char == "\n" for char in plain)


def test_newlines_and_tabs_are_kept_as_they_are() -> None:
    assert view_row(row_of("a\n\tb", "c"), encoder()).plain == "a\n\tb▌c"


def test_brackets_of_the_data_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    Console(highlight=False, soft_wrap=True).print(
        view_row(row_of("[bold]x[/bold] [/]", ":smile:"), encoder())
    )
    assert "[bold]x[/bold] [/]▌:smile:" in capsys.readouterr().out


# ---- a set


def test_rows_are_shown_with_id_place_and_lengths(
    capsys: pytest.CaptureFixture[str], quickstart_set: Path
) -> None:
    row = load(quickstart_set)["train"][0]
    shown = show(capsys, quickstart_set, rows=1)
    head, _, rest = shown.partition("\n")
    assert f"id {row['id']}" in head
    assert f"source {row['source']}" in head
    assert f"{row['context_len']} + {row['total_len'] - row['context_len']} tokens" in head
    whole = encoder().decode(row["input_ids"][: row["context_len"]])
    answer = encoder().decode(row["input_ids"][row["context_len"] :])
    assert rest.rstrip("\n") == f"{whole}▌{answer}"


def test_the_first_rows_one_by_number_and_those_of_an_id(
    capsys: pytest.CaptureFixture[str], quickstart_set: Path
) -> None:
    ids = load(quickstart_set)["train"]["id"]

    def shown_of(**choices: Any) -> list[str]:
        return re.findall(
            r"^row \d+  id (\S+)", show(capsys, quickstart_set, **choices), re.MULTILINE
        )

    assert shown_of() == ids[:3]
    assert shown_of(rows=1) == ids[:1]
    assert shown_of(rows=0) == []
    assert shown_of(rows=10_000) == ids
    assert shown_of(row=5) == [ids[5]]
    assert shown_of(row=len(ids) - 1) == [ids[-1]]
    assert shown_of(id=ids[7]) == [ids[7]]


def test_a_shortened_row_says_so(capsys: pytest.CaptureFixture[str], quickstart_set: Path) -> None:
    rows = load(quickstart_set)["train"]
    (number,) = (place for place, row in enumerate(rows) if row["dropped_tokens"])
    head = show(capsys, quickstart_set, row=number).partition("\n")[0]
    assert f"{rows[number]['dropped_tokens']} dropped" in head
    assert "truncated" in head


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"row": -1}, r"no row -1; expected 0 to \d+"),
        ({"row": 10_000}, r"no row 10000; expected 0 to \d+"),
        ({"id": "nobody"}, "no row with id 'nobody'"),
        ({"split": "test"}, r"no split 'test'; expected one of \['train'\]"),
        ({"tokenizer": "/no/such"}, "no such folder"),
    ],
    ids=str,
)
def test_a_choice_that_is_not_there_is_wrong_usage(
    capsys: pytest.CaptureFixture[str], quickstart_set: Path, choices: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        show(capsys, quickstart_set, **choices)


def test_another_tokenizer_would_show_other_text_and_is_refused(
    capsys: pytest.CaptureFixture[str],
    quickstart_set: Path,
    bundled_tokenizer: Path,
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(bundled_tokenizer, tmp_path / "t")
    path = folder / "tokenizer.json"
    path.write_text(path.read_text("utf-8").replace("<tool_response>", "<tool_answer>"), "utf-8")
    with pytest.raises(SealMismatch, match=r"seal\.tokenizer\.backend_sha256"):
        show(capsys, quickstart_set, tokenizer=str(folder))
    assert show(capsys, quickstart_set, tokenizer=str(bundled_tokenizer))


# ---- what is shown of a row


def test_the_end_of_turn_is_told_from_other_control_tokens() -> None:
    row = row_of("<|im_start|>user\n<|im_end|>", "<think>x</think>y<|im_end|>")
    pieces = split_row(row, encoder())
    assert [piece.text for piece in pieces.context if piece.kind != "text"] == [
        "<|im_start|>",
        "<|im_end|>",
    ]
    assert {piece.kind for piece in pieces.context} == {"text", "control"}
    assert [piece.kind for piece in pieces.continuation if piece.kind != "text"] == [
        "control",
        "control",
        "end",
    ]


def test_a_continuation_without_end_of_turn_has_none() -> None:
    for text in ("cut in the midd", "a thought</think>"):
        kinds = {piece.kind for piece in split_row(row_of("a", text), encoder()).continuation}
        assert "end" not in kinds


@given(text=TEXTS, before=TEXTS, most=st.integers(4, 40))
def test_the_ends_of_a_long_part_are_shown_whole_and_the_rest_is_counted(
    text: str, before: str, most: int
) -> None:
    row = row_of(before + "🙂x" * 20, text + "你好" * 20)
    whole, short = split_row(row, encoder()), split_row(row, encoder(), most=most)
    for full, cut in zip(whole, short, strict=True):
        assert [id_ for piece in cut for id_ in piece.ids] == [
            id_ for piece in full for id_ in piece.ids
        ]
        gaps = [piece for piece in cut if piece.kind == "gap"]
        assert len(gaps) == (sum(len(piece.ids) for piece in full) > most // 4 + most - most // 4)
        at = cut.index(gaps[0]) if gaps else len(cut)
        assert cut[:at] == full[:at]
        assert cut[at + 1 :] == full[len(full) - len(cut[at + 1 :]) :]


def test_ids_stand_for_their_text_where_there_is_no_tokenizer() -> None:
    row = {"input_ids": [7, 8, 9], "context_len": 2}
    assert [piece.text for piece in split_row(row, None).context] == ["7 ", "8 "]


def test_white_space_is_shown_as_marks_on_demand() -> None:
    text = view_row(row_of("a b\n\tc", "d e"), encoder(), whitespace=True)
    assert text.plain == "a·b⏎\n→\tc▌d·e"


@given(TEXTS)
def test_marks_take_nothing_from_a_text(text: str) -> None:
    for piece in split_tokens(encoder().encode([text])[0].tolist(), encoder()):
        marked = show_text(piece, whitespace=True)
        unmarked = marked.replace("→\t", "\t").replace("⏎\n", "\n")
        assert len(unmarked) == len(show_text(piece))


def test_what_a_row_says_of_itself_stands_above_it() -> None:
    head = view_head(
        3,
        {
            **row_of("a", "b"),
            "conversation": "talk-9",
            "decision_idx": 4,
            "preference": "chosen",
            "weight": 0.5,
            "memories": ["m1", "m2"],
            "reason": "kinder\nwords",
        },
    ).plain
    for words in ("row 3", "conversation talk-9", "decision_idx 4", "preference chosen"):
        assert words in head
    assert "weight 0.5  memories m1, m2  reason kinder\\nwords" in head


# ---- the command


def test_rows_go_to_one_page(
    quickstart_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "rows.html"
    args = ["inspect", str(quickstart_set), "--pick", "longest", "--rows", "2"]
    assert main([*args, "--html", str(page), "--whitespace"]) == 0
    assert "2 rows" in capsys.readouterr().out
    text = page.read_text("utf-8")
    assert text.count('<details class="row" open>') == 2
    assert "data-marks-whitespace" in text
    lengths = load(quickstart_set)["train"]["total_len"]
    longest = lengths.index(max(lengths))
    assert f"train row {longest}<" in text


def test_a_page_that_cannot_be_written_is_wrong_usage(
    quickstart_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(quickstart_set), "--html", str(tmp_path)]) == 2
    assert "Is a directory; expected a file" in capsys.readouterr().err


def test_rows_of_a_flag_are_shown_in_the_terminal(
    quickstart_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(quickstart_set), "--flag", "truncated"]) == 0
    heads = [line for line in capsys.readouterr().out.split("\n") if line.startswith("row ")]
    assert heads
    assert all("truncated" in head for head in heads)
