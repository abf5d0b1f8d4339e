"""What a `RowMap` made, taken together: duplicates left out, the splits of a set, its rejects.

Nothing is copied here: shards are concatenated, and rows are selected by their places.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final, cast

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from pipeline.config import RowSettings
from pipeline.job.append import EarlierSet
from pipeline.job.duplicates import Duplicates, Entry, find_duplicates
from pipeline.rows.table import sum_digests
from pipeline.sets.counts import RowCounts, count_rows
from pipeline.types import SPLITS, Reject, row_features

# Its functions are made when it is imported, so that no type checker knows them.
_compute: Any = pyarrow.compute
_AT_ONCE: Final = 10_000


@dataclass(frozen=True, slots=True)
class Assembly:
    """The rows and rejects of a set that is to be saved.

    ``rejects`` are those of these rows' input, ``earlier`` is the set that is appended to, without what
    is replaced. ``new`` is the number of rows that it had not, ``points`` the decision points that were
    read, ``faults`` the rejects that count against ``max_reject_rate``, ``known`` the number of lines
    that the earlier set has already. ``examples`` are the new ones, each with what tells it.
    """

    splits: datasets.DatasetDict
    rejects: list[Reject]
    counts: RowCounts
    digest: str
    examples: Iterator[tuple[str, bytes]]
    new: int
    points: int
    faults: int
    known: int = 0
    earlier: EarlierSet | None = None

    @property
    def is_empty(self) -> bool:
        """True where no row and no reject is new."""
        return not (self.new or self.rejects)

    @property
    def all_rejects(self) -> list[Reject]:
        """The rejects of the set: the earlier ones first."""
        return [*(self.earlier.rejects if self.earlier else ()), *self.rejects]

    @property
    def codes(self) -> Counter[str]:
        """Number of new rejects by code."""
        return Counter(reject.code for reject in self.rejects)


def open_shards(paths: Sequence[Path]) -> datasets.Dataset:
    """Return the rows and rejects of all shards, in order, mapped and not copied."""
    return datasets.concatenate_datasets([datasets.Dataset.from_file(str(path)) for path in paths])


def assemble(
    mapped: datasets.Dataset, settings: RowSettings, earlier: EarlierSet | None = None
) -> Assembly:
    """Return the set of what a `RowMap` made that keeps rejects; ``earlier`` is appended to.

    Two examples of one id are settled by ``on_duplicate``. Rows are in the order of the input, those
    of the earlier set first.
    """
    columns = _Columns(cast("Any", mapped).data.table)
    known_examples = earlier.examples if earlier else {}
    contenders = dict(columns.contenders(known_examples))
    duplicates = find_duplicates(contenders.items(), settings.on_duplicate, known_examples)
    known = frozenset(contenders[place].source for place in duplicates.already_there)
    is_kept = columns.is_row.copy()
    is_kept[duplicates.places] = False
    places = np.flatnonzero(is_kept)
    kept_earlier = earlier.without(duplicates.replaced) if earlier else None
    counts = count_rows(columns.table, places)
    digest = columns.table.column("row_sha256").take(pa.array(places))
    total = sum_digests(each.as_py() for each in digest)
    if kept_earlier:
        counts.merge(kept_earlier.counts)
        total = sum_digests([bytes.fromhex(total), bytes.fromhex(kept_earlier.digest)])
    rejects = list(_join_rejects(columns, duplicates, known))
    return Assembly(
        splits=_select_splits(mapped, columns, places, settings, kept_earlier),
        rejects=rejects,
        counts=counts,
        digest=total,
        examples=columns.examples(places),
        new=len(places),
        points=len(columns.is_row),
        faults=sum(each.code != "duplicate_id" for each in rejects) + len(duplicates.faults),
        known=len(known),
        earlier=kept_earlier,
    )


class _Columns:
    """What an assembly looks at of every row and reject, as Arrow holds it."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self.is_row: NDArray[np.bool_] = np.asarray(table.column("code").is_null())
        self.ids: Any = _whole(table.column("id"))
        self.splits: Any = _whole(table.column("split"))
        sources = _whole(table.column("source"))
        is_named = not len(sources) or _compute.min(_compute.utf8_length(sources)).as_py() > 0
        self.sources: Any = sources if is_named else pa.array(self._name_sources(sources))

    def _name_sources(self, sources: Any) -> list[str]:
        """Return the sources, those that are empty named by the place of their example's first row.

        The rows of an example follow each other; the same row again is the example again.
        """
        ids, digests = self.ids.to_pylist(), self.table.column("row_sha256").to_pylist()
        named: list[str] = []
        first = 0
        for place, source in enumerate(sources.to_pylist()):
            if ids[place] != ids[first] or digests[place] == digests[first]:
                first = place
            named.append(source or f"example:{first + 1}")
        return named

    def contenders(self, earlier: Mapping[str, bytes]) -> Iterator[tuple[int, Entry]]:
        """Yield the place and identity of each row whose id may stand twice, in order.

        ``earlier`` has the ids of a set that is appended to.
        """
        # The rows of one line follow each other and are one example.
        is_first = np.ones(len(self.ids), np.bool_)
        is_first[1:] = np.asarray(_compute.not_equal(self.sources[1:], self.sources[:-1]))
        rows = self.ids.filter(pa.array(self.is_row))
        firsts = self.ids.filter(pa.array(is_first & self.is_row))
        known = pa.array(list(earlier), pa.string())
        seen = _compute.value_counts(pa.concat_arrays([firsts, _compute.unique(known)]))
        contested = seen.field("values").filter(_compute.greater(seen.field("counts"), 1))
        if not len(contested) or not len(rows):
            return
        is_contested = np.asarray(_compute.is_in(self.ids, value_set=contested)) & self.is_row
        places = np.flatnonzero(is_contested)
        digests = self.table.column("line_sha256").take(pa.array(places)).to_pylist()
        for place, digest in zip(places.tolist(), digests, strict=True):
            yield place, Entry(self.ids[place].as_py(), self.source_at(place), digest)

    def is_of(self, split: str) -> NDArray[np.bool_]:
        """Return for each row and reject whether it is of ``split``."""
        return np.asarray(_compute.equal(self.splits, split).fill_null(False))

    def source_at(self, place: int) -> str:
        """Return the ``file:line`` of a row or reject."""
        return self.sources[place].as_py()

    def rejects(self) -> Iterator[tuple[int, Reject]]:
        """Yield each reject with its place."""
        places = np.flatnonzero(~self.is_row)
        names = ["id", "code", "reject_reason", "excerpt"]
        values = self.table.select(names).take(pa.array(places)).to_pylist()
        for place, row in zip(places.tolist(), values, strict=True):
            file, _, line = self.source_at(place).rpartition(":")
            yield place, Reject(file, int(line), *(row[name] for name in names))

    def examples(self, places: NDArray[np.int64]) -> Iterator[tuple[str, bytes]]:
        """Yield the id of each example among the rows at ``places``, and what tells it."""
        before = None
        for start in range(0, len(places), _AT_ONCE):
            part = pa.array(places[start : start + _AT_ONCE])
            columns = (self.ids, self.table.column("line_sha256"))
            for id_, digest in zip(*(each.take(part).to_pylist() for each in columns), strict=True):
                if id_ != before:
                    yield id_, digest
                before = id_


def _whole(column: Any) -> Any:
    """Return a column as one array."""
    array = column.combine_chunks()
    return array.chunk(0) if isinstance(array, pa.ChunkedArray) else array


def _join_rejects(
    columns: _Columns, duplicates: Duplicates, known: frozenset[str]
) -> Iterator[Reject]:
    """Yield the rejects in the order of the input, but those of lines that the earlier set has."""
    found = {**dict(columns.rejects()), **duplicates.rejects}
    for place in sorted(found):
        if not known or columns.source_at(place) not in known:
            yield found[place]


def _select_splits(
    mapped: datasets.Dataset,
    columns: _Columns,
    places: NDArray[np.int64],
    settings: RowSettings,
    earlier: EarlierSet | None,
) -> datasets.DatasetDict:
    """Return the rows by split, each split that has some; of a set without any row, the first."""
    rows = mapped.select_columns(list(row_features(settings.columns)))
    before: Mapping[str, datasets.Dataset] = earlier.splits if earlier else {}
    splits = datasets.DatasetDict()
    for name in SPLITS:
        here = places[columns.is_of(name)[places]]
        parts = [part for part in (before.get(name), rows.select(here)) if part is not None]
        filled = [part for part in parts if len(part)]
        if filled:
            splits[name] = datasets.concatenate_datasets(filled)
    if not splits:
        splits[SPLITS[0]] = rows.select([])
    return splits


def spell_rejects(rejects: Sequence[Reject]) -> Iterator[str]:
    """Yield the lines of ``rejects.jsonl``."""
    for reject in rejects:
        yield json.dumps(reject.to_dict(), ensure_ascii=False) + "\n"


def spell_examples(assembly: Assembly) -> Iterator[str]:
    """Yield the lines of ``examples.sha256``: what tells an example, and its id as JSON."""
    earlier = assembly.earlier.examples.items() if assembly.earlier else ()
    for id_, digest in chain(earlier, assembly.examples):
        yield f"{digest.hex()}  {json.dumps(id_)}\n"
