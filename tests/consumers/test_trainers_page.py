"""Every snippet of docs/training.md runs, in the order of the page."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import load_from_disk

from pipeline.cli.command import main
from tests.conftest import ROOT
from tests.consumers.snippets import run_snippet

SNIPPETS: list[tuple[str, str]] = re.findall(
    r"^```(\w+)\n(.*?)^```$", (ROOT / "docs" / "training.md").read_text(), re.M | re.S
)
ROWS = 20


def snippets_of(language: str) -> list[Any]:
    return [
        pytest.param(text, id=f"{language} {number}")
        for number, (kind, text) in enumerate(SNIPPETS)
        if kind == language
    ]


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path, bundled_examples: Path
) -> Path:
    """A folder as the page has it: logs, a model, and the sets that its first snippet makes."""
    folder = tmp_path_factory.mktemp("page")
    lines = bundled_examples.read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "logs.jsonl").write_text("".join(lines[:ROWS]), encoding="utf-8")
    (folder / "path" / "to").mkdir(parents=True)
    (folder / "path" / "to" / "model").symlink_to(model_folder)
    (prepare_commands,) = [text for language, text in SNIPPETS if language == "bash"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in prepare_commands.splitlines():
            program, *arguments = shlex.split(command)
            assert program == "context-frozen"
            assert main(arguments) == 0
    return folder


@pytest.fixture(autouse=True)
def _inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def test_the_sets_of_the_page_hold_every_line() -> None:
    for name in ("out/set", "out/numeric"):
        splits = load_from_disk(name)
        assert set(splits) == {"train", "validation"}
        assert sum(map(len, splits.values())) == ROWS


@pytest.mark.parametrize("snippet", snippets_of("python"))
def test_a_python_snippet_runs(snippet: str, tmp_path: Path) -> None:
    names = run_snippet(snippet, tmp_path / "snippet.py")
    if "rows" in names and "copied" in names:
        assert list(names["rows"]) == list(names["copied"])
    if "request" in names:
        row = load_from_disk("out/set")["train"][-1]
        assert names["request"]["context_ids"] == row["input_ids"][: row["context_len"]]
        assert names["request"]["continuation_ids"] == row["input_ids"][row["context_len"] :]


def test_the_axolotl_snippet_names_splits_that_are_there_and_no_type() -> None:
    (snippet,) = [text for language, text in SNIPPETS if "test_datasets:" in text]
    settings = yaml.safe_load(snippet)
    splits = load_from_disk(settings["datasets"][0]["path"])
    for entry in (*settings["datasets"], *settings["test_datasets"]):
        assert entry["type"] is None
        rows = splits[entry.get("split", "train")]
        assert set(rows.column_names) >= {"input_ids", "attention_mask", "labels"}
        assert max(rows["total_len"]) <= settings["sequence_len"]


def test_the_llama_factory_snippet_names_a_set_without_text() -> None:
    (snippet,) = [text for language, text in SNIPPETS if "tokenized_path" in text]
    settings = yaml.safe_load(snippet)
    # Without these LLaMA-Factory 0.9.5 stops at "Please specify dataset", though it reads neither.
    assert settings["dataset"]
    assert settings["eval_dataset"]
    splits = load_from_disk(settings["tokenized_path"])
    for rows in splits.values():
        assert "string" not in str(rows.features)
