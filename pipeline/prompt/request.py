"""How an inference server rewrites a chat request before its template runs.

A dialect is one server's rules at one version. It turns a request into prompt text (or, where the
server bypasses Jinja, into ids) and refuses with `Rejected` where the server refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeVar

from pipeline.types import Message

if TYPE_CHECKING:
    from pipeline.prompt.chat_template import ChatTemplates

SERVER_VERSIONS: Final = {"vllm": "0.33.0", "sglang": "0.5.23", "plain": ""}
"""The release of each server whose rules are reproduced; ``plain`` has none but transformers'."""

Made = TypeVar("Made")


class SharedWork:
    """What was made of objects that requests have in common: messages, tools, template kwargs.

    An object is told by its identity and is kept, so that no other takes its id; none may change.
    Keep one for a batch, so that it lets go of the batch's objects.

    >>> shared, tools = SharedWork(), [{"function": {"name": "f"}}]
    >>> shared.once("names", lambda: [tool["function"]["name"] for tool in tools], tools)
    ['f']
    """

    __slots__ = ("_made", "_tables")

    def __init__(self) -> None:
        self._made: dict[tuple[Any, ...], tuple[Any, tuple[object, ...]]] = {}
        self._tables: dict[str, dict[int, Any]] = {}

    def once(self, name: str, make: Callable[[], Made], *objects: object) -> Made:
        """Return what ``make`` makes of ``objects``, called at the first time for these objects."""
        key = (name, *map(id, objects))
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = (make(), objects)
        return found[0]

    def table(self, name: str) -> dict[int, Any]:
        """Return the table ``name`` by the id of an object, for loops where `once` is too slow.

        What is entered must hold the object itself.
        """
        return self._tables.setdefault(name, {})


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat request as a client would send it; nothing in it has been rewritten yet.

    ``shared`` is what requests with objects in common have made of them already.
    """

    messages: Sequence[Message]
    tools: Sequence[dict[str, Any]] | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    shared: SharedWork = field(default_factory=SharedWork, compare=False, repr=False)


class Rendering(NamedTuple):
    """What a server makes of a request.

    ``text`` is the prompt; ``ids`` is set only where the server writes ids without a template
    (then ``text`` is their decoding); ``flags`` is a subset of `pipeline.types.FLAGS`.
    """

    text: str
    flags: tuple[str, ...] = ()
    ids: tuple[int, ...] | None = None


class Dialect(Protocol):
    """One server's rules."""

    @property
    def name(self) -> str:
        """What ``server:`` says."""
        ...

    @property
    def version(self) -> str:
        """The server's version whose rules these are; part of the seal."""
        ...

    def render_prompt(self, request: ChatRequest, templates: ChatTemplates) -> Rendering:
        """Return the prompt that the server builds, generation prompt included.

        Raises `Rejected` (``server_refused``, ``template_refused``, ``unsupported_content``).
        """
        ...

    def render_turn(self, request: ChatRequest, templates: ChatTemplates) -> Rendering:
        """Return the text of a finished conversation whose last message is the assistant's.

        The same rewriting as `render_prompt`, without the generation prompt: what the template
        makes of a message, from which a continuation is cut.
        """
        ...
