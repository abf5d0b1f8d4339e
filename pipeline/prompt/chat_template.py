"""The chat template of a tokenizer: resolve it, compile it once, render with it.

Templates are untrusted code. They run in the immutable sandbox that transformers builds
(`pipeline.prompt.sandbox`), so the text is what every transformers user sees, and within the limits
of `pipeline.prompt.bounded`. Compiling counts as running: jinja2 works out constants.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from pipeline.errors import UsageError, excerpt_of
from pipeline.prompt.bounded import BOUNDED_RUNS, read_source
from pipeline.prompt.limits import OverLimit, join_text
from pipeline.prompt.sandbox import chat_sandbox

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
