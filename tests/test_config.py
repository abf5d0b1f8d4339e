"""Settings: each is classified as sealed or not, typed, and refused with a way out where wrong."""

from __future__ import annotations

import dataclasses
import json
import os
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from pipeline import config as config_module
from pipeline.config import (
    PrepareConfig,
    config_from_mapping,
    nearest_known,
    read_config_file,
    usable_cores,
)
from pipeline.errors import UsageError

SEALED_DEFAULTS: dict[str, Any] = {
    "format": "auto",
    "chat_template_kwargs": {},
    "server": "vllm",
    "server_options": {},
    "raw_context": "chat",
    "max_len": 8192,
    "overlong": "drop_turns",
    "overlong_last_turn": "cut_left",
    "overlong_continuation": "reject",
    "min_context": 1,
    "max_continuation": None,
    "decisions": "given",
    "rejected_continuations": "drop",
    "validation_fraction": 0.0,
    "end_of_turn": "auto",
    "opening": "template",
    "tool_call_ids": "keep",
    "think": "close",
    "control_tokens": "flag",
    "columns": "full",
    "on_duplicate": "error",
    "trust_remote_code": False,
}
# The first four are sealed by their content instead: the bytes of the files they point to.
UNSEALED = {
    "executor",
    "tasks",
    "workers",
    "cpus_per_task",
    "partition",
    "time",
    "venv",
    "ray_address",
    "input",
    "tokenizer",
    "chat_template",
    "output",
    "encoder",
} | {
    "max_reject_rate",
    "num_proc",
    "batch_size",
    "overwrite",
    "append",
    "report",
    "license",
    "language",
    "pretty_name",
}
REQUIRED = {"input": "a.jsonl", "tokenizer": "t", "output": "o"}
# Another valid value of every sealed setting.
OTHER_VALUES: dict[str, Any] = {
    "format": "own",
    "chat_template_kwargs": {"enable_thinking": False},
    "server": "plain",
    "server_options": {"content_format": "openai"},
    "raw_context": "completions",
    "max_len": 8191,
    "overlong": "reject",
    "overlong_last_turn": "reject",
    "overlong_continuation": "cut_right",
    "min_context": 2,
    "max_continuation": 100,
    "decisions": "all",
    "rejected_continuations": "keep",
    "validation_fraction": 0.5,
    "end_of_turn": "none",
    "opening": "none",
    "tool_call_ids": "template",
    "think": "keep",
    "control_tokens": "reject",
    "columns": "train",
    "on_duplicate": "first",
    "trust_remote_code": True,
}


def config_of(**values: Any) -> PrepareConfig:
    return config_from_mapping({**REQUIRED, **values}, "here")


# ---- what is sealed


def test_every_setting_is_classified_on_purpose() -> None:
    names = {item.name for item in dataclasses.fields(PrepareConfig)}
    assert names == set(SEALED_DEFAULTS) | UNSEALED
    assert set(config_of().sealed_settings()) == set(SEALED_DEFAULTS)


def test_the_sealed_settings_are_these_with_these_defaults() -> None:
    assert config_of().sealed_settings() == SEALED_DEFAULTS


@pytest.mark.parametrize("name", sorted(SEALED_DEFAULTS))
def test_a_sealed_setting_shows_in_the_sealed_settings(name: str) -> None:
    changed = config_of(**{name: OTHER_VALUES[name]}).sealed_settings()
    assert changed == {**SEALED_DEFAULTS, name: OTHER_VALUES[name]}


def test_unsealed_settings_leave_the_sealed_ones_alone() -> None:
    config = config_of(
        input=["b.jsonl", "c.jsonl"],
        tokenizer="u",
        output="p",
        chat_template="x.jinja",
        encoder="tokenizers",
        max_reject_rate=0.5,
        num_proc=7,
        batch_size=1,
        overwrite=True,
        append=True,
        report=False,
    )
    assert config.sealed_settings() == SEALED_DEFAULTS


def test_the_other_defaults() -> None:
    config = config_of()
    assert config.input == ("a.jsonl",)
    assert config.chat_template is None
    assert config.max_reject_rate == 0
    assert config.overwrite is False
    assert config.num_proc == usable_cores() >= 1


def test_workers_are_the_cores_that_may_be_used_not_those_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 8}, raising=False)
    assert config_of().num_proc == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert config_of().num_proc == 12
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert config_of().num_proc == 1


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        config_of().max_len = 5  # pyright: ignore[reportAttributeAccessIssue]


def test_the_resolved_config_goes_through_json_and_back() -> None:
    config = config_of(
        input=["b.jsonl", "a.jsonl"],
        chat_template_kwargs={"a": [1, {"b": None}]},
        max_reject_rate=1,
    )
    saved = json.loads(json.dumps(config.to_dict()))
    assert config_from_mapping(saved, "manifest") == config
    assert set(saved) == {item.name for item in dataclasses.fields(PrepareConfig)}


# ---- types and ranges


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("max_len", "512", "a whole number"),
        ("max_len", 512.0, "a whole number"),
        ("max_len", True, "a whole number"),
        ("max_len", None, "a whole number"),
        ("num_proc", [2], "a whole number"),
        ("max_reject_rate", "0.1", "a number"),
        ("max_reject_rate", False, "a number"),
        ("overwrite", 1, "true or false"),
        ("overwrite", "yes", "true or false"),
        ("tokenizer", 7, "text"),
        ("output", None, "text"),
        ("chat_template", 3, "text or nothing"),
        ("max_continuation", "x", "a whole number or nothing"),
        ("max_continuation", True, "a whole number or nothing"),
        ("min_context", None, "a whole number"),
        ("decisions", "some", "'given' or 'all' or 'last'"),
        ("input", 3, "text or a list of texts"),
        ("input", ["a.jsonl", 3], "text or a list of texts"),
        ("input", {"a": "b"}, "text or a list of texts"),
        ("language", 3, "text or a list of texts"),
        ("license", ["mit"], "text or nothing"),
        ("server", "tgi", "'vllm' or 'sglang' or 'transformers' or 'mlx' or 'plain'"),
        ("server", ["vllm"], "'vllm' or 'sglang' or 'transformers' or 'mlx' or 'plain'"),
        ("overlong", None, "'drop_turns' or 'cut_left' or 'reject'"),
        ("columns", "all", "'full' or 'train'"),
        ("chat_template_kwargs", [], "names with JSON values"),
        ("chat_template_kwargs", "{}", "names with JSON values"),
        ("chat_template_kwargs", {1: "a"}, "names with JSON values"),
        ("chat_template_kwargs", {"a": {2: "b"}}, "names with JSON values"),
        ("chat_template_kwargs", {"a": [float("nan")]}, "names with JSON values"),
        ("server_options", {"a": {1, 2}}, "names with JSON values"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(name: str, value: Any, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        config_of(**{name: value})
    assert str(caught.value).startswith(f"here: {name}: found ")
    assert f"expected {expected}" in str(caught.value)


@pytest.mark.parametrize("written", ["2024-07-26", "'2024-07-26'", "2024-07-26 10:00:00"])
def test_a_date_stays_the_text_that_it_is_in_the_file(tmp_path: Path, written: str) -> None:
    # YAML would make a date object of it, which no template and no JSON knows.
    path = tmp_path / "c.yaml"
    path.write_text(f"chat_template_kwargs: {{date_string: {written}}}\n")
    config = config_of(**read_config_file(str(path)))
    assert config.chat_template_kwargs == {"date_string": written.strip("'")}


def test_a_date_object_is_refused() -> None:
    with pytest.raises(UsageError, match=r"chat_template_kwargs: found .*names with JSON values"):
        config_of(chat_template_kwargs={"date_string": date(2024, 7, 26)})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_len", 1),
        ("max_len", -5),
        ("num_proc", 0),
        ("batch_size", 0),
        ("max_reject_rate", -0.1),
        ("max_reject_rate", 1.01),
        ("max_reject_rate", float("nan")),
        ("validation_fraction", 1),
        ("validation_fraction", -0.1),
        ("validation_fraction", float("nan")),
        ("min_context", 0),
        ("min_context", 8192),
        ("max_continuation", 0),
        ("input", []),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"^{name}: "):
        config_of(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_len", 2),
        ("max_reject_rate", 0),
        ("max_reject_rate", 1),
        ("validation_fraction", 0),
        ("min_context", 8191),
        ("max_continuation", 1),
        ("max_continuation", None),
    ],
)
def test_the_edges_of_a_range_are_inside(name: str, value: Any) -> None:
    assert getattr(config_of(**{name: value}), name) == value


def test_one_path_is_a_list_of_one() -> None:
    assert config_of(input="a.jsonl").input == ("a.jsonl",)
    assert PrepareConfig(input="a.jsonl", tokenizer="t", output="o").input == ("a.jsonl",)  # pyright: ignore[reportArgumentType]
    assert config_of(input=["a.jsonl", "b.jsonl"]).input == ("a.jsonl", "b.jsonl")


# ---- names


@pytest.mark.parametrize(
    ("unknown", "nearest"),
    [
        ("max_length", "max_len"),
        ("max-len", "max_len"),
        ("tokeniser", "tokenizer"),
        ("chat_template_kwarg", "chat_template_kwargs"),
        ("num_procs", "num_proc"),
        ("over_write", "overwrite"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(unknown: str, nearest: str) -> None:
    with pytest.raises(UsageError) as caught:
        config_of(**{unknown: 1})
    assert f"unknown key {unknown!r}; did you mean {nearest!r}?" in str(caught.value)


def test_an_unknown_key_like_no_other_is_refused_with_all_known_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown key 'zzz'; known: .*batch_size.*tokenizer"):
        config_of(zzz=1)
    assert nearest_known("q", ["beta", "alpha"]) == "; known: alpha, beta"


@pytest.mark.parametrize("name", sorted(REQUIRED))
def test_a_missing_setting_is_named(name: str) -> None:
    values = {key: value for key, value in REQUIRED.items() if key != name}
    with pytest.raises(UsageError, match=f"^here: missing {name}; .*--{name} VALUE"):
        config_from_mapping(values, "here")


def test_all_missing_settings_are_named_at_once() -> None:
    with pytest.raises(UsageError, match="missing input, output, tokenizer"):
        config_from_mapping({}, "here")


# ---- files


def test_a_file_gives_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("input: [a.jsonl]\nmax_len: 12\nend_of_turn: none\n", encoding="utf-8")
    assert read_config_file(str(path)) == {
        "input": ["a.jsonl"],
        "max_len": 12,
        "end_of_turn": "none",
    }


@pytest.mark.parametrize("content", [b"- a\n- b\n", b"just text\n", b"", b"42\n"])
def test_a_file_without_keys_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="expected `key: value` lines"):
        read_config_file(str(path))


@pytest.mark.parametrize(
    "content", [b"a: [1\n", b"a: 'x\n", b"a: \xff\xfe\n", b"a: b: c\n", b"\x00"]
)
def test_a_file_that_is_not_yaml_is_refused_with_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_config_file(str(path))
    assert str(path) in str(caught.value)
    assert "expected YAML" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("max_len: 512\noverlong: reject\nmax_len: 1024\n", "max_len"),
        ("max_len: 512\nchat_template_kwargs: {a: 1, a: 2}\n", "a"),
    ],
)
def test_a_key_given_twice_is_refused(tmp_path: Path, text: str, key: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=f"{key} twice"):
        read_config_file(str(path))


def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"input: !!python/object/apply:pathlib.Path.touch [{tmp_path / 'made'}]\n")
    with pytest.raises(UsageError, match="expected YAML"):
        read_config_file(str(path))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_cannot_be_read_is_refused_with_its_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"expected a YAML file$"):
        read_config_file(str(tmp_path / name))


@pytest.mark.parametrize("name", ["quickstart.yaml", "with_rejects.yaml"])
def test_the_bundled_configs_are_valid(repository: Path, name: str) -> None:
    config_from_mapping(read_config_file(str(repository / "configs" / name)), name)


def test_the_quickstart_explains_every_key_it_uses(repository: Path) -> None:
    lines = (repository / "configs" / "quickstart.yaml").read_text(encoding="utf-8").splitlines()
    keys = [place for place, line in enumerate(lines) if line and line[0].isalpha()]
    assert [lines[place] for place in keys if not lines[place - 1].startswith("#")] == []


def test_every_setting_has_its_own_words_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.cli.command import main

    with pytest.raises(SystemExit) as caught:
        main(["prepare", "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for item in dataclasses.fields(PrepareConfig):
        assert f"--{item.name}" in shown
    source = Path(config_module.__file__).read_text(encoding="utf-8")
    for item in dataclasses.fields(PrepareConfig):
        after = source[source.index(f"    {item.name}: ") :].partition("\n")[2]
        assert after.lstrip().startswith('"""'), item.name
