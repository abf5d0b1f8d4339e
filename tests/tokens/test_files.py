"""The files of a tokenizer folder: found, hashed each by its bytes, read for limits and stops."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from pipeline.errors import UsageError
from pipeline.tokens.encoder import TextEncoder
from pipeline.tokens.files import (
    find_tokenizer_folder,
    hash_tokenizer_files,
    read_model_type,
    read_position_limit,
    read_stop_ids,
    refuse_huge_ids,
)


@pytest.fixture
def folder(tmp_path: Path, bundled_tokenizer: Path) -> Path:
    return Path(shutil.copytree(bundled_tokenizer, tmp_path / "tokenizer"))


def write_json(folder: Path, name: str, value: Any) -> Path:
    (folder / name).write_text(json.dumps(value), encoding="utf-8")
    return folder


# ---- finding


def test_a_folder_is_itself(folder: Path) -> None:
    assert find_tokenizer_folder(str(folder)) == folder


def test_a_tilde_is_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert find_tokenizer_folder("~/tokenizer") == folder


@pytest.mark.parametrize("path", ["missing", "./org/model", "/org/model", "~/org/model", "a/b/c"])
def test_a_folder_that_is_not_there_is_no_hub_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", pytest.fail)
    with pytest.raises(UsageError, match="no such folder; expected a folder or a Hub name"):
        find_tokenizer_folder(path)


def test_a_folder_without_tokenizer_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UsageError, match="no tokenizer file in this folder"):
        find_tokenizer_folder(str(tmp_path))


def test_a_file_in_place_of_a_folder_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="is a file; expected the folder that holds it"):
        find_tokenizer_folder(str(folder / "tokenizer.json"))


def test_a_hub_name_fetches_tokenizer_files_and_no_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.update(name=name, patterns=allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find_tokenizer_folder("some-org/some-model") == folder
    assert asked["name"] == "some-org/some-model"

    def is_fetched(name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in asked["patterns"])

    weights = [
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "consolidated.00.pth",
        "model.gguf",
        "onnx/model.onnx",
    ]
    assert [name for name in weights if is_fetched(name)] == []
    needed = ["tokenizer.json", "chat_template.jinja", "config.json", "generation_config.json"]
    needed += ["additional_chat_templates/tool_use.jinja", "spiece.model", "tokenization_x.py"]
    assert [name for name in needed if not is_fetched(name)] == []


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("offline"),
        OSError("no route"),
        ValueError("bad name"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_hub_name_that_cannot_be_had_is_refused(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def download(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(UsageError, match=r"some-org/some-model.*download it first") as caught:
        find_tokenizer_folder("some-org/some-model")
    assert type(error).__name__ in str(caught.value)


def test_no_network_is_needed_to_say_that_a_hub_name_is_not_there(tmp_path: Path) -> None:
    code = (
        "from pipeline.tokens.files import find_tokenizer_folder\n"
        "find_tokenizer_folder('no-such-org/no-such-model')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 1
    assert "neither a folder nor to be had from the Hub" in done.stderr


def test_recognising_a_tokenizer_imports_nothing_heavy(bundled_tokenizer: Path) -> None:
    code = (
        "import sys; from pipeline.tokens.files import *\n"
        f"hash_tokenizer_files(find_tokenizer_folder({str(bundled_tokenizer)!r}))\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout == "[]\n", done.stderr


# ---- hashing


def test_every_tokenizer_file_is_hashed_by_its_bytes(folder: Path) -> None:
    expected = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()
    }
    assert set(expected) >= {"tokenizer.json", "chat_template.jinja", "generation_config.json"}
    assert hash_tokenizer_files(folder) == expected


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
def test_one_changed_byte_changes_the_hash_of_that_file_alone(folder: Path, name: str) -> None:
    before = hash_tokenizer_files(folder)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(bytes(data))
    after = hash_tokenizer_files(folder)
    assert {key for key in before if before[key] != after[key]} == {name}


@pytest.mark.parametrize(
    "name",
    [
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "tokenizer.model",
        "spiece.model",
        "sentencepiece.bpe.model",
        "tokenizer.model.v3",
        "tekken.json",
        "o200k_base.tiktoken",
        "tokenizer.4.0.0.json",
        "chat_template.json",
        "additional_chat_templates/tool_use.jinja",
        "tokenization_own.py",
    ],
)
def test_a_file_that_can_change_the_ids_is_noticed_when_it_appears(folder: Path, name: str) -> None:
    before = hash_tokenizer_files(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("x")
    assert set(hash_tokenizer_files(folder)) - set(before) == {name}


@pytest.mark.parametrize("name", ["README.md", "model.safetensors", "notes.txt", ".gitattributes"])
def test_a_file_that_cannot_change_the_ids_is_left_alone(folder: Path, name: str) -> None:
    before = hash_tokenizer_files(folder)
    (folder / name).write_text("x")
    assert hash_tokenizer_files(folder) == before


def test_the_place_of_the_folder_does_not_matter(folder: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(folder, tmp_path / "elsewhere" / "other")
    assert hash_tokenizer_files(moved) == hash_tokenizer_files(folder)


def test_links_as_in_the_hub_cache_are_followed(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in folder.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert hash_tokenizer_files(snapshot) == hash_tokenizer_files(folder)


# ---- what the files say


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"max_position_embeddings": 4096}, 4096),
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 131072}}, 131072),
        ({"max_position_embeddings": 10, "text_config": {"max_position_embeddings": 20}}, 10),
        ({"max_position_embeddings": -1, "text_config": {"max_position_embeddings": 20}}, 20),
        ({"max_position_embeddings": True}, None),
        ({"max_position_embeddings": "4096"}, None),
        ({"max_position_embeddings": None}, None),
        ({"text_config": "x"}, None),
        ({}, None),
    ],
)
def test_the_limit_of_the_model_comes_from_its_config(
    tmp_path: Path, config: dict[str, Any], limit: int | None
) -> None:
    assert read_position_limit(write_json(tmp_path, "config.json", config)) == limit


@pytest.mark.parametrize(
    ("stop", "ids"),
    [
        (5, {5}),
        (0, {0}),
        ([128001, 128008, 128009], {128001, 128008, 128009}),
        ([5, "x", None, True], {5}),
        (None, set()),
        (True, set()),
        ("</s>", set()),
    ],
)
def test_stop_ids_come_from_the_generation_config(tmp_path: Path, stop: Any, ids: set[int]) -> None:
    folder = write_json(tmp_path, "generation_config.json", {"eos_token_id": stop})
    assert read_stop_ids(folder) == ids


@pytest.mark.parametrize(("value", "found"), [("qwen3", "qwen3"), (None, None), (3, None)])
def test_the_model_type_is_text_or_nothing(tmp_path: Path, value: Any, found: str | None) -> None:
    assert read_model_type(write_json(tmp_path, "config.json", {"model_type": value})) == found


@pytest.mark.parametrize("folder", [None, "empty"])
def test_without_files_nothing_is_known(tmp_path: Path, folder: str | None) -> None:
    place = None if folder is None else tmp_path
    assert read_position_limit(place) is None
    assert read_model_type(place) is None
    assert read_stop_ids(place) == frozenset()


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe{}", b"null"])
def test_a_broken_config_is_refused_with_its_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "generation_config.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"generation_config\.json: .*expected (a )?JSON"):
        read_stop_ids(tmp_path)


def test_the_hub_error_for_a_missing_repository_is_an_os_error() -> None:
    # What find_tokenizer_folder catches; a new release of the library could move it.
    assert issubclass(RepositoryNotFoundError, OSError)


# ---- ids


def _edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text("utf-8"))
    change(values)
    path.write_text(json.dumps(values), "utf-8")


HUGE_IDS: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "a token": ("tokenizer.json", lambda v: v["model"]["vocab"].update(zz=2**31 - 2)),
    "over 32 bits": ("tokenizer.json", lambda v: v["model"]["vocab"].update(zz=2**31 + 2)),
    "an added token": (
        "tokenizer.json",
        lambda v: v["added_tokens"].append({**v["added_tokens"][0], "id": 2**32 - 1}),
    ),
    "the settings": (
        "tokenizer_config.json",
        lambda v: v.update(added_tokens_decoder={"99999999": {"content": "zz"}}),
    ),
}


@pytest.mark.parametrize("name", HUGE_IDS)
def test_a_vocabulary_with_ids_near_2_to_the_31_is_refused_before_it_is_loaded(
    name: str, bundled_tokenizer: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bundled_tokenizer, tmp_path / "tokenizer"))
    file, change = HUGE_IDS[name]
    _edit(folder / file, change)
    with pytest.raises(UsageError, match=f"{file} has the id .*expected ids below 10000000"):
        TextEncoder.from_path(str(folder))


def test_a_long_number_that_is_no_id_is_no_reason_to_refuse(
    bundled_tokenizer: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bundled_tokenizer, tmp_path / "tokenizer"))
    _edit(folder / "tokenizer_config.json", lambda v: v.update(model_max_length=10**30))
    refuse_huge_ids("tokenizer", folder)
