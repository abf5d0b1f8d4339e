"""Tasks for a process apart, in a module that imports little."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.lines import apart


def count_and_die(end: int) -> Iterator[int]:
    yield from range(end)
    os.kill(os.getpid(), signal.SIGSEGV)


def count(end: int) -> Iterator[int]:
    yield from range(end)


def take_memory() -> Iterator[int]:
    yield len(bytearray(2 * apart.MEMORY_BYTES))


def wait() -> Iterator[int]:
    time.sleep(60)
    yield 1


def name_process() -> Iterator[int]:
    yield os.getpid()


def name_folder() -> Iterator[str]:
    yield str(Path.cwd())
