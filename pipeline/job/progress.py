"""How far a job is: a bar on a terminal, one line every 30 seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from pipeline.errors import escape_controls
from pipeline.job.shard import Progress
from pipeline.job.shard_record import ShardRecord
from pipeline.lines.plan import SourcePlan
from pipeline.view.console import LINE_SECONDS


class ProgressReport:
    """Rows, tokens a second, rejects and the time left, on standard error.

    Shards that an earlier run had finished count as read and not as made.
    """

    def __init__(
        self, plan: SourcePlan, finished: Iterable[ShardRecord], *, publishes: bool = True
    ) -> None:
        """``publishes``: whether a job with rejects may publish, as far as is known before its end."""
        finished = list(finished)
        self._must_warn = not publishes
        self._earlier = finished
        self._sizes = {shard.index: shard.bytes for shard in plan.shards}
        self._total = plan.bytes
        self._before = sum(self._sizes[record.index] for record in finished)
        self._read = self._before
        self._rows = self._tokens = self._rejects = 0
        self._begun = self._said = time.monotonic()

    def __enter__(self) -> Self:
        self._bar: Any = tqdm(
            total=self._total,
            initial=self._before,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            leave=False,
            disable=not sys.stderr.isatty(),
        )
        for record in self._earlier:
            self._warn_of(record)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def add_batch(self, progress: Progress) -> None:
        """Count what a batch gave."""
        self._rows += progress.rows
        self._tokens += progress.tokens
        self._rejects += progress.rejects
        if progress.rejects:
            self._warn(progress.first_reject)
        self._bar.set_postfix_str(self._figures(), refresh=False)
        if self._bar.disable and time.monotonic() - self._said >= LINE_SECONDS:
            self._said = time.monotonic()
            print(f"context-frozen: {self.describe()}", file=sys.stderr, flush=True)

    def end_shard(self, record: ShardRecord) -> None:
        """Count a shard as read."""
        self._read += self._sizes[record.index]
        self._warn_of(record)
        self._bar.update(self._sizes[record.index])

    def _warn_of(self, record: ShardRecord) -> None:
        if record.codes:
            found = ", ".join(f"{code} {number}" for code, number in record.codes.items())
            self._warn(f"shard {record.index} has rejects ({found})")

    def _warn(self, found: str) -> None:
        """Say, at the first reject, that the job will not publish."""
        if not self._must_warn:
            return
        self._must_warn = False
        self._bar.write(
            f"context-frozen: {escape_controls(found)}; this run will publish nothing (max_reject_rate "
            "is 0): it goes on to find all rejects, and keeps its shards for a run that allows them",
            file=sys.stderr,
        )

    def describe(self) -> str:
        """Return the line: share of the input, rows, tokens a second, rejects, seconds left."""
        share = self._read / max(self._total, 1)
        fresh = self._read - self._before
        elapsed = time.monotonic() - self._begun
        left = f", about {elapsed * (self._total - self._read) / fresh:.0f} s left" if fresh else ""
        return f"{share:.0%} of {self._total} bytes read: {self._figures()}{left}"

    def _figures(self) -> str:
        seconds = max(time.monotonic() - self._begun, 1e-9)
        return f"{self._rows} rows, {self._tokens / seconds:.0f} tokens/s, {self._rejects} rejects"
