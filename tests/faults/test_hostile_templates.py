"""Chat templates are code of strangers: they reach nothing. See test_template_bombs for what they take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import Rejected
from pipeline.prompt.chat_template import ChatTemplate

MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]
# The advisories name the ways: attribute chains, format strings, the attr filter, bound methods.
ESCAPES = {
    "attribute walk": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "format walk": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "format_map walk": "{{ '{a.__class__}'.format_map({'a': messages}) }}",
    "stored format (CVE-2016-10745, CVE-2024-56326)": "{% set f = '{0.__class__}'.format %}{{ f(1) }}",
    "attr filter (CVE-2025-27516)": "{{ ('{0.__class__}'|attr('format'))(1) }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "globals of cycler": "{{ cycler.__init__.__globals__.os }}",
    "code of a generator": "{{ (messages|map('upper')).gi_frame }}",
    "change of the input": "{% set _ = messages.append(1) %}{{ messages }}",
    "an import": "{% import 'os' as os %}{{ os }}",
    "an include": "{% include '/etc/hostname' %}",
    "an extends": "{% extends '/etc/hostname' %}",
}


def refusal_of(source: str) -> Rejected:
    with pytest.raises(Rejected) as caught:
        ChatTemplate(source, {}).render(MESSAGES)
    return caught.value


@pytest.mark.parametrize("name", ESCAPES)
def test_an_escape_shows_nothing(name: str) -> None:
    try:
        text = ChatTemplate(ESCAPES[name], {}).render([dict(message) for message in MESSAGES])
    except Rejected as error:
        text = f"{error.code}: {error.reason}"
    assert "<class" not in text
    assert "module" not in text
    assert Path("/etc/hostname").read_text().strip() not in text
    assert MESSAGES == [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ raise_exception('no\\x1b[31m') }}", "no"),
        ("{{ nothing.at.all }}", "nothing"),
        ("{{ messages[7].content.x }}", "no element 7"),
        ("{{ 1 / 0 }}", "division by zero"),
    ],
)
def test_a_template_that_raises_is_quoted(source: str, words: str) -> None:
    error = refusal_of(source)
    assert error.code == "template_refused"
    assert words in error.reason
