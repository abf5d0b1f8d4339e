"""Probe conversations: what a template makes of messages whose texts can be found again.

Templates differ in what they accept (parts, tools, documents, a system message first), so a stage
first finds a form of conversation in which the answer shows up at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from pipeline.errors import Rejected
from pipeline.prompt.chat_template import ChatTemplates
from pipeline.prompt.request import ChatRequest, Dialect
from pipeline.types import Message

# Whole sentences that no template says itself, and that survive trimming.
SYSTEM: Final = "Zebras obey the system."
USER: Final = "Which zebra is first?"
ANSWER: Final = "Quagga is the first."
USER_AGAIN: Final = "Which zebra is second?"
REASONING: Final = "Okapi cannot be one."
TOOL_NAME: Final = "find_zebra"
ARGUMENT_KEY: Final = "kind"
ARGUMENT: Final = "Grevy"
RESULT: Final = "Plains were seen."

TOOLS: Final = (
    {
        "type": "function",
        "function": {
            "name": TOOL_NAME,
            "description": "Finds one.",
            "parameters": {
                "type": "object",
                "properties": {ARGUMENT_KEY: {"type": "string", "description": "Which."}},
                "required": [ARGUMENT_KEY],
            },
        },
    },
)
ARGUMENT_FORMS: Final = ({ARGUMENT_KEY: ARGUMENT}, f'{{"{ARGUMENT_KEY}": "{ARGUMENT}"}}')
"""The arguments of a call as templates take them: an object (most), or its JSON."""

CONTENT_FORMS: Final = ("", None)
"""The content of a message that only calls a tool, as templates take it."""

REFUSED: Final = "the probe conversation is refused: "
"""How the reason begins where the server or the template refuses what is asked of it."""

# Mistral's templates insist on ids of nine letters and digits.
_CALL_ID: Final = "zebra0001"
_PROBE_DAY: Final = datetime(2024, 7, 26)
_DOCUMENTS: Final = ({"title": "Zebras", "text": "They have stripes."},)


@dataclass(frozen=True)
class Stage:
    """A dialect, its templates, and the form of conversation that they accept."""

    dialect: Dialect
    templates: ChatTemplates
    kwargs: Mapping[str, Any]
    has_tools: bool = False
    as_parts: bool = False
    with_system: bool = False

    def prompt(self, *messages: Message) -> str | None:
        """Return the prompt of a conversation, or None where it is refused."""
        return self._render(self.dialect.render_prompt, messages)

    def turn(self, *messages: Message) -> str | None:
        """Return the text of a conversation that the assistant ends, or None where it is refused."""
        return self._render(self.dialect.render_turn, messages)

    def _render(self, render: Callable[..., Any], messages: tuple[Message, ...]) -> str | None:
        try:
            return render(self.request(*messages), self.templates).text
        except Rejected:
            return None

    def request(self, *messages: Message) -> ChatRequest:
        """Return the request of a conversation, the system message first where the stage needs one."""
        opening = [self.say("system", SYSTEM)] if self.with_system else []
        return ChatRequest(
            [*opening, *messages], list(TOOLS) if self.has_tools else None, self.kwargs
        )

    def say(self, role: str, text: str, **more: Any) -> Message:
        """Return a message in the form that the template accepts."""
        content = [{"type": "text", "text": text}] if self.as_parts else text
        return {"role": role, "content": content, **more}

    def reason(self, text: str = ANSWER) -> Message:
        """Return an answer with reasoning, under each of the names that templates read."""
        return self.say("assistant", text, reasoning=REASONING, reasoning_content=REASONING)

    def result(self) -> Message:
        """Return the tool message that answers `call`."""
        return self.say("tool", RESULT, tool_call_id=_CALL_ID, name=TOOL_NAME)

    def call(self, content: str | None, arguments: object, **more: Any) -> Message:
        """Return an assistant's message with one tool call."""
        function = {"name": TOOL_NAME, "arguments": arguments}
        call = {"id": _CALL_ID, "type": "function", "function": function}
        return {"role": "assistant", "content": content, "tool_calls": [call], **more}

    def with_tools(self) -> Stage:
        """Return the same stage with tools in the request."""
        return replace(self, has_tools=True)


def find_stage(
    dialect: Dialect, templates: ChatTemplates, kwargs: Mapping[str, Any], *, has_tools: bool
) -> Stage | str:
    """Return the plainest stage on which an answer can be seen, or why there is none.

    The answer is looked for in the last turn, and where a template does not write its last turn (it
    only writes history), in the turn before.
    """
    # What a turn looks like does not depend on the day, so a probe needs no date from the user.
    plain = Stage(fix_clock(dialect, _PROBE_DAY), templates, kwargs, has_tools=has_tools)
    stages = [
        plain,
        replace(plain, as_parts=True),
        replace(plain, with_system=True),
        plain.with_tools(),
        replace(plain, kwargs={**kwargs, "documents": list(_DOCUMENTS)}),
    ]
    for stage in stages:
        if ANSWER in (stage.turn(stage.say("user", USER), stage.say("assistant", ANSWER)) or ""):
            return stage
    for stage in stages[:2]:
        if ANSWER in (stage.prompt(*_history(stage)) or ""):
            return stage
    return _explain_refusal(plain)


def fix_clock(dialect: Dialect, day: datetime | None) -> Dialect:
    """Return the dialect with its clock at ``day``, or without one."""
    settings: Any = dialect
    return replace(settings, fixed_date=day)


def _history(stage: Stage) -> list[Message]:
    return [
        stage.say("user", USER),
        stage.say("assistant", ANSWER),
        stage.say("user", USER_AGAIN),
    ]


def _explain_refusal(stage: Stage) -> str:
    try:
        stage.dialect.render_prompt(stage.request(*_history(stage)), stage.templates)
    except Rejected as error:
        return REFUSED + error.reason
    return "the template drops the text of every assistant turn"


def text_before(text: str, mark: str) -> str:
    """Return what stands before the first ``mark``, nothing where it is missing."""
    head, found, _ = text.partition(mark)
    return head if found else ""


def text_after(text: str, mark: str) -> str:
    """Return what stands after the last ``mark``, nothing where it is missing."""
    _, found, tail = text.rpartition(mark)
    return tail if found else ""


def text_between(text: str, first: str, second: str) -> str:
    """Return what stands between the two marks, nothing where one is missing."""
    at = text.find(first)
    end = text.find(second, at + len(first)) if at >= 0 else -1
    return text[at + len(first) : end] if end >= 0 else ""
