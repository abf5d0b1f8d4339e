"""Ids that stand twice: an example counts once, and a clash of two examples is never silent.

A line that repeats an earlier example word for word is left out, and so is, by setting, one of two
examples that share an id; both are in the rejects under ``duplicate_id``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pipeline.types import Reject

OnDuplicate = Literal["error", "first", "last"]
_EARLIER_SET = "the set"


@dataclass(frozen=True, slots=True)
class Entry:
    """What tells an example: its id, its ``file:line``, and the sha256 of its line."""

    id: str
    source: str
    line_digest: bytes


@dataclass(slots=True)
class Duplicates:
    """Entries that are left out, by place.

    ``rejects`` says why; ``faults`` are those of them that the settings do not allow. Entries in
    ``already_there`` are examples of the set that is appended to, and ``replaced`` maps the ids of
    its rows that a later example replaces onto the ``file:line`` of that one.
    """

    rejects: dict[int, Reject] = field(default_factory=dict[int, Reject])
    faults: set[int] = field(default_factory=set[int])
    already_there: set[int] = field(default_factory=set[int])
    replaced: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def places(self) -> list[int]:
        """Places of all entries that are left out, in order."""
        return sorted({*self.rejects, *self.already_there})


@dataclass(slots=True)
class _Owner:
    source: str
    line_digest: bytes
    places: list[int]


def find_duplicates(
    entries: Iterable[tuple[int, Entry]], on_duplicate: OnDuplicate, earlier: Mapping[str, bytes]
) -> Duplicates:
    """Return which of ``entries`` (place and entry, in order) are left out.

    ``earlier`` maps the ids of a set that is appended to onto the sha256 of their lines.
    """
    found = Duplicates()
    owners = {id_: _Owner(_EARLIER_SET, digest, []) for id_, digest in earlier.items()}
    for place, entry in entries:
        owner = owners.setdefault(entry.id, _Owner(entry.source, entry.line_digest, []))
        if owner.source == entry.source:
            owner.places.append(place)
        elif owner.line_digest == entry.line_digest and owner.source == _EARLIER_SET:
            found.already_there.add(place)
        elif owner.line_digest == entry.line_digest:
            found.rejects[place] = _reject(
                entry, f"id: {owner.source} has it already (the same line again); kept once"
            )
        elif on_duplicate == "last":
            for old in owner.places:
                found.rejects[old] = reject_replaced(entry.id, owner.source, entry.source)
            if entry.id in earlier:
                found.replaced[entry.id] = entry.source
            owners[entry.id] = _Owner(entry.source, entry.line_digest, [place])
        else:
            found.rejects[place] = _reject(
                entry,
                f"id: {owner.source} has it already (another example); expected an id once; "
                "rename it, remove one of the two, or choose on_duplicate: first or last",
            )
            if on_duplicate == "error":
                found.faults.add(place)
    return found


def reject_replaced(id_: str, source: str, later: str) -> Reject:
    """Return the reject of an example at ``source`` that gives way to the one at ``later``."""
    reason = f"{later} has another example of this id; on_duplicate: last keeps that"
    return _reject(Entry(id_, source, b""), reason)


def _reject(entry: Entry, reason: str) -> Reject:
    file, _, line = entry.source.rpartition(":")
    return Reject(file, int(line), entry.id, "duplicate_id", reason, entry.id[:80])
