"""What rows are before any job: told from the first lines alone, with or without a tokenizer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.command import main
from pipeline.view.input_check import MOST_LINES
from tests.conftest import ROOT, write_lines

TOKENIZER = str(ROOT / "configs" / "tokenizer")
TALK = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "d"},
]
CHAT = {"messages": TALK, "model": "m"}
PROMPT = {"prompt": [TALK[0]], "completion": [TALK[1]]}


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["check", *arguments])
    return code, capsys.readouterr().out


def check_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    return json.loads(check(capsys, "--json", *arguments)[1])


def test_shapes_unread_keys_and_unused_answers_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_lines(tmp_path / "logs.jsonl", [CHAT, CHAT, PROMPT]))
    code, said = check(capsys, "--input", path)
    assert code == 0
    assert said.startswith(f"{path}: 3 lines looked at\n  lines read as: openai 2, trl 1\n")
    assert "keys that nobody reads (lines with them): model (2)" in said
    assert "5 assistant messages, 3 used; --decisions all would use 5" in said
    assert "0 would be refused\n" in said
    assert "would use" not in check(capsys, "--input", path, "--decisions", "all")[1]


def test_what_would_be_refused_is_named_once_for_each_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torn = '{"messages": ['
    path = str(write_lines(tmp_path / "logs.jsonl", [torn, CHAT, torn]))
    code, said = check(capsys, "--input", path)
    assert code == 1
    assert "2 would be refused:\n    bad_json 2, first logs.jsonl:1: the line ends inside" in said


def test_with_a_tokenizer_its_template_refuses_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = tmp_path / "t.jinja"
    template.write_text(
        "{% if messages[0].content == 'no' %}{{ raise_exception('not that') }}{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    refused = {"messages": [{"role": "user", "content": "no"}, TALK[1]]}
    path = str(write_lines(tmp_path / "logs.jsonl", [CHAT, refused]))
    assert check_json(capsys, "--input", path)["refused"] == {}
    found = check_json(
        capsys, "--input", path, "--tokenizer", TOKENIZER, "--chat_template", str(template)
    )
    assert found["refused"] == {"template_refused": 1}
    assert found["first_refused"][0]["source"] == "logs.jsonl:2"
    placed = check_json(capsys, TOKENIZER, "--input", path, "--chat_template", str(template))
    assert placed == found


def test_no_more_than_the_first_lines_are_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_lines(tmp_path / "logs.jsonl", [CHAT] * MOST_LINES + ["torn"]))
    found = check_json(capsys, "--input", path)
    assert (found["lines"], found["is_whole"], found["refused"]) == (MOST_LINES, False, {})
    assert check(capsys, "--input", path)[1].startswith(
        f"{path}: the first 1,000 lines looked at\n"
    )


def test_a_file_of_another_kind_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "logs.jsonl"
    path.write_text("id,text\n1,a\n2,b\n")
    assert main(["check", "--input", str(path)]) == 1
    assert "CSV" in capsys.readouterr().err


def test_without_a_tokenizer_no_library_of_tokenizers_is_loaded(tmp_path: Path) -> None:
    path = str(write_lines(tmp_path / "logs.jsonl", [CHAT]))
    code = (
        "import sys; from pipeline.cli.command import main; main(sys.argv[1:])\n"
        "print(sorted({'transformers', 'tokenizers', 'datasets', 'torch'} & set(sys.modules)))"
    )
    arguments = [sys.executable, "-c", code, "check", "--input", path]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.endswith("[]\n")


def test_nothing_to_check_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 2
    assert "give a TOKENIZER, or rows with --input FILE" in capsys.readouterr().err


def test_releases_of_vllm_that_make_other_prompts_are_named_with_the_cause(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    thought = {**TALK[1], "reasoning_content": "I think."}
    path = str(write_lines(tmp_path / "logs.jsonl", [{"messages": [TALK[0], thought, *TALK[2:]]}]))
    template = tmp_path / "t.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.reasoning_content }}{{ m.content }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    arguments = ("--input", path, "--tokenizer", TOKENIZER, "--chat_template", str(template))
    code, said = check(capsys, *arguments)
    assert code == 0
    lost = "does not read an assistant's reasoning_content"
    assert "of 1 prompts, under another server_options.server_version:" in said
    assert f"vLLM 0.16 to 0.21: 1 with another prompt; it {lost}" in said
    assert "vLLM 0.8 to 0.10: 1 with another prompt" in said
    assert "0.22" not in said
    found = check_json(capsys, *arguments)["other_versions"]
    assert [(each["first"], each["last"]) for each in found] == [("0.16", "0.21"), ("0.8", "0.10")]
    asked = (*arguments, "--server_options", '{"server_version": "0.20"}')
    assert (
        "vLLM 0.22 to 0.33: 1 with another prompt; it does read an assistant's"
        in (check(capsys, *asked)[1])
    )
    assert "under another" not in check(capsys, *arguments, "--server", "sglang")[1]
