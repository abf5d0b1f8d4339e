"""Rows as coloured tokens: the context dimmed, the boundary marked, control tokens visible.

Runs of ordinary tokens are decoded whole and split where the text of a token is complete, so that
characters of several tokens stay intact. Text from the data cannot send escapes to the terminal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from rich.console import Console
from rich.text import Text

from pipeline.encode import EncodedBatch, TextEncoder
from pipeline.errors import UsageError, escape_controls
from pipeline.saved import open_splits, read_manifest
from pipeline.seal import check_encoder

_CONTEXT_STYLES = ("grey50", "grey39")
_CONTINUATION_STYLES = ("black on bright_green", "black on bright_cyan")
_CONTROL_STYLE = "bold magenta"
_BOUNDARY = "▌"


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Let the command decide what a closed pipe means; rich would exit with 1."""
        raise BrokenPipeError


def print_rows(
    path: str, split: str, row: int | None, id_: str | None, count: int, tokenizer: str | None
) -> None:
    """Print rows of the set at ``path``: one by number, those of an id, or the first ``count``.

    Raises `UsageError` for a split, row or id that is not there, and `SealMismatch` for a tokenizer
    under which the ids are other text.
    """
    manifest = read_manifest(Path(path))
    splits = open_splits(Path(path))
    if split not in splits:
        raise UsageError(f"{path}: no split {split!r}; expected one of {sorted(map(str, splits))}")
    rows = splits[split]
    encoder = TextEncoder.from_path(tokenizer or manifest["config"]["tokenizer"])
    check_encoder(manifest["seal"], encoder)
    console = _Console(highlight=False, soft_wrap=True)
    for number in _choose_rows(rows, path, row, id_, count):
        console.print(_head_of(number, rows[number]))
        console.print(view_row(rows[number], encoder))
        console.print()


def view_row(row: dict[str, Any], encoder: TextEncoder) -> Text:
    """Return a row as styled text, neighbouring tokens in two shades of their part."""
    text = Text()
    context_len = row["context_len"]
    parts = (
        (row["input_ids"][:context_len], _CONTEXT_STYLES),
        (row["input_ids"][context_len:], _CONTINUATION_STYLES),
    )
    for index, (ids, styles) in enumerate(parts):
        if index:
            text.append(_BOUNDARY, "bold red")
        for place, (piece, is_control) in enumerate(split_tokens(ids, encoder)):
            text.append(
                escape_controls(piece, keep="\n\t"),
                _CONTROL_STYLE if is_control else styles[place % 2],
            )
    return text


def split_tokens(ids: Sequence[int], encoder: TextEncoder) -> Iterator[tuple[str, bool]]:
    """Yield the text of each token, or of several that make one character, and if it is control."""
    control = set(encoder.added_tokens.values())
    run: list[int] = []
    for id_ in ids:
        if id_ in control:
            yield from _split_run(run, encoder)
            run = []
            yield encoder.decode([id_]), True
        else:
            run.append(id_)
    yield from _split_run(run, encoder)


def _split_run(run: list[int], encoder: TextEncoder) -> Iterator[tuple[str, bool]]:
    """Yield pieces of a run that, joined, are the run's own text as it reads after other tokens."""
    ids = np.array(run, np.int32)

    def text_of(start: int, end: int) -> str:
        batch = EncodedBatch(ids[start:end], np.array([0, end - start]))
        return encoder.decode_after_context(batch)[0]

    def is_complete(piece: str, start: int, end: int) -> bool:
        # A character of which bytes are missing shows as U+FFFD, which the next token fills.
        return "\ufffd" not in piece or len(text_of(start, end + 1)) > len(piece)

    whole = text_of(0, len(run))
    shown, start = 0, 0
    for end in range(1, len(run) + 1):
        piece = text_of(start, end)
        if end == len(run):
            piece = whole[shown:]
        elif not (whole.startswith(piece, shown) and is_complete(piece, start, end)):
            continue
        if piece:
            yield piece, False
        shown, start = shown + len(piece), end


def _choose_rows(
    rows: datasets.Dataset, path: str, row: int | None, id_: str | None, count: int
) -> Sequence[int]:
    if id_ is not None:
        if "id" not in rows.column_names:
            raise UsageError(f"{path}: columns: train keeps no id; choose with --row")
        found = [number for number, other in enumerate(rows["id"]) if other == id_]
        if not found:
            raise UsageError(f"{path}: no row with id {id_!r}; rejects.jsonl may hold it")
        return found
    if row is not None:
        if not 0 <= row < len(rows):
            raise UsageError(f"{path}: no row {row}; expected 0 to {len(rows) - 1}")
        return [row]
    return range(min(count, len(rows)))


def _head_of(number: int, row: dict[str, Any]) -> Text:
    text = Text(f"row {number}", style="bold")
    for name in ("id", "source"):
        if row.get(name):
            text.append(f"  {name} {escape_controls(row[name])}")
    text.append(f"  {row['context_len']} + {row['total_len'] - row['context_len']} tokens")
    if row["dropped_tokens"]:
        text.append(f"  {row['dropped_tokens']} dropped", "yellow")
    for flag in row.get("flags", ()):
        text.append(f"  {flag}", "yellow")
    return text
