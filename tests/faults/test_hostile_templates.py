"""Chat templates are code of strangers: bounded in time and size, and they reach nothing."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import Rejected
from pipeline.job.prepare import prepare
from pipeline.template import limits
from pipeline.template.chat_template import ChatTemplate
from pipeline.template.limits import RENDER_CLOCK
from tests.conftest import write_lines

MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]
EXAMPLE = {"id": "a", "messages": MESSAGES, "continuation": "Hello"}

ENDLESS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% set d = a %}{% endfor %}{% endfor %}{% endfor %}"
)
HUGE = {
    "a loop that writes": "{% for a in range(99999) %}{% for b in range(99999) %}"
    "{{ 'x' * 1000 }}{% endfor %}{% endfor %}",
    "a product": "{{ 'x' * 10 ** 12 }}",
    "a product of lists": "{{ ([1] * 10 ** 12)|length }}",
    "a tower of powers": "{{ 9 ** (9 ** (9 ** 9)) }}",
    "a padding": "{{ 'x'|center(10 ** 12) }}",
    "a method that pads": "{{ 'x'.ljust(10 ** 12) }}",
    "an indent": "{{ 'x\ny'|indent(10 ** 12) }}",
    "a format": "{{ '%1000000000000d'|format(1) }}",
    "a percent format": "{{ '%1000000000000d' % 1 }}",
    "a method that formats": "{{ '{:1000000000000}'.format(1) }}",
    "a range": "{{ range(10 ** 12)|list }}",
}
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


@pytest.mark.parametrize("name", HUGE)
def test_a_huge_output_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RENDER_CHARACTERS", 2**20)
    begun = time.monotonic()
    error = refusal_of(HUGE[name])
    assert error.code == "template_refused"
    assert time.monotonic() - begun < 5


def test_an_endless_loop_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RENDER_SECONDS", 1)
    with RENDER_CLOCK.started():
        error = refusal_of(ENDLESS)
        assert "ran for over 1 s of CPU time" in error.reason
        # The clock is for one render: the next begins anew.
        assert ChatTemplate("{{ messages[0].content }}", {}).render(MESSAGES) == "Hi"


def test_renders_outside_the_main_thread_are_not_timed_and_work() -> None:
    texts: list[str] = []

    def render() -> None:
        with RENDER_CLOCK.started():
            texts.append(ChatTemplate("{{ messages[0].content }}", {}).render(MESSAGES))

    thread = threading.Thread(target=render)
    thread.start()
    thread.join()
    assert texts == ["Hi"]


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


@pytest.mark.parametrize("num_proc", [1, 2])
def test_a_job_survives_a_template_that_loops_for_some_rows(
    tmp_path: Path,
    bundled_tokenizer: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_proc: int,
) -> None:
    from pipeline.job import build
    from pipeline.source import plan

    monkeypatch.setattr(limits, "RENDER_SECONDS", 1)
    monkeypatch.setattr(plan, "LEAST_SHARD_BYTES", 1)
    monkeypatch.setattr(build, "_BYTES_PER_WORKER", 1)
    own = (bundled_tokenizer / "chat_template.jinja").read_text("utf-8")
    template = tmp_path / "mine.jinja"
    template.write_text(f"{{% if messages[0].content == 'loop' %}}{ENDLESS}{{% endif %}}{own}")
    looping = {**EXAMPLE, "id": "b", "messages": [{"role": "user", "content": "loop"}]}
    others = [{**EXAMPLE, "id": f"e{number}"} for number in range(8)]
    lines = write_lines(tmp_path / "in.jsonl", [*others, looping])
    prepared = prepare(
        input=str(lines),
        tokenizer=str(bundled_tokenizer),
        chat_template=str(template),
        output=str(tmp_path / "set"),
        max_reject_rate=0.5,
        num_proc=num_proc,
    )
    assert prepared.counts["rows"] == 8
    (reject,) = map(json.loads, (prepared.output / "rejects.jsonl").read_text().splitlines())
    assert (reject["id"], reject["code"]) == ("b", "template_refused")
    assert "CPU time" in reject["reason"]
