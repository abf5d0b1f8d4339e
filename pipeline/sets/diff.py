"""What differs between two builds of a set: settings, counts, and rows, each with what changed in it.

Of a row only hashes are kept, about 130 bytes, so that sets larger than memory can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np

from pipeline.errors import UsageError
from pipeline.sets.load import open_splits
from pipeline.sets.manifest import read_manifest
from pipeline.sets.one_set import read_one_set
from pipeline.sets.row_prints import ASPECTS, KEY, RowPrints, match_rows
from pipeline.sets.settings import flatten_record


class Setting(NamedTuple):
    """A value of two manifests by its dotted name; None where one does not have it."""

    name: str
    before: Any
    after: Any

    @property
    def differs(self) -> bool:
        """True where the two are not the same."""
        return self.before != self.after


class ChangedRow(NamedTuple):
    """A row of both sets that is not the same in both, by its number in each, and what changed."""

    before: int
    after: int
    aspects: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RowDifference:
    """How the rows of two sets differ; of the rows themselves only the first ones are named.

    ``matched_by`` is what two rows have in common that are the same row: ``id`` (with decision point
    and preference), or ``place`` where a set keeps no ids. ``changed_by`` counts the changed rows
    by aspect; one row may count in several.
    """

    before: int
    after: int
    same: int
    added: int
    gone: int
    changed: int
    changed_by: dict[str, int]
    is_reordered: bool
    matched_by: str
    not_compared: tuple[str, ...]
    first_added: tuple[int, ...]
    first_gone: tuple[int, ...]
    first_changed: tuple[ChangedRow, ...]


class Build:
    """One of the two sets that are compared. Raises `UsageError` where there is none at ``path``."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.manifest, self.splits = read_one_set(path, _open_build)

    def __len__(self) -> int:
        return sum(map(len, self.splits.values()))

    @cached_property
    def columns(self) -> frozenset[str]:
        """The columns of its rows."""
        return frozenset(name for rows in self.splits.values() for name in rows.column_names)

    @property
    def tokenizer_state(self) -> str:
        """What its tokenizer is known by; the ids of two sets compare where it is equal."""
        return self.manifest["seal"]["tokenizer"]["backend_sha256"]

    def row(self, number: int) -> tuple[str, dict[str, Any]]:
        """Return the split and the row of a number that counts through all splits."""
        for split, rows in self.splits.items():
            if number < len(rows):
                return str(split), rows[number]
            number -= len(rows)
        raise IndexError(number)

    def name_of(self, number: int) -> str:
        """Return what a row is called: its id, decision point and source, else its place."""
        split, row = self.row(number)
        if "id" not in row:
            return f"{split} row {number}"
        named = {name: row[name] for name in KEY if row[name] not in ("", -1)}
        named["source"] = row["source"]
        return "  ".join(f"{name} {value}" for name, value in named.items())


def _open_build(folder: Path) -> tuple[dict[str, Any], datasets.DatasetDict]:
    return read_manifest(folder), open_splits(folder)


@dataclass(frozen=True, slots=True)
class SetDifference:
    """Two builds and what differs between them."""

    before: Build
    after: Build
    settings: tuple[Setting, ...]
    counts: tuple[Setting, ...]
    rows: RowDifference

    @property
    def is_equal(self) -> bool:
        """True where both hold the same rows, in whatever order and by whatever settings."""
        return not (self.rows.added or self.rows.gone or self.rows.changed)

    def to_dict(self, *, all_settings: bool = False) -> dict[str, Any]:
        """Return the difference as JSON can hold it; rows are named by id and source."""
        rows = asdict(self.rows)
        for name, build in (("first_added", self.after), ("first_gone", self.before)):
            rows[name] = [build.name_of(number) for number in rows[name]]
        rows["first_changed"] = [
            {"row": self.before.name_of(row.before), "aspects": list(row.aspects)}
            for row in self.rows.first_changed
        ]
        return {
            "before": self.before.path,
            "after": self.after.path,
            "equal": self.is_equal,
            "settings": _pairs(self.settings, all_settings),
            "counts": _pairs(self.counts, all_settings),
            "rows": rows,
        }


def compare_sets(before: str, after: str, first: int = 5) -> SetDifference:
    """Return what differs between the sets in two folders, naming up to ``first`` rows of a kind.

    Rows are the same row where id, decision point and preference are, the second such row with the
    second. Raises `UsageError` where there is no set.

    Example::

        compare_sets("out/old", "out/new").rows.changed_by  # {"tokens": 12, "boundary": 12}
    """
    if first < 0:
        raise UsageError(f"rows: found {first}; expected a number of rows from 0")
    builds = Build(before), Build(after)
    return SetDifference(
        *builds,
        settings=_pair_up(*(_settings_of(build.manifest) for build in builds)),
        counts=_pair_up(*(flatten_record(build.manifest["counts"]) for build in builds)),
        rows=_compare_rows(*builds, first),
    )


def _settings_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that determined a set and how it was made, flat; the key follows from the rest."""
    seal = {name: value for name, value in manifest["seal"].items() if name != "key"}
    inputs = {entry["name"]: entry["sha256"] for entry in seal["input"]}
    unsealed = {
        name: value for name, value in manifest["config"].items() if name not in seal["settings"]
    }
    named = {f"input.{name}": sha256 for name, sha256 in inputs.items()}
    rest = flatten_record({**{k: v for k, v in seal.items() if k != "input"}, "config": unsealed})
    return {"digest": manifest["digest"], **named, **rest}


def _pair_up(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Setting, ...]:
    names = dict.fromkeys([*before, *after])
    return tuple(Setting(name, before.get(name), after.get(name)) for name in names)


def _pairs(settings: Sequence[Setting], every: bool) -> dict[str, list[Any]]:
    return {
        setting.name: [setting.before, setting.after]
        for setting in settings
        if every or setting.differs
    }


def _compare_rows(before: Build, after: Build, first: int) -> RowDifference:
    shared = before.columns & after.columns
    names = tuple(name for name, columns in ASPECTS.items() if shared.issuperset(columns))
    has_ids = shared.issuperset(KEY)
    prints = [RowPrints.of(build.splits, names, has_ids=has_ids) for build in (before, after)]
    ours, theirs = match_rows(prints[0].keys, prints[1].keys)
    gone = np.setdiff1d(np.arange(len(before)), ours)
    added = np.setdiff1d(np.arange(len(after)), theirs)
    differs = prints[0].aspects[ours] != prints[1].aspects[theirs]
    changed = np.flatnonzero(differs.any(axis=1))
    counts = np.count_nonzero(differs, axis=0)
    return RowDifference(
        before=len(before),
        after=len(after),
        same=len(ours) - len(changed),
        added=len(added),
        gone=len(gone),
        changed=len(changed),
        changed_by={name: int(n) for name, n in zip(names, counts, strict=True) if n},
        is_reordered=bool((np.diff(theirs) < 0).any()),
        matched_by="id" if has_ids else "place",
        not_compared=tuple(sorted(before.columns ^ after.columns)),
        first_added=tuple(map(int, added[:first])),
        first_gone=tuple(map(int, gone[:first])),
        first_changed=tuple(
            ChangedRow(
                int(ours[pair]),
                int(theirs[pair]),
                tuple(name for name, other in zip(names, differs[pair], strict=True) if other),
            )
            for pair in changed[:first]
        ),
    )
