"""The chat template of a tokenizer: resolve it, compile it once, render with it.

Templates are untrusted code. They run in the immutable sandbox that transformers builds
(`pipeline.template.sandbox`), so the text is what every transformers user sees.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from pipeline.errors import Rejected, UsageError, excerpt_of
from pipeline.template.limits import RENDER_CLOCK, join_text
from pipeline.template.sandbox import chat_sandbox

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What a template can raise when it runs on data it was not written for; jinja2 lets the Python
# error of an expression through as it is.
RENDER_ERRORS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    MemoryError,
)


class ChatTemplate:
    """One compiled template with the special-token variables it may print.

    >>> template = ChatTemplate("{{ messages[0].content }}{{ eos_token }}", {"eos_token": "</s>"})
    >>> template.render([{"role": "user", "content": "hi"}])
    'hi</s>'
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self.special_tokens = dict(special_tokens)
        self._sandbox = chat_sandbox()
        try:
            self._compiled = self._sandbox.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise UsageError(
                f"chat template, line {error.lineno}: {error.message}; "
                "expected Jinja that transformers compiles"
            ) from error
        except (RecursionError, MemoryError, SyntaxError, ValueError, TypeError) as error:
            # What Jinja makes Python of is nested too deep for Python itself.
            words = excerpt_of(str(error) or type(error).__name__)
            raise UsageError(
                f"chat template: {words}; expected Jinja that transformers compiles"
            ) from error
        self._names: dict[str, Any] = {**self._compiled.globals, **self.special_tokens}

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
        names = {
            **self._names,
            **kwargs,
            "messages": messages,
            "tools": tools,
            "documents": documents,
            "add_generation_prompt": add_generation_prompt,
        }
        # `Template.render` in its parts: it would merge its globals, a chain of dicts, at every call.
        context = self._sandbox.context_class(
            self._sandbox, names, self._compiled.name, self._compiled.blocks
        )
        try:
            return RENDER_CLOCK.run(lambda: join_text(self._compiled.root_render_func(context)))
        except RENDER_ERRORS as error:
            words = str(error) or type(error).__name__
            raise Rejected("template_refused", f"the chat template raised: {words}") from error


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
