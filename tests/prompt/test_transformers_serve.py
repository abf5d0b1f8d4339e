"""``server: transformers``: one test for each rule of its own."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import Rejected, UsageError
from pipeline.prompt.chat_template import ChatTemplates
from pipeline.prompt.dialects import load_dialect
from pipeline.prompt.request import ChatRequest
from pipeline.prompt.transformers_serve import TransformersDialect

AS_TEXT = ChatTemplates({"default": "{{ messages | tojson }}{{ tools | tojson }}{{ colour }}"}, {})
USER = {"role": "user", "content": "hi"}
CALL = {
    "role": "assistant",
    "content": "I look.",
    "reasoning_content": "hm",
    "name": "bot",
    "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"a": 1}'}}],
}


def render(*messages: Any, kwargs: Any = None, turn: bool = False, **options: Any) -> str:
    dialect = TransformersDialect.from_options(options)
    request = ChatRequest(messages, None, kwargs or {})
    make = dialect.render_turn if turn else dialect.render_prompt
    return make(request, AS_TEXT).text


def test_content_beside_calls_is_dropped_in_history_and_kept_in_the_turn_that_is_trained() -> None:
    call = '"tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {"a": 1}}}]}'
    assert f'{{"role": "assistant", "content": "", {call}' in render(USER, CALL, USER)
    assert f'{{"role": "assistant", "content": "I look.", {call}' in render(USER, CALL, turn=True)


def test_text_parts_are_joined_by_a_space_and_other_parts_refused() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}]
    assert '"content": "a b"' in render({"role": "user", "content": parts})
    with pytest.raises(Rejected, match=r"messages\[0\].content\[0\] is a part of type 'image_url'"):
        render({"role": "user", "content": [{"type": "image_url"}]})


def test_a_null_content_is_empty_and_the_id_of_a_result_stays() -> None:
    assert '{"role": "user", "content": ""}' in render({"role": "user", "content": None})
    result = {"role": "tool", "tool_call_id": "1", "name": "f", "content": "7"}
    assert '{"role": "tool", "content": "7", "tool_call_id": "1"}' in render(USER, result)


@pytest.mark.parametrize("function", [{"name": "f"}, {"name": "f", "arguments": '{"a'}])
def test_a_call_at_which_the_server_fails_is_refused(function: dict[str, Any]) -> None:
    with pytest.raises(Rejected, match=r"messages\[1\].tool_calls\[0\]: transformers serve fails"):
        render(USER, {"role": "assistant", "tool_calls": [{"function": function}]}, USER)


def test_kwargs_of_the_request_win_and_parameters_of_the_call_are_refused() -> None:
    assert render(USER, default_chat_template_kwargs={"colour": "red"}).endswith("red")
    asked = render(USER, kwargs={"colour": "blue"}, default_chat_template_kwargs={"colour": "red"})
    assert asked.endswith("blue")
    with pytest.raises(Rejected, match="load_audio_from_video is set by the server"):
        render(USER, kwargs={"load_audio_from_video": True})
    for name in ("chat_template", "truncation", "messages"):
        with pytest.raises(Rejected, match=f"'{name}' is a parameter of apply_chat_template"):
            render(USER, kwargs={name: True})


def test_an_option_of_another_server_is_refused() -> None:
    with pytest.raises(UsageError, match="server: transformers has no such option"):
        load_dialect("transformers", {"tool_choice": "none"}, None)
