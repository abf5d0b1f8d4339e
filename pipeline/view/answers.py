"""An answer over HTTP, read within bounds: so many bytes, so many seconds, whatever the server sends.

A socket's timeout starts again with each byte, and ``read()`` takes what comes: a server that sends a
byte a second, or never stops, would hold its reader for ever.
"""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPMessage
from queue import Empty, SimpleQueue
from threading import Thread
from typing import IO, Any, Final, NamedTuple

from pipeline.errors import excerpt_of

_CHUNK: Final = 2**16
# `http.client` and the parser of headers raise all of these for what is no HTTP.
_BROKEN: Final = (OSError, ValueError, LookupError, TypeError, AttributeError, HTTPException)


class BrokenAnswer(OSError):
    """The server cannot be reached, or its answer is cut, too large or too late; the words say which."""


class Answer(NamedTuple):
    """An HTTP status and the body that came with it."""

    status: int
    body: bytes


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Lets an answer of 3xx through as it is: it may lead anywhere, and a POST would come as a GET."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> None:
        """Return None: another URL is never asked."""


_opener = urllib.request.build_opener(_NoRedirect)


def fetch_answer(request: urllib.request.Request, *, seconds: float, most_bytes: int) -> Answer:
    """Return the answer to ``request``, of whatever status.

    Raises `BrokenAnswer` where none comes whole within ``seconds``, or it has more than ``most_bytes``.
    """
    done: SimpleQueue[Answer | BrokenAnswer] = SimpleQueue()
    # Nothing can end a thread that looks up a name, or reads headers a byte a second: it is left alone,
    # and as a daemon it keeps no process from its end.
    Thread(
        target=lambda: done.put(_fetch(request, seconds, most_bytes)), daemon=True, name="answer"
    ).start()
    try:
        answer = done.get(timeout=seconds)
    except Empty:
        answer = _too_late(seconds)
    if isinstance(answer, BrokenAnswer):
        raise answer
    return answer


def _fetch(
    request: urllib.request.Request, seconds: float, most_bytes: int
) -> Answer | BrokenAnswer:
    deadline = time.monotonic() + seconds
    try:
        try:
            answer: Any = _opener.open(request, timeout=seconds)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            return Answer(answer.status, _read_body(answer, deadline, seconds, most_bytes))
    except BrokenAnswer as error:
        return error
    except _BROKEN as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, TimeoutError):
            return _too_late(seconds)
        return BrokenAnswer(excerpt_of(str(cause) or type(cause).__name__))


def _read_body(answer: Any, deadline: float, seconds: float, most_bytes: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    # `read1` returns what one read of the socket gave: a byte a second is noticed here.
    while data := answer.read1(_CHUNK):
        parts.append(data)
        size += len(data)
        if size > most_bytes:
            raise BrokenAnswer(f"more than {most_bytes} bytes in its answer")
        if time.monotonic() > deadline:
            raise _too_late(seconds)
    if missing := getattr(answer, "length", None):
        raise BrokenAnswer(f"its answer is cut: {size} bytes came and {missing} are missing")
    return b"".join(parts)


def _too_late(seconds: float) -> BrokenAnswer:
    return BrokenAnswer(f"no whole answer within {seconds:g} s, which --timeout may raise")
