"""Session logs of Claude Code and Codex become rows that `prepare` reads."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.examples.shapes import read_row
from scripts.sessions_to_rows import convert_session, main
from tests.conftest import write_lines

Row = dict[str, Any]


def claude(uuid: str, parent: str | None, role: str, content: Any, **more: Any) -> Row:
    message = {"role": role, "content": content, **more}
    link = {"uuid": uuid, "parentUuid": parent, "sessionId": "s", "isSidechain": False}
    return {"type": role, **link, "message": message}


def tool_use(id_: str) -> Row:
    return {"type": "tool_use", "id": id_, "name": "Bash", "input": {"command": "ls"}}


def result(id_: str, text: Any = "a.py") -> Row:
    return {"type": "tool_result", "tool_use_id": id_, "content": text}


def call(id_: str) -> Row:
    function = {"name": "Bash", "arguments": {"command": "ls"}}
    return {"id": id_, "type": "function", "function": function}


# Two calls of one answer, a line each; the result of the first hangs beside the chain.
CLAUDE = [
    {"type": "summary", "summary": "Fix", "leafUuid": "a4"},
    claude("u1", None, "user", "Fix it"),
    claude("a1", "u1", "assistant", [{"type": "thinking", "thinking": "Look."}], id="m1"),
    claude("a2", "a1", "assistant", [tool_use("t1")], id="m1"),
    claude("r1", "a2", "user", [result("t1")]),
    claude("a3", "a2", "assistant", [tool_use("t2")], id="m1", stop_reason="tool_use"),
    claude("r2", "a3", "user", [result("t2", [{"type": "text", "text": "b.py"}])]),
    claude("a4", "r2", "assistant", [{"type": "text", "text": "Done."}], id="m2"),
]
CODEX = [
    {"type": "session_meta", "payload": {"id": "s", "base_instructions": {"text": "You fix."}}},
    {"type": "event_msg", "payload": {"type": "user_message", "message": "Fix it"}},
    {
        "type": "response_item",
        "payload": {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "Fix it"}],
        },
    },
    {
        "type": "response_item",
        "payload": {
            "type": "function_call",
            "name": "Bash",
            "arguments": json.dumps({"command": "ls"}),
            "call_id": "t1",
        },
    },
    {
        "type": "response_item",
        "payload": {"type": "function_call_output", "call_id": "t1", "output": "a.py"},
    },
    {
        "type": "response_item",
        "payload": {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Done."}],
        },
    },
]
THOUGHT = {"type": "response_item", "payload": {"type": "reasoning", "encrypted_content": "x"}}


def convert(lines: list[Row]) -> tuple[list[Row], Counter[str]]:
    left_out: Counter[str] = Counter()
    return list(convert_session(lines, left_out)), left_out


def test_the_lines_of_one_answer_are_one_message_and_every_call_has_its_result() -> None:
    (row,), left_out = convert(CLAUDE)
    assert row["messages"] == [
        {"role": "user", "content": "Fix it"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "Look.",
            "tool_calls": [call("t1"), call("t2")],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "a.py"},
        {"role": "tool", "tool_call_id": "t2", "content": "b.py"},
        {"role": "assistant", "content": "Done."},
    ]
    assert not left_out
    assert read_row(row, "auto", "").example.decision_idx == 4


def test_each_branch_of_a_session_is_a_row() -> None:
    again = claude("a5", "r2", "assistant", [{"type": "text", "text": "No."}], id="m3")
    rows, _ = convert([*CLAUDE, again])
    assert [row["messages"][-1]["content"] for row in rows] == ["Done.", "No."]
    assert len({row["id"] for row in rows}) == 2


def test_an_answer_in_another_order_or_cut_short_stays_as_context() -> None:
    late = claude(
        "a5", "a4", "assistant", [tool_use("t3"), {"type": "text", "text": "Hm."}], id="m3"
    )
    (row,), left_out = convert([*CLAUDE, late])
    assert row["messages"][-1]["weight"] == 0
    assert left_out == {"answers that the log does not have as they were said": 1}
    cut = claude("a5", "a4", "assistant", "Half", id="m3", stop_reason="max_tokens")
    assert convert([*CLAUDE, cut])[0][0]["messages"][-1]["weight"] == 0


@pytest.mark.parametrize(
    "lines",
    [
        [*CLAUDE[:4], claude("a9", "a2", "assistant", "Done.", id="m9")],
        [claude("u1", None, "user", [{"type": "image", "source": {}}]), *CLAUDE[2:3]],
        [*CODEX, {"type": "response_item", "payload": {"type": "web_search_call"}}],
    ],
)
def test_a_talk_that_a_row_cannot_hold_is_left_out_and_told(lines: list[Row]) -> None:
    rows, left_out = convert(lines)
    assert rows == []
    assert [number for what, number in left_out.items() if what.startswith("talks: ")] == [1]


def test_the_items_of_a_codex_session_are_its_messages() -> None:
    (row,), left_out = convert(CODEX)
    assert row["messages"] == [
        {"role": "system", "content": "You fix."},
        {"role": "user", "content": "Fix it"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "t1",
                    "type": "function",
                    "function": {"name": "Bash", "arguments": json.dumps({"command": "ls"})},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "a.py"},
        {"role": "assistant", "content": "Done."},
    ]
    assert not left_out


def test_what_stood_before_a_compaction_is_a_row_of_its_own() -> None:
    history = [CODEX[2]["payload"]]
    compacted = {"type": "compacted", "payload": {"message": "", "replacement_history": history}}
    rows, _ = convert([*CODEX, compacted, CODEX[-1]])
    assert [len(row["messages"]) for row in rows] == [5, 2]


def test_the_command_adds_system_and_tools_and_trains_hidden_thoughts_only_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_lines(tmp_path / "s.jsonl", [*CODEX[1:-1], THOUGHT, CODEX[-1], '{"type": "resp'])
    (tmp_path / "system.txt").write_text("Be brief.", encoding="utf-8")
    tools = [{"type": "function", "function": {"name": "Bash", "parameters": {}}}]
    (tmp_path / "tools.json").write_text(json.dumps(tools), encoding="utf-8")
    arguments = [str(file), "--system", str(tmp_path / "system.txt")]
    assert main([*arguments, "--tools", str(tmp_path / "tools.json")]) == 0
    shown = capsys.readouterr()
    row = json.loads(shown.out)
    assert (row["system"], row["tools"], row["messages"][-1]["weight"]) == ("Be brief.", tools, 0)
    assert "left out: 1 answers without the text of their thought" in shown.err
    assert "left out: 1 lines that are no object of JSON" in shown.err
    assert main([*arguments, "--without-thoughts"]) == 0
    assert "weight" not in json.loads(capsys.readouterr().out)["messages"][-1]
