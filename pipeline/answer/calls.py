"""How a template writes a call, and whether the parser of its family gives the call back as it was.

The form is read off a rendering of a call whose words are known. Text templates cannot say everything:
a call's own mark inside an argument ends the call, a value without quotes loses its type. Such rows are
flagged ``call_not_read_back``. The rules follow from the form; the parsers that they were compared with
are those of vLLM 0.33.0 (``vllm/tool_parsers``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, cast

from pipeline.answer.marks import THINK_MARKS
from pipeline.answer.pieces import (
    ReadMessage,
    function_of,
    leaves_of,
    parse_arguments,
    spelling_in,
)

# A frame's marks have these shapes: <tool_call>, <parameter=, <|tool_call|>, <｜tool▁sep｜>, [ARGS], ]<]x[>[.
_MARK: Final = re.compile(
    r"\]<\][a-z]+\[>\[|<\|[^|<>\s]{1,40}\|>|<\|[\w\"]{1,32}\|?>|<[\w]{1,32}\|>"
    r"|</?｜[^<>\s]{1,40}|</?[A-Za-z_][\w:.-]{0,40}[=>]?|\[/?[A-Z][A-Z_]{2,31}\]|```"
)
_THINK: Final = frozenset(mark.rstrip(">") for pair in THINK_MARKS for mark in pair)
_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "float": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "dict": (dict,),
    "array": (list,),
    "list": (list,),
}


class CallForm(NamedTuple):
    """How calls are spelt in a family.

    ``kind``: ``json`` (the arguments are one JSON object), ``python`` (keyword arguments), ``typed``
    (each argument by itself, its type in the spelling), ``bare`` (each by itself, without a type, so
    that the tool's schema gives it one when it is read). ``marks`` frame calls and arguments;
    ``before`` (from the tool's name on) and ``after`` stand around the value of a text argument.
    """

    kind: Literal["json", "python", "typed", "bare"]
    marks: tuple[str, ...]
    before: str = ""
    after: str = ""

    @property
    def trims_newlines(self) -> bool:
        """True where parsers of this form take one newline off each side of a value.

        vLLM 0.33.0, ``tool_parsers``: those of ``<parameter=NAME>``, whether or not the template
        writes the newlines.
        """
        return "<parameter=" in self.before

    @property
    def quote(self) -> str:
        """The mark that stands on both sides of a text value, nothing where there is none."""
        opening, closing = self.before.rstrip("\n"), self.after.lstrip("\n")
        for length in range(min(len(opening), len(closing), 12), 0, -1):
            if opening[-length:] == closing[:length] and not closing[:length].isspace():
                return closing[:length]
        return ""


def read_call_form(called: str, name: str, key: str, value: str) -> CallForm | None:
    """Return the form of a call of ``name`` with the text ``value`` under ``key``; None for none.

    ``called`` is the turn with the call. Nothing here knows a family by its name.

    >>> read_call_form('<call>{"name": "f", "arguments": {"k": "v"}}</call>', "f", "k", "v")
    CallForm(kind='json', marks=('<call>', '</call>'), before='', after='')
    >>> form = read_call_form("<call><f=f>\\n<p=k>\\nv\\n</p></f></call>", "f", "k", "v")
    >>> form.kind, form.marks, form.before, form.after
    ('bare', ('<call>', '<f=', '<p=', '</p>', '</f>', '</call>'), '>\\n<p=k>\\n', '\\n</p></f></call>')
    """
    end = called.rfind(value)
    # A frame may close with the name once more, behind the value.
    at = called.rfind(name, 0, max(end, 0))
    if at < 0:
        return None
    found = [match[0] for match in _MARK.finditer(called)]
    marks = tuple(dict.fromkeys(mark for mark in found if mark.rstrip(">") not in _THINK))
    if re.search(rf'\{{\s*\\*"{key}\\*"\s*:\s*\\*"{value}\\*"\s*\}}', called):
        return CallForm("json", marks)
    before, after = called[at + len(name) : end], called[end + len(value) :]
    if f"{name}(" in called:
        return CallForm("python", marks, before, after)
    form = CallForm("bare", marks, before, after)
    is_typed = bool(form.quote) or re.search(r"string=|type=", before) is not None
    return form._replace(kind="typed" if is_typed else "bare")


def is_read_back(
    message: ReadMessage,
    text: str,
    form: CallForm | None,
    tools: Sequence[Mapping[str, Any]] | None,
) -> bool:
    """Say whether the calls of ``message`` survive being written as ``text`` and parsed again."""
    if form is None:
        return True
    if any(mark in said for said in message.texts for mark in form.marks):
        return False
    schemas = _schemas_by_name(tools)
    for call in message.calls:
        function = function_of(call)
        arguments = parse_arguments(function.get("arguments"))
        if any(not _leaf_survives(leaf, text, form) for leaf in leaves_of(arguments)):
            return False
        if form.kind == "json" or not isinstance(arguments, Mapping):
            continue
        schema = schemas.get(str(function.get("name")), {})
        for key, value in cast("Mapping[str, Any]", arguments).items():
            if form.kind == "bare" and not _value_survives(value, schema.get(key), text, form):
                return False
            if form.kind == "python" and not _python_survives(key, value, text):
                return False
            if form.kind == "typed" and not _typed_survives(value, text, form.quote):
                return False
    return True


def _typed_survives(value: Any, text: str, quote: str) -> bool:
    """Say whether a value of no text is spelt as JSON, outside the quotes of a text."""
    if isinstance(value, str):
        return True
    if isinstance(value, dict | list):
        items = cast("list[Any]", list(value.values()) if isinstance(value, dict) else value)
        return all(_typed_survives(item, text, quote) for item in items)
    spelt = json.dumps(value)
    return spelt in text and not (quote and f"{quote}{spelt}{quote}" in text)


def _leaf_survives(leaf: str, text: str, form: CallForm) -> bool:
    """Say whether a text of the arguments is written whole, and holds no mark of the call's own."""
    spelt = spelling_in(text, leaf)
    if spelt is None or any(mark in spelt for mark in form.marks):
        return False
    quote = form.quote
    return not (quote and form.kind != "json" and quote in spelt.replace(f"\\{quote}", ""))


def _python_survives(key: str, value: Any, text: str) -> bool:
    """Say whether an argument is written as Python, which reads texts in quotes and ``None``."""
    if isinstance(value, str):
        return any(f"{key}={quote}" in text for quote in "\"'")
    return f"{key}={value!r}" in text or (
        isinstance(value, dict | list) and not _has_constant(value)
    )


def _has_constant(value: Any) -> bool:
    if isinstance(value, dict | list):
        items = cast("list[Any]", list(value.values()) if isinstance(value, dict) else value)
        return any(map(_has_constant, items))
    return value is None or isinstance(value, bool)


def _value_survives(value: Any, schema: object, text: str, form: CallForm) -> bool:
    """Say whether a value without quotes is read as of its own type, which the schema must name."""
    if isinstance(value, str):
        if form.trims_newlines and not _keeps_newlines(value, form):
            return False
        kinds = _kinds_of(schema)
        return kinds is None or "string" in kinds or not _is_json(value)
    # Parsers read a number without a fraction as a whole one: 5.0 comes back as 5.
    if value is None or schema is None or (isinstance(value, float) and value.is_integer()):
        return False
    if isinstance(value, dict | list) and spelling_of_json(value, text) is None:
        return False
    kinds = _kinds_of(schema)
    if kinds is None:
        return True
    named = {kind for name in kinds for kind in _TYPES.get(name, (type(value),))}
    return type(value) in named


def spelling_of_json(value: Any, text: str) -> str | None:
    """Return the JSON spelling of ``value`` that ``text`` has, None where it has none."""
    for ascii_only in (False, True):
        for separators in ((", ", ": "), (",", ":")):
            spelt = json.dumps(value, ensure_ascii=ascii_only, separators=separators)
            if spelt in text:
                return spelt
    return None


def _keeps_newlines(value: str, form: CallForm) -> bool:
    """Say whether one newline may be taken off each side: the template has written it itself."""
    starts, ends = form.before.endswith("\n"), form.after.startswith("\n")
    return (starts or not value.startswith("\n")) and (ends or not value.endswith("\n"))


def _kinds_of(schema: object) -> set[str] | None:
    """Return the types that a schema names, None where it names none."""
    kind: object = (
        cast("Mapping[str, Any]", schema).get("type") if isinstance(schema, Mapping) else None
    )
    if isinstance(kind, str):
        return {kind.lower()}
    if isinstance(kind, list) and kind:
        return {str(each).lower() for each in cast("list[object]", kind)}
    return None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _schemas_by_name(tools: Sequence[Mapping[str, Any]] | None) -> dict[str, Mapping[str, Any]]:
    """Return the schemas of each tool's parameters, by the tool's name."""
    found: dict[str, Mapping[str, Any]] = {}
    for tool in tools or ():
        function: Any = tool.get("function", tool)
        parameters: Any = function.get("parameters") if isinstance(function, Mapping) else None
        properties: Any = parameters.get("properties") if isinstance(parameters, Mapping) else None
        if isinstance(properties, Mapping):
            name: Any = cast("Mapping[str, Any]", function).get("name")
            found[str(name)] = cast("Mapping[str, Any]", properties)
    return found
