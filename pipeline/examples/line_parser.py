"""Lines that repeat a conversation: the messages that the line before had are not read again.

A file with one line for each decision point says a conversation as often as it has points: all of
it, or as far as it had gone then. So most of its text was read just before, and comparing texts is
fifty times as fast as reading JSON.
"""

from __future__ import annotations

import re
from typing import Any, Final

from pipeline.lines.json_text import decode_quickly, find_end, parse_line

# A line from its beginning to a list of messages that is a key's value in the line's own object:
# before it stand keys with texts (without an escape) and other values that are no container.
_HEAD: Final = re.compile(
    r'[ \t]*\{[ \t]*(?:"[^"\\]*"[ \t]*:[ \t]*(?:"[^"\\]*"|[-+.\w]+)[ \t]*,[ \t]*)*?'
    r'"messages"[ \t]*:[ \t]*(?=\[)'
)
_NEXT: Final = re.compile(r"[ \t]*([],])[ \t]*")


SHORT: Final = 4096
"""Characters of a line below which reading it is as quick as looking for what it repeats."""
_KEPT: Final = 2
"""Conversations that are kept: two writers may take turns, or spell one conversation differently."""


class LineParser:
    """Parses lines, one after the other, exactly as `parse_line` does.

    The objects of several lines share their messages, so none may be changed.

    >>> parser = LineParser()
    >>> parser.parse('{"messages": [{"role": "user"}], "id": "a"}')["id"]
    'a'
    """

    def __init__(self) -> None:
        self._known: list[_Conversation] = []

    def parse(self, text: str) -> dict[str, Any]:
        """Return the object of one line. Raises `Rejected` as `parse_line` does."""
        head = None if len(text) < SHORT else _HEAD.match(text)
        if head is None:
            return parse_line(text)
        begin = head.end()
        for known in self._known:
            if known.is_begun_by(text, begin):
                value = known.complete(text, begin)
                if value is not None:
                    return value
        value = parse_line(text)
        self._known = [_Conversation(text, begin, value["messages"]), *self._known[: _KEPT - 1]]
        return value


class _Conversation:
    """The messages of a line, and their text: ``line`` from ``begin`` on."""

    def __init__(self, line: str, begin: int, messages: list[Any]) -> None:
        self._line, self._begin, self._messages = line, begin, messages
        # The text of all messages without the closing bracket, once a line seems to repeat it.
        self._text: str | None = None

    def is_begun_by(self, text: str, begin: int) -> bool:
        """Say whether the messages of the line ``text``, from ``begin`` on, begin with all of these."""
        if not self._messages:
            return False
        if self._text is None:
            # To find where the messages end they must be read again, so much must be alike already.
            alike = len(self._line) - (len(self._line) - self._begin) // 4
            if not text.startswith(self._line[self._begin : alike], begin):
                return False
            self._text = self._line[self._begin : find_end(self._line, self._begin) - 1]
        return text.startswith(self._text, begin)

    def complete(self, text: str, begin: int) -> dict[str, Any] | None:
        """Return the object of a line that repeats these messages, and perhaps has more of them.

        None where only `parse_line` can tell. The line without the repeated text, which is a whole
        number of items of a list, is a line too; it is valid if and only if the whole is.
        """
        assert self._text is not None, "a line was found to repeat it"
        follow = _NEXT.match(text, begin + len(self._text))
        if follow is None:
            return None
        opened = f"{text[:begin]}["
        rest = text[follow.start(1) :] if follow[1] == "]" else text[follow.end() :]
        value = decode_quickly(opened + rest)
        if type(value) is not dict:
            return None
        further: list[Any] = value["messages"]
        if bool(further) != (follow[1] == ","):
            return None
        if further:
            end = find_end(opened + rest, begin) - len(opened)
            self._text = text[begin : follow.end() + end - 1]
            self._messages = [*self._messages, *further]
        value["messages"] = self._messages
        return value
