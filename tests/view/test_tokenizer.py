"""``check``: what a tokenizer and its template do, with evidence, for people and for machines."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.answer.traits import Trait
from pipeline.cli.command import main
from pipeline.config import PrepareConfig
from pipeline.errors import EXCERPT_LIMIT
from pipeline.view.table import print_facts
from pipeline.view.tokenizer import TokenizerCheck, check_tokenizer_and_template
from tests.conftest import SHARED, name_tokenizers

# Every fact about the bundled tokenizer and its template, in the order in which they are printed.
BUNDLED = {
    "class": "TokenizersBackend",
    "bos": "none",
    "continuation_encoding": "alone",
    "control_tokens": "3",
    "stop_tokens": "<|endoftext|>, <|im_end|>",
    "positions": "2048",
    "renders": "yes",
    "content": "both",
    "system": "yes",
    "two_users": "ok",
    "assistant_first": "ok",
    "tools": "yes",
    "tool_arguments_dict": "yes",
    "tool_arguments_text": "yes",
    "tool_reply": "yes",
    "generation_prompt": "yes",
    "think_prompt": "none",
    "reasoning": "kept>dropped",
    "inline_thought": "kept>kept",
    "prefix": "prefix",
    "history_prefix": "yes",
    "user_space": "kept",
    "assistant_space": "kept",
    "clock": "not read",
    "end_of_turn": "<|im_end|>",
    "end_of_turn_stops": "yes",
}


def config_of(tokenizer: Path, **settings: Any) -> PrepareConfig:
    return PrepareConfig(input=("-",), tokenizer=str(tokenizer), output="-", **settings)


def values_of(checked: TokenizerCheck) -> dict[str, str]:
    return {trait.name: trait.value for trait in checked.traits}


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = main(["check", *args])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_facts_of_the_bundled_tokenizer(bundled_tokenizer: Path) -> None:
    checked = check_tokenizer_and_template(config_of(bundled_tokenizer))
    assert list(values_of(checked).items()) == list(BUNDLED.items())
    assert checked.server == "vllm 0.33.0"


def test_each_fact_has_a_meaning_and_short_evidence(bundled_tokenizer: Path) -> None:
    traits = check_tokenizer_and_template(config_of(bundled_tokenizer)).traits
    without_evidence = {trait.name for trait in traits if not trait.evidence}
    assert without_evidence == {"bos", "clock"}
    assert all(trait.meaning.endswith(".") for trait in traits)
    assert max(len(trait.evidence) for trait in traits) <= EXCERPT_LIMIT


def test_thinking_can_be_switched_off_by_the_template_kwargs(bundled_tokenizer: Path) -> None:
    config = config_of(bundled_tokenizer, chat_template_kwargs={"enable_thinking": False})
    changed = values_of(check_tokenizer_and_template(config)).items() - BUNDLED.items()
    assert ("think_prompt", "closed") in changed


def test_the_servers_rules_are_those_that_were_asked_for(bundled_tokenizer: Path) -> None:
    config = config_of(bundled_tokenizer)
    servers = [
        check_tokenizer_and_template(replace(config, server=server)).server
        for server in ("vllm", "sglang", "plain")
    ]
    assert servers == ["vllm 0.33.0", "sglang 0.5.23", "plain"]


def test_json_is_one_line_and_the_same_each_time(
    bundled_tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed, _ = run(capsys, str(bundled_tokenizer), "--json")
    again = run(capsys, str(bundled_tokenizer), "--json")[1]
    assert (code, printed.count("\n")) == (0, 1)
    assert printed == again
    found = json.loads(printed)
    assert list(found) == ["tokenizer", "server", "traits"]
    assert {name: trait["value"] for name, trait in found["traits"].items()} == BUNDLED
    assert {tuple(trait) for trait in found["traits"].values()} == {
        ("name", "value", "evidence", "meaning")
    }


def test_the_table_has_each_fact_whole(
    bundled_tokenizer: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, printed, _ = run(capsys, str(bundled_tokenizer))
    assert code == 0
    names = [line.split()[0] for line in printed.splitlines() if line[1:2].strip()]
    assert [name for name in names if name in BUNDLED] == list(BUNDLED)
    assert max(map(len, printed.splitlines())) <= 80


def test_what_a_template_writes_is_no_markup_and_moves_no_cursor(
    capsys: pytest.CaptureFixture[str],
) -> None:
    trait = Trait("content", "text", "[red]shown[/red]", "Meaning [bold].")
    print_facts("a[/]b under plain", (trait,))
    printed = capsys.readouterr().out
    assert "seen: [red]shown[/red]" in printed
    assert "a[/]b under plain" in printed
    assert "\x1b" not in printed


def test_another_template_is_checked_in_place_of_the_tokenizers_own(
    tmp_path: Path, bundled_tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = tmp_path / "alternate.jinja"
    template.write_text(
        "{% for m in messages %}"
        "{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|endoftext|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    code, printed, _ = run(
        capsys, str(bundled_tokenizer), "--chat_template", str(template), "--json"
    )
    traits = json.loads(printed)["traits"]
    assert code == 0
    assert {
        name: traits[name]["value"]
        for name in ("system", "tools", "user_space", "reasoning", "end_of_turn")
    } == {
        "system": "error",
        "tools": "ignored",
        "user_space": "trimmed",
        "reasoning": "dropped>dropped",
        "end_of_turn": "<|endoftext|>",
    }
    assert "no system" in traits["system"]["evidence"]


def test_an_end_of_turn_at_which_the_server_does_not_stop_is_said(
    tmp_path: Path, bundled_tokenizer: Path
) -> None:
    folder = shutil.copytree(bundled_tokenizer, tmp_path / "t")
    ids = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    named = {
        each["id"]: each["content"]
        for each in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    }
    (other,) = (id_ for id_ in ids if named[id_] != "<|im_end|>")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": other}))
    checked = check_tokenizer_and_template(config_of(folder))
    trait = next(trait for trait in checked.traits if trait.name == "end_of_turn_stops")
    assert trait.value == "no"
    assert "name the right one with end_of_turn" in trait.meaning


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "access to attribute"),
        ("{{ cycler.__init__.__globals__.os.getcwd() }}", "access to attribute"),
        ("{{ range(10 ** 9) | list }}", "Range too big"),
        ("{{ raise_exception('\x1b[31mno') }}", "\\x1b[31mno"),
        ("{{ nothing.at.all }}", "undefined"),
    ],
)
def test_a_hostile_template_is_refused_with_its_words(
    tmp_path: Path,
    bundled_tokenizer: Path,
    capsys: pytest.CaptureFixture[str],
    source: str,
    words: str,
) -> None:
    template = tmp_path / "hostile.jinja"
    template.write_text(source)
    code, printed, _ = run(
        capsys, str(bundled_tokenizer), "--chat_template", str(template), "--json"
    )
    traits = json.loads(printed)["traits"]
    assert code == 0
    assert traits["renders"]["value"] == "refused"
    assert words in traits["renders"]["evidence"]
    assert traits["class"]["value"] == "TokenizersBackend"
    assert "\x1b" not in printed


def test_a_tokenizer_without_a_template_is_said_to_have_none(
    tmp_path: Path, bundled_tokenizer: Path
) -> None:
    folder = shutil.copytree(bundled_tokenizer, tmp_path / "t")
    (folder / "chat_template.jinja").unlink()
    checked = check_tokenizer_and_template(config_of(folder))
    traits = {trait.name: trait for trait in checked.traits}
    assert (traits["renders"].value, traits["renders"].evidence) == (
        "refused",
        "the tokenizer has no chat template",
    )
    assert "raw contexts do" in traits["renders"].meaning
    assert "end_of_turn" not in traits


def test_gpt2_has_no_template(shared: Path) -> None:
    checked = check_tokenizer_and_template(config_of(shared / "assets/tokenizers/gpt2"))
    assert values_of(checked)["renders"] == "refused"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("no/such-tokenizer",), "neither a folder nor to be had from the Hub"),
        (("{bundled}", "--chat_template", "no-such.jinja"), "expected a UTF-8 Jinja file"),
        (("{bundled}", "--chat_templat", "x"), "unknown flag --chat_templat"),
        (("{bundled}", "--server_options", '{"colour": 1}'), "colour"),
    ],
)
def test_what_is_not_there_is_wrong_usage(
    bundled_tokenizer: Path,
    capsys: pytest.CaptureFixture[str],
    args: tuple[str, ...],
    words: str,
) -> None:
    code, printed, error = run(
        capsys, *(arg.replace("{bundled}", str(bundled_tokenizer)) for arg in args)
    )
    assert (code, printed, words in error) == (2, "", True), error


def asset_names() -> list[Any]:
    folders = sorted((SHARED / "assets/tokenizers").glob("*/chat_template.jinja"))
    return name_tokenizers(path.parent.name for path in folders) or ["absent"]


@pytest.mark.parametrize("name", asset_names())
def test_the_end_of_turn_of_a_real_tokenizer_is_one_of_its_stop_ids(
    shared: Path, name: str
) -> None:
    folder = shared / "assets/tokenizers" / name
    checked = check_tokenizer_and_template(
        config_of(folder, server_options={"fixed_date": "2026-01-01"})
    )
    found = values_of(checked)
    assert found["renders"] == "yes"
    assert found["end_of_turn_stops"] == "yes", found["end_of_turn"]
