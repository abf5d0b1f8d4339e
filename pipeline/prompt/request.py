"""A chat request and what a server makes of it.

A dialect is one server's rules at one version. It turns a request into prompt text (or, where the
server bypasses Jinja, into ids) and refuses with `Rejected` where the server refuses.

The checks are those that must hold before any server's rule can be applied; they read the request and
never change it. A key whose value is null counts as absent, because Arrow and pydantic write every key
of a record.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, Protocol, TypeVar, cast

from pipeline.errors import Rejected
from pipeline.types import Message

if TYPE_CHECKING:
    from pipeline.prompt.chat_template import ChatTemplates

SERVER_VERSIONS: Final = {
    "vllm": "0.33.0",
    "sglang": "0.5.23",
    "transformers": "5.24.0",
    "mlx": "0.32.2",
    "plain": "",
}
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


class TemplateDialect(ABC):
    """A server that renders the model's chat template: `_render` holds its rules."""

    def render_prompt(self, request: ChatRequest, templates: ChatTemplates) -> Rendering:
        """Return the prompt that the server builds, generation prompt included."""
        return self._render(request, templates, add_generation_prompt=True)

    def render_turn(self, request: ChatRequest, templates: ChatTemplates) -> Rendering:
        """Return the text of a finished conversation, without a generation prompt."""
        return self._render(request, templates, add_generation_prompt=False)

    @abstractmethod
    def _render(
        self, request: ChatRequest, templates: ChatTemplates, *, add_generation_prompt: bool
    ) -> Rendering: ...


def iterate_messages(messages: object) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield ``("messages[0]", role, message)`` for each message.

    Raises `Rejected`: ``empty_context`` for no message, ``wrong_type`` and ``missing_field`` for a
    message that is no object or has no role.
    """
    listed = expect_list(messages, "messages")
    if not listed:
        raise Rejected("empty_context", "messages is empty; the server needs at least one message")
    for index, message in enumerate(listed):
        where = f"messages[{index}]"
        fields, role = read_role(message, where)
        yield where, role, fields


def read_role(message: object, where: str) -> tuple[Mapping[str, Any], str]:
    """Return the fields of a message and its role.

    Raises `Rejected`: ``wrong_type`` and ``missing_field`` where it is no object or has no role.
    """
    fields = expect_object(message, where)
    return fields, expect_text(require(fields, "role", where), f"{where}.role")


def require(fields: Mapping[str, Any], key: str, where: str) -> Any:
    """Return ``fields[key]``; raises `Rejected` (``missing_field``) where it is absent or null."""
    value = fields.get(key)
    if value is None:
        raise Rejected("missing_field", f"{where} has no {key!r}", fields)
    return value


def expect_object(value: object, where: str) -> Mapping[str, Any]:
    """Return ``value`` where it is a JSON object; raises `Rejected` (``wrong_type``) else."""
    if not isinstance(value, Mapping):
        refuse_type(value, where, "an object")
    return cast("Mapping[str, Any]", value)


def expect_list(value: object, where: str) -> Sequence[Any]:
    """Return ``value`` where it is a JSON array; raises `Rejected` (``wrong_type``) else."""
    if not isinstance(value, list | tuple):
        refuse_type(value, where, "a list")
    return cast("Sequence[Any]", value)


def expect_text(value: object, where: str) -> str:
    """Return ``value`` where it is text; raises `Rejected` (``wrong_type``) else."""
    if not isinstance(value, str):
        refuse_type(value, where, "text")
    return value


def optional_text(fields: Mapping[str, Any], key: str, where: str) -> str | None:
    """Return the text ``fields[key]``, or None where it is absent or null."""
    value = fields.get(key)
    return None if value is None else expect_text(value, f"{where}.{key}")


def optional_flag(fields: Mapping[str, Any], key: str, where: str) -> bool | None:
    """Return the truth value ``fields[key]``, or None where it is absent or null."""
    value = fields.get(key)
    if value is not None and not isinstance(value, bool):
        refuse_type(value, f"{where}.{key}", "true or false")
    return value


def refuse_type(value: object, where: str, expected: str) -> NoReturn:
    """Raise `Rejected` (``wrong_type``)."""
    raise Rejected("wrong_type", f"{where} must be {expected}", value)


def refuse_part(kind: str, where: str) -> NoReturn:
    """Raise `Rejected` (``unsupported_content``): an image, audio, video or file."""
    raise Rejected(
        "unsupported_content", f"{where} is a part of type {kind!r}; only text can be rendered"
    )


def in_field_order(fields: Mapping[str, Any], order: Sequence[str]) -> dict[str, Any]:
    """Return ``fields`` with the keys of ``order`` first, the others after them as they came.

    >>> in_field_order({"type": "function", "index": 0, "id": "a"}, ("id", "type"))
    {'id': 'a', 'type': 'function', 'index': 0}
    """
    return {key: fields[key] for key in order if key in fields} | dict(fields)


# Parameters of transformers' apply_chat_template, which servers call: of template kwargs these act, or
# collide, before the template sees them. transformers 5.20.2, tokenization_utils_base.py.
CALL_PARAMETERS: Final = frozenset(
    [
        "self",
        "conversation",
        "tools",
        "documents",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "sanitize_control_tokens",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
    ]
)
# Given twice, once by the server: a TypeError there.
_TAKEN = frozenset(["self", "conversation", "messages"])
# Refused by apply_chat_template when they are set and only text is asked for.
_REFUSED_WHEN_SET = frozenset(
    ["continue_final_message", "sanitize_control_tokens", "return_assistant_tokens_mask"]
)


@dataclass(frozen=True, slots=True)
class TemplateCall:
    """What of the template kwargs reaches the template: its documents and its variables."""

    documents: list[dict[str, Any]] | None
    variables: dict[str, Any]


def split_template_kwargs(
    kwargs: Mapping[str, Any], taken: frozenset[str] = _TAKEN
) -> TemplateCall:
    """Return what reaches the template through transformers' ``apply_chat_template``.

    Raises `Rejected` (``server_refused``) for a name that the server's own call has ``taken``, and
    for a switch that fails there.

    transformers 5.20.2, ``utils/chat_template_utils.py``: ``render_jinja_template``.
    """
    for name in sorted(kwargs.keys() & (taken | _TAKEN)):
        raise Rejected(
            "server_refused", f"chat_template_kwargs: {name!r} is set by the server itself", kwargs
        )
    for name in sorted(_REFUSED_WHEN_SET):
        if kwargs.get(name):
            raise Rejected(
                "server_refused", f"chat_template_kwargs: {name!r} fails in the server", kwargs
            )
    return TemplateCall(
        read_documents(kwargs.get("documents")),
        {name: value for name, value in kwargs.items() if name not in CALL_PARAMETERS},
    )


def read_passed_kwargs(kwargs: Mapping[str, Any], own: Mapping[str, Any]) -> TemplateCall:
    """Return what reaches the template where a server asks ``apply_chat_template`` for ids, with
    variables of its ``own`` and all kwargs.

    Raises `Rejected` (``server_refused``) for a kwarg that is a parameter of that call: it fails there,
    or cuts, pads or replaces what the template writes.
    """
    for name in sorted(kwargs.keys() & ((CALL_PARAMETERS - {"documents"}) | _TAKEN)):
        raise Rejected(
            "server_refused",
            f"chat_template_kwargs: {name!r} is a parameter of apply_chat_template, which fails or does "
            "something else than to reach the template; leave it out",
            kwargs,
        )
    passed = {name: value for name, value in kwargs.items() if name != "documents"}
    return TemplateCall(read_documents(kwargs.get("documents")), {**own, **passed})


def read_documents(documents: object) -> list[dict[str, Any]] | None:
    """Return the documents; raises `Rejected` (``wrong_type``) where they are no list of objects."""
    if documents is None:
        return None
    where = "chat_template_kwargs.documents"
    listed = expect_list(documents, where)
    return [dict(expect_object(item, f"{where}[{at}]")) for at, item in enumerate(listed)]
