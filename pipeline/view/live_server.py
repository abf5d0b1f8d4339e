"""A running server, asked for the ids that it makes of a prompt.

vLLM answers ``/v1/chat/completions/render`` with the ids of the very request; SGLang, and a vLLM
without that route, are asked ``/tokenize``, which renders messages as well.
"""

from __future__ import annotations

import base64
import json
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from pipeline.config import PrepareConfig
from pipeline.errors import ContextFrozenError, UsageError, excerpt_of
from pipeline.examples.decisions import DecisionPoint
from pipeline.prompt.request import ChatRequest
from pipeline.types import Message
from pipeline.view.answers import Answer, BrokenAnswer, fetch_answer

DEFAULT_SECONDS: Final = 60.0
MOST_SECONDS: Final = 600.0
"""Ten minutes without an answer end a comparison, whatever it was told to wait for."""

_RENDER, _TOKENIZE = "/v1/chat/completions/render", "/tokenize"
# What a server answers to a request that it does not take (400, 422 for its schema).
_REFUSALS: Final = (400, 422)
_LARGEST_ID: Final = 2**31 - 1
# An answer: some words around the ids, and for each of as many as we have its number and its text.
_MOST_BYTES: Final = 2**20
_MOST_BYTES_OF_ID: Final = 100


class ServerError(ContextFrozenError, OSError):
    """The server cannot be reached, or answers something that is not ids."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The server's words for a prompt that it does not take."""

    reason: str


class _Refused(Exception):
    """An HTTP status that is not one of success, with the URL and the server's words."""

    def __init__(self, url: str, status: int, words: str) -> None:
        super().__init__(url, status, words)
        self.url, self.status, self.words = url, status, words

    def to_error(self) -> ServerError:
        return ServerError(f"{self.url}: {self.status}: {self.words}")


class LiveServer:
    """A vLLM or SGLang server at ``url``; its first model is asked, ``seconds`` at most for an answer.

    A name and a password in the URL are sent to it alone, and shown nowhere. Raises `UsageError` for
    what is no URL, `ServerError` where no server answers.
    """

    def __init__(self, url: str, seconds: float = DEFAULT_SECONDS) -> None:
        if not 0 < seconds <= MOST_SECONDS:
            raise UsageError(
                f"timeout: found {seconds:g}; expected seconds above 0, at most {MOST_SECONDS:g}"
            )
        self._seconds = seconds
        url, self._credentials = _split_credentials(url)
        if not url.startswith(("http://", "https://")):
            raise UsageError(
                f"server: {excerpt_of(url)}: expected a URL such as http://127.0.0.1:8000"
            )
        self._url = url.rstrip("/").removesuffix("/v1")
        self._model = self._read_model()
        self._has_render = True

    def encode_prompt(
        self,
        point: DecisionPoint,
        request: ChatRequest,
        config: PrepareConfig,
        *,
        context_len: int,
    ) -> list[int] | Refusal:
        """Return the ids that the server makes of the context of ``point``, or why it makes none.

        Ours has ``context_len`` ids; an answer that is larger by far is refused.

        A context given as text is encoded, with added special tokens as ``raw_context`` says;
        messages are sent as ``request``.
        """
        most = _MOST_BYTES + _MOST_BYTES_OF_ID * context_len
        try:
            if point.example.messages is None:
                adds = config.raw_context == "completions"
                body = {"prompt": point.example.context, "add_special_tokens": adds}
                return self._read_ids(_TOKENIZE, body, "tokens", most)
            return self._encode_messages(build_body(request, config), most)
        except _Refused as error:
            if error.status in _REFUSALS:
                return Refusal(error.words)
            raise error.to_error() from error

    def read_version(self) -> str | None:
        """Return the version that vLLM answers to ``/version``; None where nothing of it comes."""
        try:
            answer = self._ask("/version")
        except (_Refused, ServerError):
            return None
        match answer:
            case {"version": str(version)}:
                return version
            case _:
                return None

    def _encode_messages(self, body: Mapping[str, Any], most: int) -> list[int]:
        if self._has_render:
            try:
                return self._read_ids(_RENDER, body, "token_ids", most)
            except _Refused as error:
                if error.status != 404:
                    raise
                self._has_render = False
        return self._read_ids(_TOKENIZE, body, "tokens", most)

    def _read_model(self) -> str:
        try:
            answer = self._ask("/v1/models")
        except _Refused as error:
            raise error.to_error() from error
        match answer:
            case {"data": [{"id": str(model)}, *_]}:
                return model
            case _:
                raise ServerError(f"{self._url}/v1/models: no model in it: {excerpt_of(answer)}")

    def _read_ids(self, path: str, body: Mapping[str, Any], key: str, most: int) -> list[int]:
        answer = self._ask(path, {"model": self._model, **body}, most)
        found: object = cast("dict[str, object]", answer).get(key) if _is_object(answer) else None
        if not isinstance(found, list) or not all(map(_is_id, cast("list[object]", found))):
            raise ServerError(
                f"{self._url}{path}: expected ids as {key}, found {excerpt_of(answer)}"
            )
        return cast("list[int]", found)

    def _ask(
        self, path: str, body: Mapping[str, Any] | None = None, most: int = _MOST_BYTES
    ) -> object:
        """Return the JSON that the server answers. Raises `_Refused`, and `ServerError` for any other."""
        data = None if body is None else json.dumps(body).encode()
        headers = {} if data is None else {"Content-Type": "application/json"}
        try:
            request = urllib.request.Request(self._url + path, data, headers)
            if self._credentials:
                # Not to where the server may redirect.
                request.add_unredirected_header("Authorization", self._credentials)
            answer = fetch_answer(request, seconds=self._seconds, most_bytes=most)
        except (BrokenAnswer, ValueError) as error:
            raise ServerError(f"{self._url}{path}: {error}; is a server running there?") from error
        if answer.status != 200:
            raise _Refused(self._url + path, answer.status, _words_of(answer))
        return self._parse(path, answer.body)

    def _parse(self, path: str, body: bytes) -> object:
        try:
            return json.loads(body)
        except RecursionError:
            words = "JSON that is nested too deep"
        except ValueError as error:
            words = f"{excerpt_of(str(error))}, in {excerpt_of(body.decode('utf-8', 'replace'))!r}"
        raise ServerError(
            f"{self._url}{path}: expected JSON, found {words}; is a server running there?"
        )


def _split_credentials(url: str) -> tuple[str, str]:
    """Return a URL without its name and password, and the header that these make, empty for none."""
    scheme, mark, rest = url.rpartition("://")
    authority, slash, path = rest.partition("/")
    credentials, at, host = authority.rpartition("@")
    if not at:
        return url, ""
    packed = base64.b64encode(urllib.parse.unquote_to_bytes(credentials)).decode()
    return f"{scheme}{mark}{host}{slash}{path}", f"Basic {packed}"


def build_body(request: ChatRequest, config: PrepareConfig) -> dict[str, Any]:
    """Return ``request`` as the HTTP schema takes it, with what each request of ``config`` carries.

    Arguments go as text, a call without an id gets one (it shows in no prompt that became a row), and
    an empty list of tools is left out.
    """
    body: dict[str, Any] = {
        "messages": [_as_sent(message) for message in request.messages],
        "chat_template_kwargs": dict(request.chat_template_kwargs),
    }
    effort = config.server_options.get("reasoning_effort")
    if effort is not None:
        body["reasoning_effort"] = effort
    if request.tools:
        body["tools"] = list(request.tools)
        # Without a tool parser vLLM refuses tools under any other choice, and the prompt is the same.
        # SGLang leaves the tools out of the prompt then.
        choice = "none" if config.server == "vllm" else config.server_options.get("tool_choice")
        if choice is not None:
            body["tool_choice"] = choice
    return body


def _as_sent(message: Message) -> Message:
    calls: object = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    return {**message, "tool_calls": [_call_as_sent(call, at) for at, call in enumerate(calls)]}


def _call_as_sent(call: Any, place: int) -> Any:
    if not isinstance(call, dict):
        return call
    sent = cast("dict[str, Any]", call)
    if sent.get("id") is None:
        # Nine letters and digits, as Mistral's templates want.
        sent = {**sent, "id": f"call{place:05}"}
    function = sent.get("function")
    if isinstance(function, dict):
        arguments = cast("dict[str, Any]", function).get("arguments", "")
        if not isinstance(arguments, str):
            sent = {**sent, "function": {**function, "arguments": json.dumps(arguments)}}
    return sent


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST_ID


def _words_of(refused: Answer) -> str:
    """Return what a server says of an error: its message where the answer is OpenAI's object."""
    text = refused.body.decode("utf-8", "replace")
    if 300 <= refused.status < 400:
        return "a redirect, which is not followed: give the URL of the server itself"
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return excerpt_of(text)
    match answer:
        case {"error": {"message": str(words)}} | {"message": str(words)}:
            return excerpt_of(words)
        case _:
            return excerpt_of(text)
