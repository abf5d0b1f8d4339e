"""``server_options.server_version``: what the code of 26 releases of vLLM made of our own requests.

``vllm_versions.jsonl`` has, per template and request, the answer of the first release that gave it (null:
refused) and of each later one that gave another. A request of ``golden.jsonl`` that is not in it got one
answer from all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from transformers import AutoTokenizer

from pipeline.errors import Rejected, UsageError
from pipeline.prompt.request import ChatRequest
from pipeline.prompt.vllm import VllmDialect
from pipeline.prompt.vllm_versions import VllmRules, find_changes, list_rules, read_rules
from tests.conftest import ROOT
from tests.parity import suite
from tests.parity.golden_sets import templates_of

RELEASES = [rules.release for rules in list_rules()]
# It takes `continue_final_message` of the template's kwargs, which fails in most templates.
REFUSED_HERE_ALONE = {"generation-prompt-as-kwarg"}
# The HTTP schema alone refuses these types of text; here they are text.
RENDERED_HERE_ALONE = {"output-text-part", "input-text-part-typed"}


def number(release: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", release)]


def requests() -> dict[str, dict[str, Any]]:
    more = suite.read_lines(suite.VLLM_VERSION_CONVERSATIONS)
    return suite.load_conversations() | {item["name"]: item for item in more}


def answers_of(release: str) -> Iterator[tuple[str, str, str | None]]:
    """Yield template, request and prompt of one release; None where it refused."""
    changed = {
        (line["template"], line["conversation"]): line["answers"]
        for line in suite.read_lines(suite.VLLM_VERSIONS)
    }
    for (template, name), answers in changed.items():
        given = max((each for each in answers if number(each) <= number(release)), key=number)
        yield template, name, answers[given]
    for line in suite.read_lines(suite.GOLDEN):
        if (line["template"], line["conversation"]) not in changed:
            yield line["template"], line["conversation"], line.get("text")


@pytest.mark.parametrize("release", RELEASES)
def test_every_answer_of_a_release_is_reproduced(release: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "configs" / "tokenizer")
    templates = {
        name: templates_of(source, tokenizer) for name, source in suite.load_templates().items()
    }
    asked, rules, unlike = requests(), read_rules("server_version", release), list[str]()
    for template, name, answer in answers_of(release):
        item = asked[name]
        request = ChatRequest(
            item["messages"], item.get("tools"), item.get("chat_template_kwargs", {})
        )
        try:
            dialect = VllmDialect(rules, reasoning_effort=item.get("reasoning_effort"))
            ours = dialect.render_prompt(request, templates[template]).text
        except (Rejected, UsageError):
            ours = None
        alone = REFUSED_HERE_ALONE if ours is None else RENDERED_HERE_ALONE
        if ours != answer and not (None in (ours, answer) and name in alone):
            unlike.append(f"{template}, {name}: here {ours!r:.200}, there {answer!r:.200}")
    assert not unlike, "\n".join(unlike[:10])


def test_the_newest_release_is_what_is_reproduced_unless_told() -> None:
    assert read_rules("server_version", RELEASES[-1]) == VllmRules() == VllmDialect().server_version
    assert find_changes(VllmRules(), VllmRules()) == {}


@pytest.mark.parametrize("wrong", ["0.7", "0.34", "1.0", "newest", 20, None, ["0.20"]])
def test_a_version_whose_rules_are_not_known_is_refused(wrong: object) -> None:
    with pytest.raises(UsageError, match=r'server_version: found .*; expected "0.8" to "0.33"'):
        VllmDialect.from_options({"server_version": wrong}, "qwen2", None)


@pytest.mark.parametrize("spelt", ["0.20", "0.20.2", "v0.20.1", "0.20.2+cpu", "0.20.0rc1"])
def test_a_version_may_be_spelt_as_its_server_says_it(spelt: str) -> None:
    assert read_rules("server_version", spelt).release == "0.20.2"
