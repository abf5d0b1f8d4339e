"""Every snippet of a card runs as it stands: of a set on disk, and of one on the Hub."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import load_dataset, load_from_disk

from pipeline.cli.command import main
from pipeline.config import PrepareConfig
from pipeline.job.prepare import prepare
from pipeline.sets.hub.push import push_set
from pipeline.sets.hub.push_rules import PushChoice
from tests.consumers.snippets import run_snippet
from tests.hub_server import TOKEN, Hub, hub_of_this_process

REPO = "team/logs"
ROWS = 6
# No config can have the name of a split.
CONFIGS = {"full": "all", "train": "numbers"}


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path, bundled_examples: Path
) -> Path:
    """A folder with a model and two sets: of all columns, and of numbers."""
    folder = tmp_path_factory.mktemp("card")
    lines = bundled_examples.read_text(encoding="utf-8").splitlines(keepends=True)[:ROWS]
    (folder / "logs.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "path" / "to").mkdir(parents=True)
    (folder / "path" / "to" / "model").symlink_to(model_folder)
    for columns in ("full", "train"):
        config = PrepareConfig(
            input=(str(folder / "logs.jsonl"),),
            tokenizer=str(model_folder),
            output=str(folder / f"set-{columns}"),
            columns=columns,  # type: ignore[arg-type]
            report=False,
            num_proc=1,
        )
        prepare(config)
    return folder


@pytest.fixture(scope="module")
def hub(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A Hub that holds the two sets as configs of one repository."""
    with hub_of_this_process(tmp_path_factory.mktemp("hub")) as hub:
        for columns in ("full", "train"):
            push_set(str(folder / f"set-{columns}"), REPO, PushChoice(config_name=CONFIGS[columns]))
        yield hub


@pytest.fixture(params=["full", "train"])
def columns(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["disk", "hub"])
def snippets(
    request: pytest.FixtureRequest, folder: Path, columns: str, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, str]]:
    """The snippets of one card with their languages, and the folder in which they run."""
    monkeypatch.chdir(folder)
    if request.param == "disk":
        card = (folder / f"set-{columns}" / "README.md").read_text("utf-8")
    else:
        hub: Hub = request.getfixturevalue("hub")
        text = hub.repos[REPO].files["README.md"].decode()
        card = text[text.index(f"<!-- context-frozen {CONFIGS[columns]} ") :].partition(
            "<!-- end of "
        )[0]
    return re.findall(r"^```(\w+)\n(.*?)^```$", card, re.M | re.S)


def run_pull(snippets: list[tuple[str, str]]) -> None:
    """Run the `pull` that a card of the Hub asks for before the folder can be used."""
    for language, text in snippets:
        if language == "bash" and text.startswith("context-frozen pull"):
            assert main(shlex.split(text)[1:]) == 0


def test_python_runs(snippets: list[tuple[str, str]], columns: str, tmp_path: Path) -> None:
    run_pull(snippets)
    scripts = [text for language, text in snippets if language == "python"]
    assert len(scripts) == (5 if columns == "full" else 4)
    ran: dict[str, Any] = {}
    for number, text in enumerate(scripts):
        ran |= run_snippet(text, tmp_path / f"snippet{number}.py")
    assert len(ran["rows"]) == ROWS
    assert ran["continuation"] == ran["continuation"][:] != []


def test_the_snippet_for_llama_factory_leaves_no_text(
    snippets: list[tuple[str, str]], columns: str, tmp_path: Path
) -> None:
    run_pull(snippets)
    if columns == "full":
        (text,) = [text for _, text in snippets if "-numbers" in text and "remove_columns" in text]
        names = run_snippet(text, tmp_path / "snippet.py")
        assert {"id", "reason", "flags"} <= set(names["text"])
        (written,) = re.findall(r'save_to_disk\("(.+)"\)', text)
        path = Path(written)
    else:
        (text,) = [text for _, text in snippets if "tokenized_path" in text]
        path = Path(yaml.safe_load(text)["tokenized_path"])
    for rows in load_from_disk(str(path)).values():
        assert "string" not in str(rows.features)
        assert len(rows) == ROWS


def test_the_snippet_for_axolotl_names_what_is_there(snippets: list[tuple[str, str]]) -> None:
    (text,) = [text for language, text in snippets if language == "yaml" and "type:" in text]
    settings = yaml.safe_load(text)
    (entry,) = settings["datasets"]
    assert entry["type"] is None
    if "name" in entry:
        rows = load_dataset(entry["path"], entry["name"], split=entry["split"], token=TOKEN)
    else:
        rows = load_from_disk(entry["path"])[entry["split"]]
    assert set(rows.column_names) >= {"input_ids", "attention_mask", "labels"}
    assert max(rows["total_len"]) <= settings["sequence_len"]


def test_commands_of_a_shell_are_known(snippets: list[tuple[str, str]]) -> None:
    commands = [text.strip() for language, text in snippets if language == "bash"]
    verbs = [shlex.split(command)[1] for command in commands]
    assert verbs[-2:] == ["verify", "prepare"]
    # The command that made the set makes it again: it is ready.
    assert main(shlex.split(commands[-1])[1:]) == 0
