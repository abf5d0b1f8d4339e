"""Session logs of Claude Code and Codex -> rows of messages, one for each branch of a session.

    python -m scripts.sessions_to_rows ~/.claude/projects/*/*.jsonl --system SYSTEM.txt > rows.jsonl

Neither log has all that the model was sent: Claude Code's has no system text, and neither has the
tools, so give them (``--system``, ``--tools``) where the context is to be the served one. An answer
whose pieces the log has in an order that no message keeps, or whose thought or call it does not have
as the model said it, stays as context (``weight: 0``; ``--without-thoughts`` trains those that lack a
thought alone). What was left out is told on standard error.

Sources: Claude Code's files under ``~/.claude/projects`` (one line for each block of an answer, all
with the answer's ``message.id``; ``parentUuid`` names the line before); Codex,
``codex-rs/protocol/src/protocol.rs``: RolloutItem, and ``models.rs``: ResponseItem.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from pipeline.errors import Rejected
from pipeline.examples.foreign_turns import respell_turn

Row = dict[str, Any]
_THOUGHTLESS: Final = "thoughtless"
_RANKS: Final = {"reasoning": 0, "text": 1, "tool_call": 2}


def convert_session(lines: Iterable[Row], left_out: Counter[str]) -> Iterator[Row]:
    """Yield the rows of one session file; count in ``left_out`` what they do not have, and why."""
    listed = list(lines)
    if any("uuid" in line and "message" in line for line in listed):
        yield from _convert_claude(listed, left_out)
        return
    try:
        yield from _convert_codex(listed, left_out)
    except Rejected as error:
        _count_refusal(left_out, error)


def _count_refusal(left_out: Counter[str], error: Rejected) -> None:
    left_out[f"talks: {error.reason.split(';')[0]}"] += 1


# ---- Claude Code


def _convert_claude(lines: list[Row], left_out: Counter[str]) -> Iterator[Row]:
    by_id = {line["uuid"]: line for line in lines if isinstance(line.get("uuid"), str)}
    results = {
        block.get("tool_use_id"): block
        for line in by_id.values()
        for block in _blocks(line)
        if block.get("type") == "tool_result"
    }
    chains = [_chain(line, by_id) for line in by_id.values() if _is_answer(line)]
    inner = {each["uuid"] for chain in chains for each in chain[:-1]}
    for chain in chains:
        last = chain[-1]
        if last["uuid"] in inner:
            continue
        try:
            messages = _read_chain(chain, results, left_out)
        except Rejected as error:
            _count_refusal(left_out, error)
            continue
        yield {
            "id": f"{last.get('sessionId')}/{last['uuid']}",
            "conversation": str(last.get("sessionId")),
            "messages": messages,
        }


def _is_answer(line: Row) -> bool:
    message = line.get("message")
    return (
        line.get("type") == "assistant"
        and isinstance(message, dict)
        and not line.get("isApiErrorMessage")
        and message.get("model") != "<synthetic>"
    )


def _blocks(line: Row) -> list[Row]:
    """Return the blocks of a line's message; a text is one block."""
    message = line.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [each for each in content if isinstance(each, dict)] if isinstance(content, list) else []


def _chain(line: Row, by_id: dict[str, Row]) -> list[Row]:
    """Return the lines from the first one to this one."""
    chain: list[Row] = []
    seen: set[str] = set()
    at: Row | None = line
    while at is not None and at["uuid"] not in seen:
        seen.add(at["uuid"])
        chain.append(at)
        at = by_id.get(at.get("parentUuid") or "")
    return chain[::-1]


def _read_chain(chain: list[Row], results: dict[Any, Row], left_out: Counter[str]) -> list[Row]:
    messages: list[Row] = []
    answer: list[Row] = []
    said_by_tools = [
        line for line in chain if {block.get("type") for block in _blocks(line)} == {"tool_result"}
    ]
    for line in [*(line for line in chain if line not in said_by_tools), {}]:
        if answer and (not _is_answer(line) or _name(line) != _name(answer[0])):
            blocks = [block for each in answer for block in _blocks(each)]
            messages += _read_answer([_as_part(block) for block in blocks], left_out)
            if answer[0]["message"].get("stop_reason") in ("max_tokens", "refusal"):
                messages[-1]["weight"] = 0
            is_last = answer[-1] is chain[-1]
            for block in blocks:
                if block.get("type") == "tool_use" and (block.get("id") in results or not is_last):
                    messages.append(_read_result(results.get(block.get("id")), block.get("id")))
            answer = []
        if _is_answer(line):
            answer.append(line)
        elif line.get("type") == "user":
            said = [block for block in _blocks(line) if block.get("type") != "tool_result"]
            if said:
                parts = [_as_part(block) for block in said]
                messages += respell_turn({"role": "user", "parts": parts}, "user")
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    return messages


def _name(line: Row) -> Any:
    return line["message"].get("id") or line["uuid"]


def _as_part(block: Row) -> Row:
    kind = block.get("type")
    if kind == "thinking":
        return {"type": "reasoning", "text": block.get("thinking") or ""}
    if kind == "tool_use":
        call = {"id": block.get("id"), "name": block.get("name"), "arguments": block.get("input")}
        return {"type": "tool_call", **call}
    return block


def _read_result(block: Row | None, id_: Any) -> Row:
    if block is None:
        raise Rejected("missing_field", "a call without a result")
    content = block.get("content")
    texts = [content] if isinstance(content, str) else _texts(content or [])
    return {"role": "tool", "tool_call_id": id_, "content": "\n".join(texts)}


# ---- Codex


def _convert_codex(lines: list[Row], left_out: Counter[str]) -> Iterator[Row]:
    name, part = "", 0
    messages: list[Row] = []
    answer: list[Row] = []
    for line in [*lines, {"type": "compacted"}]:
        kind, item = line.get("type"), line.get("payload", line)
        if kind == "session_meta":
            name = str(item.get("id"))
            base = item.get("base_instructions") or {}
            text = base.get("text") if isinstance(base, dict) else base
            messages += [{"role": "system", "content": text}] if text else []
            continue
        if kind == "compacted":
            # What came before was put away, so that what follows has another context.
            messages += _read_answer(answer, left_out)
            while messages and messages[-1]["role"] != "assistant":
                messages.pop()
            if messages:
                yield {"id": f"{name}/{part}", "conversation": name, "messages": messages}
            part, answer, messages = part + 1, [], []
            items = item.get("replacement_history") or []
        else:
            items = [item] if kind == "response_item" or "payload" not in line else []
        for each in items:
            _add_item(each, messages, answer, left_out)


def _add_item(item: Row, messages: list[Row], answer: list[Row], left_out: Counter[str]) -> None:
    """Add one item of the Responses API: to the answer that it belongs to, or behind that one."""
    kind, role = item.get("type"), item.get("role")
    if kind == "reasoning":
        text = "".join(_texts(item.get("content") or []))
        answer.append({"type": "reasoning", "text": text})
    elif kind == "message" and role == "assistant":
        answer.append({"type": "text", "text": "".join(_texts(item.get("content") or []))})
    elif kind == "function_call":
        call = {"id": item.get("call_id"), "name": item.get("name")}
        answer.append({"type": "tool_call", **call, "arguments": item.get("arguments")})
    elif kind in ("custom_tool_call", "local_shell_call"):
        said = {"input": item.get("input")} if kind == "custom_tool_call" else item.get("action")
        call = {"id": item.get("call_id"), "name": item.get("name") or "shell", "arguments": said}
        answer.append({"type": "tool_call", **call, "is_rewritten": True})
    elif kind in ("function_call_output", "custom_tool_call_output", "message"):
        messages += _read_answer(answer, left_out)
        answer.clear()
        if kind == "message":
            messages.append({"role": role, "content": "\n".join(_texts(item.get("content") or []))})
            return
        output = item.get("output")
        text = output if isinstance(output, str) else "\n".join(_texts(output or []))
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": text})
    elif kind not in (None, "ghost_snapshot"):
        raise Rejected("unsupported_content", f"an item of type {kind}")


# ---- both


def _read_answer(parts: list[Row], left_out: Counter[str]) -> list[Row]:
    """Return the message of an answer; one that is not just what the model said has weight 0."""
    ranks = [_RANKS.get(str(part.get("type")), 3) for part in parts]
    hidden = any(part.get("type") == "reasoning" and not part.get("text") for part in parts)
    rewritten = any(part.get("is_rewritten") for part in parts)
    kept = [
        {key: value for key, value in part.items() if key != "is_rewritten"}
        for _, part in sorted(zip(ranks, parts, strict=True), key=lambda pair: pair[0])
        if part.get("type") != "reasoning" or part.get("text")
    ]
    if not kept:
        return []
    messages = respell_turn({"role": "assistant", "parts": kept}, "answer")
    if hidden:
        left_out["answers without the text of their thought"] += 1
        messages[0][_THOUGHTLESS] = True
    if ranks != sorted(ranks) or rewritten:
        left_out["answers that the log does not have as they were said"] += 1
        messages[0]["weight"] = 0
    return messages


def _texts(parts: list[Any]) -> list[str]:
    """Return the texts of parts; raises `Rejected` for a picture or a file."""
    for part in parts:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise Rejected("unsupported_content", f"a part of type {kind}")
    return [part["text"] for part in parts]


def _read_lines(file: Path, left_out: Counter[str]) -> list[Row]:
    """Return the objects of a session file; its last line may be half written."""
    lines: list[Row] = []
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            value = json.loads(line) if line.strip() else {}
        except ValueError:
            value = None
        if isinstance(value, dict):
            lines.append(value)
        else:
            left_out["lines that are no object of JSON"] += 1
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Write the rows of session files to standard output."""
    parser = argparse.ArgumentParser(description="Session logs of Claude Code and Codex -> rows")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--system", type=Path, help="a text: the system message of every row")
    parser.add_argument("--tools", type=Path, help="a JSON file: the tools of every row")
    parser.add_argument(
        "--without-thoughts", action="store_true", help="train answers whose thought is not logged"
    )
    options = parser.parse_args(arguments)
    system = options.system.read_text(encoding="utf-8") if options.system else None
    tools = json.loads(options.tools.read_text(encoding="utf-8")) if options.tools else None
    left_out: Counter[str] = Counter()
    for file in options.files:
        lines = _read_lines(file, left_out)
        for row in convert_session(lines, left_out):
            for message in row["messages"]:
                if message.pop(_THOUGHTLESS, False) and not options.without_thoughts:
                    message["weight"] = 0
            if system is not None:
                row["system"] = system
            print(json.dumps(row | ({"tools": tools} if tools else {}), ensure_ascii=False))
    for what, number in sorted(left_out.items()):
        print(f"left out: {number} {what}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
