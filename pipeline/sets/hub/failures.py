"""What the Hub's client raises, as one error of ours that says what to do and never a token.

The client itself tries again, five times with growing pauses, what is safe to send twice (uploads
after statuses 408, 429, 5xx and dropped connections; downloads after 429 and dropped connections;
huggingface_hub 2.4, ``http_backoff``), and waits as long as ``Retry-After`` says. Downloads after 5xx
are tried again by `pipeline.sets.hub.remote_set.fetch_file`. What arrives here has failed for good.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Final

from pipeline.errors import HubFailed, UsageError, excerpt_of

_AGAIN: Final = "run the same command again: what was transferred is not sent again"
_REMEDIES: Final = {
    401: "log in with `hf auth login`, or set HF_TOKEN to a token that may use this repository",
    403: "the token may not do that there: give one with write access, or another REPO",
    404: "check the name and --revision; a private repository needs a token that may read it",
    409: f"another push is at work there, or the name is taken; {_AGAIN}",
    412: f"the repository changed meanwhile; {_AGAIN}",
    429: f"the Hub asks to wait; later, {_AGAIN}",
}


@contextmanager
def hub_failures(doing: str) -> Generator[None]:
    """Turn what the Hub's client raises inside the block into `HubFailed`, or `UsageError`.

    ``doing`` says what was tried, such as ``push org/name``. Errors of another origin (a full disk)
    pass unchanged.
    """
    import huggingface_hub as hub_client
    from huggingface_hub import errors as hub

    # The class is of the HTTP library that the installed client was built on.
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    token = hub_client.get_token()
    if token and not (token.isascii() and token.isprintable()):
        raise UsageError(
            f"{doing}: the token (HF_TOKEN, or of `hf auth login`) holds characters that no token has; "
            "copy it again"
        )
    try:
        yield
    except (OSError, ValueError, RuntimeError, HTTPError) as error:
        for cause in _causes(error):
            if isinstance(cause, hub.HFValidationError):
                raise UsageError(
                    f"{doing}: {_say(cause)}; expected a repository such as ORG/NAME"
                ) from error
            if isinstance(cause, hub.HfHubHTTPError):
                raise HubFailed(_describe_answer(doing, cause)) from error
            if isinstance(cause, hub.OfflineModeIsEnabled):
                raise HubFailed(
                    f"{doing}: HF_HUB_OFFLINE is set; unset it to use the Hub"
                ) from error
            if isinstance(cause, HTTPError):
                raise HubFailed(
                    f"{doing}: the Hub cannot be reached or dropped the connection: {_say(cause)}; "
                    f"check the network and HF_ENDPOINT, then {_AGAIN}"
                ) from error
        raise


def is_server_fault(error: BaseException) -> bool:
    """Return True where the Hub answered with a status of 5xx, which may pass."""
    from huggingface_hub.errors import HfHubHTTPError

    answers = [each for each in _causes(error) if isinstance(each, HfHubHTTPError)]
    return bool(answers) and answers[0].response.status_code >= 500


def hide_token(text: str) -> str:
    """Return a text of a server without the token that this process uses, should it hold it."""
    from huggingface_hub import get_token

    token = get_token()
    return text.replace(token, "[token]") if token else text


def _describe_answer(doing: str, error: OSError) -> str:
    response = getattr(error, "response", None)
    status: int = response.status_code if response is not None else 0
    message: str = getattr(error, "server_message", None) or type(error).__name__
    remedy = _REMEDIES.get(status, _AGAIN if status >= 500 else "see what the Hub says")
    return f"{doing}: the Hub answered {status}: {excerpt_of(hide_token(message))}; {remedy}"


def _say(error: BaseException) -> str:
    return excerpt_of(hide_token(str(error) or type(error).__name__))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that it was raised from or in the handling of."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
