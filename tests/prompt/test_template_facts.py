"""What is read from a template's syntax tree: the content form, the variables, the developer role."""

from __future__ import annotations

import pytest

from pipeline.prompt.template_facts import find_sglang_content_form, find_template_facts
from pipeline.prompt.vllm_versions import VllmRules

LOOP = "{% for m in messages %}BODY{% endfor %}"
CONTENT_LOOP = "{% for p in m.content %}{{ p }}{% endfor %}"


def form_of(source: str) -> str:
    return find_template_facts(source).content_form(VllmRules())


@pytest.mark.parametrize(
    "source",
    [
        LOOP.replace("BODY", CONTENT_LOOP),
        LOOP.replace("BODY", CONTENT_LOOP.replace("m.content", "m['content']")),
        LOOP.replace("BODY", CONTENT_LOOP.replace("m.content", "m.content | list")),
        LOOP.replace("BODY", CONTENT_LOOP.replace("m.content", "m.content[1:]")),
        "{% for m in messages[1:] %}" + CONTENT_LOOP + "{% endfor %}",
        "{% for m in messages | reverse %}" + CONTENT_LOOP + "{% endfor %}",
        "{% set rest = messages[1:] %}{% for m in rest %}" + CONTENT_LOOP + "{% endfor %}",
        "{% set a = messages %}{% set b = a %}{% for m in b %}" + CONTENT_LOOP + "{% endfor %}",
        "{% set ns = namespace(all=messages) %}{% for m in ns.all %}"
        + CONTENT_LOOP
        + "{% endfor %}",
        "{% set ns = namespace() %}{% set ns.all = messages %}{% for m in ns.all %}"
        + CONTENT_LOOP
        + "{% endfor %}",
        # A loop over a plain `content` counts outside macros, wherever it came from.
        LOOP.replace("BODY", "{% set content = m.text %}{% for p in content %}{{ p }}{% endfor %}"),
        "{% macro w(x) %}{% for p in x %}{{ p }}{% endfor %}{% endmacro %}"
        + LOOP.replace("BODY", "{{ w(m.content) }}"),
        "{% macro w(a, x) %}{% for p in x %}{{ p }}{% endfor %}{% endmacro %}"
        + LOOP.replace("BODY", "{{ w(1, x=m['content']) }}"),
    ],
)
def test_a_loop_over_message_content_means_parts(source: str) -> None:
    assert form_of(source) == "openai"


@pytest.mark.parametrize(
    "source",
    [
        "",
        LOOP.replace("BODY", "{{ m.content }}"),
        LOOP.replace("BODY", "{% for c in m.tool_calls %}{{ c }}{% endfor %}"),
        # Content of something that is no message.
        "{% for d in documents %}{% for p in d.content %}{{ p }}{% endfor %}{% endfor %}",
        # Inside a macro, `content` is a parameter like any other.
        "{% macro w(content) %}{% for p in content %}{{ p }}{% endfor %}{% endmacro %}"
        + LOOP.replace("BODY", "{{ w(m.tool_calls) }}"),
        # A messages list that a filter made into something else is followed, a call is not.
        "{% for m in build(messages) %}" + CONTENT_LOOP + "{% endfor %}",
        # Loops with two targets end the search.
        LOOP.replace("BODY", "{% for k, v in m.content %}{{ k }}{% endfor %}"),
        "{% for a, b in messages %}{{ a }}{% endfor %}" + LOOP.replace("BODY", CONTENT_LOOP),
    ],
)
def test_anything_else_means_text(source: str) -> None:
    assert form_of(source) == "string"


def test_the_first_of_two_content_loops_decides() -> None:
    unpacking = "{% for k, v in m.content %}{{ k }}{% endfor %}"
    assert form_of(LOOP.replace("BODY", CONTENT_LOOP + unpacking)) == "openai"
    assert form_of(LOOP.replace("BODY", unpacking + CONTENT_LOOP)) == "string"


def test_variables_are_those_that_the_template_takes_from_outside() -> None:
    source = (
        "{% set own = 1 %}{{ own }}{% if enable_thinking is defined %}{{ colour }}{% endif %}"
        "{% for m in messages %}{{ m }}{% endfor %}{{ namespace() }}{% generation %}{{ last }}{% endgeneration %}"
    )
    assert find_template_facts(source).variables == {
        "enable_thinking",
        "colour",
        "messages",
        "last",
    }


@pytest.mark.parametrize(
    ("source", "is_named"),
    [
        ("{{ 'developer' }}", True),
        ('{{ "developer" }}', True),
        ("developer {# developer #}", False),
    ],
)
def test_the_developer_role_counts_in_quotes_only(source: str, is_named: bool) -> None:
    assert find_template_facts(source).names_developer is is_named


@pytest.mark.parametrize("name", ["message", "msg", "m"])
def test_sglang_looks_at_three_names(name: str) -> None:
    source = "{% for NAME in messages %}{% for p in NAME['content'] | list %}{{ p }}{% endfor %}{% endfor %}"
    assert find_sglang_content_form(source.replace("NAME", name)) == "openai"
    assert find_sglang_content_form(source.replace("NAME", "turn")) == "string"
