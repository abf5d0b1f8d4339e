"""The ids of saved rows against those of a running server: the proof on the user's own data.

The rows' examples are read again (the manifest names the input, each row its ``file:line``), sent
as requests, and the server's prompt ids are compared with the row's context.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import PrepareConfig, RowSettings
from pipeline.errors import Rejected, UsageError, excerpt_of
from pipeline.examples.decisions import DecisionPoint
from pipeline.examples.example import TrainingExample
from pipeline.examples.shapes import read_example
from pipeline.lines.data_sets import expand_data_sets
from pipeline.lines.files import find_files
from pipeline.lines.json_text import parse_line
from pipeline.lines.tables import read_file
from pipeline.prompt.request import ChatRequest
from pipeline.prompt.vllm_versions import VllmRules, read_rules
from pipeline.rows.builder import RowBuilder
from pipeline.rows.line_mapper import name_example
from pipeline.sets.copies import find_folder
from pipeline.sets.load import open_splits, restore_config
from pipeline.sets.manifest import read_manifest
from pipeline.tokens.encoder import TextEncoder
from pipeline.view.console import LINE_SECONDS
from pipeline.view.likely_rule import LikelyRules
from pipeline.view.live_server import DEFAULT_SECONDS, LiveServer, Refusal

_Ids = list[int] | Refusal

_REQUESTS_AT_ONCE = 4
_SHOWN_TOKENS = 10
_SHOWN_ROWS = 20


@dataclass(frozen=True, slots=True)
class Comparison:
    """How many rows were compared, how many match, and a sentence for each that does not.

    ``skipped`` counts rows that no server can be asked for: shortened, or ids with neither messages
    nor text beside them. From the 21st difference on, ``findings`` only has how many more there are,
    by their likely rule. ``remark`` says where the set was made for another version of the server.
    """

    compared: int
    matching: int
    skipped: int
    findings: list[str]
    remark: str = ""

    @property
    def summary(self) -> str:
        """The match rate as a sentence."""
        share = 100 * self.matching / self.compared if self.compared else 0.0
        return (
            f"{self.matching} of {self.compared} rows have the server's ids ({share:.2f}%); "
            f"{self.skipped} rows were not compared (shortened, or ids alone){self.remark}"
        )

    def to_dict(self) -> dict[str, int | str]:
        """Return the numbers and the remark."""
        return {
            "compared": self.compared,
            "matching": self.matching,
            "skipped": self.skipped,
            "remark": self.remark.strip(),
        }


def compare_with_server(
    path: str,
    url: str,
    rows: int,
    *,
    timeout: float = DEFAULT_SECONDS,
    trust_remote_code: bool = False,
) -> Comparison:
    """Compare up to ``rows`` rows, spread over the set, with the server at ``url``.

    The first row that gets no whole answer within ``timeout`` seconds ends it.

    Code that comes with the tokenizer runs only under ``trust_remote_code``, whatever the set says
    of itself. Raises `UsageError` where the input of the set is not there any more, `ServerError` where the
    server does not answer.
    """
    if rows < 1:
        raise UsageError(f"rows: {rows}: expected a number of rows from 1")
    folder = find_folder(path)
    manifest = read_manifest(folder)
    config = restore_config(manifest, trust_remote_code=trust_remote_code)
    server = LiveServer(url, timeout)
    remark = compare_versions(config, server.read_version()) if config.server == "vllm" else ""
    whole, skipped = _choose_rows(folder, rows)
    examples = _read_examples(config, whole) if whole else {}
    chosen = [row for row in whole if _says_its_prompt(examples[row["source"]])]
    skipped += len(whole) - len(chosen)
    if not chosen:
        nothing = f"{path}: none of its rows can be compared with a server"
        return Comparison(0, 0, skipped, [nothing], remark)
    points = [_point_of(row, examples[row["source"]]) for row in chosen]
    differences = _find_differences(chosen, points, server, config)
    matching = len(chosen) - len(differences)
    return Comparison(len(chosen), matching, skipped, _report(differences), remark)


def compare_versions(config: RowSettings, found: str | None) -> str:
    """Return what is to be said where a running vLLM is of another version than a set was made for.

    Begins with a line break; empty where the versions are the same, or the server's is not known.
    """
    if found is None:
        return ""
    name = "server_options.server_version"
    asked = config.server_options.get("server_version")
    made = VllmRules() if asked is None else read_rules(name, asked)
    words = f"\nthe server is vLLM {excerpt_of(found)}, the set was made for {made.release}"
    try:
        running = read_rules(name, found)
    except UsageError:
        return f"{words}; the rules of that version are not reproduced here"
    if running == made:
        return ""
    return f'{words}: prepare it again with server_options: {{server_version: "0.{running.minor}"}}'


@dataclass(frozen=True, slots=True)
class _Difference:
    """A row of which the server makes something else, and why that may be."""

    sentence: str
    rule: str


def _find_differences(
    rows: Sequence[Mapping[str, Any]],
    points: Sequence[DecisionPoint],
    server: LiveServer,
    config: PrepareConfig,
) -> list[_Difference]:
    builder = RowBuilder(config)
    rules = LikelyRules(config, builder)
    pool = ThreadPoolExecutor(_REQUESTS_AT_ONCE)
    try:
        answers = [
            pool.submit(
                server.encode_prompt,
                point,
                _request_of(builder, point),
                config,
                context_len=row["context_len"],
            )
            for row, point in zip(rows, points, strict=True)
        ]
        found = [
            _describe(row, point, answer, builder.encoder, rules)
            for row, point, answer in zip(
                rows, points, _show_progress(answer.result() for answer in answers), strict=True
            )
        ]
    finally:
        # Where one request fails, the others are not waited for.
        pool.shutdown(cancel_futures=True)
    return [difference for difference in found if difference is not None]


def _show_progress(answers: Iterator[_Ids]) -> Iterator[_Ids]:
    """Yield what is given; say now and then how many it were."""
    begun = said = time.monotonic()
    for number, answer in enumerate(answers, 1):
        yield answer
        now = time.monotonic()
        if now - said >= LINE_SECONDS:
            said = now
            words = f"{number} rows compared with the server in {now - begun:.0f} s"
            print(f"context-frozen: {words}", file=sys.stderr, flush=True)


def _describe(
    row: Mapping[str, Any],
    point: DecisionPoint,
    found: _Ids,
    encoder: TextEncoder,
    rules: LikelyRules,
) -> _Difference | None:
    """Return where two contexts part, both sides decoded, or nothing where they are equal."""
    ours = row["input_ids"][: row["context_len"]]
    where = f"{row['source']} (id {excerpt_of(repr(row['id']))})"
    if isinstance(found, Refusal):
        return _Difference(f"{where}: the server refuses it: {found.reason}", "refused")
    if found == ours:
        return None
    pairs = enumerate(zip(ours, found, strict=False))
    place = next((at for at, (left, right) in pairs if left != right), min(len(ours), len(found)))
    rule = rules.explain(point, ours, found)
    sentence = (
        f"{where}: token {place} of the context differs: ours {_show(ours, place, encoder)}, "
        f"the server's {_show(found, place, encoder)}; likely rule: {rule}"
    )
    return _Difference(sentence, rule)


def _show(ids: Sequence[int], place: int, encoder: TextEncoder) -> str:
    """Return the tokens before a place, then those from it on, whose first has its id shown."""
    before = encoder.decode(ids[max(0, place - _SHOWN_TOKENS) : place])
    after = encoder.decode(ids[place : place + _SHOWN_TOKENS])
    return f"{before!r} | {after!r} (id {ids[place]})" if ids[place:] else f"{before!r} | end"


def _report(differences: Sequence[_Difference]) -> list[str]:
    sentences = [difference.sentence for difference in differences[:_SHOWN_ROWS]]
    rest = Counter(difference.rule for difference in differences[_SHOWN_ROWS:])
    return sentences + [
        f"{number} more rows differ; likely rule: {rule}" for rule, number in rest.most_common()
    ]


def _request_of(builder: RowBuilder, point: DecisionPoint) -> ChatRequest:
    try:
        return builder.render_context(point)[0]
    except Rejected as error:
        raise UsageError(
            f"{point.example.id}: {error}; it was a row when the set was made, so its line, the "
            "tokenizer or the template is another now; prepare the set again"
        ) from error


def _choose_rows(path: Path, count: int) -> tuple[list[dict[str, Any]], int]:
    """Return up to ``count`` rows, evenly spread, that were not shortened; and how many were."""
    comparable: list[tuple[str, int]] = []
    skipped = 0
    splits = open_splits(path)
    for split, rows in splits.items():
        if "source" not in rows.column_names:
            raise UsageError(
                f"{path}: columns: train keeps no source; verify --server needs columns: full"
            )
        for place, tokens in enumerate(rows["dropped_tokens"]):
            if tokens:
                skipped += 1
            else:
                comparable.append((str(split), place))
    step = max(1, len(comparable) / count)
    chosen = [comparable[int(index * step)] for index in range(min(count, len(comparable)))]
    return [splits[split][place] for split, place in chosen], skipped


def _says_its_prompt(example: TrainingExample) -> bool:
    """Say whether there is something beside the ids that a server can be asked to encode."""
    return example.messages is not None or bool(example.context)


def _read_examples(
    config: PrepareConfig, rows: Sequence[Mapping[str, Any]]
) -> dict[str, TrainingExample]:
    """Return the examples of ``rows`` by their ``file:line``, read from the input again."""
    ids = {row["source"]: row["id"] for row in rows}
    files = {source.rpartition(":")[0] for source in ids}
    examples: dict[str, TrainingExample] = {}
    for file in find_files(expand_data_sets(config.input)):
        if file.name not in files or file.is_stream:
            continue
        for line in read_file(file):
            source = f"{file.name}:{line.line}"
            if source in ids and line.text is not None:
                # A line that is no example any more is missed below.
                with suppress(Rejected):
                    values = parse_line(line.text)
                    example = examples[source] = read_example(values, config.format, "")
                    if not example.id:
                        name_example(example)
    gone = [
        source
        for source, id_ in ids.items()
        if source not in examples or examples[source].id != id_
    ]
    if gone:
        raise UsageError(
            f"input: {gone[0]} is not there any more; verify --server reads the examples again, "
            "so it needs the input of the last run that the set was made from"
        )
    return examples


def _point_of(row: Mapping[str, Any], example: TrainingExample) -> DecisionPoint:
    place = row["decision_idx"] if row["decision_idx"] >= 0 else None
    return DecisionPoint(example, place, example.continuation)
