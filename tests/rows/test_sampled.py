"""Ids that a server returned: used as they are, and refused where they cannot be right."""

from __future__ import annotations

import gzip
import json
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import config_from_mapping
from pipeline.errors import Rejected
from pipeline.examples.decisions import find_decision_points
from pipeline.examples.example import TrainingExample
from pipeline.rows.builder import RowBuilder
from pipeline.rows.sampled import check_context_ids, check_continuation_ids
from pipeline.rows.table import BoundedRow
from pipeline.tokens.encoder import TextEncoder
from tests.conftest import ROOT, require_shared

BUNDLED = ROOT / "configs" / "tokenizer"


@lru_cache
def encoder() -> TextEncoder:
    return TextEncoder.from_path(str(BUNDLED))


def make_builder(tokenizer: str | Path = BUNDLED, **settings: Any) -> RowBuilder:
    values = {"input": "-", "output": "-", "tokenizer": str(tokenizer), **settings}
    return RowBuilder(config_from_mapping(values, "test"))


def encode(text: str) -> list[int]:
    return encoder().encode([text])[0].tolist()


END = encoder().token_id("<|im_end|>") or 0
ENDS = frozenset({END})
# The same text as one token of many letters, and as a sampler could have spelt it.
SPELT = [id_ for letter in "Hello there" for id_ in encode(letter)]


def check(ids: list[int], text: str = "", *, ends: frozenset[int] = ENDS, needs_end: bool = True):
    return check_continuation_ids(ids, text, encoder(), ends, needs_end=needs_end)


# ---- what is refused


@pytest.mark.parametrize("text", ["", "Hello there", "Hello there<|im_end|>"])
def test_ids_are_taken_as_they_were_sampled(text: str) -> None:
    checked = check([*SPELT, END], text)
    assert checked.tolist() == [*SPELT, END]
    assert checked.dtype == np.int32
    assert encode("Hello there") != SPELT


@pytest.mark.parametrize(
    ("ids", "code", "words"),
    [
        ([], "empty_continuation", "expected the sampled ids"),
        ([END], "empty_continuation", "nothing but the end of turn"),
        (SPELT, "bad_ids", "their last is no end of turn"),
        ([*SPELT[:3], END, *SPELT[3:], END], "bad_ids", "continuation_ids\\[3\\]: an end of turn"),
        ([*SPELT, END, END], "bad_ids", f"continuation_ids\\[{len(SPELT)}\\]: an end of turn"),
        ([*SPELT, 10**6, END], "bad_ids", "expected an id of this tokenizer, below"),
        ([-1, END], "bad_ids", "continuation_ids\\[0\\]"),
    ],
)
def test_ids_that_cannot_be_right_are_refused(ids: list[int], code: str, words: str) -> None:
    with pytest.raises(Rejected, match=words) as caught:
        check(ids)
    assert caught.value.code == code


def test_ids_of_another_text_are_refused() -> None:
    with pytest.raises(Rejected, match="decode to another text than continuation") as caught:
        check([*SPELT, END], "Hello where")
    assert caught.value.code == "bad_ids"
    assert "Hello there" in str(caught.value)


def test_a_text_without_its_special_tokens_is_that_of_a_server() -> None:
    # A server leaves special tokens out of its text (skip_special_tokens), never out of its ids.
    special = encoder().added_tokens["<|endoftext|>"]
    assert "<|endoftext|>" in encoder().special_tokens
    assert check([special, *SPELT, END], "Hello there").tolist() == [special, *SPELT, END]


def test_a_cut_turn_is_trained_only_where_no_end_is_asked_for() -> None:
    assert check(SPELT, "Hello there", needs_end=False).tolist() == SPELT
    assert check([*SPELT, END], needs_end=False).tolist() == [*SPELT, END]


def test_without_a_known_end_any_end_will_do() -> None:
    assert check(SPELT, "Hello there", ends=frozenset()).tolist() == SPELT


def test_context_ids_are_checked_too() -> None:
    size = encoder().vocabulary_size
    assert check_context_ids([0, 5, 1], encoder()).tolist() == [0, 5, 1]
    with pytest.raises(Rejected, match="context_ids\\[1\\]: expected an id") as caught:
        check_context_ids([0, size], encoder())
    assert caught.value.code == "bad_ids"
    with pytest.raises(Rejected) as caught:
        check_context_ids([], encoder())
    assert caught.value.code == "empty_context"


@pytest.mark.parametrize("side", ["left", "right"])
def test_ids_with_their_padding_are_no_prompt_and_no_answer(side: str) -> None:
    pad = encoder().pad_id
    assert pad is not None
    padding = [pad, pad]
    whole = [*SPELT, END]
    with pytest.raises(Rejected, match="padding") as caught:
        check([*padding, *whole] if side == "left" else [*whole, *padding])
    assert caught.value.code == "bad_ids"
    with pytest.raises(Rejected, match="padding"):
        check_context_ids([*padding, *SPELT] if side == "left" else [*SPELT, *padding], encoder())
    inside = [*SPELT, *padding, *SPELT]
    assert check_context_ids(inside, encoder()).tolist() == inside


# ---- rows


def build(builder: RowBuilder, **values: Any) -> BoundedRow | Rejected:
    example = TrainingExample.from_dict({"id": "a", **values})
    (result,) = builder.build(find_decision_points(example))
    return result


def prompt_ids(messages: list[dict[str, Any]], **values: Any) -> list[int]:
    """Return the ids of a prompt as the server has them."""
    row = build(make_builder(), context=messages, continuation="x", **values)
    assert isinstance(row, BoundedRow), row
    return row.input_ids[: row.context_len].tolist()


def test_sampled_ids_win_over_encoding_the_text_again() -> None:
    context = encode("Say hello:")
    spelt = [id_ for letter in "Say hello:" for id_ in encode(letter)]
    assert spelt != context
    row = build(
        make_builder(),
        context_ids=spelt,
        continuation="Hello there",
        continuation_ids=[*SPELT, END],
    )
    assert isinstance(row, BoundedRow)
    assert row.input_ids.tolist() == [*spelt, *SPELT, END]
    assert row.context_len == len(spelt)
    assert row.flags == ("sampled_ids",)


def test_sampled_ids_follow_messages_as_well() -> None:
    asked = [{"role": "user", "content": "Say hello"}]
    sampled = build(make_builder(), messages=asked, decision_idx=1, continuation_ids=[*SPELT, END])
    encoded = build(make_builder(), messages=asked, decision_idx=1, continuation="Hello there")
    assert isinstance(sampled, BoundedRow)
    assert isinstance(encoded, BoundedRow)
    assert sampled.context_hash == encoded.context_hash
    assert sampled.input_ids[sampled.context_len :].tolist() == [*SPELT, END]


def test_the_context_ids_are_those_of_their_own_place_alone() -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    served = prompt_ids(messages)
    example = TrainingExample.from_dict(
        {
            "id": "a",
            "messages": messages,
            "decision_idx": 3,
            "continuation": "d",
            "context_ids": served,
        }
    )
    first, last = make_builder(decisions="all").build(find_decision_points(example, "all"))
    assert isinstance(first, BoundedRow)
    assert isinstance(last, BoundedRow)
    assert last.input_ids[: last.context_len].tolist() == served
    assert "sampled_ids" in last.flags
    assert "sampled_ids" not in first.flags


def test_an_end_that_only_the_template_tells_ends_a_sampled_turn(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(BUNDLED, tmp_path / "tokenizer"))
    (folder / "generation_config.json").unlink()
    builder = make_builder(folder)
    ids = [*SPELT, END]
    row = build(builder, context="Say hello:", continuation="Hello there", continuation_ids=ids)
    assert isinstance(row, BoundedRow), row
    refused = build(builder, context="Say hello:", continuation_ids=SPELT)
    assert isinstance(refused, Rejected)
    assert refused.code == "bad_ids"


def test_an_end_that_the_settings_name_ends_a_sampled_turn() -> None:
    stop = encoder().added_tokens["<tool_call>"]
    given = {"context": "x", "continuation_ids": [*SPELT, stop]}
    assert isinstance(build(make_builder(), **given), Rejected)
    assert isinstance(build(make_builder(end_of_turn="<tool_call>"), **given), BoundedRow)


def test_ids_that_a_real_sampler_chose_are_kept() -> None:
    # Recorded for the very reason that encoding their text again gives other ids.
    path = require_shared("assets/data/nemo_rl_retokenization.raw.json.gz")
    record = json.loads(gzip.decompress(path.read_bytes()))["maybe_correct_merged_tokens"]
    seen: list[int] = record["seen_token_ids"]
    folder = require_shared("assets/tokenizers/qwen3")
    builder = make_builder(folder, end_of_turn="none")
    middle = len(seen) - 200
    assert encoder_differs(builder, seen)
    row = build(
        builder, context_ids=seen[:middle], continuation_ids=last_turn(builder, seen[middle:])
    )
    assert isinstance(row, BoundedRow), row
    assert row.input_ids[:middle].tolist() == seen[:middle]


def encoder_differs(builder: RowBuilder, ids: list[int]) -> bool:
    return builder.encoder.encode([builder.encoder.decode(ids)])[0].tolist() != ids


def last_turn(builder: RowBuilder, ids: list[int]) -> list[int]:
    """Return the ids up to the first end of turn, that one included."""
    end = builder.encoder.token_id("<|im_end|>")
    return ids[: ids.index(end) + 1] if end in ids else ids


# ---- ids against what stands beside them

ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which door?"}]
ANSWER = {"role": "assistant", "content": "The left one."}


def call(**arguments: Any) -> dict[str, Any]:
    function = {"name": "open_door", "arguments": json.dumps(arguments)}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "function": function}]}


def sample(text: str, answer: dict[str, Any]) -> BoundedRow | Rejected:
    ids = [*encode(text), END]
    return build(make_builder(), context=ASKED, continuation=answer, continuation_ids=ids)


CALLED = '<tool_call>\n{"name": "open_door", "arguments": {"door": "red \\"A\\" 32", "n": 2.0, "now": true}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The left one.", ANSWER),
        ("The left one.\n", ANSWER),
        ("<think>\nHm.\n</think>\n\nThe left one.", ANSWER),
        ("<think>\nHm.\n</think>\n\nThe left one.", {**ANSWER, "reasoning": "Hm."}),
        ("The left one.", {**ANSWER, "content": [{"type": "text", "text": "The left one."}]}),
        (CALLED, call(door='red "A" 32', n=2.0, now=True)),
        ("I open it. " + CALLED, {**call(n=2), "content": "I open it."}),
    ],
)
def test_ids_of_the_message_beside_them_are_taken(text: str, answer: dict[str, Any]) -> None:
    row = sample(text, answer)
    assert isinstance(row, BoundedRow), row
    assert row.flags == ("sampled_ids",)


@pytest.mark.parametrize(
    ("text", "answer", "missing"),
    [
        ("The right one.", ANSWER, "The left one."),
        ("Not: The left one.", ANSWER, "The left one."),
        ("The left one. No!", ANSWER, "The left one."),
        ("The left one." + CALLED, ANSWER, "The left one."),
        ("The left one.", {**ANSWER, "reasoning": "Hm."}, "Hm."),
        (CALLED, call(door="blue"), "blue"),
        (CALLED, call(n=3), "3"),
        (CALLED, call(now=False), "false"),
        (CALLED.replace("open_door", "shut_door"), call(n=2.0), "open_door"),
        (CALLED, {**call(n=2.0), "content": "I open it."}, "I open it."),
    ],
)
def test_ids_of_another_message_are_refused(
    text: str, answer: dict[str, Any], missing: str
) -> None:
    error = sample(text, answer)
    assert isinstance(error, Rejected)
    assert error.code == "bad_ids"
    assert f"another answer than the message beside them, which says {missing}" in error.reason


def serve(served: list[int], **values: Any) -> BoundedRow | Rejected:
    values = {"context": ASKED, **values}
    return build(make_builder(), continuation="Left.", context_ids=served, **values)


def test_ids_of_the_prompt_of_their_messages_pass() -> None:
    row = serve(prompt_ids(ASKED))
    assert isinstance(row, BoundedRow)
    assert row.flags == ("sampled_ids",)


def test_another_spelling_of_the_prompt_is_flagged() -> None:
    # The server had another system text, or none, or a think block that the request closed.
    other = [{"role": "system", "content": "Be kind."}, ASKED[1]]
    for served in (
        prompt_ids(other),
        prompt_ids(ASKED[1:]),
        [*prompt_ids(ASKED), *encode("<think>\n\n</think>\n\n")],
    ):
        row = serve(served)
        assert isinstance(row, BoundedRow), row
        assert "prompt_ids_differ" in row.flags
        assert row.input_ids[: row.context_len].tolist() == served


def test_the_prompt_of_another_conversation_is_refused() -> None:
    error = serve(prompt_ids([{"role": "user", "content": "Which ball?"}]))
    assert isinstance(error, Rejected)
    assert error.code == "bad_ids"
    assert "without the last text of the user in the messages, Which door?" in error.reason


@pytest.mark.parametrize("cut", [1, 3, "answered"])
def test_a_prompt_that_ends_elsewhere_is_refused(cut: int | str) -> None:
    served = prompt_ids(ASKED)
    served = [*served, *encode("The")] if isinstance(cut, str) else served[:-cut]
    error = serve(served)
    assert isinstance(error, Rejected) == (cut != 1), error
    if isinstance(error, Rejected):
        assert error.code == "bad_ids"
        assert "does not end as this template lets the model answer" in error.reason


def test_ids_beside_a_text_are_compared_with_it() -> None:
    text = "Once upon a time"
    same, spelt = encode(text), [id_ for letter in text for id_ in encode(letter)]
    for served, flags in ((same, ("sampled_ids",)), (spelt, ("prompt_ids_differ", "sampled_ids"))):
        row = serve(served, context=text)
        assert isinstance(row, BoundedRow)
        assert row.flags == flags
    error = serve(encode("Once upon a rhyme"), context=text)
    assert isinstance(error, Rejected)
    assert (error.code, "another text than the context" in error.reason) == ("bad_ids", True)
