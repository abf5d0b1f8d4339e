"""``server: plain``: ``apply_chat_template`` of the installed transformers, untouched."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from threading import Lock
from typing import Any

from transformers.utils import chat_template_utils

from pipeline.prompt.bounded import BOUNDED_RUNS
from pipeline.prompt.chat_template import CLOCK_FUNCTION, ChatTemplates, FixedClock, join_text
from pipeline.prompt.options import read_moment, read_options
from pipeline.prompt.request import (
    SERVER_VERSIONS,
    ChatRequest,
    Rendering,
    TemplateDialect,
    expect_list,
)

_swap_lock = Lock()


@dataclass(frozen=True)
class PlainDialect(TemplateDialect):
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


@contextmanager
def replace_clock(source: str, clock: Callable[[str], str]) -> Generator[None]:
    """Let the template with this text see ``clock`` while the block runs.

    For renders that go through transformers, which lets no function in as a template variable. The
    compiled template is shared with every user of transformers in this process, hence the way back.
    """
    if CLOCK_FUNCTION not in source:
        yield
        return
    compiled: Any = chat_template_utils._compile_jinja_template(source)  # pyright: ignore[reportPrivateUsage]
    functions: dict[str, Any] = compiled.environment.globals
    with _swap_lock:
        before = functions[CLOCK_FUNCTION]
        functions[CLOCK_FUNCTION] = clock
        try:
            yield
        finally:
            functions[CLOCK_FUNCTION] = before
