"""Settings for people: the command that gives them, and nested records as flat ones."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli.options import parse_config
from pipeline.config import PrepareConfig
from pipeline.sets.settings import flatten_record, write_command

BASE = {"input": ("a.jsonl",), "tokenizer": "t", "output": "o"}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"input": ("a b.jsonl", "it's.jsonl", "$x*.gz")},
        {"max_len": 512, "overlong": "reject", "max_reject_rate": 0.25, "max_continuation": 9},
        {"server": "sglang", "chat_template": "my template.jinja", "columns": "train"},
        {"chat_template_kwargs": {"enable_thinking": False, "note": 'it\'s "so"'}},
        {"server_options": {"content_format": "openai"}, "trust_remote_code": True, "append": True},
    ],
)
def test_the_command_gives_the_settings_again(settings: dict[str, Any]) -> None:
    config = PrepareConfig(**{**BASE, **settings})
    words = shlex.split(write_command(config.to_dict()))
    assert words[:2] == ["context-frozen", "prepare"]
    again = parse_config(words[2:])
    kept = {"num_proc": config.num_proc}
    assert dataclasses.replace(again, **kept) == config


def test_the_command_says_nothing_of_the_machine() -> None:
    one, two = (PrepareConfig(**BASE, num_proc=number, batch_size=number) for number in (1, 7))
    assert write_command(one.to_dict()) == write_command(two.to_dict())


def test_a_command_of_a_later_version_keeps_its_settings() -> None:
    assert "--new_setting 5" in write_command({"output": "o", "new_setting": 5})


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=3),
        lambda inner: st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3),
        max_leaves=8,
    )
)
def test_no_leaf_of_a_record_is_lost(record: Any) -> None:
    def count(value: Any) -> int:
        return sum(map(count, value.values())) if isinstance(value, dict) else 1

    assert len(flatten_record(record)) == count(record)


def test_lists_of_records_are_numbered_and_plain_lists_are_leaves() -> None:
    record = {"a": [{"b": 1}, {"b": 2}], "c": [1, 2], "d": {}}
    assert flatten_record(record) == {"a.0.b": 1, "a.1.b": 2, "c": [1, 2], "d": {}}
