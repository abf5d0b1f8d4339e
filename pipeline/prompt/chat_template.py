"""The chat template of a tokenizer: resolve it, compile it once, render with it.

Templates are untrusted code. They run in the immutable sandbox that transformers builds, its two slow
questions answered sooner, so the text is what every transformers user sees, and within the limits of
`pipeline.prompt.bounded`. Compiling counts as running: jinja2 works out constants.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import missing
from transformers.utils import chat_template_utils

from pipeline.errors import UsageError, excerpt_of
from pipeline.prompt.bounded import BOUNDED_RUNS, OverLimit, read_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


CLOCK_FUNCTION: Final = "strftime_now"
"""The function by which templates read the clock; transformers gives it to them."""

CHARACTERS_WRITTEN: Final = 2**22
"""Text that a render may write of its own."""

_CHARACTERS_PER_GIVEN: Final = 4
_TEXT_METHODS: Final = frozenset(name for name in vars(str) if not name.startswith(("_", "format")))
_PLAIN_VALUES: Final = frozenset({str, int, bool, float, list, dict, type(None)})
_DICT_ATTRIBUTES: Final = frozenset(name for kind in dict.__mro__ for name in vars(kind))


class ChatTemplate:
    """One compiled template with the special-token variables it may print.

    >>> template = ChatTemplate("{{ messages[0].content }}{{ eos_token }}", {"eos_token": "</s>"})
    >>> template.render([{"role": "user", "content": "hi"}])
    'hi</s>'
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self.special_tokens = dict(special_tokens)
        self._refusal: OverLimit | None = None
        try:
            wrong = read_source(find_syntax_error, source)
        except OverLimit as error:
            # Refused where it is used, as one that renders for ever.
            self._refusal = error.without_frames()
            return
        if wrong is not None:
            raise UsageError(f"chat template, {wrong}; expected Jinja that transformers compiles")

    @property
    def sha256(self) -> str:
        """Hex digest of the template's text as UTF-8."""
        return hashlib.sha256(self.source.encode("utf-8", "surrogatepass")).hexdigest()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        **kwargs: Any,
    ) -> str:
        """Return the text of ``messages``; every argument reaches the template as it is.

        Raises `Rejected` (``template_refused``) with the template's own words.
        """
        self.check_compiles()
        names = {
            **self.special_tokens,
            **kwargs,
            "messages": messages,
            "tools": tools,
            "documents": documents,
            "add_generation_prompt": add_generation_prompt,
        }
        return BOUNDED_RUNS.run(render_source, self.source, names)

    def check_compiles(self) -> None:
        """Raise `OverLimit` where compiling the template alone takes more than a render may."""
        if self._refusal is not None:
            raise self._refusal.without_frames()


def find_syntax_error(source: str) -> str | None:
    """Return where and why a template does not compile, None where it does."""
    try:
        compile_template(source)
    except jinja2.TemplateSyntaxError as error:
        return f"line {error.lineno}: {error.message}"
    except (SyntaxError, ValueError, RecursionError) as error:
        # Of Python, which jinja2 compiles templates to.
        return f"as a whole: {excerpt_of(str(error))}"
    return None


def render_source(source: str, names: dict[str, Any]) -> str:
    """Return the text of a template with the variables ``names``."""
    compiled, own = compile_template(source)
    # `Template.render` in its parts: it would merge its globals, a chain of dicts, at every call.
    sandbox = compiled.environment
    context = sandbox.context_class(sandbox, {**own, **names}, compiled.name, compiled.blocks)
    return join_text(compiled.root_render_func(context), names)


@lru_cache(maxsize=64)
def compile_template(source: str) -> tuple[jinja2.Template, dict[str, Any]]:
    """Return the compiled template, and what the sandbox gives it."""
    compiled = chat_sandbox().from_string(source)
    return compiled, dict(compiled.globals)


def join_text(pieces: Iterable[str], given: Mapping[str, Any]) -> str:
    """Return the joined pieces of a render.

    Raises `SecurityError` where they are over `CHARACTERS_WRITTEN` and four times what the template
    was given besides: what is rendered is encoded next, which takes a hundred times its memory.
    """
    held: list[str] = []
    size, most = 0, CHARACTERS_WRITTEN
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size > most:
            if most == CHARACTERS_WRITTEN:
                most += _CHARACTERS_PER_GIVEN * sum(_sizes_of(given))
            if size > most:
                raise SecurityError(f"it wrote over {most} characters")
    return "".join(held)


def _sizes_of(values: object) -> Iterator[int]:
    """Yield the length of every text inside values as JSON has them, and 1 for everything else."""
    waiting = [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield len(value)
        elif isinstance(value, Mapping):
            items = cast("Mapping[object, object]", value)
            waiting += [*items.keys(), *items.values()]
        elif isinstance(value, list | tuple):
            waiting += cast("list[object]", value)
        else:
            yield 1


class ChatSandbox(ImmutableSandboxedEnvironment):
    """Gives the answers of its base class; a render takes a half to a third of the time.

    It has no list of what takes too long: `pipeline.prompt.bounded` ends whatever does.
    """

    _known_safety: ClassVar[dict[tuple[type, str], bool]] = {}

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return ``obj.attribute`` where that is safe, else ``obj[attribute]``, else undefined.

        For ``message.role`` the base class tries the attribute, catches its error and then takes the
        key. A plain dict has no attribute but `_DICT_ATTRIBUTES`, so the key is taken at once. What
        the base class asks of a value, it asks because of ``str.format``: no method that a text has
        under another name, and no plain value, is that.
        """
        kind = type(obj)
        if kind is dict and attribute not in _DICT_ATTRIBUTES:
            value = obj.get(attribute, missing)
            return self.undefined(obj=obj, name=attribute) if value is missing else value
        if kind is str and attribute in _TEXT_METHODS:
            return getattr(obj, attribute)
        if self._known_safety.get((kind, attribute)):
            value = getattr(obj, attribute, missing)
            if type(value) in _PLAIN_VALUES:
                return value
        return super().getattr(obj, attribute)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Say whether a template may have ``obj.attr``.

        The base class goes by the object's type and the attribute's name, so it is asked once for
        each.
        """
        key = type(obj), attr
        is_safe = self._known_safety.get(key)
        if is_safe is None:
            is_safe = self._known_safety[key] = super().is_safe_attribute(obj, attr, value)
        return is_safe


@cache
def chat_sandbox() -> ChatSandbox:
    """Return the environment of transformers' templates: its filters, functions, extensions, rules.

    transformers makes an equal one for every template; this is an overlay on that of an empty one.
    """
    compiled: Any = chat_template_utils._compile_jinja_template("")  # pyright: ignore[reportPrivateUsage]
    sandbox: Any = compiled.environment.overlay()
    sandbox.__class__ = ChatSandbox
    return sandbox


@dataclass(frozen=True)
class FixedClock:
    """Stands in for `CLOCK_FUNCTION`: always the same moment, or a refusal where there is none.

    A row must not depend on the day it was built, so the clock of every render is replaced.

    >>> FixedClock(datetime(2026, 11, 25))("%d %b %Y")
    '25 Nov 2026'
    """

    moment: datetime | None = None

    def __call__(self, format: str) -> str:
        if self.moment is None:
            raise jinja2.TemplateError(
                "it reads the clock (strftime_now), so the row would depend on the day; give "
                "server_options.fixed_date: YYYY-MM-DD, or the date in the template's own terms "
                "(chat_template_kwargs.date_string in Llama's)"
            )
        return self.moment.strftime(format)


class ChatTemplates:
    """The templates of a tokenizer by name: ``default``, and ``tool_use`` where there is one."""

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        self._by_name = {
            name: ChatTemplate(source, special_tokens) for name, source in sources.items()
        }

    @property
    def is_empty(self) -> bool:
        """True where the tokenizer has no chat template and none was given."""
        return not self._by_name

    @property
    def sha256_by_name(self) -> dict[str, str]:
        """Hex digest of each template's text, by name."""
        return {name: template.sha256 for name, template in sorted(self._by_name.items())}

    def for_request(self, has_tools: bool) -> ChatTemplate:
        """Return the template that transformers picks (``get_chat_template``): ``tool_use`` with tools."""
        if has_tools and "tool_use" in self._by_name:
            return self._by_name["tool_use"]
        if "default" in self._by_name:
            return self._by_name["default"]
        if not self._by_name:
            raise UsageError(
                "the tokenizer has no chat template; expected one for examples with messages: "
                "give chat_template: FILE.jinja"
            )
        raise UsageError(
            f"chat template: no 'default' among {sorted(self._by_name)}; give chat_template: FILE.jinja"
        )


def resolve_templates(
    tokenizer: PreTrainedTokenizerBase, chat_template: str | None
) -> ChatTemplates:
    """Return the templates of ``tokenizer``, or the one in the file ``chat_template``.

    Raises `UsageError` where the file cannot be read or does not compile, or where there is no text.
    """
    special_tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    if chat_template is not None:
        path = Path(chat_template)
        try:
            source = path.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"chat_template: {path}: {error}; expected a UTF-8 Jinja file"
            ) from error
        return ChatTemplates({"default": source}, special_tokens)
    own: Any = tokenizer.chat_template
    if own is None:
        return ChatTemplates({}, special_tokens)
    if isinstance(own, str):
        return ChatTemplates({"default": own}, special_tokens)
    sources: dict[Any, Any] = dict(own) if isinstance(own, Mapping) else {"": own}
    if not all(isinstance(each, str) for pair in sources.items() for each in pair):
        raise UsageError(
            f"chat template: found {excerpt_of(own)} as chat_template of the tokenizer; expected text, or "
            "texts by name: mend its tokenizer_config.json, or give chat_template: FILE.jinja"
        )
    return ChatTemplates(sources, special_tokens)
