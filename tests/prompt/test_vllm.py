"""``server: vllm``: settings, refusals and what no golden answer shows (see ``tests/parity``)."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Rejected, UsageError
from pipeline.prompt.chat_template import ChatTemplates
from pipeline.prompt.dialects import load_dialect
from pipeline.prompt.request import ChatRequest, Rendering, SharedWork
from pipeline.prompt.vllm import VllmDialect
from pipeline.prompt.vllm_messages import rewrite_message, rewrite_messages, rewrite_text
from pipeline.prompt.vllm_versions import VllmRules

AS_TEXT = "{{ messages | tojson }}{{ tools | tojson }}"
AS_PARTS = "{% for m in messages %}{% for p in m.content %}{% endfor %}{% endfor %}" + AS_TEXT
TOOL = {"type": "function", "function": {"name": "f"}}


def make_templates(source: str) -> ChatTemplates:
    return ChatTemplates({"default": source}, {})


def render(
    messages: Any,
    template: str = AS_TEXT,
    tools: Any = None,
    kwargs: Any = None,
    **options: Any,
) -> Rendering:
    dialect = VllmDialect.from_options(options, "qwen2")
    request = ChatRequest(messages, tools, {} if kwargs is None else kwargs)
    return dialect.render_prompt(request, make_templates(template))


def user(content: Any = "x") -> dict[str, Any]:
    return {"role": "user", "content": content}


def answer_with(*calls: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": list(calls)}


def call(arguments: Any = "{}", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "arguments": arguments}, **more}


# Settings


def test_the_content_form_can_be_set_against_the_template() -> None:
    assert '"content": "x"' in render([user()], AS_PARTS, content_format="string").text
    assert '"content": [{' in render([user()], AS_TEXT, content_format="openai").text


def test_tools_are_hidden_only_where_the_server_excludes_them_and_no_choice_was_given() -> None:
    hidden = {"exclude_tools_when_tool_choice_none": True, "tool_choice": "none"}
    assert render([user()], tools=[TOOL], **hidden).text.endswith("null")
    assert '"name": "f"' in render([user()], tools=[TOOL], tool_choice="none").text
    excluded = {"exclude_tools_when_tool_choice_none": True}
    assert '"name": "f"' in render([user()], tools=[TOOL], **excluded).text


def test_a_servers_default_kwargs_give_way_to_the_requests() -> None:
    defaults = {"colour": "red", "size": "big"}
    kwargs = {"colour": "blue", "size": None}
    shown = render(
        [user()], "{{ colour }} {{ size }}", kwargs=kwargs, default_chat_template_kwargs=defaults
    )
    assert shown.text == "blue big"


def test_a_template_in_the_kwargs_is_refused() -> None:
    with pytest.raises(Rejected, match="chat_template: FILE"):
        render([user()], kwargs={"chat_template": "x"})


def test_tools_pick_the_template_for_tools() -> None:
    templates = ChatTemplates({"default": "plain", "tool_use": "with tools"}, {})
    dialect = VllmDialect()
    assert dialect.render_prompt(ChatRequest([user()]), templates).text == "plain"
    assert dialect.render_prompt(ChatRequest([user()], []), templates).text == "plain"
    assert dialect.render_prompt(ChatRequest([user()], [TOOL]), templates).text == "with tools"


def test_a_turn_is_rendered_without_a_generation_prompt() -> None:
    template = AS_TEXT + "{% if add_generation_prompt %}PROMPT{% endif %}"
    request = ChatRequest([user(), {"role": "assistant", "content": "y"}])
    dialect = VllmDialect()
    assert dialect.render_prompt(request, make_templates(template)).text.endswith("PROMPT")
    turn = dialect.render_turn(request, make_templates(template))
    assert turn.text.endswith('"y"}]null')


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"content_formt": "string"}, "did you mean content_format"),
        ({"content_format": "parts"}, "expected auto, string, openai"),
        ({"exclude_tools_when_tool_choice_none": "yes"}, "expected true or false"),
        ({"default_chat_template_kwargs": [1]}, "expected names with values"),
        ({"default_chat_template_kwargs": {1: 2}}, "expected names with values"),
        ({"reasoning_effort": "extreme"}, "expected none, minimal, low"),
        ({"fixed_date": "25.11.2026"}, "expected YYYY-MM-DD"),
        ({"tool_choice": {"name": "f"}}, "expected auto, required, none"),
    ],
)
def test_a_wrong_option_is_named_with_what_was_expected(
    options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words) as error:
        VllmDialect.from_options(options, None)
    assert f"server_options.{next(iter(options))}" in str(error.value)


def test_a_dialect_travels_to_worker_processes() -> None:
    options = {"fixed_date": "2026-11-25", "default_chat_template_kwargs": {"a": [1]}}
    dialect = load_dialect("vllm", options, "qwen2")
    assert pickle.loads(pickle.dumps(dialect)) == dialect  # noqa: S301
    assert (dialect.name, dialect.version) == ("vllm", "0.33.0")


# Models without Jinja


@pytest.mark.parametrize(
    ("model_type", "renderer"),
    [
        ("deepseek_v32", "deepseek_v32 renderer"),
        ("deepseek_v4", "deepseek_v4 renderer"),
        ("deepseek_v41", "deepseek_v41 renderer"),
        ("kimi_k3", "kimi_k3 renderer"),
        ("inkling_mm_model", "inkling renderer"),
        ("kimi_audio", "kimi_audio tokenizer"),
        ("alpamayo2_super", "alpamayo2_super tokenizer"),
    ],
)
def test_a_model_that_vllm_renders_itself_is_refused_with_a_way_out(
    model_type: str, renderer: str
) -> None:
    with pytest.raises(UsageError, match=f"'{model_type}'.*{renderer}.*server: plain"):
        VllmDialect.from_options({}, model_type)
    assert isinstance(VllmDialect.from_options({"tokenizer_mode": "hf"}, model_type), VllmDialect)


@pytest.mark.parametrize("file", ["tekken.json", "tokenizer.model.v3"])
def test_a_mistral_repository_is_known_by_its_files(tmp_path: Path, file: str) -> None:
    (tmp_path / file).touch()
    with pytest.raises(UsageError, match="mistral-common"):
        VllmDialect.from_options({}, "mistral", tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert isinstance(VllmDialect.from_options({}, "mistral", tmp_path), VllmDialect)
    (tmp_path / "consolidated.safetensors").touch()
    with pytest.raises(UsageError, match="mistral-common"):
        VllmDialect.from_options({}, "mistral", tmp_path)


# Refusals


@pytest.mark.parametrize(
    ("messages", "code", "words"),
    [
        ([], "empty_context", "at least one message"),
        (7, "wrong_type", "messages must be a list"),
        (["x"], "wrong_type", r"messages\[0\] must be an object"),
        ([{"content": "x"}], "missing_field", r"messages\[0\] has no 'role'"),
        ([user(), {"role": 7}], "wrong_type", r"messages\[1\]\.role must be text"),
        ([user(7)], "wrong_type", r"messages\[0\]\.content must be a list"),
        ([user([7])], "wrong_type", r"messages\[0\]\.content\[0\] must be an object"),
        ([user([{"text": "x"}])], "missing_field", "has no 'type'"),
        ([user([{"type": 7}])], "wrong_type", r"content\[0\]\.type must be text"),
        ([user([{"type": "text", "text": 7}])], "wrong_type", r"\.text must be text"),
        ([user([{"type": "thinking"}])], "missing_field", "has no 'thinking'"),
        ([user([{"type": "hologram"}])], "server_refused", "no part of type 'hologram'"),
        ([user([{"type": "text", "text": "x", "uuid": "u"}])], "server_refused", "uuid"),
        ([user([{"type": "image_url"}])], "unsupported_content", "'image_url'"),
        ([user([{"image_url": "u"}])], "unsupported_content", "'image_url'"),
        ([user([{"type": "input_audio"}])], "unsupported_content", "only text"),
        ([user([{"type": "file"}])], "unsupported_content", "'file'"),
        (
            [user(), {"role": "assistant", "tool_calls": "x"}],
            "wrong_type",
            "tool_calls must be a list",
        ),
        ([user(), answer_with(7)], "wrong_type", r"tool_calls\[0\] must be an object"),
        ([user(), answer_with({"id": "a"})], "missing_field", "has no 'function'"),
        ([user(), answer_with({"function": 7})], "wrong_type", "function must be an object"),
        ([user(), answer_with({"function": {}})], "missing_field", "has no 'name'"),
        ([user(), answer_with(call(id=7))], "wrong_type", "id must be text"),
        ([user(), answer_with(call(type="custom"))], "server_refused", "of type 'function' only"),
        ([user(), answer_with(call("[" * 100_000))], "server_refused", "cannot be parsed"),
        (
            [user(), answer_with(call('{"a": ' + "9" * 5000 + "}"))],
            "server_refused",
            "cannot be parsed",
        ),
        ([user() | {"name": 7}], "wrong_type", "name must be text"),
        ([user(), {"role": "assistant", "reasoning": 7}], "wrong_type", "reasoning must be text"),
    ],
)
def test_a_message_of_a_wrong_shape_is_refused_with_its_place(
    messages: Any, code: str, words: str
) -> None:
    with pytest.raises(Rejected, match=words) as refusal:
        render(messages)
    assert refusal.value.code == code


@pytest.mark.parametrize(
    ("tools", "code"),
    [
        (7, "wrong_type"),
        ([7], "wrong_type"),
        ([{"type": "function"}], "missing_field"),
        ([{"function": {"name": 7}}], "wrong_type"),
        ([{"function": {"name": "f", "parameters": 7}}], "wrong_type"),
        ([{"function": {"name": "f", "description": 7}}], "wrong_type"),
        ([{"function": {"name": "f", "strict": "very"}}], "wrong_type"),
        ([{"type": "web_search", "function": {"name": "f"}}], "server_refused"),
    ],
)
def test_a_tool_of_a_wrong_shape_is_refused(tools: Any, code: str) -> None:
    with pytest.raises(Rejected, match=r"tools") as refusal:
        render([user()], tools=tools)
    assert refusal.value.code == code


def test_kwargs_of_a_wrong_type_are_refused() -> None:
    with pytest.raises(Rejected) as refusal:
        render([user()], kwargs=[1])
    assert refusal.value.code == "wrong_type"


def test_a_templates_own_refusal_keeps_its_words() -> None:
    with pytest.raises(Rejected, match="no rhymes") as refusal:
        render([user()], "{{ raise_exception('no rhymes') }}")
    assert refusal.value.code == "template_refused"


def test_a_template_that_renders_nothing_gives_no_context() -> None:
    with pytest.raises(Rejected) as refusal:
        render([user()], "{# nothing #}")
    assert refusal.value.code == "empty_context"


# Calls without ids, which the HTTP schema refuses


def test_a_lost_id_does_not_matter_where_the_template_never_writes_it() -> None:
    template = (
        "{% for c in messages[1].tool_calls %}{{ c.function.name }}{{ c.id | length }};{% endfor %}"
    )
    assert render([user(), answer_with(call(), call(id="123456789"))], template).text == "f9;f9;"


def test_a_lost_id_is_refused_where_the_template_writes_it() -> None:
    with pytest.raises(Rejected, match="a tool call has no id") as refusal:
        render([user(), answer_with(call())])
    assert refusal.value.code == "server_refused"


# Fidelity


def test_numbers_reach_the_template_as_json_gave_them() -> None:
    text = '{"i": 12345678901234567890123, "f": 1.0, "e": 1e-12, "n": [0.30000000000000004]}'
    for arguments in (text, json.loads(text)):
        shown = render([user(), answer_with(call(arguments, id="a"))]).text
        assert json.dumps(json.loads(text)) in shown


def test_a_lone_surrogate_passes_through_untouched() -> None:
    assert "\ud800" in render([user("\ud800")], "{{ messages[0].content }}").text


# Work that requests share


@given(
    st.sampled_from(["user", "assistant", "tool", "system", "developer", "critic", ""]),
    st.sampled_from(["", "x", "x-anthropic-billing-header: a", "x-anthropic-billing-header\nb"]),
    st.sampled_from(["string", "openai"]),
    st.booleans(),
)
def test_a_message_that_is_one_text_is_rewritten_as_any_other(
    role: str, content: str, form: Any, is_turned: bool
) -> None:
    message = {"role": role, "content": content}
    turned = dict(reversed(message.items())) if is_turned else message
    quick = rewrite_text(turned, form, VllmRules())
    if quick is not None:
        assert repr(quick.fields) == repr(
            rewrite_message(message, "here", form, VllmRules()).fields
        )
    assert (quick is None) == (role not in ("user", "assistant", "tool", "system")) or (
        role == "system" and content.startswith("x-anthropic")
    )


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": ["x"]},
        {"role": "user", "content": "x", "name": "n"},
        {"role": "user", "text": "x"},
        {"role": 7, "content": "x"},
        ["role", "content"],
    ],
)
def test_a_message_that_is_more_than_one_text_is_left_to_the_rules(message: Any) -> None:
    assert rewrite_text(message, "string", VllmRules()) is None


def test_messages_that_were_rewritten_before_are_not_rewritten_again() -> None:
    known: dict[int, Any] = {}
    talk = [user("a"), answer_with(call("[]")), user("b")]
    first = rewrite_messages(talk, "string", VllmRules(), known)
    again = rewrite_messages(talk[:2], "string", VllmRules(), known)
    assert [first.conversation[0], first.conversation[1]] == again.conversation
    assert again.conversation[1] is first.conversation[1]
    assert again.arguments_coerced
    assert again.lacks_ids
    assert not rewrite_messages(talk[:1], "string", VllmRules(), known).lacks_ids


def test_requests_with_one_tool_list_share_what_is_made_of_it() -> None:
    shared, made = SharedWork(), list[int]()
    tools, equal_tools = [TOOL], [dict(TOOL)]

    def make() -> int:
        made.append(1)
        return len(made)

    assert [shared.once("n", make, tools), shared.once("n", make, tools)] == [1, 1]
    assert shared.once("n", make, equal_tools) == 2
    assert shared.once("m", make, tools) == 3


def test_a_shared_batch_renders_what_each_request_renders_alone() -> None:
    shared, dialect = SharedWork(), VllmDialect.from_options({}, "qwen2")
    source = AS_TEXT + "{{ enable_thinking }}"
    templates = make_templates(source)
    talk = [user("a"), answer_with(call(id="call00001")), {"role": "tool", "content": "b"}]
    for tools in (None, [TOOL], [{"type": "function", "function": {"name": "g"}}]):
        for kwargs in ({}, {"enable_thinking": False}, {"enable_thinking": True}):
            for messages in (talk[:1], talk, talk[:2]):
                request = ChatRequest(messages, tools, kwargs, shared)
                expected = render(messages, source, tools, kwargs)
                assert dialect.render_prompt(request, templates) == expected
