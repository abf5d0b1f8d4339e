"""Control marks: texts that a tokenizer, or a model of another family, reads as more than text.

Everything here works on text. Where a tokenizer is at hand its added tokens decide; where there is
none (a table of templates), a mark is recognised by its shape.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, cast

THINK_MARKS: Final = (
    ("<think>", "</think>"),
    ("<think:opensource>", "</think:opensource>"),
    ("<mm:think>", "</mm:think>"),
    ("<seed:think>", "</seed:think>"),
    ("<thought>", "</thought>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel>thought", "<channel|>"),
    ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    ("◁think▷", "◁/think▷"),
    ("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
)
"""What opens and closes a think block, by model family; which pair a template uses is probed."""

WELL_KNOWN_MARKS: Final = (
    *("<s>", "</s>", "<bos>", "<eos>", "<pad>", "<unk>", "<|endoftext|>", "<|endofprompt|>"),
    *("<|im_start|>", "<|im_end|>", "<|im_sep|>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"),
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eot_id|>", "<|eom_id|>", "<|python_tag|>", "<start_of_turn>", "<end_of_turn>"),
    *("<|user|>", "<|assistant|>", "<|system|>", "<|observation|>", "<|end|>", "<|eot|>"),
    *("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
    *("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|start_of_role|>", "<|end_of_role|>"),
    *("<|start|>", "<|channel|>", "<|message|>", "<|return|>", "<|call|>", "[|endofturn|]"),
    *("[TOOL_CALLS]", "[TOOL_RESULTS]", "[AVAILABLE_TOOLS]", "<tool_call>", "</tool_call>"),
    *("<think>", "</think>", "[THINK]", "[/THINK]"),
)
"""Control marks of the common families: in another family's text they stand for something wrong."""

MODEL_MARKS: Final = frozenset(
    {
        *(mark for pair in THINK_MARKS for mark in pair),
        *("<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
        *("<|tool_call|>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁sep｜>"),
        *(
            "<｜tool▁call▁begin｜>",
            "<｜tool▁call▁end｜>",
            "<|tool_call_start|>",
            "<|tool_call_end|>",
        ),
    }
)
"""Marks that models emit themselves: thought and tool calls. In a continuation they are at home."""

_SHAPES: Final = re.compile(
    r"<\|[^|<>\s]{1,64}\|>"  # <|im_end|>
    r"|</?｜[^｜<>\s]{1,64}(?:｜[^｜<>\s]{1,64})?｜?>"  # <｜User｜>, </｜DSML｜invoke>
    r"|<\|[a-z_\"]{1,32}>|<[a-z_]{1,32}\|>"  # <|turn> and <turn|>
    r"|\[\|[a-z_]{1,32}\|\]|〈\|[A-Za-z_]{1,32}\|〉"  # [|endofturn|]
    r"|</?[A-Za-z_#][\w:#.-]{0,62}>|<[\u4e00-\u9fff]{1,8}>"  # <end_of_turn>, </s>
    r"|\[/?(?:[A-Z][A-Z_]{1,31}|gMASK)\]"  # [INST]
    r"|\[e~\[|\]~b\]|\]~!b\["  # minimax
)


def pattern_of(marks: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that finds any of ``marks``, the longest first; of none, one that never matches.

    The marks are merged into one prefix tree, so that thousands of them cost no more than a few.

    >>> pattern_of(["<s>", "</s>"]).findall("a</s><s>")
    ['</s>', '<s>']
    """
    tree: dict[str, Any] = {}
    for mark in marks:
        node = tree
        for character in mark:
            node = node.setdefault(character, {})
        node[""] = {}
    return re.compile(_spell_tree(tree) if tree else r"(?!)")


def _spell_tree(tree: dict[str, Any]) -> str:
    branches = [re.escape(key) + _spell_tree(node) for key, node in tree.items() if key]
    if not branches:
        return ""
    return "(?:" + "|".join(branches) + ")" + ("?" if "" in tree else "")


class MarkSearch:
    """Finds one of ``marks`` in a text, at memory speed where none can begin there.

    >>> MarkSearch(["<s>", "[INST]"]).find_in("a [b] <c> <s>")
    '<s>'
    """

    def __init__(self, marks: Iterable[str]) -> None:
        by_first: dict[str, list[str]] = {}
        for mark in marks:
            by_first.setdefault(mark[0], []).append(mark)
        # One pattern for each first character: `re` skips to a known character, but tries a pattern
        # that may begin with one of several everywhere, which takes about six times as long.
        self._patterns = [(first, pattern_of(group)) for first, group in by_first.items()]

    def find_in(self, text: str) -> str | None:
        """Return a mark that ``text`` holds, None where it holds none."""
        for first, pattern in self._patterns:
            if first in text and (match := pattern.search(text)):
                return match[0]
        return None


def control_pattern(
    control_tokens: Collection[str] | None, special_tokens: Iterable[str]
) -> re.Pattern[str]:
    """Return what finds control tokens: a tokenizer's own, or without one whatever has their shape.

    White space that a tokenizer keeps as added tokens (Gemma's runs of newlines) is no control token.
    """
    specials = [token for token in special_tokens if token.strip()]
    if control_tokens is not None:
        return pattern_of(control_marks(control_tokens, specials))
    return re.compile("|".join([*map(re.escape, specials), _SHAPES.pattern]))


def control_marks(tokens: Collection[str], specials: Iterable[str] = ()) -> list[str]:
    """Return the added ``tokens`` that control something, and ``specials``, which do by their name."""
    marks = [t for t in tokens if t.strip("▁ \t\r\n") and not _HTML_TAG.fullmatch(t)]
    return [*marks, *(special for special in specials if special.strip())]


# Gemma keeps HTML tags as added tokens; in a user's text they are text like any other.
_HTML_TAG = re.compile(
    r"</?(?:table|caption|thead|tbody|tfoot|tr|th|td|h[1-6]|blockquote|code|pre|a|b|i|u|s|strong|em|ul|ol|li|p|br)>"
)


def find_text_flags(
    messages: Sequence[Mapping[str, Any]],
    control_tokens: Collection[str],
    *,
    raw_context: str = "",
    known: dict[int, tuple[Mapping[str, Any], str]] | None = None,
) -> tuple[str, ...]:
    """Return the flags of context texts, sorted: a subset of `pipeline.types.FLAGS`.

    ``control_token_in_text``: a system, developer, user or tool text (parts too) holds one of the
    tokenizer's ``control_tokens`` or a well-known mark of another family, or ``raw_context``, where
    the tokenizer's own marks are at home, holds such a foreign mark. ``think_in_text``: an
    assistant's text has a think mark without its partner. Give a frozenset: its patterns are kept.
    ``known`` is what earlier calls with the same tokens found, by the id of a message.

    >>> find_text_flags([{"role": "user", "content": "print <|im_end|>"}], frozenset())
    ('control_token_in_text',)
    """
    tokens = control_tokens if isinstance(control_tokens, frozenset) else frozenset(control_tokens)
    known = {} if known is None else known
    anywhere = _search_anywhere(tokens)
    flags: set[str] = set()
    if raw_context and foreign_pattern(tokens).search(raw_context):
        flags.add("control_token_in_text")
    for message in messages:
        found = known.get(id(message))
        if found is None:
            found = known[id(message)] = message, _find_text_flag(message, anywhere)
        if found[1]:
            flags.add(found[1])
    return tuple(sorted(flags))


def _find_text_flag(message: Mapping[str, Any], anywhere: MarkSearch) -> str:
    content = message.get("content")
    texts = [content] if isinstance(content, str) else _texts_of(content)
    if message.get("role") == "assistant":
        return "think_in_text" if any(map(has_stray_think_mark, texts)) else ""
    return "control_token_in_text" if any(map(anywhere.find_in, texts)) else ""


@lru_cache(maxsize=16)
def _search_anywhere(tokens: frozenset[str]) -> MarkSearch:
    return MarkSearch([*control_marks(tokens), *WELL_KNOWN_MARKS])


@lru_cache(maxsize=16)
def foreign_pattern(control_tokens: frozenset[str]) -> re.Pattern[str]:
    """Return what finds the well-known marks that are no control tokens here."""
    return pattern_of(mark for mark in WELL_KNOWN_MARKS if mark not in control_tokens)


def _texts_of(content: object) -> Iterator[str]:
    """Yield the texts of a message's content: itself, or those of its parts."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, Mapping):
        for value in cast("Mapping[str, object]", content).values():
            yield from _texts_of(value)
    elif isinstance(content, Sequence):
        for part in cast("Sequence[object]", content):
            yield from _texts_of(part)


# A pair that is plain English (Apriel's) means something only where its template is known to use it.
_THINK_PATTERNS = tuple(
    (pair, pattern_of(pair)) for pair in THINK_MARKS if not pair[0].endswith(":")
)
_ANY_THINK_MARK = MarkSearch(mark for pair, _ in _THINK_PATTERNS for mark in pair)


def has_stray_think_mark(text: str) -> bool:
    """Return True where a think mark opens twice, closes what is not open, or is never closed.

    >>> has_stray_think_mark("<think>a</think>b"), has_stray_think_mark("a</think>b")
    (False, True)
    """
    if _ANY_THINK_MARK.find_in(text) is None:
        return False
    return any(
        is_unbalanced(pattern.findall(text), pair, is_open=False)
        for pair, pattern in _THINK_PATTERNS
    )


def is_unbalanced(marks: Sequence[str], pair: tuple[str, str], *, is_open: bool) -> bool:
    """Return True where ``marks`` in their order do not open and close in turn, ending closed."""
    for mark in marks:
        if is_open == (mark == pair[0]):
            return True
        is_open = not is_open
    return is_open
