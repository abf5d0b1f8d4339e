"""Which rows of a set are looked at: by number, id or flag; the longest, shortest, most cut; or any."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import datasets
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import nearest_known
from pipeline.errors import UsageError, excerpt_of
from pipeline.types import FLAGS

Pick = Literal["longest", "shortest", "most_truncated", "random"]
_USUAL_ROWS: Final = 3
_GOLDEN_RATIO: Final = (5**0.5 - 1) / 2


@dataclass(frozen=True, kw_only=True)
class RowChoice:
    """What is asked for: one ``row``, or rows of an ``id`` or with a ``flag``, in order of ``pick``.

    ``rows`` is the most that are wanted; by default 3, or all of one ``id``. ``seed`` is of
    ``pick="random"``.
    """

    row: int | None = None
    id: str | None = None
    flag: str | None = None
    pick: Pick | None = None
    rows: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        others = {"id": self.id, "flag": self.flag, "pick": self.pick, "rows": self.rows}
        if self.row is not None and (
            given := [name for name in others if others[name] is not None]
        ):
            raise UsageError(f"row: chooses one row, so {given[0]} cannot choose as well; give one")
        if self.flag is not None and self.flag not in FLAGS:
            raise UsageError(
                f"flag: unknown flag {excerpt_of(self.flag)!r}{nearest_known(self.flag, sorted(FLAGS))}"
            )
        if self.rows is not None and self.rows < 0:
            raise UsageError(f"rows: found {self.rows}; expected a number of rows from 0")


def choose_rows(rows: datasets.Dataset, path: str, choice: RowChoice) -> Sequence[int]:
    """Return the numbers of the rows of a split that ``choice`` means.

    Raises `UsageError` where there is none, naming the set by ``path``.
    """
    if choice.row is not None:
        if not 0 <= choice.row < len(rows):
            raise UsageError(f"{path}: no row {choice.row}; expected 0 to {len(rows) - 1}")
        return [choice.row]
    found = np.arange(len(rows))
    if choice.id is not None:
        ids = _read_column(rows, "id", path).combine_chunks()
        if not len(found := np.flatnonzero(equal_mask(ids, choice.id))):
            raise UsageError(f"{path}: no row with id {choice.id!r}; rejects.jsonl may hold it")
    if choice.flag is not None:
        found = np.intersect1d(found, _flagged(_read_column(rows, "flags", path), choice.flag))
        if not len(found):
            raise UsageError(f"{path}: no row has the flag {choice.flag}")
    if choice.pick is not None:
        found = _order(rows, path, found, choice.pick, choice.seed)
    most = choice.rows if choice.rows is not None else None if choice.id else _USUAL_ROWS
    return [int(number) for number in found[:most]]


def choose_telling_rows(lengths: pa.Table, most: int) -> dict[int, str]:
    """Return up to ``most`` row numbers that tell much of a set, in order, and why each is there.

    The most shortened, the longest and shortest, some of each flag, and the rest evenly spread.
    ``lengths`` has the columns ``total_len`` and ``dropped_tokens``, and ``flags`` where there are any.
    """
    chosen: dict[int, str] = {}
    for number, why in _rank_telling_rows(lengths, most):
        if len(chosen) < most:
            chosen.setdefault(number, why)
    return dict(sorted(chosen.items()))


def _rank_telling_rows(lengths: pa.Table, most: int) -> Iterator[tuple[int, str]]:
    total, dropped = (np.asarray(lengths.column(name)) for name in ("total_len", "dropped_tokens"))
    cut = np.argsort(-dropped, kind="stable")[: most // 10]
    yield from ((int(number), "most shortened") for number in cut if dropped[number])
    order = np.argsort(total, kind="stable")
    yield from ((int(number), "among the longest") for number in order[::-1][: most // 10])
    yield from ((int(number), "among the shortest") for number in order[: most // 10])
    if "flags" in lengths.column_names:
        flags = lengths.column("flags")
        for flag in sorted(flags.combine_chunks().flatten().unique().to_pylist()):
            places = _flagged(flags, flag)
            yield from ((int(number), f"flag {flag}") for number in places[:2])
    # However many of these are taken, they lie evenly spread.
    spread = (int(turn * _GOLDEN_RATIO % 1 * len(total)) for turn in range(8 * most))
    for number in spread if len(total) > most else range(len(total)):
        yield number, "evenly spread"


def _order(
    rows: datasets.Dataset, path: str, found: NDArray[np.int64], pick: Pick, seed: int
) -> NDArray[np.int64]:
    if pick == "random":
        return np.random.default_rng(seed).permutation(found)
    name = "dropped_tokens" if pick == "most_truncated" else "total_len"
    values = np.asarray(_read_column(rows, name, path)).astype(np.int64)[found]
    if pick == "most_truncated" and not values.any():
        raise UsageError(f"{path}: no row was shortened; choose with another --pick")
    return found[np.argsort(values if pick == "shortest" else -values, kind="stable")]


def _flagged(flags: pa.ChunkedArray, flag: str) -> NDArray[np.int64]:
    """Return the numbers of the rows that have a flag, ascending."""
    lists = flags.combine_chunks()
    return np.unique(np.asarray(lists.value_parent_indices())[equal_mask(lists.flatten(), flag)])


def equal_mask(texts: pa.Array, text: str) -> NDArray[np.bool_]:
    """Return where an array of texts holds ``text``."""
    encoded = texts.dictionary_encode()
    return np.asarray(encoded.indices) == encoded.dictionary.index(text).as_py()


def _read_column(rows: datasets.Dataset, name: str, path: str) -> pa.ChunkedArray:
    if name not in rows.column_names:
        raise UsageError(f"{path}: columns: train keeps no {name}; choose with --row or --pick")
    table: Any = rows.select_columns([name]).with_format("arrow")[:]
    return table.column(name)
