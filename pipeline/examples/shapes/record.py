"""What the shapes ask of a row: a field that must be there, a name for the row, nothing but text.

Field names stand in a refusal as the row has them.
"""

from __future__ import annotations

from typing import Any, Final, cast

from pipeline.errors import Rejected
from pipeline.examples.fields import read_id, read_json, read_kwargs, read_messages, read_tools
from pipeline.examples.row_keys import TrackedRow
from pipeline.examples.said import is_list_of_objects
from pipeline.lines.known_keys import PROMPT_SWITCHES, TOOL_NAMES
from pipeline.types import Message

Row = TrackedRow
"""One JSON object of an input file, which remembers what of it was read."""

MEDIA_KEYS: Final = ("images", "image", "videos", "video", "audios", "audio")
"""Columns of files beside the text (TRL's vision sets, LLaMA-Factory's multimodal sets)."""

PREFERENCE_LABELS: Final = ("label", "kto_tag")
"""Unpaired preference (TRL, LLaMA-Factory): false says that the answer is the worse one."""

_OWN_NOTES: Final = ("reason", "memories", "weight", "conversation")
_SWITCHES: Final = frozenset(PROMPT_SWITCHES)
_SYSTEMS: Final = ("system", "system_prompt", "system_message")
# Where clients and proxies keep the request beside what they log of it (OpenAI's Python client,
# LiteLLM, OpenHands).
_ELSEWHERE: Final = (
    ("extra_body",),
    ("kwargs",),
    ("kwargs", "extra_body"),
    ("request",),
    ("request", "body"),
    ("body",),
    ("optional_params",),
    ("model_parameters",),
    ("proxy_server_request", "body"),
)


_SELDOM: Final = frozenset(
    {
        *(*MEDIA_KEYS, *PREFERENCE_LABELS, *_OWN_NOTES, *_SYSTEMS, *TOOL_NAMES[1:]),
        *("enable_thinking", "thinking", "reasoning_effort", "documents"),
        *(place[0] for place in _ELSEWHERE),
    }
)
"""Keys that `read_shared` looks for, and most rows have not."""


def read_shared(row: Row, position: str, request: Row | None = None) -> dict[str, Any]:
    """Return the fields of an example that every shape says alike.

    Its id, system text, tools, template kwargs, and what it says of itself. ``request`` is the object
    that the server was sent, where that is not the row. Raises `Rejected` for pictures and sound, for
    an answer labelled as the worse one, and for a request that changed its prompt in another way.
    """
    if request is None and _SELDOM.isdisjoint(row):
        return {
            "id": read_name(row, position),
            "tools": row.get("tools"),
            "chat_template_kwargs": row.get("chat_template_kwargs"),
        }
    sent = row if request is None else request
    refuse_media(row)
    refuse_worse(row)
    values: dict[str, Any] = {"id": read_name(row, position)}
    for name in _OWN_NOTES:
        # A conversation's name is kept; its turns are no note.
        if name in row and not (name == "conversation" and isinstance(row.peek(name), list)):
            values[name] = row.get(name)
    values["system"] = _read_system(sent)
    bodies = _find_bodies(row, sent)
    values["tools"] = _read_tools(sent, bodies)
    values["chat_template_kwargs"] = _read_options(sent, bodies, is_request=request is not None)
    return values


def refuse_switches(request: Row) -> None:
    """Raise `Rejected` for a request whose prompt is another than its messages make."""
    if _SWITCHES.isdisjoint(request):
        return
    for name, harmless in PROMPT_SWITCHES.items():
        if name not in request:
            continue
        value = request.get(name)
        if value is not None and value != harmless:
            raise Rejected(
                "not_renderable",
                f"request.{name}: it changed the prompt in a way that no example can say; "
                "expected the ids of the prompt (return_token_ids) beside it",
                value,
            )


def _read_system(row: Row) -> Any:
    """Return the system text that stands beside the messages: text, or parts as Anthropic has them."""
    found: Any = None
    for name in _SYSTEMS:
        value = row.peek(name) if name in row else None
        if not value or not (isinstance(value, str) or is_list_of_objects(value)):
            continue
        if found is not None and value != found:
            raise Rejected(
                "ambiguous_shape",
                f"{row.path}{name}: another system text than the row's other one; expected one",
                value,
            )
        found = row.get(name)
    return found


def _find_bodies(row: Row, sent: Row) -> list[dict[str, Any]]:
    """Return the objects in which tools and options of the request may lie too."""
    bodies: list[dict[str, Any]] = []
    for holder in (row,) if sent is row else (sent, row):
        for place in _ELSEWHERE:
            value: Any = holder if place[0] in holder else None
            for name in place:
                value = dict.get(cast("dict[str, Any]", value), name) if value else None
                if not isinstance(value, dict):
                    value = None
                    break
            if value:
                bodies.append(value)
    return bodies if sent is row else [*bodies, row]


def _read_tools(row: Row, bodies: list[dict[str, Any]]) -> Any:
    """Return the tools of the request, wherever the row keeps them.

    Other lists of tools that are not the same are refused once the example is there (`settle_keys`).
    """
    tools = row.get("tools") or None
    for name in TOOL_NAMES:
        for body in (row, *bodies):
            if tools is None and name in body and is_list_of_objects(dict.get(body, name)):
                tools = read_function_tools(body[name] if body is row else dict.get(body, name))
    return tools


def _read_options(row: Row, bodies: list[dict[str, Any]], *, is_request: bool) -> dict[str, Any]:
    """Return the template kwargs, with the request's fields that reach the template beside them.

    vLLM 0.33.0, ``protocol.py``: ``build_chat_params``. OpenAI's client merges ``extra_body`` into the
    body. ``enable_thinking`` outside the kwargs is an option of the example; a server of ours would
    not have heard it, so that in the log of a call it is left for `settle_keys`.
    """
    kwargs = read_kwargs(row.get("chat_template_kwargs"))
    for body in bodies:
        if body is not row and "chat_template_kwargs" in body:
            more = read_kwargs(dict.get(body, "chat_template_kwargs"))
            if any(kwargs.get(name, value) != value for name, value in more.items()):
                raise Rejected(
                    "ambiguous_shape",
                    "chat_template_kwargs: two of them that differ; expected one",
                    more,
                )
            kwargs = {**kwargs, **more}
    if not is_request:
        for name in ("enable_thinking", "thinking"):
            if name in row and isinstance(row.peek(name), bool):
                value = row.get(name)
                if kwargs.setdefault(name, value) != value:
                    raise Rejected(
                        "ambiguous_shape",
                        f"{name}: another value than in chat_template_kwargs; expected one of them",
                        value,
                    )
    kwargs = add_effort(kwargs, row.get("reasoning_effort"))
    if row.peek("documents") and is_list_of_objects(row.peek("documents")):
        kwargs = {**kwargs, "documents": row.get("documents")}
    return kwargs


def add_effort(kwargs: dict[str, Any], effort: Any) -> dict[str, Any]:
    """Return the template kwargs with a request's effort, as the server adds it; None adds nothing."""
    if effort is None:
        return kwargs
    return {"enable_thinking": effort != "none", **kwargs, "reasoning_effort": effort}


def read_name(row: Row, position: str) -> str:
    """Return the row's ``id``, or its position where the shape has no id."""
    value = row.get("id")
    return position if value is None or value == "" else read_id(row)


def require(row: Row, name: str, expected: str) -> Any:
    """Return ``row[name]``; raises `Rejected` (``missing_field``) where it is absent or null."""
    value = row.get(name)
    if value is None:
        raise Rejected("missing_field", f"{name}: missing; expected {expected}", sorted(row))
    return value


def require_text(row: Row, name: str, expected: str) -> str:
    """Return a text that is there; raises `Rejected` (``missing_field``, ``wrong_type``)."""
    value = require(row, name, expected)
    if not isinstance(value, str):
        raise Rejected("wrong_type", f"{name}: expected text", value)
    return value


def read_chat(value: Any, name: str) -> list[Message]:
    """Return messages, from JSON text too."""
    return read_messages(read_json(value, name), name)


def read_function_tools(value: Any) -> list[dict[str, Any]] | None:
    """Return tools, each bare function wrapped as OpenAI's API has it; empty text is no tool.

    LLaMA-Factory's ``tools`` column is JSON text of a list of bare functions.
    """
    tools = read_tools(value or None)
    if tools is None:
        return None
    return [
        tool if "function" in tool else {"type": "function", "function": tool} for tool in tools
    ]


def read_response(text: str) -> dict[str, Any] | None:
    """Return the response that a text is the JSON of, told by its ``choices``; None for other text."""
    if not text.lstrip().startswith("{") or '"choices"' not in text:
        return None
    try:
        value = read_json(text, "response")
    except Rejected:
        return None
    return value if isinstance(value, dict) and is_list_of_objects(value.get("choices")) else None


def refuse_media(row: Row) -> None:
    """Raise `Rejected` (``unsupported_content``) for a row with pictures, sound or film beside it."""
    for name in MEDIA_KEYS:
        if name in row and row.get(name):
            raise Rejected(
                "unsupported_content", f"{name}: only text can be rendered; leave such rows out"
            )


def refuse_worse(row: Row) -> None:
    """Raise `Rejected` (``missing_field``) for an answer that is labelled as the worse one."""
    for name in PREFERENCE_LABELS:
        if name in row and row.peek(name) is False:
            raise Rejected(
                "missing_field",
                f"{name}: false, so the row's answer is the worse one; "
                "expected a better one to train on: leave such rows out",
            )
