"""The clock of a render: fixed by the user, or refused.

Templates read the clock through ``strftime_now``, a function that transformers gives them. A row
must not depend on the day it was built, so the function is replaced for every render.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from threading import Lock
from typing import Any

import jinja2
from transformers.utils import chat_template_utils

CLOCK_FUNCTION = "strftime_now"
_swap_lock = Lock()


@dataclass(frozen=True)
class FixedClock:
    """Stands in for ``strftime_now``: always the same moment, or a refusal where there is none.

    >>> FixedClock(datetime(2026, 11, 25))("%d %b %Y")
    '25 Nov 2026'
    """

    moment: datetime | None = None

    def __call__(self, format: str) -> str:
        if self.moment is None:
            raise jinja2.TemplateError(
                "it reads the clock (strftime_now), so the row would depend on the day; give "
                "server_options.fixed_date: YYYY-MM-DD, or the date in the template's own terms "
                "(chat_template_kwargs.date_string in Llama's)"
            )
        return self.moment.strftime(format)


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
