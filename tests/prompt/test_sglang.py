"""``server: sglang``: one test for each way in which SGLang 0.5.23 differs from vLLM 0.33.0."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from pipeline.errors import Rejected, UsageError
from pipeline.prompt.chat_template import ChatTemplates
from pipeline.prompt.request import ChatRequest
from pipeline.prompt.sglang import SglangDialect
from pipeline.prompt.template_facts import find_sglang_content_form, find_template_facts
from pipeline.prompt.vllm_versions import VllmRules

# Writes out all that reaches the template; the second is taken for a template of parts.
AS_TEXT = "{{ messages | tojson }}{{ tools | tojson }}"
AS_PARTS = "{% for m in messages %}{% for p in m.content %}{% endfor %}{% endfor %}" + AS_TEXT
KWARGS = "{{ enable_thinking }} {{ thinking }} {{ reasoning_effort }} {{ colour }}"
CALL = {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def render(
    messages: list[dict[str, Any]],
    template: str = AS_TEXT,
    tools: list[dict[str, Any]] | None = None,
    kwargs: dict[str, Any] | None = None,
    **options: Any,
) -> str:
    dialect = SglangDialect.from_options(options, "qwen2")
    request = ChatRequest(messages, tools, kwargs or {})
    return dialect.render_prompt(request, ChatTemplates({"default": template}, {})).text


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def texts(*given: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text} for text in given]


def test_text_parts_are_joined_by_one_space() -> None:
    assert render([user(texts("a", "b"))]) == '[{"role": "user", "content": "a b"}]null'


def test_plain_text_stays_text_under_a_template_of_parts() -> None:
    assert render([user("a")], AS_PARTS) == '[{"role": "user", "content": "a"}]null'


def test_parts_stay_parts_under_a_template_of_parts_and_lose_foreign_keys() -> None:
    part = {"type": "text", "text": "a", "cache_control": {}}
    assert '"content": [{"type": "text", "text": "a"}]' in render([user([part])], AS_PARTS)


def test_a_tool_result_in_parts_is_joined_by_one_space() -> None:
    result = {"role": "tool", "tool_call_id": "c", "content": texts("a", "b")}
    assert '"content": "a b"' in render([user("x"), result], AS_PARTS)


def test_a_template_that_speaks_of_media_takes_parts() -> None:
    source = "{# no image #}" + AS_TEXT
    assert find_sglang_content_form(source) == "openai"
    assert find_template_facts(source).content_form(VllmRules()) == "string"


def test_a_loop_over_the_content_of_another_variable_is_not_seen() -> None:
    source = "{% for turn in messages %}{% for p in turn.content %}{{ p }}{% endfor %}{% endfor %}"
    assert find_sglang_content_form(source) == "string"
    assert find_template_facts(source).content_form(VllmRules()) == "openai"


def test_tools_keep_the_order_of_the_client_and_end_with_null() -> None:
    function = {"parameters": {"type": "object"}, "name": "f", "unknown": 1}
    shown = render([user("x")], tools=[{"function": function, "type": "function"}])
    assert shown.endswith(
        '[{"type": "function", "function": {"parameters": {"type": "object"}, "name": "f", '
        '"description": null}, "defer_loading": null}]'
    )


def test_a_tool_with_nothing_but_a_name_gets_both_nulls_last() -> None:
    shown = render([user("x")], tools=[{"type": "function", "function": {"name": "f"}}])
    assert '{"name": "f", "description": null, "parameters": null}' in shown


def test_strict_and_deferred_tools_say_so() -> None:
    tool = {"type": "function", "defer_loading": True, "function": {"name": "f", "strict": False}}
    assert '"strict": false' in render([user("x")], tools=[tool])
    assert render([user("x")], tools=[tool]).count('"defer_loading": true') == 2


def test_tool_choice_none_hides_the_tools() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    assert render([user("x")], tools=[tool], tool_choice="none").endswith("null")


def test_a_final_answer_becomes_a_user_message() -> None:
    messages = [user("x"), {"role": "assistant", "content": "y", "tool_calls": [CALL]}]
    assert '{"role": "user", "content": "y"}' in render(messages)


def test_a_final_answer_in_parts_stays_the_assistants() -> None:
    messages = [user("x"), {"role": "assistant", "content": texts("y")}]
    assert '"role": "assistant"' in render(messages, AS_PARTS)


def test_a_finished_turn_stays_the_assistants() -> None:
    request = ChatRequest([user("x"), {"role": "assistant", "content": "y"}])
    turn = SglangDialect().render_turn(request, ChatTemplates({"default": AS_TEXT}, {}))
    assert '{"role": "assistant", "content": "y"}' in turn.text


def test_a_prefix_to_be_continued_is_refused() -> None:
    with pytest.raises(Rejected, match="prefix"):
        render([user("x"), {"role": "assistant", "content": "y", "prefix": True}])


@pytest.mark.parametrize("arguments", ["{nope", "[1]", "", '{"a": NaN}', "[" * 100_000])
def test_arguments_that_are_no_json_object_are_refused(arguments: str) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    with pytest.raises(Rejected) as refusal:
        render([user("x"), {"role": "assistant", "content": "", "tool_calls": [call]}, user("y")])
    assert refusal.value.code == "server_refused"


def test_arguments_reach_the_template_as_orjson_reads_them() -> None:
    call = {"function": {"name": "f", "arguments": '{"a": 1.0, "b": 18446744073709551616}'}}
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    shown = render([user("x"), answer, user("y")])
    assert '"arguments": {"a": 1.0, "b": 1.8446744073709552e+19}' in shown


def test_calls_are_written_with_every_field() -> None:
    answer = {"role": "assistant", "content": None, "tool_calls": [CALL | {"other": 1}]}
    shown = render([user("x"), answer, user("y")])
    assert (
        '{"role": "assistant", "content": "", "tool_calls": [{"id": null, "index": null, '
        '"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]}'
    ) in shown


def test_only_reasoning_content_is_read() -> None:
    for key, is_seen in (("reasoning_content", True), ("reasoning", False)):
        answer = {"role": "assistant", "content": "y", key: "because"}
        assert ("because" in render([user("x"), answer, user("z")])) == is_seen


def test_thinking_parts_of_an_answer_are_dropped() -> None:
    answer = {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, *texts("y")]}
    assert '"content": "y"' in render([user("x"), answer, user("z")])


def test_a_name_survives_except_a_users() -> None:
    messages = [user("x") | {"name": "ana"}, {"role": "assistant", "content": "y", "name": "bob"}]
    assert '"ana"' not in render([*messages, user("z")])
    assert '"bob"' in render([*messages, user("z")])


def test_roles_are_put_in_lower_case_and_unknown_ones_refused() -> None:
    assert '"role": "system"' in render([{"role": "SYSTEM", "content": "x"}])
    for role in ("User", "narrator"):
        with pytest.raises(Rejected, match="no such role"):
            render([{"role": role, "content": "x"}])


def test_a_failing_template_is_tried_again_with_bare_functions() -> None:
    template = "{% for t in tools %}{{ t.name ~ (t.description | upper) }}{% endfor %}"
    strict = (
        "{% if tools[0].function is defined %}{{ raise_exception('flat') }}{% endif %}" + template
    )
    tool = {"type": "function", "function": {"name": "f", "description": "d"}}
    assert render([user("x")], strict, tools=[tool]) == "fD"
    with pytest.raises(Rejected, match="always"):
        render([user("x")], "{{ raise_exception('always') }}", tools=[tool])


def test_kwargs_reach_the_template_unfiltered_and_null() -> None:
    template = "{{ colour }} {{ seen is defined }}"
    assert render([user("x")], template, kwargs={"colour": None, "seen": 1}) == "None True"


def test_an_effort_of_the_request_switches_thinking() -> None:
    assert render([user("x")], KWARGS, reasoning_effort="none").split() == [
        "False",
        "False",
        "none",
    ]
    kwargs = {"enable_thinking": True}
    asked = render([user("x")], KWARGS, kwargs=kwargs, reasoning_effort="none")
    assert asked.split() == ["True", "False", "none"]


def test_the_effort_of_a_server_default_wins() -> None:
    defaults = {"reasoning_effort": "high", "colour": "red"}
    shown = render(
        [user("x")], KWARGS, reasoning_effort="low", default_chat_template_kwargs=defaults
    )
    assert shown.split() == ["True", "True", "high", "red"]


def test_a_low_effort_switch_is_not_guessed() -> None:
    template = "{{ low_effort }}{# truncate_history_thinking #}x"
    with pytest.raises(Rejected, match="low_effort"):
        render([user("x")], template, reasoning_effort="low")


@pytest.mark.parametrize("name", ["tools", "tokenize", "messages", "chat_template", "return_dict"])
def test_a_kwarg_that_the_server_sets_itself_is_refused(name: str) -> None:
    with pytest.raises(Rejected) as refusal:
        render([user("x")], kwargs={name: 1})
    assert refusal.value.code == "server_refused"


def test_a_parameter_type_of_another_language_is_written_as_json_schema_names_it() -> None:
    inner = {"anyOf": [{"type": "float"}, {"items": {"type": ["null", "varchar(20)", "str"]}}]}
    parameters = {"type": "dict", "properties": {"p": inner, "type": {"type": "Int64"}}}
    before = copy.deepcopy(parameters)
    function = {"name": "f", "parameters": parameters}
    shown = render([user("x")], tools=[{"type": "function", "function": function}])
    assert (
        '{"type": "object", "properties": {"p": {"anyOf": [{"type": "number"}, '
        '{"items": {"type": ["null", "string"]}}]}, "type": {"type": "integer"}}}'
    ) in shown
    assert parameters == before


@pytest.mark.parametrize("kind", ["any", "list_price", "internal", "", None, 5, [], [{}]])
def test_a_parameter_type_that_stays_unknown_is_refused(kind: object) -> None:
    function = {"name": "f", "parameters": {"type": "object", "properties": {"p": {"type": kind}}}}
    with pytest.raises(Rejected, match="SGLang refuses"):
        render([user("x")], tools=[{"type": "function", "function": function}])


def test_a_tool_name_twice_is_refused_where_a_message_brings_tools() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    developer = {"role": "developer", "content": "x", "tools": [tool]}
    assert '"tools": [{' in render([developer, user("x")])
    with pytest.raises(Rejected, match="one name"):
        render([developer, user("x")], tools=[tool])


@pytest.mark.parametrize("kind", ["image_url", "video_url", "audio_url", "input_audio"])
def test_media_is_unsupported_content(kind: str) -> None:
    with pytest.raises(Rejected) as refusal:
        render([user([{"type": kind, kind: {"url": "x"}}])])
    assert refusal.value.code == "unsupported_content"


def test_the_first_named_template_serves_requests_with_tools_too() -> None:
    templates = ChatTemplates({"default": "plain", "tool_use": "with tools"}, {})
    tool = {"type": "function", "function": {"name": "f"}}
    request = ChatRequest([user("x")], [tool])
    assert SglangDialect().render_prompt(request, templates).text == "plain"


def test_encoding_without_the_argument_adds_nothing_where_an_empty_text_gets_nothing(
    bundled_tokenizer: Path,
) -> None:
    # SGLang passes add_special_tokens=False only where encode("") is not empty.
    tokenizer = AutoTokenizer.from_pretrained(bundled_tokenizer)
    assert tokenizer.encode("") == []
    assert tokenizer.encode("a b") == tokenizer.encode("a b", add_special_tokens=False)


@pytest.mark.parametrize("model_type", ["deepseek_v4", "deepseek_v41", "kimi_k3", "inkling_model"])
def test_a_model_with_an_encoder_of_its_own_is_refused_when_the_dialect_is_made(
    model_type: str,
) -> None:
    with pytest.raises(UsageError, match=f"'{model_type}'.*raw context"):
        SglangDialect.from_options({}, model_type)


def test_gpt_oss_goes_through_its_template() -> None:
    assert isinstance(SglangDialect.from_options({}, "gpt_oss"), SglangDialect)


def test_an_option_of_vllm_is_unknown() -> None:
    with pytest.raises(UsageError, match=r"server_options\.content_format: server: sglang has no"):
        SglangDialect.from_options({"content_format": "string"}, "qwen2")


@pytest.mark.parametrize(
    ("path", "model_type", "name"),
    [
        ("lmsys/vicuna-7b-v1.5", "llama", "vicuna_v1.1"),
        ("/data/Janus/qwen3", "qwen3", "janus-pro"),
        ("my/Points-1", None, "points-v15-chat"),
        ("some/model", "phi4mm", "phi-4-mm"),
        ("vicuna-mm", "multi_modality", "janus-pro"),
        ("openbmb/MiniCPM-V-4_5", None, "minicpmv"),
    ],
)
def test_a_model_that_sglang_tells_by_its_path_is_refused(
    path: str, model_type: str | None, name: str
) -> None:
    with pytest.raises(UsageError, match=f"'{name}'.*--chat-template"):
        SglangDialect.from_options({}, model_type, path)


@pytest.mark.parametrize(
    ("path", "model_type"),
    [
        ("Qwen/Qwen3-8B", "qwen3"),
        ("endpoints/qwen", "qwen3"),
        ("openbmb/MiniCPM-V-4_6", None),
        ("openbmb/MiniCPM-V", "minicpmv4_6"),
        (None, "llama"),
    ],
)
def test_another_path_or_a_template_given_is_served_with_the_template(
    path: str | None, model_type: str | None
) -> None:
    assert isinstance(SglangDialect.from_options({}, model_type, path), SglangDialect)
