"""The seal changes with all that determines tokens, and with nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from pipeline.config import PrepareConfig
from pipeline.errors import SealMismatch, UsageError
from pipeline.prompt.chat_template import ChatTemplates, resolve_templates
from pipeline.prompt.request import SERVER_VERSIONS
from pipeline.rows import seal as row_seal
from pipeline.rows.seal import hash_file_bytes, hash_json
from pipeline.sets.seal import (
    check_encoder,
    check_tokenizer,
    complete_seal,
    describe_encoder,
    hash_seal,
    make_seal,
)
from pipeline.tokens.encoder import TextEncoder
from tests.test_config import OTHER_VALUES

FILES = {"b.jsonl": "22", "a.jsonl": "11"}
ConfigMaker = Callable[..., PrepareConfig]


@pytest.fixture
def folder(tmp_path: Path, bundled_tokenizer: Path) -> Path:
    return Path(shutil.copytree(bundled_tokenizer, tmp_path / "tokenizer"))


@pytest.fixture
def encoder(bundled_tokenizer: Path) -> TextEncoder:
    return TextEncoder.from_path(str(bundled_tokenizer))


@pytest.fixture
def templates(encoder: TextEncoder) -> ChatTemplates:
    return resolve_templates(encoder.tokenizer, None)


def key_of(config: PrepareConfig, files: dict[str, str] = FILES) -> str:
    return make_seal(config, files)["key"]


# ---- the key


def test_the_key_is_the_hash_of_the_rest_of_the_seal(make_config: ConfigMaker) -> None:
    seal = make_seal(make_config("a"), FILES)
    rest = {name: value for name, value in seal.items() if name != "key"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    assert seal["key"] == hashlib.sha256(text.encode()).hexdigest()
    assert set(rest) == {
        "format",
        "input",
        "tokenizer",
        "chat_template",
        "server",
        "settings",
        "versions",
    }


def test_the_order_of_files_is_sealed_because_it_is_that_of_the_rows(
    make_config: ConfigMaker,
) -> None:
    config = make_config("a")
    assert key_of(config, FILES) != key_of(config, dict(reversed(FILES.items())))
    assert make_seal(config, FILES)["input"] == [
        {"name": "b.jsonl", "sha256": "22"},
        {"name": "a.jsonl", "sha256": "11"},
    ]


def test_a_complete_seal_has_the_key_of_its_cheap_part(
    make_config: ConfigMaker, encoder: TextEncoder, templates: ChatTemplates
) -> None:
    cheap = make_seal(make_config("a"), {})
    assert hash_seal(complete_seal(cheap, encoder, templates)) == cheap["key"]


@pytest.mark.parametrize("name", sorted(OTHER_VALUES))
def test_a_sealed_setting_changes_the_key(make_config: ConfigMaker, name: str) -> None:
    config = make_config("a")
    changed = dataclasses.replace(config, **{name: OTHER_VALUES[name]})
    assert key_of(changed) != key_of(config)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("input", ("elsewhere.jsonl",)),
        ("output", "elsewhere"),
        ("encoder", "tokenizers"),
        ("max_reject_rate", 1.0),
        ("num_proc", 2),
        ("batch_size", 1),
        ("overwrite", True),
        ("append", True),
        ("report", True),
    ],
)
def test_an_unsealed_setting_leaves_the_key(
    make_config: ConfigMaker, name: str, value: Any
) -> None:
    config = make_config("a")
    assert key_of(dataclasses.replace(config, **{name: value})) == key_of(config)


@pytest.mark.parametrize(
    "files",
    [
        {"a.jsonl": "11", "b.jsonl": "23"},
        {"a.jsonl": "11"},
        {"a.jsonl": "11", "b.jsonl": "22", "c.jsonl": "33"},
        {"a.jsonl": "22", "b.jsonl": "11"},
        {"a.jsonl": "11", "c.jsonl": "22"},
    ],
)
def test_any_change_of_the_input_changes_the_key(
    make_config: ConfigMaker, files: dict[str, str]
) -> None:
    # Names too, because rows say which file they came from.
    assert key_of(make_config("a"), files) != key_of(make_config("a"))


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
    ],
)
def test_one_byte_of_a_tokenizer_file_changes_the_key(
    make_config: ConfigMaker, folder: Path, name: str
) -> None:
    config = make_config("a", tokenizer=str(folder))
    before = key_of(config)
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    assert key_of(config) != before


def test_the_place_of_the_tokenizer_leaves_the_key(make_config: ConfigMaker, folder: Path) -> None:
    assert key_of(make_config("a", tokenizer=str(folder))) == key_of(make_config("a"))


def test_a_template_file_is_sealed_by_its_bytes_not_its_place(
    make_config: ConfigMaker, tmp_path: Path
) -> None:
    for name, text in (("one", "x"), ("two", "x"), ("three", "y")):
        (tmp_path / name).write_text(text)
    one, two, three = (
        key_of(make_config("a", chat_template=str(tmp_path / name)))
        for name in ("one", "two", "three")
    )
    assert one == two
    assert len({one, three, key_of(make_config("a"))}) == 3


def test_a_template_file_that_is_not_there_is_wrong_usage(make_config: ConfigMaker) -> None:
    with pytest.raises(UsageError, match=r"chat_template: no\.jinja: .*expected a Jinja file"):
        key_of(make_config("a", chat_template="no.jinja"))


@pytest.mark.parametrize("library", ["context-frozen", "transformers", "tokenizers", "jinja2"])
def test_another_release_of_a_library_that_writes_text_or_ids_changes_the_key(
    make_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    before = key_of(make_config("a"))
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "9.9" if name == library else real(name))
    assert key_of(make_config("a")) != before


def test_another_release_of_the_server_changes_the_key(
    make_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key_of(make_config("a"))
    assert make_seal(make_config("a"), FILES)["server"] == {"name": "vllm", "version": "0.33.0"}
    monkeypatch.setitem(SERVER_VERSIONS, "vllm", "0.34.0")
    assert key_of(make_config("a")) != before


def test_another_format_changes_the_key(
    make_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key_of(make_config("a"))
    monkeypatch.setattr(row_seal, "SEAL_FORMAT", row_seal.SEAL_FORMAT + 1)
    assert key_of(make_config("a")) != before


def test_the_order_of_template_variables_leaves_the_key(make_config: ConfigMaker) -> None:
    left, right = ({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1})
    assert key_of(make_config("a", chat_template_kwargs=left)) == key_of(
        make_config("a", chat_template_kwargs=right)
    )


@pytest.mark.parametrize(
    ("left", "right"), [(1, True), (1, 1.0), (1, "1"), (None, "null"), (0, False)]
)
def test_values_that_python_calls_equal_are_not_one_value(left: Any, right: Any) -> None:
    assert hash_json({"a": left}) != hash_json({"a": right})


def test_a_file_is_hashed_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"\r\n\x00\xff" * 100_000)
    assert hash_file_bytes(path) == hashlib.sha256(path.read_bytes()).hexdigest()


# ---- completing


def test_a_complete_seal_names_ids_and_templates(
    make_config: ConfigMaker, encoder: TextEncoder, templates: ChatTemplates
) -> None:
    cheap = make_seal(make_config("a"), FILES)
    seal = complete_seal(cheap, encoder, templates)
    assert seal["key"] == cheap["key"]
    assert seal["tokenizer"]["files"] == cheap["tokenizer"]["files"]
    assert seal["tokenizer"]["backend_sha256"] == encoder.state_sha256
    assert seal["tokenizer"]["vocabulary_size"] == encoder.vocabulary_size
    assert seal["templates"] == templates.sha256_by_name
    assert json.loads(json.dumps(seal)) == seal


# ---- checking a tokenizer


@pytest.fixture
def seal(
    make_config: ConfigMaker, encoder: TextEncoder, templates: ChatTemplates
) -> dict[str, Any]:
    return complete_seal(make_seal(make_config("a"), {}), encoder, templates)


def check(seal: dict[str, Any], tokenizer: Any) -> None:
    check_tokenizer(seal, TextEncoder(tokenizer, None), resolve_templates(tokenizer, None))


def test_the_tokenizer_of_the_set_passes(seal: dict[str, Any], folder: Path) -> None:
    check(seal, AutoTokenizer.from_pretrained(folder))


def test_a_tokenizer_that_a_trainer_has_set_up_passes(seal: dict[str, Any], folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    tokenizer.model_max_length = 64
    tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=2)
    check(seal, tokenizer)


def test_a_tokenizer_with_one_more_token_is_refused(seal: dict[str, Any], folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(SealMismatch) as caught:
        check(seal, tokenizer)
    assert caught.value.key == "seal.tokenizer.backend_sha256"
    assert "prepare it again" in str(caught.value)


def test_both_tokenizers_are_named_before_their_hashes(seal: dict[str, Any], folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new>"])
    encoder = TextEncoder(tokenizer, folder)
    with pytest.raises(SealMismatch) as caught:
        check_encoder(seal, encoder, "org/model")
    made, found = seal["tokenizer"]["backend_sha256"][:12], encoder.state_sha256[:12]
    assert f"made with org/model ({made}), found " in str(caught.value)
    assert f"{folder.name} ({found}); use the tokenizer" in str(caught.value)


def test_a_tokenizer_with_another_merge_is_refused(seal: dict[str, Any], folder: Path) -> None:
    state = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    merges = state["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]
    (folder / "tokenizer.json").write_text(json.dumps(state), "utf-8")
    with pytest.raises(SealMismatch, match=r"seal\.tokenizer\.backend_sha256 differs"):
        check(seal, AutoTokenizer.from_pretrained(folder))


def test_another_template_is_refused(seal: dict[str, Any], folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template += " "
    with pytest.raises(SealMismatch) as caught:
        check(seal, tokenizer)
    assert caught.value.key == "seal.templates"


def test_the_tokenizers_own_template_does_not_matter_where_a_file_was_used(
    seal: dict[str, Any], folder: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "another"
    check({**seal, "chat_template": "0" * 64}, tokenizer)


def test_two_loads_of_one_tokenizer_are_described_alike(folder: Path, encoder: TextEncoder) -> None:
    assert describe_encoder(TextEncoder.from_path(str(folder))) == describe_encoder(encoder)
