"""``server: transformers``: what ``transformers serve`` 5.24.0 makes of a chat request.

Names in docstrings are those of ``transformers/cli/serving``. It hands a few keys of each message to
``apply_chat_template``; the rest of a message never reaches the template.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from pipeline.errors import Rejected
from pipeline.prompt.chat_template import CLOCK_FUNCTION, ChatTemplates, FixedClock
from pipeline.prompt.options import Reader, read_mapping, read_moment, read_options
from pipeline.prompt.request import (
    SERVER_VERSIONS,
    ChatRequest,
    Rendering,
    TemplateDialect,
    expect_list,
    expect_object,
    expect_text,
    iterate_messages,
    read_passed_kwargs,
    refuse_part,
)

_TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text"})
# It calls the template with it for every model.
_OWN_VARIABLES: Final = {"load_audio_from_video": False}


@dataclass(frozen=True)
class TransformersDialect(TemplateDialect):
    """``transformers serve`` 5.24.0 with a text model.

    ``default_chat_template_kwargs`` are the server's ``--chat-template-kwargs``; ``fixed_date`` is
    the day that templates read from the clock.
    """

    default_chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    fixed_date: datetime | None = None
    name: str = field(default="transformers", init=False)
    version: str = field(default=SERVER_VERSIONS["transformers"], init=False)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> TransformersDialect:
        """Return the dialect; raises `UsageError` for an option that it does not have."""
        return cls(**read_options("transformers", options, _OPTIONS))

    def _render(
        self, request: ChatRequest, templates: ChatTemplates, *, add_generation_prompt: bool
    ) -> Rendering:
        tools = None if request.tools is None else list(expect_list(request.tools, "tools"))
        template = templates.for_request(has_tools=tools is not None)
        conversation = list(_rewrite_messages(request.messages))
        if not add_generation_prompt:
            # Of a finished turn the text beside its calls is what the model said.
            last = request.messages[-1]
            conversation[-1]["content"] = _join_parts(last.get("content"), "the last message")
        asked = expect_object(request.chat_template_kwargs, "chat_template_kwargs")
        kwargs = {**self.default_chat_template_kwargs, **asked}
        if kwargs.keys() & _OWN_VARIABLES.keys():
            raise Rejected(
                "server_refused",
                "chat_template_kwargs: load_audio_from_video is set by the server",
                kwargs,
            )
        call = read_passed_kwargs(kwargs, _OWN_VARIABLES)
        variables = {CLOCK_FUNCTION: FixedClock(self.fixed_date), **call.variables}
        text = template.render(
            conversation,
            tools=tools,
            documents=call.documents,
            add_generation_prompt=add_generation_prompt,
            **variables,
        )
        if add_generation_prompt and not text:
            raise Rejected("empty_context", "the template renders nothing; a prompt needs a token")
        return Rendering(text)


_OPTIONS: Mapping[str, Reader] = {
    "default_chat_template_kwargs": read_mapping,
    "fixed_date": read_moment,
}


def _rewrite_messages(messages: object) -> Iterator[dict[str, Any]]:
    """Yield role, content, calls and id of each message; content beside calls is dropped.

    ``utils.py``: ``get_processor_inputs_from_messages``, for a model without other modalities.
    """
    for where, role, message in iterate_messages(messages):
        calls = message.get("tool_calls")
        rewritten: dict[str, Any] = {
            "role": role,
            "content": "" if calls else _join_parts(message.get("content"), where),
        }
        if calls:
            listed = expect_list(calls, f"{where}.tool_calls")
            rewritten["tool_calls"] = [
                _read_call(call, f"{where}.tool_calls[{at}]") for at, call in enumerate(listed)
            ]
        if message.get("tool_call_id") is not None:
            rewritten["tool_call_id"] = message["tool_call_id"]
        yield rewritten


def _join_parts(content: object, where: str) -> str:
    """Return text, or the texts of parts with one space between them.

    It drops parts of other types without a word; here they are refused.
    """
    if not content:
        return ""
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for at, part in enumerate(expect_list(content, f"{where}.content")):
        place = f"{where}.content[{at}]"
        fields = expect_object(part, place)
        if fields.get("type") not in _TEXT_PARTS:
            refuse_part(str(fields.get("type")), place)
        texts.append(expect_text(fields.get("text"), f"{place}.text"))
    return " ".join(texts)


def _read_call(call: object, where: str) -> dict[str, Any]:
    """Return a call whose arguments are an object; other keys stay. Text that is no JSON is refused."""
    fields = dict(expect_object(call, where))
    is_wrapped = bool(fields.get("function"))
    function = (
        dict(expect_object(fields["function"], f"{where}.function")) if is_wrapped else fields
    )
    if "arguments" not in function:
        raise Rejected(
            "server_refused", f"{where}: transformers serve fails without arguments", call
        )
    arguments = function["arguments"]
    if isinstance(arguments, str):
        try:
            function["arguments"] = json.loads(arguments)
        except ValueError as error:
            raise Rejected(
                "server_refused", f"{where}: transformers serve fails at arguments: {error}", call
            ) from error
    return {**fields, "function": function} if is_wrapped else function
