"""The ids of saved rows against those of a running server: the proof on the user's own data.

The rows' examples are read again (the manifest names the input, each row its ``file:line``), sent
as requests, and the server's prompt ids are compared with the row's context. vLLM answers
``/v1/chat/completions/render``; a server without it is asked ``/tokenize``.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from pipeline.config import PrepareConfig, config_from_mapping
from pipeline.data_sets import expand_data_sets
from pipeline.decisions import DecisionPoint
from pipeline.encode import TextEncoder
from pipeline.errors import ContextFrozenError, Rejected, UsageError, excerpt_of
from pipeline.examples import TrainingExample
from pipeline.formats import read_example
from pipeline.rows import RowBuilder
from pipeline.saved import open_splits, read_manifest
from pipeline.server import ChatRequest, Message
from pipeline.source import find_files, parse_line, read_lines
from pipeline.tables import is_table, open_table

_TIMEOUT_SECONDS = 60
_REQUESTS_AT_ONCE = 4
_SHOWN_TOKENS = 10

# Settings under which a difference is looked for: the first that gives the server's ids is named.
_OTHER_RULES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("server_options.content_format: openai", {"server_options": {"content_format": "openai"}}),
    ("server_options.content_format: string", {"server_options": {"content_format": "string"}}),
    (
        "chat_template_kwargs.enable_thinking: false",
        {"chat_template_kwargs": {"enable_thinking": False}},
    ),
    (
        "chat_template_kwargs.enable_thinking: true",
        {"chat_template_kwargs": {"enable_thinking": True}},
    ),
    ("server: sglang", {"server": "sglang", "server_options": {}}),
    ("server: plain", {"server": "plain", "server_options": {}}),
    ("raw_context: completions", {"raw_context": "completions"}),
)


class ServerError(ContextFrozenError, OSError):
    """The server cannot be reached, or answers something that is not ids."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How many rows were compared, how many match, and a sentence for each that does not.

    ``skipped`` counts rows that no server ever saw as they are: shortened, or sampled ids.
    """

    compared: int
    matching: int
    skipped: int
    findings: list[str]

    @property
    def summary(self) -> str:
        """The match rate as a sentence."""
        share = 100 * self.matching / self.compared if self.compared else 0.0
        return (
            f"{self.matching} of {self.compared} rows have the server's ids ({share:.2f}%); "
            f"{self.skipped} rows were not compared (shortened, or sampled ids)"
        )

    def to_dict(self) -> dict[str, int]:
        """Return the numbers."""
        return {"compared": self.compared, "matching": self.matching, "skipped": self.skipped}


def compare_with_server(path: str, url: str, rows: int) -> Comparison:
    """Compare up to ``rows`` rows, spread over the set, with the server at ``url``.

    Raises `UsageError` where the input of the set is not there any more, `ServerError` where the
    server does not answer.
    """
    manifest = read_manifest(Path(path))
    config = config_from_mapping(manifest["config"], f"{path}/manifest.json")
    builder = RowBuilder(config)
    chosen, skipped = _choose_rows(path, rows)
    examples = _read_examples(config, manifest["formats"], {row["source"] for row in chosen})
    server = _Server(url)
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        asked = [
            (
                row,
                point,
                pool.submit(server.encode, point, builder.render_context(point)[0], config),
            )
            for row, point in ((row, _point_of(row, examples)) for row in chosen)
        ]
        findings = [
            _explain(row, point, found, builder, config)
            for row, point, answer in asked
            if (found := answer.result()) != row["input_ids"][: row["context_len"]]
        ]
    return Comparison(len(chosen), len(chosen) - len(findings), skipped, findings)


class _Server:
    """The two requests that are asked of a server."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        self._model: str = self._ask("/v1/models")["data"][0]["id"]
        self._has_render = True

    def encode(
        self, point: DecisionPoint, request: ChatRequest, config: PrepareConfig
    ) -> list[int]:
        """Return the ids that the server makes of the prompt of ``point``."""
        if point.example.messages is None:
            body: dict[str, Any] = {
                "prompt": point.example.context,
                "add_special_tokens": config.raw_context == "completions",
            }
            return self._read_ids("/tokenize", body, "tokens")
        body = _body_of(request)
        if self._has_render:
            try:
                return self._read_ids("/v1/chat/completions/render", body, "token_ids")
            except urllib.error.HTTPError as error:
                if error.code != 404:
                    raise ServerError(f"{self._url}: {error.code}: {_words_of(error)}") from error
                self._has_render = False
        return self._read_ids("/tokenize", body, "tokens")

    def _read_ids(self, path: str, body: Mapping[str, Any], key: str) -> list[int]:
        answer = self._ask(path, {"model": self._model, **body})
        ids: object = answer.get(key)
        if not isinstance(ids, list):
            raise ServerError(f"{self._url}{path}: no {key} in the answer: {excerpt_of(answer)}")
        return cast("list[int]", ids)

    def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._url + path, data, {"Content-Type": "application/json"} if data else {}
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError:
            raise
        except (OSError, ValueError) as error:
            raise ServerError(f"{self._url}{path}: {error}; is a server running there?") from error


def _body_of(request: ChatRequest) -> dict[str, Any]:
    """Return the request as the HTTP schema takes it: arguments as text, no empty tool list."""
    body: dict[str, Any] = {
        "messages": [_as_sent(message) for message in request.messages],
        "chat_template_kwargs": dict(request.chat_template_kwargs),
    }
    if request.tools:
        # Without a tool parser a server refuses tools under any other choice; the prompt is the same.
        body |= {"tools": list(request.tools), "tool_choice": "none"}
    return body


def _as_sent(message: Message) -> Message:
    calls: object = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    sent: list[Any] = []
    for call in cast("list[Any]", calls):
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict) and not isinstance(function.get("arguments", ""), str):
            call = {
                **call,
                "function": {**function, "arguments": json.dumps(function["arguments"])},
            }
        sent.append(call)
    return {**message, "tool_calls": sent}


def _words_of(error: urllib.error.HTTPError) -> str:
    return excerpt_of(error.read().decode("utf-8", "replace"))


def _choose_rows(path: str, count: int) -> tuple[list[dict[str, Any]], int]:
    """Return up to ``count`` rows, evenly spread, that a server saw as they are; and the skipped."""
    comparable: list[tuple[str, int]] = []
    skipped = 0
    splits = open_splits(Path(path))
    for split, rows in splits.items():
        if "source" not in rows.column_names:
            raise UsageError(
                f"{path}: columns: train keeps no source; verify --server needs columns: full"
            )
        dropped, flags = rows["dropped_tokens"], rows["flags"]
        for place, (tokens, flagged) in enumerate(zip(dropped, flags, strict=True)):
            if tokens or "sampled_ids" in flagged:
                skipped += 1
            else:
                comparable.append((str(split), place))
    step = max(1, len(comparable) / count)
    chosen = [comparable[int(index * step)] for index in range(min(count, len(comparable)))]
    return [splits[split][place] for split, place in chosen], skipped


def _read_examples(
    config: PrepareConfig, formats: Mapping[str, str], sources: set[str]
) -> dict[str, TrainingExample]:
    examples: dict[str, TrainingExample] = {}
    for file in find_files(expand_data_sets(config.input)):
        for line in open_table(file) if is_table(file) else read_lines(file):
            source = f"{file.name}:{line.line}"
            if source in sources and line.text is not None:
                values = parse_line(line.text)
                examples[source] = read_example(values, formats[file.name], source)
    missing = sources - set(examples)
    if missing:
        raise UsageError(
            f"input: {min(missing)} is not there any more; verify --server reads the examples again, "
            "so it needs the input that the set was made from"
        )
    return examples


def _point_of(row: Mapping[str, Any], examples: Mapping[str, TrainingExample]) -> DecisionPoint:
    example = examples[row["source"]]
    place = row["decision_idx"] if row["decision_idx"] >= 0 else None
    return DecisionPoint(example, place, example.continuation)


def _explain(
    row: Mapping[str, Any],
    point: DecisionPoint,
    found: Sequence[int],
    builder: RowBuilder,
    config: PrepareConfig,
) -> str:
    """Return where two contexts part, both sides decoded, and the rule that would explain it."""
    ours = row["input_ids"][: row["context_len"]]
    place = next(
        (at for at, (left, right) in enumerate(zip(ours, found, strict=False)) if left != right),
        min(len(ours), len(found)),
    )
    return (
        f"{row['source']} (id {row['id']!r}): token {place} of the context differs: "
        f"ours {_show(ours, place, builder.encoder)}, the server's {_show(found, place, builder.encoder)}; "
        f"likely rule: {_find_rule(point, found, config) or 'unknown; compare the chat templates'}"
    )


def _show(ids: Sequence[int], place: int, encoder: TextEncoder) -> str:
    before = encoder.decode(ids[max(0, place - _SHOWN_TOKENS) : place])
    after = encoder.decode(ids[place : place + _SHOWN_TOKENS])
    return f"{before!r} | {after!r}"


def _find_rule(point: DecisionPoint, found: Sequence[int], config: PrepareConfig) -> str | None:
    for name, settings in _OTHER_RULES:
        if next(_ids_under(replace(config, **_merged(config, settings)), point), None) == list(
            found
        ):
            return name
    return None


def _merged(config: PrepareConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with mappings laid over those of the config."""
    return {
        name: {**getattr(config, name), **value} if isinstance(value, dict) and value else value
        for name, value in settings.items()
    }


def _ids_under(config: PrepareConfig, point: DecisionPoint) -> Iterator[list[int]]:
    """Yield the context's ids under other settings, or nothing where they do not apply."""
    try:
        builder = RowBuilder(config)
        text = builder.render_context(point)[1].text
    except (Rejected, UsageError):
        return
    adds = point.example.messages is None and config.raw_context == "completions"
    yield builder.encoder.encode([text], add_special_tokens=adds)[0].tolist()
