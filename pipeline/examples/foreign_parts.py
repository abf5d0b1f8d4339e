"""Parts of a turn as other tools write them -> its message, and those of the results that stand in it.

Sources: OpenTelemetry's semantic conventions for generative AI; Vercel's AI SDK, ``ui-messages.ts`` and
``convert-to-model-messages.ts``; Gemini's API reference, ``Part``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

from pipeline.errors import Rejected
from pipeline.types import Message

_CALL_IDS: Final = ("id", "toolCallId", "tool_call_id", "call_id")
_CALL_NAMES: Final = ("name", "toolName", "function_name")
_ARGUMENTS: Final = ("arguments", "args", "input")
_RESULTS: Final = ("output", "result", "response", "content")
# Fields of calls and parts that say nothing to a model.
_BOOKKEEPING: Final = frozenset(
    {
        *("type", "index", "state", "providerExecuted", "providerMetadata", "thoughtSignature"),
        *("callProviderMetadata", "providerOptions", "title", "signature", "annotations", "step"),
        *("extras", "dynamic", "id"),
    }
)
_SILENT: Final = ("source", "source-url", "source-document")
"""Parts that Vercel's SDK shows to a person and never sends."""
_RANKS: Final = {"reasoning_content": 0, "content": 1, "tool_calls": 2}


def read_parts(parts: list[Any], role: str, where: str) -> list[Message]:
    """Return the messages of the parts of one turn.

    Raises `Rejected` (``unsupported_content``) for files, and for an order that no message keeps.
    """
    steps = _Steps(role)
    for index, part in enumerate(parts):
        _read_part(part, f"{where}[{index}]", steps)
    steps.close()
    if steps.texts and role != "assistant" and len(steps.messages) > 1:
        raise Rejected(
            "unsupported_content",
            f"{where}: results beside text; expected each in a message of its own",
            steps.texts[0],
        )
    if not steps.messages:
        raise Rejected("missing_field", f"{where}: no part says anything", parts)
    if role != "assistant" and len(steps.texts) > 1:
        # A server joins them in its own way.
        steps.messages[0]["content"] = [{"type": "text", "text": text} for text in steps.texts]
    return steps.messages


def read_call(call: Any, where: str) -> dict[str, Any]:
    """Return a call as OpenAI's API has it, out of any spelling of its name, arguments and id."""
    if not isinstance(call, dict):
        raise Rejected("wrong_type", f"{where}: expected a call", call)
    fields = cast("dict[str, Any]", call)
    if isinstance(fields.get("function"), dict):
        return fields
    name, arguments = _first(fields, _CALL_NAMES), _first(fields, _ARGUMENTS)
    id_ = _first(fields, _CALL_IDS)
    if not isinstance(name, str) or not isinstance(arguments, str | dict):
        raise Rejected(
            "wrong_type", f"{where}: expected the name and the arguments of a call", call
        )
    known = {*_CALL_NAMES, *_ARGUMENTS, *_CALL_IDS, *_BOOKKEEPING}
    for key in fields.keys() - known:
        if fields[key] is not None:
            raise Rejected("wrong_type", f"{where}.{key}: a call cannot say this", fields[key])
    read: dict[str, Any] = {} if id_ is None else {"id": id_}
    return {**read, "type": "function", "function": {"name": name, "arguments": arguments}}


def _first(fields: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((fields[key] for key in keys if fields.get(key) is not None), None)


@dataclass(slots=True)
class _Steps:
    """Messages that grow part by part: of one step the answer, then the results of its calls."""

    role: str
    messages: list[Message] = field(default_factory=list[Message])
    results: list[Message] = field(default_factory=list[Message])
    texts: list[str] = field(default_factory=list[str])
    pieces: dict[str, list[str]] = field(default_factory=dict[str, "list[str]"])
    is_open: bool = False

    def add(self, key: str, value: Any, where: str) -> None:
        """Add reasoning, text or a call; refuse what the model said in another order than it is kept."""
        if self.role != "assistant" and key != "content":
            raise Rejected("unsupported_content", f"{where}: only an assistant says this", value)
        if not self.is_open:
            self.messages.append({"role": self.role, "content": ""})
            self.is_open = True
        message = self.messages[-1]
        if any(message.get(other) for other, rank in _RANKS.items() if rank > _RANKS[key]):
            raise Rejected(
                "unsupported_content",
                f"{where}: stands behind what a message says after it (reasoning, text, then calls); "
                "expected a part step-start between, or messages of their own",
                value,
            )
        if key == "tool_calls":
            message.setdefault(key, []).append(value)
        else:
            self.pieces.setdefault(key, []).append(value)
            message[key] = message.get(key) or value
            self.texts += [value] if key == "content" else []

    def close(self) -> None:
        """End the step: its results follow it."""
        for key, said in self.pieces.items():
            self.messages[-1][key] = "".join(said)
        self.pieces = {}
        self.messages += self.results
        self.results = []
        self.is_open = False


def _read_part(part: Any, where: str, steps: _Steps) -> None:
    """Add what one part says; raises `Rejected` (``unsupported_content``) for a part of no known kind."""
    if isinstance(part, str):
        return steps.add("content", part, where)
    fields = cast("dict[str, Any]", part) if isinstance(part, dict) else {}
    kind = fields.get("type")
    for key in ("functionCall", "functionResponse", "toolInvocation"):
        if isinstance(fields.get(key), dict):
            kind, fields = key, cast("dict[str, Any]", fields[key])
            where = f"{where}.{key}"
    text = _first(fields, ("text", "content", "reasoning"))
    if kind in ("text", "input_text", "output_text", None) and isinstance(text, str):
        key = "reasoning_content" if fields.get("thought") is True else "content"
        return steps.add(key, text, where)
    if kind == "reasoning" and isinstance(text, str):
        return steps.add("reasoning_content", text, where)
    if kind in ("tool_call", "tool-call", "functionCall"):
        return steps.add("tool_calls", read_call(fields, where), where)
    if kind in ("tool_call_response", "tool-result", "functionResponse"):
        steps.results.append(_read_result(fields, where))
        return None
    if kind == "step-start":
        return steps.close()
    if isinstance(kind, str) and (
        kind in ("toolInvocation", "dynamic-tool") or kind.startswith("tool-")
    ):
        return _read_ui_call(fields, kind, where, steps)
    if kind in _SILENT:
        return None
    raise Rejected(
        "unsupported_content", f"{where}.type: expected text, reasoning, a call or a result", kind
    )


def _read_ui_call(fields: dict[str, Any], kind: str, where: str, steps: _Steps) -> None:
    """Add a call and its result as Vercel's UI messages have them, in one part."""
    if fields.get("state") not in ("result", "output-available"):
        raise Rejected(
            "unsupported_content",
            f"{where}.state: expected a call that came back (output-available)",
            fields.get("state"),
        )
    name = kind.removeprefix("tool-") if kind.startswith("tool-") else None
    results = {key: fields[key] for key in _RESULTS if key in fields}
    call = {key: each for key, each in fields.items() if key not in results}
    steps.add("tool_calls", read_call({"name": name, **call}, where), where)
    steps.results.append(_read_result({**results, "id": fields.get("toolCallId")}, where))


def _read_result(fields: dict[str, Any], where: str) -> Message:
    """Return the message of a result: its text, or its JSON as JavaScript's ``JSON.stringify`` has it."""
    key = next((key for key in _RESULTS if fields.get(key) is not None), None)
    if key is None:
        raise Rejected("missing_field", f"{where}.output: missing; expected a result", fields)
    value = fields[key]
    if isinstance(value, dict):
        typed = cast("dict[str, Any]", value)
        if typed.keys() == {"type", "value"}:
            if typed["type"] not in ("text", "json"):
                raise Rejected("unsupported_content", f"{where}.{key}.type: expected text", value)
            value = typed["value"]
    if not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    message: Message = {"role": "tool", "content": value}
    id_, name = _first(fields, _CALL_IDS), _first(fields, _CALL_NAMES)
    if id_ is not None:
        message["tool_call_id"] = id_
    elif name is not None:
        message["name"] = name
    return message
