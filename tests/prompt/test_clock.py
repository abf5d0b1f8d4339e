"""The clock of a render: fixed by the user or refused, in every dialect."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers.utils import chat_template_utils

from pipeline.errors import Rejected, UsageError
from pipeline.prompt.chat_template import ChatTemplates, FixedClock
from pipeline.prompt.dialects import load_dialect
from pipeline.prompt.request import ChatRequest, Dialect
from tests.conftest import require_shared

# As Llama's templates do it: the date is read from the clock unless the request gives it.
DATED = (
    "{%- macro today() %}{{ strftime_now('%d %b %Y') }}{% endmacro %}"
    "{%- if date_string is not defined %}{% set date_string = today() %}{% endif %}"
    "Today: {{ date_string }} {{ messages[0].content }}"
)
REQUEST = ChatRequest([{"role": "user", "content": "x"}])
SERVERS = ["vllm", "sglang", "plain"]


def make(server: str, **options: Any) -> Dialect:
    return load_dialect(server, options, "llama")


def templates(source: str = DATED) -> ChatTemplates:
    return ChatTemplates({"default": source}, {})


@pytest.mark.parametrize("server", SERVERS)
def test_a_template_that_reads_the_clock_is_refused_with_the_way_out(server: str) -> None:
    with pytest.raises(Rejected, match=r"server_options\.fixed_date") as refusal:
        make(server).render_prompt(REQUEST, templates())
    assert refusal.value.code == "template_refused"


@pytest.mark.parametrize("server", SERVERS)
def test_a_fixed_date_takes_the_place_of_the_clock(server: str) -> None:
    dialect = make(server, fixed_date="2026-11-25")
    for render in (dialect.render_prompt, dialect.render_turn):
        assert render(REQUEST, templates()).text == "Today: 25 Nov 2026 x"


@pytest.mark.parametrize("server", SERVERS)
def test_a_date_in_the_kwargs_leaves_the_clock_unread(server: str) -> None:
    request = ChatRequest(REQUEST.messages, None, {"date_string": "26 Jul 2024"})
    assert make(server).render_prompt(request, templates()).text == "Today: 26 Jul 2024 x"


@pytest.mark.parametrize("server", SERVERS)
def test_a_clock_that_is_not_called_is_not_refused(server: str) -> None:
    source = "{% if strftime_now is defined %}clock {% endif %}{{ messages[0].content }}"
    assert make(server).render_prompt(REQUEST, templates(source)).text == "clock x"


def test_transformers_own_clock_is_put_back_after_a_plain_render() -> None:
    make("plain", fixed_date="1999-01-01").render_prompt(REQUEST, templates())
    [text], _ = chat_template_utils.render_jinja_template(
        conversations=[list(REQUEST.messages)], chat_template=DATED
    )
    assert "1999" not in text


def test_a_moment_may_have_a_time() -> None:
    dialect = make("vllm", fixed_date="2026-11-25T13:05")
    text = dialect.render_prompt(REQUEST, templates("{{ strftime_now('%H:%M') }}")).text
    assert text == "13:05"
    assert FixedClock(datetime(2026, 11, 25, 13, 5))("%H") == "13"


def test_plain_takes_no_other_option() -> None:
    with pytest.raises(UsageError, match="server: plain has no such option"):
        make("plain", content_format="string")


def test_every_real_template_that_calls_the_clock_needs_the_date_and_renders_with_it() -> None:
    folder: Path = require_shared("assets/templates")
    sources = {path.stem: path.read_bytes().decode("utf-8") for path in folder.glob("*.jinja")}
    needy = set()
    for name, source in sources.items():
        if "strftime_now" not in source:
            continue
        try:
            make("vllm").render_prompt(REQUEST, templates(source))
        except Rejected as refusal:
            if "fixed_date" in refusal.reason:
                needy.add(name)
                assert make("vllm", fixed_date="2026-11-25").render_prompt(
                    REQUEST, templates(source)
                )
    assert {"llama-3.2", "llama-4", "gpt-oss", "granite-3.3"} <= needy
