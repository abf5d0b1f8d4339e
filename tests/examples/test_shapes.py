"""Each documented shape becomes the example that its documentation means, or is refused by name."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.config import PrepareConfig
from pipeline.errors import Rejected, UsageError
from pipeline.examples.example import TrainingExample
from pipeline.examples.shapes import FORMATS, KNOWN_KEYS, read_example, recognise_format
from pipeline.prompt.chat_template import ChatTemplates
from pipeline.prompt.dialects import load_dialect
from pipeline.prompt.request import ChatRequest
from pipeline.rows.builder import RowBuilder
from pipeline.types import REJECT_CODES

Row = dict[str, Any]

HERE = "logs.jsonl:7"
DOCS = Path(__file__).resolve().parents[2] / "docs" / "formats.md"


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def assistant(text: str | None, **more: Any) -> Row:
    return {"role": "assistant", "content": text, **more}


def call(name: str, arguments: Any) -> Row:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


CHAT = [user("Hi"), assistant("Hello"), user("Bye"), assistant("So long")]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}

# One minimal row of every shape, with what it must become.
MINIMAL: list[tuple[str, Row]] = [
    ("own", {"id": "a", "context": "2+2=", "continuation": "4"}),
    ("own", {"id": "a", "messages": CHAT}),
    ("own", {"id": "a", "messages": CHAT, "decision_idx": 1, "continuation": "Hey"}),
    ("own", {"id": "a", "messages": CHAT[:3], "continuations": ["a", "b"]}),
    ("own", {"id": "a", "messages": CHAT[:3], "chosen": "a", "rejected": "b"}),
    ("own", {"id": "a", "messages": CHAT[:3], "continuation_ids": [5, 6]}),
    ("own", {"id": "a", "context_ids": [1, 2], "continuation_ids": [5, 6]}),
    ("pairs", {"id": "a", "context": CHAT[:3], "better": "a", "worse": "b"}),
    ("openai", {"messages": CHAT}),
    ("openai", {"messages": CHAT, "tools": [WEATHER], "parallel_tool_calls": False}),
    (
        "openai_log",
        {
            "request": {"messages": CHAT[:1]},
            "response": {"choices": [{"index": 0, "message": assistant("Hello")}]},
        },
    ),
    (
        "openai_log",
        {
            "id": "batch_req_1",
            "custom_id": "one",
            "body": {"messages": CHAT[:1]},
            "response": {
                "status_code": 200,
                "body": {"choices": [{"message": assistant("Hello"), "finish_reason": "stop"}]},
            },
            "error": None,
        },
    ),
    ("trl", {"prompt": "The sky is", "completion": " blue."}),
    ("trl", {"prompt": CHAT[:1], "completion": CHAT[1:2]}),
    ("trl", {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}),
    ("trl", {"chosen": CHAT[:2], "rejected": [*CHAT[:1], assistant("Go away")]}),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    ),
    (
        "sharegpt",
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Hello"},
            "rejected": {"from": "gpt", "value": "Go away"},
        },
    ),
    ("alpaca", {"instruction": "Add.", "input": "2 3", "output": "5"}),
    ("alpaca", {"instruction": "Add 2 and 3.", "chosen": "5", "rejected": "6"}),
]


def read(row: Row, format: str | None = None) -> TrainingExample:
    return read_example(row, format or recognise_format(row), HERE)


def refuse(row: Row, format: str | None = None) -> Rejected:
    with pytest.raises(Rejected) as caught:
        read(row, format)
    assert caught.value.code in REJECT_CODES
    return caught.value


def context_of(example: TrainingExample) -> Any:
    return example.context if example.messages is None else example.messages[: example.decision_idx]


def null_filled(rows: list[Row]) -> list[Row]:
    """Return the rows as Arrow gives them back: every absent key null, at every depth."""
    import pyarrow as pa

    return pa.array(rows).to_pylist()


# ---- recognition


@pytest.mark.parametrize(("name", "row"), MINIMAL, ids=lambda value: str(value)[:60])
def test_a_minimal_row_of_each_shape_is_recognised_and_read(name: str, row: Row) -> None:
    assert recognise_format(row) == name
    example = read(row)
    assert example.continuation or example.continuation_ids
    assert example.id == row.get("custom_id", row.get("id", HERE))


@given(data=st.data())
def test_no_row_of_one_shape_is_taken_for_another(data: st.DataObject) -> None:
    name, row = data.draw(st.sampled_from(MINIMAL))
    foreign = data.draw(st.dictionaries(st.text(min_size=1), st.integers() | st.none(), max_size=4))
    noise = {key: value for key, value in foreign.items() if key not in KNOWN_KEYS}
    nulls = dict.fromkeys(data.draw(st.sets(st.sampled_from(sorted(KNOWN_KEYS)))))
    keys = data.draw(st.permutations(sorted({**nulls, **noise, **row})))
    filled = {**nulls, **noise, **row}
    assert recognise_format({key: filled[key] for key in keys}) == name


@given(st.sets(st.sampled_from(sorted(KNOWN_KEYS))))
def test_any_set_of_keys_has_one_shape_or_is_refused(keys: set[str]) -> None:
    row = dict.fromkeys(keys, 1)
    fits = [
        name
        for name, each in FORMATS.items()
        if any(s.is_shown_by(frozenset(keys)) for s in each.signs)
    ]
    if len(fits) == 1:
        assert recognise_format(row) == fits[0]
    else:
        code = "ambiguous_shape" if fits else "missing_field"
        with pytest.raises(Rejected, match=code):
            recognise_format(row)


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({"id": "a", "context": "x", "continuation": "y", "better": "z"}, ["own", "pairs"]),
        ({"prompt": "p", "completion": "c", "instruction": "i", "output": "o"}, ["trl", "alpaca"]),
        # Ultrafeedback's columns: a pair beside the conversation of its better half.
        (
            {"prompt": "p", "chosen": CHAT, "rejected": CHAT, "messages": CHAT},
            ["own", "trl"],
        ),
        ({"messages": CHAT, "conversations": []}, ["openai", "sharegpt"]),
    ],
)
def test_a_row_that_fits_two_shapes_is_refused_with_both_names(row: Row, names: list[str]) -> None:
    with pytest.raises(Rejected) as caught:
        recognise_format(row)
    assert caught.value.code == "ambiguous_shape"
    assert all(name in caught.value.reason for name in (*names, "format:"))


@pytest.mark.parametrize("row", [{}, {"text": "one long text"}, {"id": "a"}])
def test_a_row_of_no_shape_is_refused_with_every_shape_that_was_expected(row: Row) -> None:
    with pytest.raises(Rejected) as caught:
        recognise_format(row)
    assert caught.value.code == "missing_field"
    assert all(name in caught.value.reason for name in FORMATS)


def test_an_unknown_format_is_a_usage_error_that_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'jsonl'.*own.*alpaca"):
        read_example({}, "jsonl", HERE)


# ---- what each shape becomes


def test_pairs_keep_the_worse_answer_beside_the_better_one() -> None:
    row = {"id": "p", "context": CHAT[:3], "better": "Bye!", "worse": "No.", "reason": "rude"}
    example = read(row)
    assert (context_of(example), example.continuation) == (CHAT[:3], "Bye!")
    assert (example.rejected, example.reason) == ("No.", "rude")


def test_a_message_of_weight_0_is_passed_over_and_never_reaches_a_template() -> None:
    row = {"messages": [CHAT[0], CHAT[1], CHAT[2], {**CHAT[3], "weight": 0}]}
    example = read(row)
    assert example.decision_idx == 1
    assert example.message_weights == [1.0, 1.0, 1.0, 0.0]
    assert example.messages == CHAT


def test_weights_that_leave_nothing_out_are_no_weights() -> None:
    weighted = [
        {**user("Hi"), "weight": 0},
        assistant("Hello", weight=1),
        assistant("x", weight=None),
    ]
    assert read({"messages": weighted}).message_weights is None


def test_a_logged_call_is_context_and_answer_with_what_the_template_was_given() -> None:
    answer = assistant(None, reasoning="hm", tool_calls=[call("weather", "{}")], refusal=None)
    row = {
        "request": {
            "model": "m",
            "messages": CHAT[:3],
            "tools": [WEATHER],
            "reasoning_effort": "low",
            "temperature": 0.7,
        },
        "response": {
            "id": "chatcmpl-1",
            "choices": [{"message": {**answer, "annotations": []}, "finish_reason": "tool_calls"}],
        },
    }
    example = read(row)
    assert example.id == HERE
    assert (context_of(example), example.tools) == (CHAT[:3], [WEATHER])
    kept = {key: answer[key] for key in ("role", "content", "reasoning", "tool_calls")}
    assert example.continuation == kept
    assert example.chat_template_kwargs == {"enable_thinking": True, "reasoning_effort": "low"}


def test_a_log_keeps_the_ids_that_the_server_saw_and_sampled() -> None:
    row = {
        "messages": CHAT[:1],
        "prompt_token_ids": [1, 2, 3],
        "choices": [{"message": assistant("Hello"), "token_ids": [7, 8]}],
    }
    example = read(row)
    assert (example.context_ids, example.continuation_ids) == ([1, 2, 3], [7, 8])
    assert example.continuation == assistant("Hello")


def test_several_choices_are_several_continuations_of_one_context() -> None:
    choices = [
        {"message": assistant("Hello"), "token_ids": [7, 8]},
        {"message": assistant("Hey"), "token_ids": [9]},
    ]
    example = read({"request": {"messages": CHAT[:1]}, "response": {"choices": choices}})
    assert example.continuations == [assistant("Hello"), assistant("Hey")]
    assert example.continuations_ids == [[7, 8], [9]]
    assert example.continuation == assistant("Hello")


def test_a_logged_completion_has_a_raw_prompt_or_its_ids() -> None:
    answer = {"choices": [{"text": " 4", "prompt_token_ids": None, "token_ids": None}]}
    text = read({"request": {"prompt": "2+2="}, "response": answer})
    assert (text.context, text.continuation) == ("2+2=", " 4")
    ids = read({"request": {"prompt": [5, 6]}, "response": answer})
    assert (ids.context, ids.context_ids, ids.continuation) == (None, [5, 6], " 4")


def test_an_answer_after_a_turn_of_the_model_is_read_with_all_of_the_request_before_it() -> None:
    row = {
        "request": {"messages": CHAT[:2]},
        "response": {"choices": [{"message": assistant("!")}]},
    }
    assert context_of(read(row)) == CHAT[:2]


def test_turns_of_a_trl_prompt_are_no_decision_points_and_those_of_its_completion_are() -> None:
    completion = [assistant("", tool_calls=[call("f", {})]), {"role": "tool", "content": "1"}]
    row = {"prompt": CHAT[:3], "completion": [*completion, assistant("One")], "tools": "[]"}
    example = read(row)
    assert example.message_weights == [1.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    assert (example.decision_idx, example.continuation) == (5, assistant("One"))
    assert example.tools is None


def test_a_trl_prompt_that_is_text_never_meets_a_template() -> None:
    example = read({"prompt": "The sky is", "completion": " blue."})
    assert (example.context, example.messages) == ("The sky is", None)


def test_without_a_prompt_the_common_beginning_of_a_pair_is_the_context() -> None:
    worse = [*CHAT[:3], assistant("No.")]
    # A prompt in another form is left alone, as TRL leaves it.
    for extra in ({}, {"prompt": "Bye"}):
        example = read({"chosen": CHAT, "rejected": worse, **extra})
        assert context_of(example) == CHAT[:3]
        assert (example.continuation, example.rejected) == (CHAT[3], worse[3])


def test_trl_takes_the_pair_where_a_row_also_has_its_conversation() -> None:
    row = {
        "prompt": CHAT[:1],
        "chosen": CHAT[1:2],
        "rejected": [assistant("?")],
        "messages": CHAT[:2],
    }
    example = read(row, "trl")
    assert (context_of(example), example.rejected) == (CHAT[:1], assistant("?"))


def test_sharegpt_roles_become_openai_roles() -> None:
    spoken = json.dumps({"name": "weather", "arguments": {"city": "Oslo", "days": 1.0}})
    turns = [
        ("human", "Weather?"),
        ("function_call", spoken),
        ("observation", "rain"),
        ("gpt", "Rain."),
    ]
    row = {
        "id": 3,
        "system": "Be brief.",
        "tools": json.dumps([{"name": "weather", "parameters": {"type": "object"}}]),
        "conversations": [{"from": speaker, "value": value} for speaker, value in turns],
    }
    example = read(row)
    assert example.id == "3"
    assert example.tools == [WEATHER]
    assert example.messages == [
        {"role": "system", "content": "Be brief."},
        user("Weather?"),
        assistant("", tool_calls=[call("weather", {"city": "Oslo", "days": 1.0})]),
        {"role": "tool", "content": "rain"},
        assistant("Rain."),
    ]
    assert example.decision_idx == 4


def test_a_system_turn_that_says_the_system_column_stands_once() -> None:
    turns = [("system", "Turn"), ("human", "Hi"), ("gpt", "Hello")]
    row = {
        "system": "Turn",
        "tools": "",
        "conversations": [{"from": speaker, "value": value} for speaker, value in turns],
    }
    example = read(row)
    assert [message["content"] for message in example.messages or []] == ["Turn", "Hi", "Hello"]
    assert example.tools is None


def test_alpaca_joins_instruction_and_input_and_keeps_its_history_as_decision_points() -> None:
    row = {
        "instruction": "Add.",
        "input": "2 3",
        "output": " 5",
        "system": "Be exact.",
        "history": [["Hi", "Hello"]],
    }
    example = read(row)
    assert example.messages == [
        {"role": "system", "content": "Be exact."},
        user("Hi"),
        assistant("Hello"),
        user("Add.\n2 3"),
        assistant(" 5"),
    ]
    assert (example.decision_idx, example.continuation) == (4, " 5")
    assert example.message_weights is None


def test_an_alpaca_row_without_input_has_no_newline_after_its_instruction() -> None:
    assert context_of(read({"instruction": "Add.", "input": "", "output": "5"})) == [user("Add.")]


@pytest.mark.parametrize(("name", "row"), MINIMAL, ids=lambda value: str(value)[:60])
def test_foreign_keys_change_nothing(name: str, row: Row) -> None:
    assert read({**row, "score": 0.5, "meta": {"x": None}}) == read(row)


# ---- refusals


@pytest.mark.parametrize(
    ("format", "row", "code", "words"),
    [
        ("own", {"id": "a", "context": "x", "continuation": ["y"]}, "wrong_type", "continuation:"),
        ("own", {"id": "a", "context": "x", "continuations": []}, "empty_continuation", "list"),
        (
            "own",
            {"id": "a", "context": "x", "continuations": ["y", ""]},
            "empty_continuation",
            "continuations[1]",
        ),
        ("own", {"id": "a", "context": "x", "continuations": "y"}, "wrong_type", "a list"),
        (
            "own",
            {"id": "a", "context": "x", "continuation": "y", "chosen": "z"},
            "ambiguous_shape",
            "continuation and chosen",
        ),
        ("own", {"id": "a", "context": "x", "rejected": "y"}, "missing_field", "continuation:"),
        (
            "own",
            {"id": "a", "messages": "not JSON"},
            "wrong_type",
            "messages: its text is not JSON",
        ),
        ("own", {"id": "a", "messages": "5"}, "wrong_type", "messages: expected a list"),
        ("pairs", {"id": "a", "context": "x", "worse": "y"}, "missing_field", "better: missing"),
        ("pairs", {"id": "a", "context": "x", "better": ""}, "empty_continuation", "better:"),
        (
            "pairs",
            {"id": "a", "context": "x", "better": "y", "rejected": "z"},
            "ambiguous_shape",
            "better and rejected",
        ),
        ("openai", {"tools": []}, "missing_field", "messages: missing"),
        ("openai", {"messages": [user("Hi")]}, "missing_field", "no message is the assistant's"),
        (
            "openai",
            {"messages": [user("Hi"), assistant("Hello", weight=0)]},
            "missing_field",
            "weight other than 0",
        ),
        (
            "openai",
            {"messages": [user("Hi"), assistant("Hello", weight=0.5)]},
            "wrong_type",
            "messages[1].weight: expected 0 or 1",
        ),
        (
            "openai",
            {"messages": [user("Hi"), assistant(None, function_call={"name": "f"})]},
            "wrong_type",
            "messages[1]: a function_call",
        ),
        ("openai", {"messages": CHAT, "images": ["a.png"]}, "unsupported_content", "images:"),
        (
            "openai_log",
            {"custom_id": "a", "response": {"body": {"choices": [{"message": assistant("x")}]}}},
            "missing_field",
            "join it with its input line by custom_id",
        ),
        (
            "openai_log",
            {"custom_id": "a", "response": None, "error": {"code": "batch_expired"}},
            "missing_field",
            "the call failed",
        ),
        (
            "openai_log",
            {"request": {"messages": CHAT[:1]}, "response": {"status_code": 429, "body": {}}},
            "missing_field",
            "the call failed",
        ),
        ("openai_log", {"messages": CHAT, "response": ["text"]}, "wrong_type", "response:"),
        ("openai_log", {"messages": CHAT, "response": {}}, "missing_field", "choices: missing"),
        ("openai_log", {"messages": CHAT, "choices": []}, "wrong_type", "choices:"),
        ("openai_log", {"messages": CHAT, "choices": [{}]}, "missing_field", "text: missing"),
        (
            "openai_log",
            {
                "messages": CHAT[:1],
                "choices": [{"message": assistant("x"), "finish_reason": "length"}],
            },
            "no_end_of_turn",
            "choices[0].finish_reason: length",
        ),
        (
            "openai_log",
            {"messages": CHAT[:1], "choices": [{"message": assistant(None, refusal="No")}]},
            "empty_continuation",
            "choices[0].message",
        ),
        (
            "openai_log",
            {"messages": CHAT[:1], "choices": [{"message": assistant(None, audio={"id": "a"})}]},
            "unsupported_content",
            "audio",
        ),
        (
            "openai_log",
            {
                "messages": CHAT[:1],
                "continue_final_message": True,
                "choices": [{"message": assistant("x")}],
            },
            "not_renderable",
            "request.continue_final_message",
        ),
        (
            "openai_log",
            {"messages": CHAT[:1], "choices": [{"message": assistant("x"), "token_ids": [True]}]},
            "bad_ids",
            "continuation_ids",
        ),
        ("trl", {"text": "all of it"}, "missing_field", "completion: missing"),
        ("trl", {"prompt": "p"}, "missing_field", "completion: missing"),
        ("trl", {"completion": "c"}, "missing_field", "prompt: missing"),
        ("trl", {"prompt": "", "completion": "c"}, "empty_context", "prompt:"),
        ("trl", {"prompt": "p", "completion": ""}, "empty_continuation", "completion:"),
        (
            "trl",
            {"prompt": "p", "completion": CHAT[1:2]},
            "wrong_type",
            "completion: expected text",
        ),
        ("trl", {"prompt": CHAT[:1], "completion": CHAT[:1]}, "missing_field", "the assistant's"),
        ("trl", {"prompt": "p", "chosen": "c"}, "missing_field", "rejected: missing"),
        ("trl", {"chosen": "a b", "rejected": "a c"}, "missing_field", "prompt: missing"),
        ("trl", {"chosen": CHAT[1:2], "rejected": CHAT[1:2]}, "missing_field", "prompt: missing"),
        (
            "trl",
            {"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": CHAT[1:2]},
            "wrong_type",
            "chosen",
        ),
        (
            "trl",
            {"prompt": "p", "completion": "c", "label": False},
            "missing_field",
            "label: false",
        ),
        ("sharegpt", {"system": "x"}, "missing_field", "conversations: missing"),
        ("sharegpt", {"conversations": []}, "wrong_type", "conversations:"),
        ("sharegpt", {"conversations": ["Hi"]}, "wrong_type", "conversations[0]"),
        ("sharegpt", {"conversations": [{"value": "x"}]}, "missing_field", "conversations[0].from"),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": 3}]},
            "wrong_type",
            "conversations[0].value",
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "narrator", "value": "x"}]},
            "wrong_type",
            "conversations[0].from: expected one of human",
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "x"}]},
            "missing_field",
            "no turn is the model's",
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "function_call", "value": "weather()"}]},
            "wrong_type",
            "conversations[0].value: its text is not JSON",
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "function_call", "value": '{"name": "f"}'}]},
            "wrong_type",
            "name and arguments",
        ),
        (
            "sharegpt",
            {
                "conversations": [{"from": "human", "value": "x"}],
                "chosen": {"from": "human", "value": "y"},
                "rejected": {"from": "gpt", "value": "z"},
            },
            "wrong_type",
            "chosen.from",
        ),
        ("alpaca", {"output": "x"}, "missing_field", "instruction: missing"),
        ("alpaca", {"instruction": "x"}, "missing_field", "output: missing"),
        ("alpaca", {"instruction": "x", "output": ""}, "empty_continuation", "output:"),
        ("alpaca", {"instruction": "x", "chosen": "y"}, "missing_field", "rejected: missing"),
        (
            "alpaca",
            {"instruction": "x", "output": "y", "history": [["only one"]]},
            "wrong_type",
            "history[0]",
        ),
        (
            "alpaca",
            {"instruction": "x", "output": "y", "kto_tag": False},
            "missing_field",
            "kto_tag: false",
        ),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_refusal_names_the_field_as_the_row_has_it(
    format: str, row: Row, code: str, words: str
) -> None:
    error = refuse(row, format)
    assert (error.code, words in error.reason) == (code, True), str(error)


@pytest.mark.parametrize("field", ["context_ids", "continuation_ids"])
@pytest.mark.parametrize("ids", [[], [True], [-1], [2**31], [1.0], ["1"], [None], "12", 5])
def test_ids_that_no_vocabulary_has_are_refused(field: str, ids: Any) -> None:
    row = {"id": "a", "messages": CHAT[:1], "continuation": "x", field: ids}
    error = refuse(row, "own")
    assert (error.code, field in error.reason) == ("bad_ids", True)


def test_as_many_lists_of_ids_as_continuations_are_expected() -> None:
    row = {"id": "a", "context": "x", "continuations": ["y", "z"], "continuations_ids": [[1]]}
    assert refuse(row).code == "bad_ids"


# ---- content that is not text


@pytest.fixture(scope="module")
def builder(bundled_tokenizer: Path) -> RowBuilder:
    config = PrepareConfig(input=("-",), tokenizer=str(bundled_tokenizer), output="-")
    return RowBuilder(config)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
        {"type": "file", "file": {"file_id": "f"}},
    ],
    ids=lambda part: part["type"],
)
@pytest.mark.parametrize("server", ["vllm", "sglang"])
def test_parts_that_are_not_text_pass_the_adapters_and_are_refused_by_the_server(
    part: Row, server: str, builder: RowBuilder
) -> None:
    question = {"role": "user", "content": [{"type": "text", "text": "What?"}, part]}
    example = read({"messages": [question, assistant("A cat.")]})
    assert context_of(example) == [question]
    dialect = load_dialect(server, {}, None)
    templates: ChatTemplates = builder.templates
    with pytest.raises(Rejected) as caught:
        dialect.render_prompt(ChatRequest(context_of(example)), templates)
    # SGLang knows no part called file, so it says that rather than what a file is.
    unknown = server == "sglang" and part["type"] == "file"
    assert caught.value.code == ("server_refused" if unknown else "unsupported_content")


# ---- nulls of Arrow


def test_rows_that_went_through_arrow_give_the_examples_they_gave_before() -> None:
    search = {"name": "search", "parameters": {"properties": {"q": {"type": "string"}}}}
    move = {"name": "move", "parameters": {"properties": {"x": {"enum": [1]}}, "required": ["x"]}}
    rows: list[Row] = [
        {
            "id": "a",
            "messages": [user("Hi"), assistant("", tool_calls=[call("search", "{}")])],
            "tools": [{"type": "function", "function": search}],
            "chat_template_kwargs": {"enable_thinking": False},
        },
        {
            "id": "b",
            "messages": [user("Go"), {"role": "tool", "content": "1", "name": "move"}, *CHAT],
            "tools": [{"type": "function", "function": move}],
            "decision_idx": 3,
            "continuation": "Hey",
            "weight": 0.5,
        },
    ]
    filled = null_filled(rows)
    assert filled != rows
    for before, after in zip(rows, filled, strict=True):
        assert recognise_format(after) == recognise_format(before) == "own"
        assert read(after) == read(before)


def test_a_null_filled_row_of_each_shape_reads_as_it_did() -> None:
    for name, row in MINIMAL:
        filled = null_filled([row, {**row, "extra": 1}])[0]
        assert read(filled, name) == read(row, name)


# ---- our own shape there and back


CONTINUATIONS = st.text(min_size=1) | st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": st.text()}
)
IDS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5)
MESSAGES = st.lists(
    st.sampled_from(
        [user("u"), assistant("a"), assistant("b", weight=0), assistant("c", weight=1)]
    ),
    min_size=1,
    max_size=5,
).map(lambda messages: [user("first"), *messages])


@st.composite
def own_rows(draw: st.DrawFn) -> Row:
    """Draw rows of our own shape in every form that is right."""
    row: Row = {"id": draw(st.text(min_size=1))}
    context = draw(st.sampled_from(["text", "list", "messages", "ids"]))
    if context == "text":
        row["context"] = draw(st.text(min_size=1))
    elif context != "ids":
        row["context" if context == "list" else "messages"] = draw(MESSAGES)
    if context == "ids" or draw(st.booleans()):
        row["context_ids"] = draw(IDS)
    kind = draw(st.sampled_from(["continuation", "chosen", "continuations", "continuation_ids"]))
    if kind == "continuations":
        row[kind] = draw(st.lists(CONTINUATIONS, min_size=1, max_size=3))
        if draw(st.booleans()):
            row["continuations_ids"] = [draw(IDS) for _ in row[kind]]
    else:
        row[kind] = draw(IDS if kind == "continuation_ids" else CONTINUATIONS)
    if context == "messages":
        row["decision_idx"] = len(row["messages"])
    return row | draw(
        st.fixed_dictionaries(
            {},
            optional={
                "rejected": CONTINUATIONS,
                "reason": st.text(),
                "memories": st.lists(st.text()),
                "weight": st.floats(0, 100),
                "tools": st.just([WEATHER]),
                "chat_template_kwargs": st.just({"enable_thinking": False}),
            },
        )
    )


@given(own_rows())
def test_an_example_written_and_read_again_is_the_same(row: Row) -> None:
    answers = row.get("continuations", [row.get("continuation", row.get("chosen"))])
    better = [each["content"] if isinstance(each, dict) else each for each in answers]
    worse = row.get("rejected")
    assume((worse["content"] if isinstance(worse, dict) else worse) not in better)
    example = TrainingExample.from_dict(row)
    written = json.loads(json.dumps(example.to_dict()))
    assert TrainingExample.from_dict(written) == example
    assert recognise_format(written) == "own"


@pytest.mark.parametrize(("name", "row"), MINIMAL, ids=lambda value: str(value)[:60])
def test_the_example_of_any_shape_can_be_saved_as_our_own(name: str, row: Row) -> None:
    example = read(row, name)
    assert TrainingExample.from_dict(example.to_dict()) == example


def test_ids_alone_are_an_example() -> None:
    example = TrainingExample.from_dict({"id": "a", "context_ids": [1, 2], "continuation_ids": [3]})
    assert (example.context, example.messages, example.continuation) == (None, None, "")


def test_sampled_ids_of_a_conversation_are_those_of_its_last_answer() -> None:
    example = TrainingExample.from_dict({"id": "a", "messages": CHAT, "continuation_ids": [3]})
    assert (example.decision_idx, example.continuation) == (3, CHAT[3])
    stopped = TrainingExample.from_dict({"id": "a", "messages": CHAT[:3], "continuation_ids": [3]})
    assert (stopped.decision_idx, stopped.continuation) == (3, "")
    named = TrainingExample.from_dict({"id": "a", "context": CHAT, "continuation_ids": [3]})
    assert (named.decision_idx, named.continuation) == (4, "")


def test_messages_and_tools_may_be_json_text_as_tables_keep_them() -> None:
    row = {"id": "a", "messages": json.dumps(CHAT), "tools": json.dumps([WEATHER])}
    assert read(row) == read({"id": "a", "messages": CHAT, "tools": [WEATHER]})


# ---- the page


def test_every_example_line_of_the_page_is_of_the_shape_that_its_heading_names() -> None:
    format, lines = "", 0
    for line in DOCS.read_text(encoding="utf-8").splitlines():
        if line.startswith("## `"):
            format = line.split("`")[1]
        elif line.startswith("{"):
            row = json.loads(line)
            lines += 1
            assert recognise_format(row) == format, line
            example = read(row)
            assert example.continuation or example.continuation_ids
    assert lines >= len(FORMATS)
    assert all(f"## `{name}`" in DOCS.read_text(encoding="utf-8") for name in FORMATS)


# ---- real files


def lines_of(path: Path) -> list[Row]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_every_real_conversation_is_read_as_our_own(shared: Path) -> None:
    files = sorted((shared / "assets" / "data").glob("*.jsonl.gz"))
    count = 0
    for file in files:
        if file.name.startswith("dpo_pairs"):
            continue
        for row in lines_of(file):
            if not any(message["role"] == "assistant" for message in row["messages"]):
                continue
            assert recognise_format(row) == "own"
            example = read(row)
            assert example.messages == row["messages"]
            without_id = {key: value for key, value in row.items() if key != "id"}
            assert read(without_id, "openai").messages == example.messages
            count += 1
    assert count > 25_000


def test_real_tool_schemas_reach_the_template_as_the_server_got_them(shared: Path) -> None:
    for name in ("bfcl_v4", "tau_airline_gpt4o", "glaive_toolcall_en_zh"):
        for row in lines_of(shared / "assets" / "data" / f"{name}.jsonl.gz"):
            assert read(row).tools == (row["tools"] or None)


def test_the_real_pairs_are_read_whole(shared: Path) -> None:
    rows = lines_of(shared / "assets" / "data" / "dpo_pairs_en_zh.jsonl.gz")
    assert len(rows) == 600
    for row in rows:
        example = read(row)
        assert recognise_format(row) == "pairs"
        assert context_of(example) == row["context"]
        assert (example.continuation, example.rejected) == (row["better"], row["worse"])


def test_real_null_filled_rows_read_as_the_rows_that_they_were(shared: Path) -> None:
    data = shared / "assets" / "data"
    raw = json.loads(
        gzip.decompress((data / "swe_gym_openhands_arrow_nulls.raw.json.gz").read_bytes())
    )
    original = {
        row["messages"][1]["content"]: row for row in lines_of(data / "swe_gym_openhands.jsonl.gz")
    }
    for row in raw:
        assert recognise_format(row) == "openai"
        example = read(row)
        assert not list(nulls_in(example.messages, "content"))
        assert not list(nulls_in(example.tools, "default"))
        twin = original[row["messages"][1]["content"]]
        assert example.tools == twin["tools"]
        assert [message["role"] for message in example.messages or []] == [
            message["role"] for message in twin["messages"]
        ]


def nulls_in(value: Any, but: str) -> Any:
    """Yield the key of every null, but those under the key ``but``."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            if part is None and key != but:
                yield key
            yield from nulls_in(part, but)
    elif isinstance(value, list):
        for part in value:
            yield from nulls_in(part, but)
