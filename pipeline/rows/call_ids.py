"""Ids of tool calls in the form that a template demands: Mistral's raise unless it is nine letters or digits.

The form is learnt by rendering a call, with an id as most clients write it, then with one of nine
letters and digits; no model is known by its name. Under ``tool_call_ids: template`` every id of
another form is replaced, that of a call and those of its results alike; under ``keep`` the refusal of
such a row says so.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Final, NamedTuple, cast

from pipeline.answer.stage import ARGUMENT_FORMS, CONTENT_FORMS, USER, Stage, find_stage
from pipeline.config import RowSettings
from pipeline.errors import Rejected
from pipeline.examples.decisions import DecisionPoint
from pipeline.examples.example import TrainingExample
from pipeline.prompt.bounded import BOUNDED_RUNS, OverLimit
from pipeline.prompt.chat_template import ChatTemplates
from pipeline.prompt.request import Dialect
from pipeline.types import Message

_FORM: Final = re.compile(r"[A-Za-z0-9]{9}")
_LETTERS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# As OpenAI's clients write it.
_USUAL: Final = "call_zebra_of_the_savannah_0001"
_ADVICE: Final = (
    "; tool_call_ids: template (--tool_call_ids template) gives calls and their results ids that this "
    "template takes"
)


class _Renamed(NamedTuple):
    """An example with other ids, and the place of the first message that got one."""

    example: TrainingExample
    first: int


class CallIds:
    """Gives calls the ids that a template takes, or says that the setting would."""

    def __init__(self, config: RowSettings, dialect: Dialect, templates: ChatTemplates) -> None:
        self._config = config
        self._dialect = dialect
        self._templates = templates

    @cached_property
    def _refusals(self) -> frozenset[str]:
        try:
            with BOUNDED_RUNS.limited():
                return find_id_refusals(
                    self._dialect, self._templates, self._config.chat_template_kwargs
                )
        except OverLimit:
            # Every row is refused for it.
            return frozenset()

    def rename(self, points: Sequence[DecisionPoint]) -> list[tuple[DecisionPoint, bool]]:
        """Return each point, its calls renamed if the setting and the template ask for it, and if any was.

        A point whose context is the ids that a server saw stays as it is.
        """
        if self._config.tool_call_ids == "keep":
            return [(point, False) for point in points]
        known: dict[int, _Renamed] = {}
        return [self._rename_point(point, known) for point in points]

    def _rename_point(
        self, point: DecisionPoint, known: dict[int, _Renamed]
    ) -> tuple[DecisionPoint, bool]:
        example, place, said = point.example, point.decision_idx, point.continuation
        messages = example.messages
        if messages is None or place is None or example.context_ids is not None:
            return point, False
        if not any(_has_calls(each) for each in (*messages[:place], said)) or not self._refusals:
            return point, False
        renamed = known.get(id(example))
        if renamed is None:
            others = rename_calls(messages)
            pairs = enumerate(zip(messages, others, strict=True))
            first = next((at for at, (one, other) in pairs if one is not other), len(messages))
            renamed = known[id(example)] = _Renamed(replace(example, messages=others), first)
        answer = said
        if isinstance(said, dict):
            if place < len(messages) and said is messages[place]:
                answer = (renamed.example.messages or [])[place]
            else:
                answer = rename_calls([*messages[:place], said])[-1]
        point = point._replace(example=renamed.example, continuation=answer)
        return point, renamed.first < place or answer is not said

    def explain(self, point: DecisionPoint, error: Rejected) -> Rejected:
        """Return the refusal of a point, with the setting that helps where its ids are refused so."""
        if (
            self._config.tool_call_ids != "keep"
            or error.code not in ("template_refused", "server_refused")
            or isinstance(error, OverLimit)
            or not self._rename_point(point, {})[1]
            or not error.reason.startswith(tuple(self._refusals))
        ):
            return error
        return Rejected(error.code, error.reason + _ADVICE)


def find_id_refusals(
    dialect: Dialect, templates: ChatTemplates, kwargs: Mapping[str, Any]
) -> frozenset[str]:
    """Return the reasons for which ids of calls are refused that are not nine letters or digits.

    Empty where a template takes the usual ones, and where it takes no calls at all.
    """
    stage = find_stage(dialect, templates, kwargs, has_tools=True)
    if isinstance(stage, str):
        return frozenset()
    user, result = stage.say("user", USER), stage.result()
    usual = {**result, "tool_call_id": _USUAL}
    for arguments in ARGUMENT_FORMS:
        for content in CONTENT_FORMS:
            call = stage.call(content, arguments)
            if stage.prompt(user, call, result) is None:
                continue
            of_call = _refusal_of(stage, user, _with_ids(call, _USUAL), usual)
            of_result = _refusal_of(stage, user, call, usual)
            if of_call is None and of_result is None:
                return frozenset()
            lacking = _refusal_of(stage, user, _with_ids(call, None), result)
            return frozenset(each for each in (of_call, of_result, lacking) if each is not None)
    return frozenset()


def rename_calls(messages: Sequence[Message]) -> list[Message]:
    """Return the messages with an id of nine letters or digits for every call and its result.

    An id of that form stays. Another follows from what it was and from the call's number in the
    conversation, so it is the same however much of the conversation follows. Of results that name no
    call, and of those of one name, the first stands for the first call. A result of no call stays.

    >>> talk = [{"role": "assistant", "tool_calls": [{"id": "call_1"}]},
    ...         {"role": "tool", "content": "7", "tool_call_id": "call_1"}]
    >>> call, result = rename_calls(talk)
    >>> call["tool_calls"][0]["id"] == result["tool_call_id"], len(result["tool_call_id"])
    (True, 9)
    """
    named: dict[str, str] = {}
    pending: list[tuple[str, str]] = []
    count = 0
    renamed: list[Message] = []
    for message in messages:
        if _has_calls(message):
            pending = []
            new: list[str] = []
            for call in message["tool_calls"]:
                old = _id_in(call, "id")
                new.append(old if _FORM.fullmatch(old) else _make_id(count, old))
                pending.append((old, new[-1]))
                named[old] = new[-1]
                count += 1
            message = _with_ids(message, *new)
        elif message.get("role") == "tool":
            old = _id_in(message, "tool_call_id")
            paired = next((pair for pair in pending if old in ("", pair[0])), None)
            if paired is not None:
                pending.remove(paired)
            found = named.get(old) if paired is None else paired[1]
            if found is not None and found != old:
                message = {**message, "tool_call_id": found}
        renamed.append(message)
    return renamed


def _make_id(count: int, old: str) -> str:
    """Return an id that looks as a model's own does, so that no row teaches a pattern."""
    digest = hashlib.sha256(f"{count} {old}".encode("utf-8", "surrogatepass")).digest()
    return "".join(_LETTERS[byte % len(_LETTERS)] for byte in digest[:9])


def _with_ids(message: Message, *ids: str | None) -> Message:
    """Return the message with these ids of its calls, None for none; itself where it has them."""
    calls = message["tool_calls"]
    if [call.get("id") for call in calls] == list(ids):
        return message
    rest = ({key: each for key, each in call.items() if key != "id"} for call in calls)
    named = [
        call if id_ is None else {"id": id_, **call} for id_, call in zip(ids, rest, strict=True)
    ]
    return {**message, "tool_calls": named}


def _has_calls(message: object) -> bool:
    """Say whether a message has calls of which each may get an id."""
    if not isinstance(message, dict):
        return False
    calls = cast("Message", message).get("tool_calls")
    if not isinstance(calls, list) or not calls:
        return False
    return all(isinstance(call, dict) for call in cast("list[Any]", calls))


def _id_in(fields: Mapping[str, Any], key: str) -> str:
    found = fields.get(key)
    return found if isinstance(found, str) else ""


def _refusal_of(stage: Stage, *messages: Message) -> str | None:
    try:
        stage.dialect.render_prompt(stage.request(*messages), stage.templates)
    except Rejected as error:
        return error.reason
    return None
