"""Tokenizer folders that are torn, incomplete or contradict themselves: a sentence, never a traceback."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from pipeline import ExampleTokenizer
from pipeline.cli.command import main
from pipeline.errors import UsageError
from pipeline.job.prepare import prepare
from pipeline.tokens.encoder import TextEncoder
from pipeline.tokens.probes import refuse_other_ids, refuse_random_ids
from tests.conftest import write_lines

Break = Callable[[Path], None]
EXAMPLE = {"id": "a", "messages": [{"role": "user", "content": "Hi"}], "continuation": "Hello"}


def edit_json(name: str, **values: Any) -> Break:
    def edit(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **values}), "utf-8")

    return edit


def write(name: str, content: bytes) -> Break:
    return lambda folder: (folder / name).write_bytes(content) and None


def cut(name: str) -> Break:
    def cut_in_half(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return cut_in_half


def _own_template(value: Any) -> Break:
    def edit(folder: Path) -> None:
        (folder / "chat_template.jinja").unlink()
        edit_json("tokenizer_config.json", chat_template=value)(folder)

    return edit


BROKEN: dict[str, Break] = {
    "no tokenizer.json": lambda folder: (folder / "tokenizer.json").unlink(),
    "torn tokenizer.json": cut("tokenizer.json"),
    "empty tokenizer.json": write("tokenizer.json", b""),
    "tokenizer.json is an array": write("tokenizer.json", b"[]"),
    "no model in tokenizer.json": edit_json("tokenizer.json", model=None),
    "an unknown model": edit_json("tokenizer.json", model={"type": "Nothing"}),
    "an unknown pre-tokenizer": edit_json("tokenizer.json", pre_tokenizer={"type": "Nothing"}),
    "torn tokenizer_config.json": cut("tokenizer_config.json"),
    "tokenizer_config.json is no JSON": write("tokenizer_config.json", b"\xff\xfe"),
    "a template that is a number": _own_template(7),
    "a template that is a list of numbers": _own_template([1, 2]),
    "a template by name that is a number": _own_template({"default": 5}),
    "config.json of 100,000 levels": write("config.json", b"[" * 100_000),
    "config.json is a list": write("config.json", b"[]"),
    "a template that does not compile": write("chat_template.jinja", b"{% for %}"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_tokenizer_is_refused_in_a_sentence(
    name: str, tmp_path: Path, bundled_tokenizer: Path
) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(bundled_tokenizer, folder)
    BROKEN[name](folder)
    lines = write_lines(tmp_path / "in.jsonl", [EXAMPLE])
    with pytest.raises(UsageError) as caught:
        prepare(input=str(lines), tokenizer=str(folder), output=str(tmp_path / "set"), num_proc=1)
    assert "expected" in str(caught.value)
    assert not (tmp_path / "set").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "tokenizer"]


@pytest.fixture
def drawing(tmp_path: Path, bundled_tokenizer: Path) -> Path:
    """A tokenizer with BPE dropout: it draws its ids at random."""
    folder = Path(shutil.copytree(bundled_tokenizer, tmp_path / "tokenizer"))
    model = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    edit_json("tokenizer.json", model={**model, "dropout": 0.1})(folder)
    return folder


def test_a_tokenizer_that_draws_its_ids_is_refused_by_every_verb(
    drawing: Path, tmp_path: Path, quickstart_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = write_lines(tmp_path / "in.jsonl", [EXAMPLE])
    target = str(tmp_path / "set")
    with_it = ["--tokenizer", str(drawing)]
    for command in (
        ["prepare", "--input", str(lines), "--output", target, "--num_proc", "1", *with_it],
        ["check", str(drawing)],
        ["verify", str(quickstart_set), *with_it],
        ["inspect", str(quickstart_set), *with_it],
    ):
        assert main(command) == 2, command
        printed = capsys.readouterr()
        assert "model.dropout is 0.1" in printed.out + printed.err
    assert not (tmp_path / "set").exists()
    with pytest.raises(UsageError, match=r"set model\.dropout to null in tokenizer\.json"):
        ExampleTokenizer(str(drawing))


def test_a_dropout_of_nothing_draws_nothing(drawing: Path) -> None:
    model = json.loads((drawing / "tokenizer.json").read_text("utf-8"))["model"]
    edit_json("tokenizer.json", model={**model, "dropout": 0.0})(drawing)
    TextEncoder.from_path(str(drawing))


def test_a_unigram_model_that_samples_is_refused() -> None:
    vocabulary = [("<unk>", 0.0), *((letter, -2.0) for letter in "abc "), ("ab", -2.5)]
    backend = Tokenizer(models.Unigram(vocabulary, 0, alpha=0.1))
    with pytest.raises(UsageError, match=r"model\.alpha is 0\.1"):
        refuse_random_ids(backend)
    refuse_random_ids(Tokenizer(models.Unigram(vocabulary, 0)))


def test_a_text_with_other_ids_the_second_time_is_named() -> None:
    # Any other part may draw: what it does is looked at, not what it is called.
    class Drawing:
        model = None

        def __init__(self) -> None:
            self.calls = 0

        def encode_batch_fast(self, texts: list[str], *, add_special_tokens: bool) -> list[Any]:
            self.calls += 1
            return [SimpleNamespace(ids=[self.calls if text == "b" else 0]) for text in texts]

    backend: Any = Drawing()
    refuse_other_ids(backend, ["a", "c"])
    with pytest.raises(UsageError, match="tokenizer: b has other ids when it is encoded again"):
        refuse_other_ids(backend, ["a", "b"])


def test_a_pickle_beside_a_tokenizer_is_never_loaded(
    tmp_path: Path, bundled_tokenizer: Path
) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(bundled_tokenizer, folder)
    touched = tmp_path / "touched"
    for name in ("pytorch_model.bin", "tokenizer.pkl", "vocab.pkl", "added_tokens.pt"):
        (folder / name).write_bytes(pickle.dumps(_Touch(str(touched))))
    TextEncoder.from_path(str(folder))
    assert not touched.exists()


class _Touch:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def test_code_of_a_tokenizer_runs_only_when_asked_for(
    tmp_path: Path, bundled_tokenizer: Path
) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(bundled_tokenizer, folder)
    touched = tmp_path / "touched"
    (folder / "evil.py").write_text(f"open({str(touched)!r}, 'w')\nclass Evil: pass\n")
    edit_json("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})(
        folder
    )
    TextEncoder.from_path(str(folder))
    assert not touched.exists()
