"""The process of the command: its signals, its libraries, and an end without taking anything down."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn, cast

from pipeline.cli.streams import SafeFormatter
from pipeline.job.heap import collect_rarely
from pipeline.tokens import without_torch
from pipeline.view.stages import show_stages

_owned = False


def own_process() -> None:
    """Take this process as one that does nothing but the command.

    Cycles are looked for seldom; SIGTERM and SIGHUP are taken as Ctrl-C, but for one that is ignored
    already (nohup).
    """
    global _owned
    _owned = True
    collect_rarely()
    hear_signals()
    show_stages()


class Stopped(KeyboardInterrupt):
    """A signal other than Ctrl-C that asks this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def hear_signals() -> None:
    """Take SIGTERM and SIGHUP as Ctrl-C, but for one that is ignored already."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _stop)


def _stop(number: int, _: FrameType | None) -> None:
    raise Stopped(number)


def prepare_libraries(*, may_need_torch: bool = False) -> None:
    """Keep the libraries' bars and advice off a log file; warnings of ours stay.

    No verb computes with torch, which transformers would import for a second and 190 MB of memory;
    only code that comes with a tokenizer may want it.
    """
    if _owned and not may_need_torch:
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        without_torch.leave_out()
    handler = logging.StreamHandler()
    handler.setFormatter(SafeFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def end_process(code: int) -> NoReturn:
    """End this process, which has written all that it says.

    What was asked for at the end is done (`atexit`), and then nothing is taken down: 1,600 modules
    and the dictionaries of a tokenizer would take half a second, and the system has it all back anyway.
    """
    cast("Any", atexit)._run_exitfuncs()
    os._exit(code)
