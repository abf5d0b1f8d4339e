"""Ids of calls: those that a template refuses are replaced where asked, and the pairs stay pairs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Rejected
from pipeline.examples.decisions import find_decision_points
from pipeline.examples.example import TrainingExample
from pipeline.rows.builder import RowBuilder
from pipeline.rows.call_ids import rename_calls
from pipeline.rows.table import BoundedRow
from tests.rows.test_builder import make_builder

Message = dict[str, Any]
USER: Message = {"role": "user", "content": "Rain?"}
OF_NINE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}{% if c.id|length != 9 %}"
    "{{ raise_exception('Ids have nine letters.') }}{% endif %}"
    "<c>{{ c.function.name }}{{ c.function.arguments | tojson }} {{ c.id }}</c>{% endfor %}"
    "{% if m.role == 'tool' %}{% if m.tool_call_id|length != 9 %}"
    "{{ raise_exception('Ids have nine letters.') }}{% endif %} of {{ m.tool_call_id }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OF_ANY = re.sub(r"\{% if [^%]*length[^%]*%\}.*?\{% endif %\}", "", OF_NINE)
IDS = st.sampled_from(["call_1", "call_2", "abcdefgh1", "", "x" * 30]) | st.none()


def calling(*ids: str | None) -> Message:
    function = {"name": "look", "arguments": {"city": "Oslo"}}
    calls = [{"type": "function", "function": function} for _ in ids]
    named = [
        call if id_ is None else {"id": id_, **call} for id_, call in zip(ids, calls, strict=True)
    ]
    return {"role": "assistant", "content": "", "tool_calls": named}


def result(id_: str | None, text: str = "wet") -> Message:
    return {"role": "tool", "content": text} | ({} if id_ is None else {"tool_call_id": id_})


TALK = [USER, calling("call_1"), result("call_1"), USER, calling("call_2")]


@pytest.fixture(params=["vllm", "sglang", "plain"])
def server(request: pytest.FixtureRequest) -> str:
    return request.param


def builder_of(tmp_path: Path, template: str, **settings: Any) -> RowBuilder:
    path = tmp_path / "template.jinja"
    path.write_text(template, encoding="utf-8")
    return make_builder(chat_template=str(path), end_of_turn="<|im_end|>", **settings)


def build_all(builder: RowBuilder, messages: list[Message]) -> list[BoundedRow | Rejected]:
    example = TrainingExample.from_dict({"id": "a", "messages": messages})
    return builder.build(find_decision_points(example, "all"))


def texts_of(builder: RowBuilder, messages: list[Message]) -> list[str]:
    rows = build_all(builder, messages)
    assert all(isinstance(row, BoundedRow) for row in rows), rows
    return [builder.encoder.decode(row.input_ids) for row in rows if isinstance(row, BoundedRow)]


def test_a_refusal_over_ids_names_the_setting(tmp_path: Path, server: str) -> None:
    rows = build_all(builder_of(tmp_path, OF_NINE, server=server), TALK)
    assert [isinstance(row, Rejected) and row.code for row in rows] == ["template_refused"] * 2
    assert all("--tool_call_ids template" in str(row) for row in rows)


def test_a_refusal_for_another_reason_does_not_name_it(tmp_path: Path, server: str) -> None:
    messages = [{**USER, "content": "boom"}, *TALK[1:]]
    template = "{% if 'boom' in messages[0].content %}{{ raise_exception('No.') }}{% endif %}"
    (row, *_) = build_all(builder_of(tmp_path, template + OF_NINE, server=server), messages)
    assert isinstance(row, Rejected)
    assert "tool_call_ids" not in str(row)


def test_a_call_and_its_result_get_one_id_in_context_and_continuation(
    tmp_path: Path, server: str
) -> None:
    builder = builder_of(tmp_path, OF_NINE, server=server, tool_call_ids="template")
    first, last = texts_of(builder, TALK)
    (said,) = re.findall(r" (\w+)</c>", first)
    again, other = re.findall(r" (\w+)</c>", last)
    assert [said, re.findall(r" of (\w+)", last)] == [again, [again]]
    assert other != again
    rows = build_all(builder, TALK)
    assert all("call_ids_renamed" in row.flags for row in rows if isinstance(row, BoundedRow))


def test_ids_that_the_template_takes_stay(tmp_path: Path, server: str) -> None:
    any_form = builder_of(tmp_path, OF_ANY, server=server, tool_call_ids="template")
    assert "call_1" in texts_of(any_form, TALK)[0]
    nine = builder_of(tmp_path, OF_NINE, server=server, tool_call_ids="template")
    good = [USER, calling("abcdefgh1"), result("abcdefgh1"), USER, calling("abcdefgh2")]
    assert "abcdefgh1" in texts_of(nine, good)[0]
    rows = build_all(nine, good)
    assert not any("call_ids_renamed" in row.flags for row in rows if isinstance(row, BoundedRow))


def test_a_given_continuation_goes_on_with_the_numbers_of_its_conversation(tmp_path: Path) -> None:
    builder = builder_of(tmp_path, OF_NINE, tool_call_ids="template")
    example = TrainingExample.from_dict(
        {"id": "a", "context": TALK[:4], "continuation": calling("call_2")}
    )
    (given,) = builder.build(find_decision_points(example))
    (_, logged) = build_all(builder, TALK)
    assert isinstance(given, BoundedRow)
    assert isinstance(logged, BoundedRow)
    assert given.input_ids.tolist() == logged.input_ids.tolist()


@given(st.lists(st.tuples(st.lists(IDS, min_size=1, max_size=3), st.booleans()), max_size=4))
def test_results_stay_with_their_calls_whatever_the_ids_were(
    turns: list[tuple[list[str | None], bool]],
) -> None:
    messages: list[Message] = [USER]
    for ids, names in turns:
        messages.append(calling(*ids))
        messages += [result(id_ if names else None) for id_ in ids]
    renamed = rename_calls(messages)
    assert all(len(call["id"]) == 9 for each in renamed for call in each.get("tool_calls", ()))
    at = 1
    for ids, _ in turns:
        calls = [call["id"] for call in renamed[at]["tool_calls"]]
        results = [each["tool_call_id"] for each in renamed[at + 1 : at + 1 + len(ids)]]
        assert results == calls
        at += 1 + len(ids)
    assert rename_calls(renamed) == renamed
    assert rename_calls(messages[:at])[: len(messages)] == renamed


def test_a_result_of_no_call_stays() -> None:
    orphan = result("call_7")
    assert rename_calls([USER, orphan]) == [USER, orphan]
