"""``context-frozen diff`` on the terminal: settings side by side, and where changed rows part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any, Final, NamedTuple

from rich.table import Table
from rich.text import Text

from pipeline.errors import SealMismatch, UsageError, escape_controls, excerpt_of
from pipeline.sets.diff import Build, ChangedRow, SetDifference, Setting
from pipeline.sets.pieces import TokenPiece, split_row
from pipeline.sets.row_prints import ASPECTS
from pipeline.sets.seal import check_encoder
from pipeline.sets.settings import write_value
from pipeline.tokens.encoder import TextEncoder
from pipeline.view.tokens import TokenConsole, view_boundary, view_context, view_continuation

_BEFORE, _AFTER = Text("- ", "bold red"), Text("+ ", "bold green")
# Pieces shown before and from the first difference on.
_PIECES_BEFORE, _PIECES_AFTER = 16, 32
_LONGEST_VALUE: Final = 40
_OF_TOKENS: Final = {"tokens", "boundary", "labels"}


def print_differences(
    found: SetDifference,
    *,
    all_settings: bool = False,
    tokenizers: tuple[str | None, str | None] = (None, None),
) -> None:
    """Print what differs; ``tokenizers`` say where those of the two sets lie now."""
    console = TokenConsole()
    for title, settings in (("setting", found.settings), ("count", found.counts)):
        shown = [setting for setting in settings if all_settings or setting.differs]
        if shown:
            console.print(_tabulate(title, shown, found))
    console.print(Text(describe_rows(found)))
    _print_names(console, found.after, _AFTER, "added", found.rows.first_added, found.rows.added)
    _print_names(console, found.before, _BEFORE, "gone", found.rows.first_gone, found.rows.gone)
    if found.rows.first_changed:
        view = _ChangeView(console, found, tokenizers)
        for row in found.rows.first_changed:
            view.print(row)


def describe_rows(found: SetDifference) -> str:
    """Return in sentences how the rows differ."""
    rows = found.rows
    aspects = ", ".join(f"{name} {number}" for name, number in rows.changed_by.items())
    text = (
        f"{rows.before} rows before, {rows.after} after: {rows.same} the same, {rows.added} added, "
        f"{rows.gone} gone, {rows.changed} changed" + (f" ({aspects})" if aspects else "")
    )
    if rows.matched_by == "place":
        text += "\nrows are matched by place: columns: train keeps no ids"
    if rows.not_compared:
        text += f"\nonly one of the sets has {', '.join(rows.not_compared)}; not compared"
    if rows.is_reordered:
        text += "\nthe rows stand in another order"
    return text


def _tabulate(title: str, settings: Sequence[Setting], found: SetDifference) -> Table:
    table = Table(title, *(escape_controls(build.path) for build in (found.before, found.after)))
    for setting in settings:
        values = ("" if value is None else _shorten(value) for value in setting[1:])
        style = "yellow" if setting.differs else ""
        table.add_row(
            *(Text(escape_controls(text)) for text in (setting.name, *values)), style=style
        )
    return table


def _shorten(value: Any) -> str:
    text = write_value(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"


def _print_names(
    console: TokenConsole,
    build: Build,
    sign: Text,
    what: str,
    first: Sequence[int],
    number: int,
) -> None:
    for row in first:
        console.print(sign + Text(f"{what}: {escape_controls(build.name_of(row))}"))
    if number > len(first):
        console.print(sign + Text(f"{number - len(first)} more {what}"))


class _Place(NamedTuple):
    """A piece of a row, and the part that it is in."""

    piece: TokenPiece
    is_context: bool


class _ChangeView:
    """Prints changed rows; loads a tokenizer when tokens are to be shown."""

    def __init__(
        self, console: TokenConsole, found: SetDifference, tokenizers: tuple[str | None, str | None]
    ) -> None:
        self._console = console
        self._found = found
        self._tokenizers = tokenizers
        self._encoders: list[TextEncoder | None] | None = None

    def print(self, changed: ChangedRow) -> None:
        """Print what changed in a row, the first differing token in its surroundings."""
        builds = (self._found.before, self._found.after)
        numbers = (changed.before, changed.after)
        (split, before), (other_split, after) = (
            build.row(number) for build, number in zip(builds, numbers, strict=True)
        )
        name = escape_controls(builds[0].name_of(changed.before))
        self._console.print()
        self._console.print(
            Text(f"changed: {name}", "bold") + Text(f"  {', '.join(changed.aspects)}", "yellow")
        )
        for aspect in changed.aspects:
            if aspect == "split":
                self._print_values("split", split, other_split)
            elif aspect not in ("tokens", "labels"):
                for column in ASPECTS[aspect]:
                    self._print_values(column, before[column], after[column])
        if not _OF_TOKENS.isdisjoint(changed.aspects):
            self._print_tokens(before, after)

    def _print_values(self, name: str, before: Any, after: Any) -> None:
        if before != after:
            values = (excerpt_of(write_value(value)) for value in (before, after))
            self._console.print(Text(f"  {name}: " + " → ".join(values)))

    def _print_tokens(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        encoders = self._load_encoders()
        is_same = self._found.before.tokenizer_state == self._found.after.tokenizer_state
        rows = [
            _places_of(row, encoder) for row, encoder in zip((before, after), encoders, strict=True)
        ]

        def key(place: _Place | None) -> object:
            # Ids of two tokenizers say nothing of each other.
            return place and (place.piece.ids if is_same else place.piece.text, place.is_context)

        pairs = enumerate(zip_longest(*rows))
        at = next((number for number, (ours, theirs) in pairs if key(ours) != key(theirs)), None)
        if at is None:
            self._console.print(Text("  the ids are the same"))
            return
        token = sum(len(place.piece.ids) for place in rows[0][:at])
        self._console.print(Text(f"  first difference at token {token}:"))
        for sign, places in zip((_BEFORE, _AFTER), rows, strict=True):
            self._console.print(sign + _view_window(places, at))

    def _load_encoders(self) -> list[TextEncoder | None]:
        if self._encoders is None:
            builds = (self._found.before, self._found.after)
            first = self._load(builds[0], self._tokenizers[0])
            is_same = builds[0].tokenizer_state == builds[1].tokenizer_state
            if is_same and first and not self._tokenizers[1]:
                self._encoders = [first, first]
            else:
                second = self._load(builds[1], self._tokenizers[1])
                self._encoders = [first or (second if is_same else None), second]
        return self._encoders

    def _load(self, build: Build, tokenizer: str | None) -> TextEncoder | None:
        """Return the tokenizer of a set, or nothing where it is not there any more."""
        try:
            encoder = TextEncoder.from_path(tokenizer or build.manifest["config"]["tokenizer"])
            check_encoder(build.manifest["seal"], encoder, build.manifest["config"]["tokenizer"])
        except (UsageError, SealMismatch) as error:
            if tokenizer is not None:
                raise
            words = escape_controls(f"{build.path}: {error}; its tokens are shown as ids")
            self._console.print(Text(words, "yellow"))
            return None
        return encoder


def _places_of(row: dict[str, Any], encoder: TextEncoder | None) -> list[_Place]:
    pieces = split_row(row, encoder)
    return [_Place(piece, True) for piece in pieces.context] + [
        _Place(piece, False) for piece in pieces.continuation
    ]


def _view_window(places: Sequence[_Place], at: int) -> Text:
    """Return the pieces around a place, the one there marked, line ends as marks."""
    first, last = max(0, at - _PIECES_BEFORE), at + _PIECES_AFTER
    text = Text("… " if first else "")
    for number in range(first, min(last, len(places))):
        is_edge = number > 0 and places[number - 1].is_context and not places[number].is_context
        if is_edge:
            text += view_boundary()
        shown = _view_piece(places[number])
        if number == at:
            shown.stylize("reverse")
        text += shown
    if at >= len(places):
        text.append("(ends here)", "reverse")
    return text + Text(" …" if last < len(places) else "")


def _view_piece(place: _Place) -> Text:
    pieces: Iterable[TokenPiece] = (place.piece,)
    shown = view_context(pieces) if place.is_context else view_continuation(pieces)
    return Text("⏎").join(shown.split("\n", allow_blank=True))
