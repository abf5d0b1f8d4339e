"""``server: plain``: ``apply_chat_template`` of the installed transformers, untouched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from transformers.utils import chat_template_utils

from pipeline.prompt.bounded import BOUNDED_RUNS
from pipeline.prompt.chat_template import ChatTemplates
from pipeline.prompt.clock import FixedClock, replace_clock
from pipeline.prompt.limits import join_text
from pipeline.prompt.options import read_moment, read_options
from pipeline.prompt.request import SERVER_VERSIONS, ChatRequest, Rendering
from pipeline.prompt.shape import expect_list


@dataclass(frozen=True)
class PlainDialect:
    """What a script that calls ``tokenizer.apply_chat_template`` sees; no server's rules.

    ``fixed_date`` is the day that templates read from the clock.
    """

    fixed_date: datetime | None = None
    name: str = field(default="plain", init=False)
    version: str = field(default=SERVER_VERSIONS["plain"], init=False)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> PlainDialect:
        """Return the dialect; raises `UsageError` for an option other than ``fixed_date``."""
        return cls(**read_options("plain", options, {"fixed_date": read_moment}))

    def render_prompt(self, request: ChatRequest, templates: ChatTemplates) -> Rendering:
        """Return the template's text with the generation prompt."""
        return self._render(request, templates, add_generation_prompt=True)

    def render_turn(self, request: ChatRequest, templates: ChatTemplates) -> Rendering:
        """Return the template's text without a generation prompt."""
        return self._render(request, templates, add_generation_prompt=False)

    def _render(
        self, request: ChatRequest, templates: ChatTemplates, *, add_generation_prompt: bool
    ) -> Rendering:
        template = templates.for_request(has_tools=bool(request.tools))
        variables: dict[str, Any] = {
            **template.special_tokens,
            **request.chat_template_kwargs,
        }
        call: dict[str, Any] = {
            "conversations": [list(expect_list(request.messages, "messages"))],
            "tools": list(expect_list(request.tools, "tools")) if request.tools else None,
            "chat_template": template.source,
            "add_generation_prompt": add_generation_prompt,
        }
        template.check_compiles()
        return Rendering(BOUNDED_RUNS.run(_render_plainly, self.fixed_date, call, variables))


def _render_plainly(day: datetime | None, call: dict[str, Any], variables: dict[str, Any]) -> str:
    with replace_clock(call["chat_template"], FixedClock(day)):
        rendered: Any = chat_template_utils.render_jinja_template(**call, **variables)
    return join_text(rendered[0], call | variables)
