"""Whatever a request looks like, a dialect renders it or refuses it with a code, and leaves it alone."""

from __future__ import annotations

import contextlib
import copy
from datetime import datetime
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from pipeline.errors import Rejected
from pipeline.prompt.chat_template import ChatTemplates
from pipeline.prompt.plain import PlainDialect
from pipeline.prompt.request import ChatRequest, Dialect
from pipeline.prompt.sglang import SglangDialect
from pipeline.prompt.vllm import VllmDialect
from tests.conftest import require_shared

TEMPLATES = [
    ChatTemplates({"default": source}, {"bos_token": "<s>"})
    for source in (
        "{{ messages | tojson }}{{ tools | tojson }}{{ colour }}",
        "{% for m in messages %}{{ m.role }}{% for p in m.content %}{{ p.text }}{% endfor %}"
        "{% for c in m.tool_calls or [] %}{{ c.function.arguments.items() }}{% endfor %}{% endfor %}",
    )
]

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def mostly(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return strategy | strategy | strategy | anything


def record(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return objects with any subset of the fields, each mostly of its own kind."""
    return st.fixed_dictionaries({}, optional={key: mostly(value) for key, value in fields.items()})


part_types = st.sampled_from(
    ["text", "refusal", "thinking", "reasoning", "tool_reference", "image_url", "file", "x"]
)
parts = record(type=part_types, text=st.text(max_size=5), refusal=st.text(max_size=5)) | st.text(
    max_size=5
)
arguments = st.sampled_from(["", "{}", '{"a": 1.0}', "[1]", "null", "{", "NaN"]) | anything
functions = record(name=st.text(max_size=5), arguments=arguments, parameters=anything)
calls = record(id=st.text(max_size=9), type=st.just("function"), function=functions)
tools = record(type=st.just("function"), function=functions, defer_loading=st.booleans())
roles = st.sampled_from(["system", "user", "assistant", "tool", "developer", "function", "Alien"])
messages = record(
    role=roles,
    content=st.text(max_size=5) | st.lists(mostly(parts), max_size=3),
    name=st.text(max_size=3),
    tool_calls=st.lists(mostly(calls), max_size=2),
    tool_call_id=st.text(max_size=3),
    reasoning=st.text(max_size=3),
    reasoning_content=st.text(max_size=3),
    tools=st.lists(mostly(tools), max_size=2),
)
kwargs = st.dictionaries(
    st.sampled_from(
        ["colour", "tools", "documents", "messages", "self", "strftime_now", "chat_template"]
    )
    | st.text(max_size=3),
    anything,
    max_size=3,
)
requests = st.builds(
    ChatRequest,
    mostly(st.lists(mostly(messages), max_size=4)),
    mostly(st.none() | st.lists(mostly(tools), max_size=2)),
    kwargs,
)


def check_dialect(dialect: Dialect, request: ChatRequest) -> None:
    before = copy.deepcopy(request)
    for templates in TEMPLATES:
        for render in (dialect.render_prompt, dialect.render_turn):
            with contextlib.suppress(Rejected):
                assert isinstance(render(request, templates).text, str)
    assert repr(request) == repr(before)


DIALECTS = [VllmDialect(), SglangDialect(), PlainDialect(datetime(2026, 11, 25))]


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@settings(max_examples=300)
@given(request_=requests)
def test_a_request_of_any_shape_is_rendered_or_refused(
    dialect: Dialect, request_: ChatRequest
) -> None:
    check_dialect(dialect, request_)


@pytest.fixture(scope="module")
def harmony() -> Dialect:
    pytest.importorskip("openai_harmony", reason="the extra 'harmony' is not installed")
    folder: Path = require_shared("assets/tokenizers/gpt-oss")
    return VllmDialect.from_options({"fixed_date": "2026-11-25"}, "gpt_oss", folder)


@settings(max_examples=200)
@given(request_=requests)
def test_a_request_of_any_shape_is_written_for_gpt_oss_or_refused(
    harmony: Dialect, request_: ChatRequest
) -> None:
    check_dialect(harmony, request_)
