"""A running server's own answers: the ids of prompts, and the messages that it reads from ours.

    CONTEXT_FROZEN_SERVER=http://127.0.0.1:8100 CONTEXT_FROZEN_TOKENIZER=FOLDER \\
        pytest tests/view/test_live_server.py

``FOLDER`` is the tokenizer that the server has. ``vllm launch render`` needs no GPU for it; started
with its tool and reasoning parsers it also reads calls and thought.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import PrepareConfig
from pipeline.errors import Rejected
from pipeline.examples.decisions import DecisionPoint, find_decision_points
from pipeline.examples.example import TrainingExample
from pipeline.job.prepare import prepare
from pipeline.rows.builder import RowBuilder
from pipeline.view.live import compare_with_server
from pipeline.view.live_server import build_body
from tests.conftest import write_lines
from tests.view.test_live import EXAMPLES, HELLO

DERENDER = "/v1/chat/completions/derender"
FIND = {
    "type": "function",
    "function": {
        "name": "find",
        "description": "Finds a place.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
# White space at the edges, other scripts, marks of a template and bytes that no vocabulary has.
TEXTS = (
    "A model.",
    "Two\n\nlines, and a tab:\tend.",
    "Ünïcode: 你好, नमस्ते, 👩‍💻",
    "```py\nx = {1: '<b>'}\n```",
)


@pytest.fixture(scope="module")
def server() -> str:
    """The URL of a running server, or skip."""
    url = os.environ.get("CONTEXT_FROZEN_SERVER")
    if not url:
        pytest.skip("no server: CONTEXT_FROZEN_SERVER is not set")
    return url


@pytest.fixture(scope="module")
def config(server: str) -> PrepareConfig:
    """Settings with the server's tokenizer; its input is not read."""
    folder = os.environ.get("CONTEXT_FROZEN_TOKENIZER")
    if not folder:
        pytest.skip("which tokenizer has the server? CONTEXT_FROZEN_TOKENIZER is not set")
    return PrepareConfig(input=("-",), tokenizer=folder, output="-")


def test_rows_have_the_ids_of_the_running_server(
    tmp_path: Path,
    server: str,
    config: PrepareConfig,
    make_config: Callable[..., PrepareConfig],
    bundled_examples: Path,
) -> None:
    bundled = bundled_examples.read_text(encoding="utf-8").splitlines()
    lines = write_lines(tmp_path / "e.jsonl", [*EXAMPLES, *bundled])
    made = make_config(lines, tokenizer=config.tokenizer, decisions="all", max_reject_rate=0.9)
    prepare(made)
    found = compare_with_server(made.output, server, 100)
    assert found.findings == []
    assert found.matching == found.compared > 0


@pytest.mark.parametrize("text", TEXTS)
def test_the_server_reads_our_ids_as_the_message_that_they_were_made_from(
    server: str, config: PrepareConfig, text: str
) -> None:
    message = {"role": "assistant", "content": text}
    # With thinking on, a reasoning parser takes what does not close a think block for thought.
    kwargs = {"enable_thinking": False}
    read = derender(server, config, example_of(message, chat_template_kwargs=kwargs))
    assert read["content"] == text


def test_the_server_reads_our_ids_as_the_call_that_they_were_made_from(
    server: str, config: PrepareConfig
) -> None:
    arguments = {"city": "Ås", "text": 'a "b"\n'}
    call = {"type": "function", "function": {"name": "find", "arguments": arguments}}
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    read = derender(server, config, example_of(message, tools=[FIND]))
    if not read.get("tool_calls"):
        pytest.skip("the server has no tool parser")
    (found,) = read["tool_calls"]
    assert found["function"]["name"] == "find"
    assert json.loads(found["function"]["arguments"]) == arguments


def test_the_server_reads_our_ids_as_the_thought_that_they_were_made_from(
    server: str, config: PrepareConfig
) -> None:
    message = {"role": "assistant", "content": "A model.", "reasoning": "They ask who I am."}
    read = derender(server, config, example_of(message))
    if read.get("reasoning") is None:
        pytest.skip("the server has no reasoning parser")
    assert read["reasoning"].strip() == message["reasoning"]
    assert read["content"].strip() == message["content"]


def example_of(message: dict[str, Any], **values: Any) -> TrainingExample:
    return TrainingExample.from_dict(
        {"id": "x", "context": HELLO, "continuation": message, **values}
    )


def derender(server: str, config: PrepareConfig, example: TrainingExample) -> dict[str, Any]:
    """Return the message that the server makes of the ids of an example's continuation."""
    builder = RowBuilder(config)
    (point,) = find_decision_points(example)
    row = builder.build([point])[0]
    if isinstance(row, Rejected):
        pytest.skip(f"no row: {row}")
    ids = row.input_ids.tolist()
    context, continuation = ids[: row.context_len], ids[row.context_len :]
    answer = ask(
        server + DERENDER,
        {
            "model": ask(server + "/v1/models")["data"][0]["id"],
            "generate_response": {
                "request_id": "x",
                "choices": [{"index": 0, "finish_reason": "stop", "token_ids": continuation}],
            },
            "prompt_token_ids": context,
            "chat_request": request_of(builder, point, config),
        },
    )
    message: dict[str, Any] = answer["choices"][0]["message"]
    return message


def request_of(builder: RowBuilder, point: DecisionPoint, config: PrepareConfig) -> dict[str, Any]:
    """Return the request of a point as a client sends it; with no choice of a tool made for it."""
    body = build_body(builder.render_context(point)[0], config)
    return {name: value for name, value in body.items() if name != "tool_choice"}


def ask(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        if error.code == 404:
            pytest.skip(f"the server has no {DERENDER}")
        raise AssertionError(error.read().decode()) from error
