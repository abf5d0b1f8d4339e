"""The sandbox in which templates run: transformers' own, with its two slow questions answered sooner."""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar, Final

from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import missing
from transformers.utils import chat_template_utils

_DICT_ATTRIBUTES: Final = frozenset(name for kind in dict.__mro__ for name in vars(kind))


class ChatSandbox(ImmutableSandboxedEnvironment):
    """Gives the answers of its base class; a render takes a half to a third of the time.

    It has no list of what takes too long: `pipeline.prompt.bounded` ends whatever does.
    """

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


@cache
def chat_sandbox() -> ChatSandbox:
    """Return the environment of transformers' templates: its filters, functions, extensions, rules.

    transformers makes an equal one for every template; this is an overlay on that of an empty one.
    """
    compiled: Any = chat_template_utils._compile_jinja_template("")  # pyright: ignore[reportPrivateUsage]
    sandbox: Any = compiled.environment.overlay()
    sandbox.__class__ = ChatSandbox
    return sandbox
