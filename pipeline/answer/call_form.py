"""How a template writes a call, read off its rendering of a call whose words are known."""

from __future__ import annotations

import re
from typing import Final, Literal, NamedTuple

from pipeline.answer.marks import THINK_MARKS

# A frame's marks have these shapes: <tool_call>, <parameter=, <|tool_call|>, <｜tool▁sep｜>, [ARGS], ]<]x[>[.
_MARK: Final = re.compile(
    r"\]<\][a-z]+\[>\[|<\|[^|<>\s]{1,40}\|>|<\|[\w\"]{1,32}\|?>|<[\w]{1,32}\|>"
    r"|</?｜[^<>\s]{1,40}|</?[A-Za-z_][\w:.-]{0,40}[=>]?|\[/?[A-Z][A-Z_]{2,31}\]|```"
)
_THINK: Final = frozenset(mark.rstrip(">") for pair in THINK_MARKS for mark in pair)


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
