"""Rows against a running server: a stub that answers what a server would, right or wrong."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.command import main
from pipeline.config import PrepareConfig
from pipeline.errors import UsageError
from pipeline.examples.decisions import DecisionPoint
from pipeline.examples.example import TrainingExample
from pipeline.job.prepare import prepare
from pipeline.prompt.request import ChatRequest
from pipeline.rows.builder import RowBuilder
from pipeline.rows.table import BoundedRow
from pipeline.sets.load import load
from pipeline.view.likely_rule import LOGGED
from pipeline.view.live import compare_with_server
from pipeline.view.live_server import LiveServer, ServerError
from tests.conftest import write_lines

ConfigMaker = Callable[..., PrepareConfig]
Answer = Callable[[dict[str, Any]], Any]

RENDER, TOKENIZE = "/v1/chat/completions/render", "/tokenize"
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "find", "parameters": {"type": "object"}},
}
CALL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "find", "arguments": {"city": "Ås", "n": 1.0}},
}
HELLO = [{"role": "user", "content": "Hello, who are you and what can you do for me?"}]
PLAIN = {"id": "plain", "messages": HELLO, "continuation": "A model."}
TOOLS = {
    "id": "tools",
    "messages": [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "7 degrees", "tool_call_id": "call00000"},
    ],
    "tools": [TOOL],
    "continuation": "It is 7 degrees.",
}
PARTS = {
    "id": "parts",
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": text} for text in ("one", "two")]}
    ],
    "continuation": "three",
}
SEVERAL = {"id": "several", "context": HELLO, "continuations": ["Hi!", "Hello!"]}
TALK = {
    "id": "talk",
    "messages": [
        {"role": "system", "content": "Be brief."},
        *HELLO,
        {"role": "assistant", "content": "A model.", "reasoning": "They ask who I am."},
        {"role": "user", "content": "And who made you?"},
        {"role": "assistant", "content": "People."},
    ],
}
RAW = {"id": "raw", "context": "Once upon a", "continuation": " time"}
EXAMPLES = [PLAIN, TOOLS, PARTS, SEVERAL, TALK, RAW]


@dataclass(frozen=True)
class Failure:
    """An answer that is no JSON of ids: a status and a body."""

    status: int
    body: bytes = b""


@dataclass
class Stub:
    """A server on the loopback: ``routes`` by path, and what it was asked."""

    routes: dict[str, Answer]
    url: str = ""
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    redirect: str = ""
    """Another server, to which every question is sent on."""

    def bodies(self, path: str) -> list[dict[str, Any]]:
        return [body for asked, body in self.asked if asked == path]


@contextmanager
def serving(routes: dict[str, Answer]) -> Generator[Stub]:
    stub = Stub({"/v1/models": lambda _: {"data": [{"id": "m"}]}, **routes})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            body: Any = json.loads(
                self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}"
            )
            stub.asked.append((self.path, body))
            stub.headers.append(dict(self.headers))
            if stub.redirect:
                self.send_response(302)
                self.send_header("Location", stub.redirect + self.path)
                self.end_headers()
                return
            route = stub.routes.get(self.path)
            found = Failure(404, b'{"detail": "Not Found"}') if route is None else route(body)
            if not isinstance(found, Failure):
                found = Failure(200, json.dumps(found).encode())
            self.send_response(found.status)
            self.end_headers()
            self.wfile.write(found.body)

        def log_message(self, format: str, *args: Any) -> None:
            """Keep the test output free of the access log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ids_of(builder: RowBuilder, defaults: dict[str, Any], body: dict[str, Any]) -> list[int]:
    """Return the ids that a server with the settings of ``builder`` makes of a request."""
    if "prompt" in body:
        adds = body["add_special_tokens"]
        return builder.encoder.encode([body["prompt"]], add_special_tokens=adds)[0].tolist()
    request = ChatRequest(
        body["messages"], body.get("tools"), {**defaults, **body["chat_template_kwargs"]}
    )
    prompt = builder.dialect.render_prompt(request, builder.templates)
    return builder.encoder.encode([prompt.text])[0].tolist()


def routes_of(
    config: PrepareConfig, change: Callable[[list[int]], Any] = lambda ids: ids
) -> dict[str, Answer]:
    """Return the two routes of a server with these settings, its ids passed through ``change``."""
    builder, defaults = RowBuilder(config), config.chat_template_kwargs
    return {
        RENDER: lambda body: {"token_ids": change(ids_of(builder, defaults, body))},
        TOKENIZE: lambda body: {"tokens": change(ids_of(builder, defaults, body))},
    }


@pytest.fixture
def make_set(tmp_path: Path, make_config: ConfigMaker) -> Callable[..., PrepareConfig]:
    """Return a function that prepares a set of examples in ``tmp_path/set``, and gives its config."""

    def make(examples: Sequence[dict[str, Any]], **settings: Any) -> PrepareConfig:
        config = make_config(write_lines(tmp_path / "e.jsonl", examples), **settings)
        prepare(config)
        return config

    return make


@pytest.fixture(scope="module")
def plain_set(tmp_path_factory: pytest.TempPathFactory, bundled_tokenizer: Path) -> PrepareConfig:
    """A set of one plain row, for tests that look at the server alone."""
    folder = tmp_path_factory.mktemp("plain")
    config = PrepareConfig(
        input=(str(write_lines(folder / "e.jsonl", [PLAIN])),),
        tokenizer=str(bundled_tokenizer),
        output=str(folder / "set"),
        num_proc=1,
    )
    prepare(config)
    return config


def verify(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    """Return the exit code of ``verify``, and all that it printed."""
    code = main(["verify", *args])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_every_row_of_a_set_agrees_with_a_server_of_the_same_settings(
    make_set: Callable[..., PrepareConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_set(EXAMPLES, decisions="all")
    with serving(routes_of(config)) as stub:
        code, printed = verify(capsys, config.output, "--server", stub.url)
        assert (code, "9 of 9 rows have the server's ids (100.00%)" in printed) == (0, True)
        code, printed = verify(capsys, config.output, "--server", stub.url + "/v1/", "--json")
    found = json.loads(printed)
    assert code == 0
    assert (found["ok"], found["findings"]) == (True, [])
    assert (found["compared"], found["matching"], found["skipped"]) == (9, 9, 0)
    assert len(stub.bodies(RENDER)) == 16
    assert len(stub.bodies(TOKENIZE)) == 2
    assert {body["model"] for _, body in stub.asked if body} == {"m"}


@pytest.mark.parametrize(
    ("running", "remark"),
    [
        ("0.33.1", ""),
        (
            "0.20.2",
            'made for 0.33.0: prepare it again with server_options: {server_version: "0.20"}',
        ),
        (
            "1.4.0",
            "the server is vLLM 1.4.0, the set was made for 0.33.0; the rules of that version",
        ),
        (5, ""),
    ],
)
def test_a_server_of_another_version_than_the_set_was_made_for_is_named(
    make_set: Callable[..., PrepareConfig],
    capsys: pytest.CaptureFixture[str],
    running: Any,
    remark: str,
) -> None:
    config = make_set([PLAIN])
    with serving({**routes_of(config), "/version": lambda _: {"version": running}}) as stub:
        code, printed = verify(capsys, config.output, "--server", stub.url)
    assert (code, remark in printed) == (0, True), printed
    assert ("the server is vLLM" in printed) == bool(remark)


@pytest.mark.parametrize(
    ("format", "line"),
    [
        ("openai", {"messages": [*HELLO, {"role": "assistant", "content": "A model."}]}),
        ("trl", {"prompt": HELLO, "completion": [{"role": "assistant", "content": "A model."}]}),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?"}]},
        ),
    ],
)
def test_other_shapes_are_read_again_as_they_were(
    make_set: Callable[..., PrepareConfig], format: str, line: dict[str, Any]
) -> None:
    config = make_set([line], format=format)
    with serving(routes_of(config)) as stub:
        found = compare_with_server(config.output, stub.url, 10)
    assert (found.compared, found.matching) == (1, 1)


# Text where the content is a string, and the same behind a word where it is parts.
BOTH_FORMS = (
    "<|im_start|>system\nForms.<|im_end|>\n{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}"
    "{% else %}parts:{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    ("example", "ours", "theirs", "rule"),
    [
        (PLAIN, {}, {"chat_template_kwargs": {"enable_thinking": False}}, "enable_thinking: false"),
        ({**PLAIN, "tools": [TOOL]}, {}, {"server": "plain"}, "server: plain"),
        (PARTS, {}, {"server": "sglang"}, "server: sglang"),
        (PARTS, {"server": "sglang"}, {}, "server: vllm"),
        (PLAIN, {"chat_template": "both.jinja"}, {}, "chat_template: the tokenizer's own"),
        (
            PLAIN,
            {"chat_template": "both.jinja"},
            {"server_options": {"content_format": "string"}},
            "server_options.content_format: string",
        ),
        (
            TOOLS,
            {},
            {
                "server_options": {
                    "exclude_tools_when_tool_choice_none": True,
                    "tool_choice": "none",
                }
            },
            "server_options.exclude_tools_when_tool_choice_none: true",
        ),
    ],
)
def test_the_rule_that_makes_the_difference_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_set: Callable[..., PrepareConfig],
    make_config: ConfigMaker,
    example: dict[str, Any],
    ours: dict[str, Any],
    theirs: dict[str, Any],
    rule: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "both.jinja").write_text(BOTH_FORMS)
    config = make_set([example], **ours)
    if rule.startswith("server_options.content_format"):
        theirs = {**ours, **theirs}
    with serving(routes_of(make_config("x", **theirs))) as stub:
        found = compare_with_server(config.output, stub.url, 10)
    assert (found.compared, found.matching) == (1, 0)
    assert len(found.findings) == 1
    assert found.findings[0].partition("likely rule: ")[2].endswith(rule)


def with_bos(tmp_path: Path, bundled_tokenizer: Path) -> Path:
    """Return a copy of the bundled tokenizer that adds a BOS to what it encodes."""
    folder = shutil.copytree(bundled_tokenizer, tmp_path / "with_bos")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["bos_token"] = "<|endoftext|>"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (bos,) = (
        each["id"] for each in tokenizer["added_tokens"] if each["content"] == "<|endoftext|>"
    )
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": each, "type_id": 0}} for each in "AB"],
        "special_tokens": {
            "<|endoftext|>": {"id": "<|endoftext|>", "ids": [bos], "tokens": ["<|endoftext|>"]}
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def test_a_bos_that_the_server_adds_is_named(
    tmp_path: Path, bundled_tokenizer: Path, make_set: Callable[..., PrepareConfig]
) -> None:
    config = make_set([PLAIN], tokenizer=str(with_bos(tmp_path, bundled_tokenizer)))
    bos = RowBuilder(config).encoder.bos_id
    with serving(routes_of(config, lambda ids: [bos, *ids])) as stub:
        (finding,) = compare_with_server(config.output, stub.url, 10).findings
    assert "token 0 of the context differs" in finding
    assert finding.endswith("add_special_tokens: true (the server adds a BOS)")


def test_where_two_contexts_part_is_shown_with_ten_tokens_on_each_side(
    plain_set: PrepareConfig,
) -> None:
    row: Any = load(plain_set.output)["train"][0]
    ours = row["input_ids"][: row["context_len"]]
    place, decode = 12, RowBuilder(plain_set).encoder.decode
    theirs = [*ours[:place], ours[0], *ours[place + 1 :]]
    with serving(routes_of(plain_set, lambda _: theirs)) as stub:
        (finding,) = compare_with_server(plain_set.output, stub.url, 10).findings
    before = repr(decode(ours[2:12]))
    assert finding == (
        f"e.jsonl:1 (id 'plain'): token {place} of the context differs: "
        f"ours {before} | {decode(ours[12:22])!r} (id {ours[12]}), "
        f"the server's {before} | {decode(theirs[12:22])!r} (id {theirs[12]}); "
        "likely rule: unknown; compare the chat templates"
    )


def test_a_context_that_ends_early_differs_where_it_ends(plain_set: PrepareConfig) -> None:
    with serving(routes_of(plain_set, lambda ids: ids[:-2])) as stub:
        (finding,) = compare_with_server(plain_set.output, stub.url, 10).findings
    row: Any = load(plain_set.output)["train"][0]
    assert f"token {row['context_len'] - 2} of the context" in finding
    assert "| end; likely rule" in finding


def test_a_server_without_the_render_route_is_asked_to_tokenize(
    make_set: Callable[..., PrepareConfig],
) -> None:
    config = make_set([PLAIN, TOOLS, TALK])
    routes = routes_of(config)
    del routes[RENDER]
    with serving(routes) as stub:
        found = compare_with_server(config.output, stub.url, 10)
    assert (found.compared, found.matching) == (3, 3)
    assert len(stub.bodies(TOKENIZE)) == 3
    assert all("messages" in body for body in stub.bodies(TOKENIZE))


@pytest.mark.parametrize(("raw_context", "adds"), [("chat", False), ("completions", True)])
def test_a_raw_context_is_encoded_with_special_tokens_as_raw_context_says(
    tmp_path: Path,
    bundled_tokenizer: Path,
    make_set: Callable[..., PrepareConfig],
    raw_context: str,
    adds: bool,
) -> None:
    tokenizer = with_bos(tmp_path, bundled_tokenizer)
    config = make_set([RAW], tokenizer=str(tokenizer), raw_context=raw_context)
    with serving(routes_of(config)) as stub:
        found = compare_with_server(config.output, stub.url, 10)
    assert (found.compared, found.matching) == (1, 1)
    assert stub.bodies(TOKENIZE) == [
        {"model": "m", "prompt": RAW["context"], "add_special_tokens": adds}
    ]


def test_the_request_carries_tools_and_arguments_as_the_schema_takes_them(
    make_set: Callable[..., PrepareConfig],
) -> None:
    example = {**TOOLS, "chat_template_kwargs": {"day": "Monday"}}
    config = make_set([example], server_options={"reasoning_effort": "low"})
    with serving(routes_of(config)) as stub:
        compare_with_server(config.output, stub.url, 10)
    (body,) = stub.bodies(RENDER)
    (call,) = body["messages"][1]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == CALL["function"]["arguments"]
    assert (call["id"], body["tools"], body["tool_choice"]) == ("call00000", [TOOL], "none")
    assert (body["reasoning_effort"], body["chat_template_kwargs"]) == ("low", {"day": "Monday"})


def test_sglang_is_not_told_to_leave_the_tools_out(make_set: Callable[..., PrepareConfig]) -> None:
    config = make_set([TOOLS], server="sglang")
    routes = routes_of(config)
    del routes[RENDER]
    with serving(routes) as stub:
        found = compare_with_server(config.output, stub.url, 10)
    assert found.matching == 1
    (body,) = stub.bodies(TOKENIZE)
    assert (body["tools"], "tool_choice" in body) == ([TOOL], False)


def test_shortened_and_sampled_rows_are_skipped_and_counted(
    make_set: Callable[..., PrepareConfig],
) -> None:
    long = {**PLAIN, "id": "long", "messages": [*HELLO * 30]}
    sampled = {"id": "sampled", "context_ids": [5, 6, 7], "continuation_ids": [8, 3065]}
    config = make_set([PLAIN, long, sampled], max_len=120)
    with serving(routes_of(config)) as stub:
        found = compare_with_server(config.output, stub.url, 10)
    assert (found.compared, found.matching, found.skipped) == (1, 1, 2)
    assert "2 rows were not compared" in found.summary


def test_rows_with_sampled_ids_are_compared_by_what_stands_beside_them(
    make_set: Callable[..., PrepareConfig],
) -> None:
    builder = RowBuilder(make_set([PLAIN]))
    (row,) = builder.build([DecisionPoint(TrainingExample.from_dict(PLAIN), 1, "A model.")])
    assert isinstance(row, BoundedRow)
    served = row.input_ids[: row.context_len].tolist()
    end = row.input_ids[-1:].tolist()
    rows = [
        {**PLAIN, "id": "same", "context_ids": served},
        {**PLAIN, "id": "other", "context_ids": [served[0], *served]},
        {**PLAIN, "id": "answer", "continuation_ids": row.input_ids[row.context_len :].tolist()},
        {
            "id": "text",
            "context": "Once",
            "context_ids": builder.encoder.encode(["Once"])[0].tolist(),
        }
        | {"continuation_ids": [8, *end]},
    ]
    config = make_set(rows, overwrite=True)
    with serving(routes_of(config)) as stub:
        found = compare_with_server(config.output, stub.url, 10)
    assert (found.compared, found.matching, found.skipped) == (4, 3, 0)
    (finding,) = found.findings
    assert "(id 'other')" in finding
    assert LOGGED in finding


def test_a_set_without_a_row_to_compare_is_not_called_proven(
    make_set: Callable[..., PrepareConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_set([{"id": "s", "context_ids": [5], "continuation_ids": [8, 3065]}])
    with serving(routes_of(config)) as stub:
        code, printed = verify(capsys, config.output, "--server", stub.url)
    assert code == 1
    assert "none of its rows can be compared with a server" in printed


def test_rows_are_taken_evenly_over_the_set(make_set: Callable[..., PrepareConfig]) -> None:
    talks = [
        {**PLAIN, "id": str(at), "messages": [{**HELLO[0], "content": str(at)}]} for at in range(10)
    ]
    config = make_set(talks)
    with serving(routes_of(config)) as stub:
        found = compare_with_server(config.output, stub.url, 5)
    asked = sorted(body["messages"][0]["content"] for body in stub.bodies(RENDER))
    assert (found.compared, asked) == (5, ["0", "2", "4", "6", "8"])


def test_many_differences_are_counted_by_rule_after_the_first_twenty(
    make_set: Callable[..., PrepareConfig], make_config: ConfigMaker
) -> None:
    config = make_set([{**PLAIN, "id": str(at)} for at in range(23)])
    other = make_config("x", chat_template_kwargs={"enable_thinking": False})
    with serving(routes_of(other)) as stub:
        found = compare_with_server(config.output, stub.url, 100)
    assert (found.compared, found.matching, len(found.findings)) == (23, 0, 21)
    assert found.findings[-1] == (
        "3 more rows differ; likely rule: chat_template_kwargs.enable_thinking: false"
    )


def test_a_row_that_the_server_refuses_is_a_difference_with_its_words(
    make_set: Callable[..., PrepareConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_set([PLAIN, TALK])
    routes = routes_of(config)
    words = b'{"error": {"message": "roles must alternate", "code": 400}}'

    def refuse_the_short(body: dict[str, Any]) -> Any:
        return Failure(400, words) if len(body["messages"]) == 1 else routes[RENDER](body)

    with serving({**routes, RENDER: refuse_the_short}) as stub:
        code, printed = verify(capsys, config.output, "--server", stub.url)
    assert code == 1
    assert "1 of 2 rows have the server's ids (50.00%)" in printed
    assert "e.jsonl:1 (id 'plain'): the server refuses it: roles must alternate" in printed


@pytest.mark.parametrize(
    ("path", "answer", "words"),
    [
        (RENDER, Failure(500, b"boom"), "render: 500: boom"),
        (RENDER, Failure(401, b'{"message": "no key"}'), "render: 401: no key"),
        (RENDER, Failure(200, b"<html>"), "is a server running there?"),
        (RENDER, Failure(200, b"\xff\xfe"), "is a server running there?"),
        (RENDER, [1, 2], "expected ids as token_ids, found [1, 2]"),
        (RENDER, {"token_ids": ["a"]}, "expected ids as token_ids"),
        (RENDER, {"token_ids": [True]}, "expected ids as token_ids"),
        (RENDER, {"token_ids": [2**40]}, "expected ids as token_ids"),
        ("/v2/render", [], 'tokenize: 404: {"detail": "Not Found"}'),
        ("/v1/models", Failure(503, b"loading"), "models: 503: loading"),
        ("/v1/models", {"data": []}, "no model in it"),
        ("/v1/models", "m", "no model in it"),
    ],
)
def test_a_server_that_gives_no_ids_is_a_sentence_and_exit_code_1(
    plain_set: PrepareConfig,
    capsys: pytest.CaptureFixture[str],
    path: str,
    answer: Any,
    words: str,
) -> None:
    with serving({path: lambda _: answer}) as stub:
        code, printed = verify(capsys, plain_set.output, "--server", stub.url)
    assert (code, words in printed) == (1, True), printed
    assert printed.startswith("context-frozen: http://127.0.0.1:")
    assert printed.count("\n") == 1


def test_a_server_that_is_down_is_a_sentence_and_exit_code_1(
    plain_set: PrepareConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving({}) as stub:
        pass
    code, printed = verify(capsys, plain_set.output, "--server", stub.url)
    assert code == 1
    assert "Connection refused" in printed
    assert "is a server running there?" in printed


def test_after_one_failed_request_the_others_are_not_waited_for(
    make_set: Callable[..., PrepareConfig],
) -> None:
    config = make_set([{**PLAIN, "id": str(at)} for at in range(60)])
    gate = threading.Event()

    def fail_slowly(_: dict[str, Any]) -> Failure:
        gate.wait(0.2)
        return Failure(500, b"boom")

    with serving({RENDER: fail_slowly}) as stub, pytest.raises(ServerError, match="500: boom"):
        compare_with_server(config.output, stub.url, 60)
    assert len(stub.bodies(RENDER)) < 20


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "file:///etc/passwd", ""])
def test_what_is_no_url_is_wrong_usage(url: str) -> None:
    with pytest.raises(UsageError, match="expected a URL such as"):
        LiveServer(url)


def test_an_input_that_is_gone_is_a_sentence_and_exit_code_2(
    make_set: Callable[..., PrepareConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_set([PLAIN])
    with serving(routes_of(config)) as stub:
        write_lines(Path(config.input[0]), [{**PLAIN, "id": "another"}])
        code, printed = verify(capsys, config.output, "--server", stub.url)
        assert (code, "e.jsonl:1 is not there any more" in printed) == (2, True)
        write_lines(Path(config.input[0]), ["{torn"])
        code, printed = verify(capsys, config.output, "--server", stub.url)
        assert (code, "e.jsonl:1 is not there any more" in printed) == (2, True)
        Path(config.input[0]).unlink()
        code, printed = verify(capsys, config.output, "--server", stub.url)
    assert (code, "e.jsonl" in printed) == (2, True)
    assert "Traceback" not in printed


def test_a_line_that_changed_since_is_told_from_a_rule_of_the_server(
    make_set: Callable[..., PrepareConfig],
) -> None:
    config = make_set([PLAIN])
    changed = {**PLAIN, "messages": [{"role": "user", "content": "Another question"}]}
    write_lines(Path(config.input[0]), [changed])
    with serving(routes_of(config)) as stub:
        (finding,) = compare_with_server(config.output, stub.url, 10).findings
    assert finding.endswith("the template is another than when the set was made")


def test_a_line_that_the_template_refuses_by_now_is_wrong_usage(
    make_set: Callable[..., PrepareConfig],
) -> None:
    config = make_set([PLAIN])
    refused = {**PLAIN, "messages": [{"role": "judge", "content": "Order!"}]}
    write_lines(Path(config.input[0]), [refused])
    with serving(routes_of(config)) as stub, pytest.raises(UsageError, match="it was a row when"):
        compare_with_server(config.output, stub.url, 10)


def test_a_set_without_sources_cannot_be_compared(
    make_set: Callable[..., PrepareConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_set([PLAIN], columns="train")
    with serving(routes_of(config)) as stub:
        code, printed = verify(capsys, config.output, "--server", stub.url)
    assert (code, "needs columns: full" in printed) == (2, True)


def test_fewer_rows_than_one_are_wrong_usage(
    plain_set: PrepareConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed = verify(
        capsys, plain_set.output, "--server", "http://127.0.0.1:9", "--rows", "0"
    )
    assert (code, "expected a number of rows from 1" in printed) == (2, True)


# ---- what a set of others may not do


def test_code_of_the_tokenizer_of_a_set_runs_only_when_asked_for(
    make_set: Callable[..., PrepareConfig],
    bundled_tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = Path(shutil.copytree(bundled_tokenizer, tmp_path / "tokenizer"))
    config = make_set([PLAIN], tokenizer=str(tokenizer))
    routes = routes_of(config)
    ran = tmp_path / "ran"
    (tokenizer / "theirs.py").write_text(
        "from transformers import PreTrainedTokenizerFast\n"
        f"open({str(ran)!r}, 'w').close()\n"
        "class Theirs(PreTrainedTokenizerFast): pass\n"
    )
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text("utf-8"))
    settings["auto_map"] = {"AutoTokenizer": [None, "theirs.Theirs"]}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text("utf-8"))
    manifest["config"]["trust_remote_code"] = True
    (tmp_path / "set" / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    with serving(routes) as stub:
        compared = compare_with_server(config.output, stub.url, 1)
        assert (compared.compared, ran.exists()) == (1, False)
        compare_with_server(config.output, stub.url, 1, trust_remote_code=True)
        assert ran.exists()


# ---- secrets


def test_a_password_in_the_url_is_sent_to_the_server_and_shown_nowhere(
    plain_set: PrepareConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(routes_of(plain_set)) as stub:
        host = stub.url.removeprefix("http://")
        url = f"http://someone:s3cr%40t@{host}/v1"
        assert verify(capsys, plain_set.output, "--server", url)[0] == 0
        credentials = base64.b64encode(b"someone:s3cr@t").decode()
        assert {headers["Authorization"] for headers in stub.headers} == {f"Basic {credentials}"}
        stub.routes["/v1/models"] = lambda _: Failure(401, b"who are you?")
        code, printed = verify(capsys, plain_set.output, "--server", url)
    assert (code, "401" in printed) == (1, True)
    codes: list[int] = []
    for broken in (
        url,
        url.replace("http:", "ftp:"),
        url.removeprefix("http://"),
        "http://someone:s3cr%40t@127.0.0.1:port",
    ):
        code, more = verify(capsys, plain_set.output, "--server", broken)
        codes.append(code)
        printed += more
    assert codes == [1, 2, 2, 1]
    assert host in printed
    assert "s3cr" not in printed
    assert "someone" not in printed
    assert credentials not in printed


def test_a_redirect_is_not_followed(
    plain_set: PrepareConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(routes_of(plain_set)) as elsewhere, serving({}) as stub:
        stub.redirect = elsewhere.url
        url = stub.url.replace("http://", "http://someone:s3cret@")
        code, printed = verify(capsys, plain_set.output, "--server", url)
    assert (code, "a redirect, which is not followed" in printed) == (1, True)
    assert all("Authorization" in headers for headers in stub.headers)
    assert not elsewhere.headers
