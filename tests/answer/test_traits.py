"""``check``: each trait of a template is what its renderings show, for own and for real templates."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.answer.trait_meanings import MEANINGS
from pipeline.answer.traits import TemplateReport, probe_template
from pipeline.prompt.chat_template import ChatTemplates
from pipeline.prompt.dialects import load_dialect
from tests import own_templates as own
from tests.conftest import require_shared
from tests.own_templates import DIALECT, templates_of


def report_of(source: str) -> TemplateReport:
    return probe_template(DIALECT, templates_of(source), {}, own.TOKENS)


def values_of(source: str, *names: str) -> dict[str, str]:
    return {name: report_of(source).traits[name].value for name in names}


def test_a_report_is_json_and_every_trait_has_evidence_and_a_meaning() -> None:
    report = report_of(own.THINK_OPEN)
    traits = json.loads(json.dumps(report.to_dict()))
    assert traits["end_of_turn"]["value"] == "<|im_end|>"
    assert traits["think_prompt"]["evidence"].endswith("<think>\\n")
    for name, trait in traits.items():
        assert trait["name"] == name
        assert trait["meaning"].endswith(".")
        assert len(trait["evidence"]) <= 80
    assert report.turns.think_open == "<think>"


def test_the_roles_that_a_template_refuses_are_errors_with_its_own_words() -> None:
    strict = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + own.CHATML
    )
    names = ("system", "two_users", "assistant_first")
    assert values_of(strict, *names) == dict.fromkeys(names, "error")
    assert report_of(strict).traits["two_users"].evidence.endswith("roles must alternate")
    assert values_of(own.CHATML, *names) == dict(zip(names, ("yes", "ok", "ok"), strict=True))
    silent = own.CHATML.replace(
        "<|im_start|>{{ m.role }}",
        "{% if m.role == 'system' %}{% continue %}{% endif %}<|im_start|>{{ m.role }}",
    )
    assert values_of(silent, "system") == {"system": "dropped"}


def test_a_system_text_that_moves_is_told_from_one_that_stays() -> None:
    assert values_of(own.SYSTEM_MOVES, "system", "prefix") == {
        "system": "moved",
        "prefix": "prefix",
    }


def test_tools_are_rendered_ignored_or_refused() -> None:
    names = ("tools", "tool_arguments_dict", "tool_arguments_text", "tool_reply")
    assert values_of(own.CHATML, *names) == dict(
        zip(names, ("ignored", "yes", "yes", "yes"), strict=True)
    )
    listed = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}" + own.FRAMED
    assert values_of(listed, *names) == dict(
        zip(names, ("yes", "lost", "lost", "yes"), strict=True)
    )
    items = own.CHATML.replace(
        "call.function | tojson", "call.function.arguments.items() | list | tojson"
    )
    assert values_of(items, "tool_arguments_dict", "tool_arguments_text") == {
        "tool_arguments_dict": "yes",
        "tool_arguments_text": "error",
    }
    refused = "{% if tools %}{{ raise_exception('no tools') }}{% endif %}" + own.CHATML
    assert values_of(refused, "tools", "tool_reply") == {"tools": "error", "tool_reply": "error"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (own.CHATML, ("none", "dropped>dropped", "kept>kept", "prefix", "yes")),
        (own.THINK_OPEN, ("open", "kept>dropped", "kept>kept", "prefix", "no")),
        (own.THOUGHT_DELETED, ("open", "dropped>dropped", "dropped>dropped", "think", "yes")),
        (own.CHANNELS, ("none", "kept>kept", "kept>kept", "prefix", "no")),
    ],
)
def test_thought_and_prefixes_are_told(source: str, expected: tuple[str, ...]) -> None:
    names = ("think_prompt", "reasoning", "inline_thought", "prefix", "history_prefix")
    assert values_of(source, *names) == dict(zip(names, expected, strict=True))


def test_a_generation_prompt_that_is_always_written_adds_nothing() -> None:
    assert values_of(own.CHATML, "generation_prompt") == {"generation_prompt": "yes"}
    assert values_of(own.SYSTEM_MOVES, "generation_prompt") == {"generation_prompt": "none"}


def test_white_space_at_the_edges_is_kept_or_trimmed() -> None:
    trimmed = own.CHATML.replace("m.content or ''", "(m.content or '') | trim")
    for source, value in ((own.CHATML, "kept"), (trimmed, "trimmed")):
        names = ("user_space", "assistant_space")
        assert values_of(source, *names) == dict.fromkeys(names, value)


def test_the_form_of_content_is_told_and_a_printed_list_is_none() -> None:
    parts = own.CHATML.replace(
        "{{ m.content or '' }}", "{% for p in m.content %}{{ p.text }}{% endfor %}"
    )
    both = own.CHATML.replace(
        "{{ m.content or '' }}",
        "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}",
    )
    for source, value in ((own.CHATML, "text"), (parts, "parts"), (both, "both")):
        assert values_of(source, "content") == {"content": value}


def test_a_clock_is_noticed_even_where_its_date_is_not_printed() -> None:
    undated = load_dialect("plain", {}, None)
    for line in ("{{ strftime_now('%d %b %Y') }}", "{% set day = strftime_now('%d') %}"):
        report = probe_template(undated, templates_of(line + own.CHATML), {}, own.TOKENS)
        assert report.traits["clock"].value == "read"
    assert values_of(own.CHATML, "clock") == {"clock": "not read"}


def test_a_template_that_refuses_everything_has_one_trait() -> None:
    for templates in (templates_of("{{ raise_exception('never') }}"), ChatTemplates({}, {})):
        report = probe_template(DIALECT, templates, {})
        assert [trait.value for trait in report.traits.values()] == ["refused"]


def _word(text: str) -> str:
    return "error" if "rror" in text else {"rendered": "yes"}.get(text, text)


# What properties.json measured, in the words of the report.
MEASURED: dict[str, Callable[[dict[str, Any]], str]] = {
    "system": lambda of: of["system"],
    "two_users": lambda of: _word(of["two_users"]),
    "assistant_first": lambda of: _word(of["starts_with_assistant"]),
    "tools": lambda of: _word(of["tools_param"]),
    "tool_arguments_dict": lambda of: _word(of["tool_call_args_dict"]),
    "tool_arguments_text": lambda of: _word(of["tool_call_args_str"]),
    "tool_reply": lambda of: _word(of["tool_roundtrip"]),
    "generation_prompt": lambda of: "yes" if of["agp_effect"] else "none",
    "reasoning": lambda of: f"{of['think_field']['last_turn']}>{of['think_field']['history']}",
    "inline_thought": lambda of: (
        f"{of['think_inline']['last_turn']}>{of['think_inline']['history']}"
    ),
    "history_prefix": lambda of: "yes" if of["history_prefix_ok"] else "no",
    "user_space": lambda of: "kept" if of["keeps_user_whitespace"] else "trimmed",
    "assistant_space": lambda of: "kept" if of["keeps_assistant_whitespace"] else "trimmed",
    "clock": lambda of: "read" if of["strftime_now"] else "not read",
}

# Where the report says otherwise, with what it says and why it is right.
DIFFERENCES = {
    # The system text stands in the prompt, but in no finished turn: measured on a finished turn.
    ("mistral-nemo", "system"): "moved",
    ("mistral-v3-tekken", "system"): "moved",
    ("mistral-v3", "system"): "moved",
    ("vllm-tool-mistral", "system"): "moved",
    ("vllm-tool-mistral_parallel", "system"): "moved",
    # Renders parts only, and was measured with plain text.
    ("smolvlm", "system"): "yes",
    ("smolvlm", "inline_thought"): "kept>kept",
    ("smolvlm", "user_space"): "kept",
    ("smolvlm", "assistant_space"): "kept",
    # Writes a call where content is null; was measured with empty content.
    ("deepseek-r1-distill", "tool_arguments_text"): "yes",
    ("deepseek-r1-distill-llama", "tool_arguments_text"): "yes",
    ("lenml-deepseek-v3", "tool_arguments_text"): "yes",
    # Answers a call whose arguments are text; was measured with arguments as an object.
    ("deepseek-v3", "tool_reply"): "yes",
    ("functionary-3.2", "tool_reply"): "yes",
    # The answer's text is nowhere in the prompt.
    ("axolotl-phi-4", "tool_reply"): "lost",
    ("cohere2", "tool_reply"): "lost",
    # Never writes the last turn; in history the white space is kept.
    ("yandexgpt-5-lite", "assistant_space"): "kept",
    # Ends the last turn with a newline that it does not write in history.
    ("vllm-tool-deepseekv3", "history_prefix"): "no",
}


def test_the_report_agrees_with_the_measured_properties_of_the_210_templates() -> None:
    folder = require_shared("assets/templates")
    properties = json.loads((folder / "properties.json").read_text("utf-8"))
    special = {
        "bos_token": "«BOS»",
        "eos_token": "«EOS»",
        "pad_token": "«PAD»",
        "unk_token": "«UNK»",
    }
    differences: dict[tuple[str, str], str] = {}
    not_prefix: set[str] = set()
    for name, measured in properties.items():
        source = (folder / f"{name}.jinja").read_text("utf-8")
        report = probe_template(DIALECT, ChatTemplates({"default": source}, special), {})
        if not measured["renders"]:
            continue
        for trait in report.traits.values():
            assert (trait.name, trait.value) in MEANINGS or (trait.name, "") in MEANINGS
        values = {trait: report.traits[trait].value for trait in MEASURED}
        differences |= {
            (name, trait): value
            for trait, value in values.items()
            if value != MEASURED[trait](measured)
        }
        if report.traits["prefix"].value != "prefix":
            not_prefix.add(name)
    assert differences == DIFFERENCES
    assert not_prefix == {
        name
        for name, measured in properties.items()
        if measured.get("final_turn_prefix_ok") is False
    }
