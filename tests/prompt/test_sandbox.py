"""The sandbox answers as transformers' own does, so that a template renders the same text in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.runtime import LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils import chat_template_utils

from pipeline.errors import Rejected
from pipeline.prompt.chat_template import ChatSandbox, ChatTemplate, chat_sandbox
from tests.conftest import ROOT, require_shared

OWN: Any = chat_template_utils._compile_jinja_template("{{ 1 }}").environment
"""What transformers itself renders in."""

NAMES = ["role", "content", "items", "keys", "pop", "update", "get", "clear", "append", "format"]
NAMES += ["__class__", "__init__", "_x", "mro", "upper", "first", "index0", "gi_frame", "f_globals"]


class Odd(dict[str, Any]):
    """A dict with an attribute of its own."""

    role = "odd"


def make_objects() -> list[Any]:
    return [
        {},
        {"role": "user", "items": 1, "__class__": 2},
        Odd(role="key", content="key"),
        "text",
        ["a"],
        {"a"},
        (1,),
        7,
        None,
        len,
        str,
        make_objects,
        (n for n in "ab"),
        LoopContext(["a"], Undefined),
        chat_sandbox().globals["namespace"](role="x", pop=1, append=2, mro=3),
    ]


def describe(answer: Any) -> str:
    if isinstance(answer, Undefined):
        return f"undefined: {answer._undefined_message}"
    return repr(answer) if not callable(answer) else f"{answer.__name__} of {type(answer)}"


@pytest.mark.parametrize("place", range(len(make_objects())))
@pytest.mark.parametrize("name", NAMES)
def test_an_attribute_is_what_the_base_class_gives(place: int, name: str) -> None:
    sandbox, obj = chat_sandbox(), make_objects()[place]
    expected = describe(OWN.getattr(obj, name))
    # The second time the answer is remembered.
    assert [describe(sandbox.getattr(obj, name)) for _ in range(2)] == [expected] * 2


@given(st.dictionaries(st.sampled_from(NAMES), st.integers(), max_size=4), st.sampled_from(NAMES))
def test_a_key_of_a_message_is_what_the_base_class_gives(message: Any, name: str) -> None:
    assert describe(chat_sandbox().getattr(message, name)) == describe(OWN.getattr(message, name))


def test_the_sandbox_has_what_transformers_gives_its_templates() -> None:
    sandbox = chat_sandbox()
    assert isinstance(sandbox, ChatSandbox)
    for what in ("filters", "globals", "tests", "extensions"):
        assert set(getattr(sandbox, what)) == set(getattr(OWN, what))
    for setting in ("trim_blocks", "lstrip_blocks", "autoescape", "keep_trailing_newline"):
        assert getattr(sandbox, setting) == getattr(OWN, setting)


def test_transformers_own_environment_stays_as_it_was() -> None:
    ChatTemplate("{{ messages }}", {})
    for source in ("", "{{ 1 }}"):
        own: Any = chat_template_utils._compile_jinja_template(source).environment
        assert type(own) is ImmutableSandboxedEnvironment


def text_of(render: Callable[..., str], error: type[Exception], **variables: Any) -> str:
    """Return what ``render`` writes, or why it fails."""
    try:
        return render(add_generation_prompt=True, documents=None, **variables)
    except error as failure:
        return str(failure)


def assert_renders_alike(source: str) -> None:
    """Compare the template's text with transformers' for each of the parity conversations."""
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    ours = ChatTemplate(source, tokens).render
    theirs: Any = chat_template_utils._compile_jinja_template(source).render
    for line in (ROOT / "tests/parity/conversations.jsonl").read_text("utf-8").rstrip().split("\n"):
        case = json.loads(line)
        given = {"messages": case["messages"], "tools": case.get("tools")}
        expected = text_of(theirs, Exception, **given, **tokens)
        assert text_of(ours, Rejected, **given).endswith(expected), case["name"]


@pytest.mark.parametrize(
    "name", sorted(path.name for path in (ROOT / "tests/parity/templates").glob("*.jinja"))
)
def test_our_templates_render_as_transformers_renders_them(name: str) -> None:
    source = (ROOT / "tests/parity/templates" / name).read_text("utf-8")
    assert_renders_alike(source)


def test_real_templates_render_as_transformers_renders_them() -> None:
    folders = require_shared("assets/tokenizers")
    seen = 0
    for path in sorted(folders.glob("*/chat_template.jinja")):
        assert_renders_alike(path.read_text("utf-8"))
        seen += 1
    assert seen
