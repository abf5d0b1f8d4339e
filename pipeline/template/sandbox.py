"""The sandbox in which templates run: transformers' own, with its two slow questions answered sooner."""

from __future__ import annotations

import re
from collections.abc import Callable, Sized
from functools import cache, wraps
from math import log2
from typing import Any, ClassVar, Final

from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import missing
from transformers.utils import chat_template_utils

from pipeline.errors import excerpt_of
from pipeline.template.limits import REPEAT_LIMIT

_POWER_BITS: Final = 4096
# A width or precision of eight digits.
_WIDTH: Final = re.compile(r"\d{8}")
_DICT_ATTRIBUTES: Final = frozenset(name for kind in dict.__mro__ for name in vars(kind))


class ChatSandbox(ImmutableSandboxedEnvironment):
    """Gives the answers of its base class; a render takes a half to a third of the time.

    But for texts that no template needs: a product, a power or a padding over `REPEAT_LIMIT` is
    refused, because nothing could stop it once it runs in C.
    """

    intercepted_binops = frozenset(["*", "**", "%"])

    _known_safety: ClassVar[dict[tuple[type, str], bool]] = {}

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return ``obj.attribute`` where that is safe, else ``obj[attribute]``, else undefined.

        For ``message.role`` the base class tries the attribute, catches its error and then takes the
        key. A plain dict has no attribute but `_DICT_ATTRIBUTES`, so the key is taken at once.
        """
        if type(obj) is dict and attribute not in _DICT_ATTRIBUTES:
            value = obj.get(attribute, missing)
            return self.undefined(obj=obj, name=attribute) if value is missing else value
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

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Return ``left operator right`` where the result is of bounded size."""
        sizes = [_size_of(left), _size_of(right)]
        if operator == "%":
            _refuse_wide_format(left)
        elif operator == "**" and sizes[1] * log2(sizes[0] + 2) > _POWER_BITS:
            raise SecurityError(f"a power of {excerpt_of(left)} and {excerpt_of(right)}")
        elif sizes[0] * sizes[1] > REPEAT_LIMIT and not all(map(_is_number, (left, right))):
            raise SecurityError(f"a text or list repeated to over {REPEAT_LIMIT}")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call ``obj`` where that is safe, and no number asks for a padding without end."""
        for argument in (*args, *kwargs.values()):
            if type(argument) is int and abs(argument) > REPEAT_LIMIT:
                raise SecurityError(f"a call with {argument}, over {REPEAT_LIMIT}")
        if isinstance(getattr(obj, "__self__", None), str) and obj.__name__.startswith("format"):
            _refuse_wide_format(obj.__self__)
        return super().call(context, obj, *args, **kwargs)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _size_of(value: Any) -> float:
    """Return the length of a text or list, or a number itself."""
    if isinstance(value, Sized):
        return len(value)
    return abs(value) if _is_number(value) else 0


def _refuse_wide_format(template: Any) -> None:
    if isinstance(template, str) and _WIDTH.search(template):
        raise SecurityError(f"a format with a width over {REPEAT_LIMIT}")


def _bounded(pad: Callable[..., str]) -> Callable[..., str]:
    """Return a filter that pads, refusing widths over `REPEAT_LIMIT`."""

    @wraps(pad)
    def refuse_or_pad(*args: Any, **kwargs: Any) -> str:
        for argument in (*args, *kwargs.values()):
            if type(argument) is int and abs(argument) > REPEAT_LIMIT:
                raise SecurityError(f"a padding of {argument}, over {REPEAT_LIMIT}")
            _refuse_wide_format(argument)
        return pad(*args, **kwargs)

    return refuse_or_pad


@cache
def chat_sandbox() -> ChatSandbox:
    """Return the environment of transformers' templates: its filters, functions, extensions, rules.

    transformers makes an equal one for every template; this is an overlay on that of an empty one.
    """
    compiled: Any = chat_template_utils._compile_jinja_template("")  # pyright: ignore[reportPrivateUsage]
    sandbox: Any = compiled.environment.overlay()
    sandbox.__class__ = ChatSandbox
    # An overlay shares its filters with what it lies on.
    sandbox.filters = {
        **sandbox.filters,
        **{name: _bounded(sandbox.filters[name]) for name in ("center", "indent", "format")},
    }
    return sandbox
