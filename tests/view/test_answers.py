"""Servers whose answers are broken: each is one line within the time that was given."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

import pytest

from pipeline.errors import UsageError
from pipeline.view.answers import BrokenAnswer, fetch_answer
from pipeline.view.live_server import LiveServer, ServerError

Talk = Callable[[socket.socket], None]
OK = b"HTTP/1.1 200 OK\r\n"


@contextmanager
def answering(talk: Talk) -> Generator[str]:
    """Yield the URL of a server that reads a request and then lets ``talk`` write what it likes."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection, suppress(OSError):
                    connection.recv(2**16)
                    talk(connection)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.close()


def send(content: bytes) -> Talk:
    return lambda connection: connection.sendall(content)


def send_for_ever(head: bytes, part: bytes, pause: float = 0.0) -> Talk:
    def talk(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(part)
            time.sleep(pause)

    return talk


def say_nothing(connection: socket.socket) -> None:
    """Wait until the other side goes."""
    connection.recv(1)


@pytest.mark.parametrize(
    ("talk", "words"),
    [
        (send_for_ever(OK + b"\r\n", b" " * 2**16), "more than 100000 bytes"),
        (send_for_ever(OK + b"\r\n", b" ", 0.05), "no whole answer within 0.5 s"),
        (send_for_ever(OK, b"X", 0.05), "no whole answer within 0.5 s"),
        (send_for_ever(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.05), "no whole answer within"),
        (say_nothing, "no whole answer within 0.5 s"),
        (send(OK + b"Content-Length: 9\r\n\r\nabc"), "3 bytes came and 6 are missing"),
        (
            send(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc"),
            "invalid literal|IncompleteRead",
        ),
        (send(OK + b"X: y\r\n" * 200 + b"\r\n"), "more than 100 headers"),
        (send(OK + b"X: " + b"y" * 70_000 + b"\r\n\r\n"), "more than 65536 bytes"),
        (send(b"HTTP/1.1 99999 \x1b[31mx\r\n\r\n"), r"99999 \\x1b"),
        (send(b"\x16\x03\x01 no HTTP"), ".+"),
        (send(b""), "Remote end closed connection"),
    ],
)
def test_an_answer_that_is_not_whole_is_one_line_in_time(talk: Talk, words: str) -> None:
    begun = time.monotonic()
    with answering(talk) as url, pytest.raises(BrokenAnswer, match=words) as caught:
        fetch_answer(urllib.request.Request(url), seconds=0.5, most_bytes=100_000)
    assert time.monotonic() - begun < 5
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("head", "body", "words"),
    [
        (OK, b"[" * 200_000, "nested too deep"),
        (OK, b'{"data": [' + b"9" * 5000 + b"]}", "expected JSON"),
        (OK + b"Content-Encoding: gzip\r\n", b"\x1f\x8b\x08broken", "expected JSON"),
        (OK, b"\xff\xfe", "expected JSON"),
        (OK, b"<html><h1>Bad gateway</h1>", "expected JSON.*Bad gateway"),
        (OK, json.dumps({"data": [{"id": 7}]}).encode(), "no model in it"),
        (b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n", b"", "not followed"),
        (b"HTTP/1.1 500 Oops\r\n", b"[" * 200_000, "500: "),
        (b"HTTP/1.1 400 Bad\r\n", b'{"message": "\x1b[2J"}', r"400: .*\\x1b\[2J"),
    ],
)
def test_a_body_that_is_no_list_of_models_is_one_line(head: bytes, body: bytes, words: str) -> None:
    with (
        answering(send(head + b"\r\n" + body)) as url,
        pytest.raises(ServerError, match=words) as caught,
    ):
        LiveServer(url, 5)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_a_server_without_tls_is_one_line() -> None:
    with answering(send(OK + b"\r\n{}")) as url, pytest.raises(ServerError, match="SSL"):
        LiveServer(url.replace("http:", "https:"), 5)


@pytest.mark.parametrize("seconds", [0, -1, 601, float("nan")])
def test_a_timeout_that_is_none_is_wrong_usage(seconds: float) -> None:
    with pytest.raises(UsageError, match="expected seconds above 0, at most 600"):
        LiveServer("http://127.0.0.1:9", seconds)
