"""Messages of other frameworks: what a server would not see of one is refused, or in the prompt."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import config_from_mapping
from pipeline.errors import Rejected
from pipeline.examples.decisions import find_decision_points
from pipeline.examples.fields import read_continuation, read_messages
from pipeline.examples.foreign_messages import check_roles
from pipeline.examples.shapes import read_example
from pipeline.rows.builder import RowBuilder
from pipeline.rows.table import BoundedRow
from tests.conftest import ROOT
from tests.own_templates import CHATML, PLAIN_TEXT

Message = dict[str, Any]
KNOWN_ONLY = (
    "{% for m in messages %}{% if m.role in ['user', 'system', 'assistant', 'critic'] %}"
    "<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Leaves out what another role says (Qwen3)."""

TEMPLATES = {"known only": KNOWN_ONLY, "any role": CHATML, "plain": PLAIN_TEXT}
USER: Message = {"role": "user", "content": "Which ball?"}
CALL = {"type": "function", "id": "call00001", "function": {"name": "look", "arguments": {}}}


@lru_cache
def builder_with(template: str, server: str = "vllm") -> RowBuilder:
    path = Path(_folder()) / f"{template.replace(' ', '_')}.jinja"
    path.write_text(TEMPLATES[template], encoding="utf-8")
    values = {
        "input": "-",
        "output": "-",
        "tokenizer": str(ROOT / "configs" / "tokenizer"),
        "chat_template": str(path),
        "server": server,
        "end_of_turn": "<|im_end|>",
    }
    return RowBuilder(config_from_mapping(values, "test"))


@lru_cache
def _folder() -> str:
    import tempfile

    return tempfile.mkdtemp()


def build(messages: list[Message], template: str = "known only", server: str = "vllm") -> Any:
    row = {"id": "a", "messages": messages, "continuation": "Red."}
    try:
        points = find_decision_points(read_example(row, "own", "f:1"))
    except Rejected as error:
        return error
    return builder_with(template, server).build(points)[0]


def refuse(message: Message) -> Rejected:
    with pytest.raises(Rejected) as caught:
        read_messages([message], "messages")
    return caught.value


# ---- keys


@pytest.mark.parametrize(
    ("message", "key"),
    [
        ({"role": "user", "parts": [{"type": "text", "text": "Which ball?"}]}, "parts"),
        ({"role": "user", "parts": [{"type": "text", "content": "Which ball?"}]}, "parts"),
        ({"role": "user", "text": "Which ball?"}, "text"),
        ({"role": "user", "message": {"text": "Which ball?"}}, "message"),
        ({"role": "user", "value": "Which ball?", "name": "Ann"}, "value"),
        ({"role": "user", "content": None, "utterance": "Which ball?"}, "utterance"),
        ({"role": "user", "content": "", "parts": [{"text": "Which ball?"}]}, "parts"),
        ({"role": "user", "content": " \n", "id": "m1", "body": "Which ball?"}, "body"),
        ({"role": "tool", "tool_call_id": "c", "output": {"sky": "grey"}}, "output"),
        ({"role": "system", "text": ["You see."]}, "text"),
        ({"role": "assistant", "answer": "The red one."}, "answer"),
        ({"role": "assistant", "tool_calls": [], "blocks": [{"t": "Red."}]}, "blocks"),
        ({"role": "user", "content": [], "parts": [{"text": "Which ball?"}]}, "parts"),
    ],
)
def test_a_message_that_says_it_under_another_key_is_refused(message: Message, key: str) -> None:
    error = refuse(message)
    assert error.code == "missing_field"
    assert error.reason.startswith("messages[0].content: ")
    assert f"({key})" in error.reason
    assert "expected what was said in content" in error.reason


@pytest.mark.parametrize(
    "message",
    [
        USER,
        {"role": "user", "content": ""},
        {"role": "user", "content": []},
        {"role": "user", "content": "Which ball?", "parts": [{"text": "Which ball?"}], "id": "1"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "timestamp": "today"},
        {"role": "assistant", "reasoning_content": "Hm.", "model": "m"},
        {"role": "assistant", "content": None, "refusal": "No."},
        {
            "role": "tool",
            "content": "",
            "tool_call_id": "c",
            "status": "done",
            "metadata": {"a": "b"},
        },
        {"role": "user", "content": "", "parts": [], "text": None, "attachments": {}, "index": 3},
        {"role": "user", "content": [{"type": "text", "text": "", "cache_control": {"type": "e"}}]},
    ],
    ids=str,
)
def test_a_message_that_a_server_reads_whole_is_taken(message: Message) -> None:
    assert read_messages([message], "messages")


@pytest.mark.parametrize(
    "key", ["toolInvocations", "functionCall", "tool_uses", "function_calls", "toolResults"]
)
def test_calls_of_another_framework_are_named(key: str) -> None:
    error = refuse({"role": "assistant", "content": "Yes.", key: [{"name": "look"}]})
    assert (error.code, error.reason.split(":")[0]) == ("wrong_type", f"messages[0].{key}")
    assert "expected tool_calls" in error.reason
    assert read_messages([{"role": "assistant", "content": "Yes.", key: []}], "messages")


def test_the_old_form_of_calls_is_refused_in_every_shape() -> None:
    error = refuse({"role": "assistant", "content": None, "function_call": {"name": "look"}})
    assert (error.code, "the old form of tool_calls" in error.reason) == ("wrong_type", True)


@pytest.mark.parametrize("key", ["content", "value", "body"])
def test_a_part_that_keeps_its_text_elsewhere_is_refused(key: str) -> None:
    error = refuse({"role": "user", "content": [{"type": "text", key: "Which ball?"}]})
    assert error.code == "missing_field"
    assert error.reason.startswith("messages[0].content[0].text: missing")
    assert key in error.reason


@pytest.mark.parametrize("kind", ["tool_use", "tool_result", "step-start", "reasoning", "markdown"])
def test_a_part_of_an_unknown_type_is_refused(kind: str) -> None:
    parts = [{"type": "text", "text": "Which ball?"}, {"type": kind, "text": "This one."}]
    result = build([{"role": "user", "content": parts}])
    assert isinstance(result, Rejected)
    assert (result.code, kind in result.reason) == ("server_refused", True)


def test_a_continuation_is_read_by_the_same_rules() -> None:
    with pytest.raises(Rejected) as caught:
        read_continuation({"role": "assistant", "parts": [{"text": "Red."}]}, "continuation")
    assert caught.value.code == "missing_field"
    assert "(parts)" in caught.value.reason


# ---- roles


@pytest.mark.parametrize(
    ("role", "near"),
    [
        ("human", "user"),
        ("User", "user"),
        ("HumanMessage", "user"),
        ("customer", "user"),
        ("ai", "assistant"),
        ("gpt", "assistant"),
        ("Assistant", "assistant"),
        ("tool-response", "tool"),
        ("tool-call", "assistant"),
        ("SYSTEM", "system"),
        ("system_prompt", "system"),
    ],
)
def test_a_role_of_another_framework_is_named_with_the_nearest(role: str, near: str) -> None:
    error = refuse({"role": role, "content": "Which ball?"})
    assert error.code == "wrong_type"
    assert error.reason.startswith("messages[0].role: ")
    assert error.reason.endswith(f"rename it to {near}")
    assert error.excerpt == role


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("role", ["model", "observation", "tool_response", "environment"])
def test_a_role_that_some_templates_ask_for_is_refused_under_the_others(
    role: str, template: str
) -> None:
    result = build([USER, {"role": role, "content": "A ball."}, USER], template)
    assert isinstance(result, Rejected)
    assert (result.code, result.excerpt) == ("wrong_type", role)
    asks = f"{{% if m['role'] == '{role}' %}}{{{{ m.content }}}}{{% endif %}}"
    assert check_roles([{"role": role, "content": "A ball."}], asks) == []


def test_a_role_of_its_own_is_right_where_the_template_shows_it() -> None:
    messages = [USER, {"role": "referee", "content": "Play on."}, USER]
    shown, dropped = build(messages, "any role"), build(messages, "known only")
    assert isinstance(shown, BoundedRow)
    assert shown.flags == ()
    assert isinstance(dropped, Rejected)
    assert (dropped.code, dropped.excerpt) == ("wrong_type", "referee")
    assert "messages[1].role" in dropped.reason
    named = build([USER, {"role": "critic", "content": "Play on."}, USER], "known only")
    assert isinstance(named, BoundedRow)


@pytest.mark.parametrize("role", ["developer", "ipython", "tool"])
def test_a_role_that_servers_know_is_the_servers_to_place(role: str) -> None:
    # vLLM makes developer a system message where the template does not know it.
    row = build([USER, {"role": role, "content": "Look at both."}, USER])
    assert isinstance(row, BoundedRow)
    assert row.flags == (() if role == "developer" else ("message_dropped",))


def test_the_result_of_a_call_in_the_old_form_is_refused_with_its_place() -> None:
    result = build([USER, {"role": "function", "name": "look", "content": "Two."}, USER])
    assert isinstance(result, Rejected)
    assert result.code == "wrong_type"
    assert "messages[1]" in result.reason
    assert "results in messages of role tool" in result.reason


# ---- a prompt without a request


@pytest.mark.parametrize("server", ["vllm", "sglang", "plain"])
def test_a_context_without_any_text_to_answer_is_refused(server: str) -> None:
    for messages in ([{"role": "user", "content": ""}], [{"role": "user", "content": " \n"}]):
        result = build(messages, server=server)
        assert isinstance(result, Rejected)
        assert result.code == "empty_context"


@pytest.mark.parametrize("server", ["vllm", "plain"])
def test_a_context_whose_every_request_is_dropped_is_refused(server: str) -> None:
    result = build([{"role": "tool", "content": "7 degrees"}], server=server)
    assert isinstance(result, Rejected)
    assert result.code == "not_renderable"
    assert "shows no text of a user" in result.reason


# ---- whatever the keys and the roles

MARK = "Quince 4711"
ROLES = st.sampled_from(
    ["user", "human", "User", "USER", "customer", "client", "prompter", "narrator", "model", "tool"]
)
KEYS = st.sampled_from(
    [
        "content",
        "parts",
        "text",
        "message",
        "value",
        "body",
        "utterance",
        "input",
        "contents",
        "msg",
    ]
)
WRAPS = st.sampled_from(
    [
        lambda text: text,
        lambda text: [{"type": "text", "text": text}],
        lambda text: [{"type": "text", "content": text}],
        lambda text: [{"text": text}],
        lambda text: {"text": text},
        lambda text: {"content": {"parts": [text]}},
        lambda text: [text],
    ]
)


@given(
    ROLES,
    KEYS,
    WRAPS,
    st.dictionaries(KEYS, st.sampled_from([None, "", [], {}]), max_size=3),
    st.sampled_from(sorted(TEMPLATES)),
    st.sampled_from(["vllm", "sglang", "plain"]),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_the_users_words_are_in_the_prompt_or_the_row_is_refused(
    role: str, key: str, wrap: Any, other: Message, template: str, server: str, has_id: bool
) -> None:
    message = {"role": role, **other, key: wrap(MARK)}
    row = {"messages": [message, {"role": "assistant", "content": "Red."}]}
    row |= {"id": "a"} if has_id else {}
    builder = builder_with(template, server)
    try:
        points = find_decision_points(read_example(row, "auto", "f:1"))
        (result,) = builder.build(points)
    except Rejected:
        return
    if isinstance(result, BoundedRow):
        assert MARK in builder.encoder.decode(result.input_ids[: result.context_len])
