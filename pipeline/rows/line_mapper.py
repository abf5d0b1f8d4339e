"""The function that a shard's batches go through: lines in, a table of rows out, and what the lines were.

Every decision point of a line is a row or a reject, and a line that is no example is a reject as
well, so nothing is lost between lines and rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import add
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pyarrow as pa

from pipeline.config import RowSettings
from pipeline.errors import Rejected
from pipeline.examples.decisions import (
    NO_ANSWERS,
    AnswerCounts,
    DecisionPoint,
    count_answers,
    find_decision_points,
    name_split,
)
from pipeline.examples.example import TrainingExample, read_id
from pipeline.examples.line_parser import LineParser
from pipeline.examples.shapes import read_row
from pipeline.lines.text import SourceLine
from pipeline.rows.table import BoundedRow, Provenance, build_table, digest_rows
from pipeline.types import NUMERIC_COLUMNS, REJECTED, Reject

if TYPE_CHECKING:
    from pipeline.rows.builder import RowBuilder

_ID_LENGTH: Final = 32
_MOST_NAMES: Final = 200
_NAME_LIMIT: Final = 80


@dataclass(slots=True)
class ShapeCounts:
    """Lines that were examples, by their shape, and by the keys of theirs that nobody read.

    A line counts once for each name. Of more than 200 names those are kept that come first by length,
    then by letter, which any split of the lines gives alike; ``other_keys`` counts the rest.
    ``answers`` are those of `pipeline.examples.decisions.count_answers`, summed.
    """

    formats: dict[str, int] = field(default_factory=dict[str, int])
    unread_keys: dict[str, int] = field(default_factory=dict[str, int])
    other_keys: int = 0
    answers: AnswerCounts = NO_ANSWERS

    def __post_init__(self) -> None:
        # JSON, as the record of a shard is, has a list.
        self.answers = AnswerCounts(*self.answers)

    @classmethod
    def from_described(cls, described: Mapping[str, Any]) -> ShapeCounts:
        """Return the counts in a manifest; one of an earlier release has none."""
        return cls(
            formats=dict(described.get("by_format", {})),
            unread_keys=dict(described.get("unread_keys", {})),
            other_keys=described.get("other_unread_keys", 0),
            answers=AnswerCounts(**described["answers"]) if "answers" in described else NO_ANSWERS,
        )

    def add(self, format: str, unread: Iterable[str], answers: AnswerCounts = NO_ANSWERS) -> None:
        """Count one line."""
        self.answers = _sum(self.answers, answers)
        self.formats[format] = self.formats.get(format, 0) + 1
        # Names that are one once they are cut and cleaned count once as well.
        for name in {clean_name(name) for name in unread} if unread else ():
            self.unread_keys[name] = self.unread_keys.get(name, 0) + 1
        if len(self.unread_keys) > 2 * _MOST_NAMES:
            self._forget_names()

    def merge(self, other: ShapeCounts) -> None:
        """Add the counts of other lines."""
        self.answers = _sum(self.answers, other.answers)
        for mine, theirs in (
            (self.formats, other.formats),
            (self.unread_keys, other.unread_keys),
        ):
            for name, number in theirs.items():
                mine[name] = mine.get(name, 0) + number
        self.other_keys += other.other_keys
        self._forget_names()

    def describe(self) -> dict[str, Any]:
        """Return what a manifest says."""
        self._forget_names()
        return {
            "by_format": dict(sorted(self.formats.items())),
            "unread_keys": dict(sorted(self.unread_keys.items())),
            "other_unread_keys": self.other_keys,
            "answers": self.answers._asdict(),
        }

    def _forget_names(self) -> None:
        # A name that is among the first of all lines is so among those of any part of them, so none
        # that is kept at the end was ever forgotten.
        if len(self.unread_keys) > _MOST_NAMES:
            ordered = sorted(self.unread_keys, key=lambda name: (len(name), name))
            for name in ordered[_MOST_NAMES:]:
                self.other_keys += self.unread_keys.pop(name)


def _sum(one: AnswerCounts, other: AnswerCounts) -> AnswerCounts:
    return AnswerCounts(*map(add, one, other))


def clean_name(name: str) -> str:
    """Return a key as it may be shown anywhere: of at most 80 characters, each printable."""
    shown = name[:_NAME_LIMIT]
    if not shown.isprintable():
        shown = "".join(
            each if each.isprintable() else each.encode("unicode_escape").decode() for each in shown
        )
    return shown if len(name) <= _NAME_LIMIT and len(shown) <= _NAME_LIMIT else f"{shown[:79]}…"


@dataclass(frozen=True, slots=True)
class MappedLines:
    """What became of a batch of lines: ``table`` has the columns of `ROW_SCHEMA`.

    ``splits``, ``row_digests`` (see `digest_rows`) and ``line_digests`` (sha256 of the line) have one
    entry per row; ``rejects`` are in the order of the lines; ``shapes`` counts the lines that were
    examples. ``order`` names what stands first in the input, then second, ...: rows by their number,
    rejects by theirs after the last row's.
    """

    table: pa.Table
    splits: list[str]
    row_digests: list[bytes]
    line_digests: list[bytes]
    rejects: list[Reject]
    shapes: ShapeCounts
    order: list[int]


class _Draft(NamedTuple):
    """A row to be: where it comes from, and its decision point, or why there is none."""

    file: str
    line: int
    line_digest: bytes
    provenance: Provenance
    point: DecisionPoint | None = None
    error: Rejected | None = None

    def to_reject(self, error: Rejected) -> Reject:
        """Return the reject of this draft; where a line has several points it says which."""
        place = self.provenance.decision_idx
        where = f"at message {place}: " if place >= 0 else ""
        reason = where + error.reason
        return Reject(self.file, self.line, self.provenance.id, error.code, reason, error.excerpt)


class LineMapper:
    """Maps batches of lines, each with the name of its file, to rows and rejects."""

    def __init__(self, config: RowSettings, builder: RowBuilder) -> None:
        self._config = config
        self._parser = LineParser()
        self.builder = builder

    def find_points(self, lines: Sequence[tuple[str, SourceLine]]) -> list[DecisionPoint]:
        """Return the decision points of the lines that are examples."""
        shapes = ShapeCounts()
        drafts = (draft for file, line in lines for draft in self._draft_line(file, line, shapes))
        return [draft.point for draft in drafts if draft.point]

    def __call__(self, lines: Sequence[tuple[str, SourceLine]]) -> MappedLines:
        """Return the rows and rejects of ``lines``, in order."""
        shapes = ShapeCounts()
        drafts = [draft for file, line in lines for draft in self._draft_line(file, line, shapes)]
        built = iter(self.builder.build([draft.point for draft in drafts if draft.point]))
        results = [next(built) if draft.point else draft.error for draft in drafts]
        if self._config.rejected_continuations == "keep":
            results = _refuse_unpaired(drafts, results)
        rows: list[BoundedRow] = []
        kept: list[_Draft] = []
        rejects: list[Reject] = []
        number = sum(isinstance(result, BoundedRow) for result in results)
        order: list[int] = []
        for draft, result in zip(drafts, results, strict=True):
            if isinstance(result, BoundedRow):
                order.append(len(rows))
                rows.append(result)
                kept.append(draft)
            else:
                assert result is not None, "a draft without a point has its error"
                order.append(number + len(rejects))
                rejects.append(draft.to_reject(result))
        table = build_table(rows, [draft.provenance for draft in kept])
        saved = table if self._config.columns == "full" else table.select(NUMERIC_COLUMNS)
        splits = self.name_splits(kept)
        digests = digest_rows(saved, splits)
        line_digests = [draft.line_digest for draft in kept]
        return MappedLines(table, splits, digests, line_digests, rejects, shapes, order)

    def _name_unread(self, unread: frozenset[str], line: SourceLine) -> frozenset[str]:
        """Return the keys of a line that nobody reads; some servers read all of a message."""
        if line.unread_columns:
            unread = unread.union(line.unread_columns)
        if self._config.server in ("mlx", "plain"):
            return frozenset(name for name in unread if not name.startswith("messages."))
        return unread

    def name_splits(self, drafts: Sequence[_Draft]) -> list[str]:
        """Return the split that each row belongs to."""
        fraction = self._config.validation_fraction
        return [
            name_split(draft.provenance.preference, draft.provenance.conversation, fraction)
            for draft in drafts
        ]

    def _draft_line(self, file: str, line: SourceLine, shapes: ShapeCounts) -> Iterator[_Draft]:
        """Yield what a line is to become, as far as it is known before rendering; count its shape."""
        source = f"{file}:{line.line}" if file else ""
        text = line.text
        if text is None:
            assert line.reject is not None, "a line has its text or its reject"
            yield _Draft(file, line.line, b"", _no_provenance(source), error=line.reject)
            return
        digest = hashlib.sha256(text.encode()).digest()
        try:
            read = read_row(self._parser.parse(text), self._config.format, "")
            if not read.example.id:
                digest = name_example(read.example)
            points = find_decision_points(
                read.example,
                self._config.decisions,
                keep_rejected=self._config.rejected_continuations == "keep",
            )
        except Rejected as error:
            nothing = _no_provenance(source, _peek_id(text))
            yield _Draft(file, line.line, digest, nothing, error=error.without_frames())
            return
        answers = count_answers(read.example, points)
        shapes.add(read.format, self._name_unread(read.unread, line), answers)
        for point in points:
            yield _Draft(file, line.line, digest, _provenance_of(point, source), point)


def name_example(example: TrainingExample) -> bytes:
    """Give an example without an id one from its content; return the hash that it is made of.

    The same example has the same id in any file, and so it is known where it stands twice.
    """
    content = {name: value for name, value in example.to_dict().items() if name != "id"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()
    example.id = digest.hex()[:_ID_LENGTH]
    example.conversation = example.conversation or example.id
    return digest


def _refuse_unpaired(
    drafts: Sequence[_Draft], results: Sequence[BoundedRow | Rejected | None]
) -> list[BoundedRow | Rejected | None]:
    """Return the results, the worse continuation of a pair refused where no better one is a row."""
    better: dict[tuple[bytes, int, int], BoundedRow | Rejected | None] = {}
    paired: list[BoundedRow | Rejected | None] = []
    for draft, result in zip(drafts, results, strict=True):
        place = (draft.line_digest, draft.line, draft.provenance.decision_idx)
        partner = better.get(place)
        if draft.provenance.preference != REJECTED:
            better[place] = partner if isinstance(partner, BoundedRow) else result
        elif isinstance(partner, Rejected) and isinstance(result, BoundedRow):
            reason = f"the better continuation of its pair is rejected: {partner.reason}"
            result = Rejected(partner.code, reason, partner.excerpt)
        paired.append(result)
    return paired


def _no_provenance(source: str, id_: str = "") -> Provenance:
    return Provenance(id_, "", source, -1, "", "", (), 1.0)


def _peek_id(text: str) -> str:
    """Return the id of a line that is no example, as text that UTF-8 can write, or nothing."""
    try:
        values: Any = json.loads(text)
        id_ = read_id(values) if isinstance(values, dict) else ""
    except (ValueError, RecursionError):
        return ""
    return id_.encode("utf-8", "backslashreplace").decode()


def _provenance_of(point: DecisionPoint, source: str) -> Provenance:
    example = point.example
    return Provenance(
        id=example.id,
        conversation=example.conversation or example.id,
        source=source,
        decision_idx=-1 if point.decision_idx is None else point.decision_idx,
        preference=point.preference,
        reason=example.reason,
        memories=tuple(example.memories),
        weight=example.weight,
    )
