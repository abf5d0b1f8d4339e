"""``server: mlx``: one test for each rule of its own."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import Rejected, UsageError
from pipeline.prompt.chat_template import ChatTemplates
from pipeline.prompt.dialects import load_dialect
from pipeline.prompt.request import ChatRequest

AS_TEXT = ChatTemplates({"default": "{{ messages | tojson }}{{ enable_thinking }}"}, {})
USER = {"role": "user", "content": "hi"}


def render(*messages: Any, kwargs: Any = None, tokens: tuple[str, ...] = (), **options: Any) -> str:
    dialect = load_dialect("mlx", options, "qwen3", has_token=tokens.__contains__)
    return dialect.render_prompt(ChatRequest(messages, None, kwargs or {}), AS_TEXT).text


def test_text_parts_are_joined_by_nothing_and_other_parts_refused() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert '"content": "ab"' in render({"role": "user", "content": parts})
    with pytest.raises(Rejected, match=r"messages\[0\].content\[0\] is a part of type 'image_url'"):
        render({"role": "user", "content": [{"type": "image_url"}]})


def test_other_keys_of_a_message_stay_and_null_content_is_empty_in_its_place() -> None:
    talk = {"role": "assistant", "content": None, "name": "bot", "weight": 2, "refusal": None}
    shown = '{"role": "assistant", "content": "", "name": "bot", "weight": 2}'
    assert shown in render(USER, talk, USER)


def test_reasoning_has_all_of_its_names() -> None:
    talk = {"role": "assistant", "content": "7", "reasoning": "hm"}
    shown = '{"thinking": "hm", "role": "assistant", "content": "7", "reasoning": "hm", "reasoning_content": "hm"}'
    assert shown in render(USER, talk, USER)


@pytest.mark.parametrize("arguments", ['{"a": 1}', {"a": 1}])
def test_arguments_are_an_object(arguments: Any) -> None:
    call = {"id": "1", "function": {"name": "f", "arguments": arguments}}
    talk = {"role": "assistant", "content": "", "tool_calls": [call]}
    assert '"arguments": {"a": 1}}' in render(USER, talk, USER)


def test_arguments_at_which_the_server_fails_are_refused_and_empty_ones_stay() -> None:
    call: dict[str, Any] = {"function": {"name": "f", "arguments": '{"a'}}
    talk = {"role": "assistant", "content": "", "tool_calls": [call]}
    with pytest.raises(Rejected, match=r"messages\[1\].tool_calls\[0\]: mlx_lm.server fails at"):
        render(USER, talk, USER)
    call["function"]["arguments"] = ""
    assert '"arguments": ""' in render(USER, talk, USER)


@pytest.mark.parametrize(
    ("tokens", "told"),
    [
        ((), "False"),
        (("<think>",), "False"),
        (("<think>", "</think>"), "True"),
        (("<|channel>", "<channel|>"), "True"),
    ],
)
def test_a_vocabulary_with_think_tokens_thinks_unless_a_kwarg_says_otherwise(
    tokens: tuple[str, ...], told: str
) -> None:
    assert render(USER, tokens=tokens).endswith(told)
    assert render(USER, tokens=tokens, kwargs={"enable_thinking": 5}).endswith("5")
    off = {"enable_thinking": "off"}
    assert render(USER, tokens=tokens, default_chat_template_kwargs=off).endswith("off")


def test_a_model_with_a_renderer_of_its_own_is_refused() -> None:
    with pytest.raises(UsageError, match="mlx does not render model type 'muse_spark'"):
        load_dialect("mlx", {}, "muse_spark")
