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


def control_pattern(
    control_tokens: Collection[str] | None, special_tokens: Iterable[str]
) -> re.Pattern[str]:
    """Return what finds control tokens: a tokenizer's own, or without one whatever has their shape.

    White space that a tokenizer keeps as added tokens (Gemma's runs of newlines) is no control token.
    """
    specials = [token for token in special_tokens if token.strip()]
    if control_tokens is not None:
        return pattern_of([*_control_marks(control_tokens), *specials])
    return re.compile("|".join([*map(re.escape, specials), _SHAPES.pattern]))


def _control_marks(tokens: Collection[str]) -> list[str]:
    return [token for token in tokens if token.strip("▁ \t\r\n") and not _HTML_TAG.fullmatch(token)]


# Gemma keeps HTML tags as added tokens; in a user's text they are text like any other.
_HTML_TAG = re.compile(
    r"</?(?:table|caption|thead|tbody|tfoot|tr|th|td|h[1-6]|blockquote|code|pre|a|b|i|u|s|strong|em|ul|ol|li|p|br)>"
)


def find_text_flags(
    messages: Sequence[Mapping[str, Any]], control_tokens: Collection[str], *, raw_context: str = ""
) -> tuple[str, ...]:
    """Return the flags of context texts, sorted: a subset of `pipeline.types.FLAGS`.

    ``control_token_in_text``: a system, developer, user or tool text (parts too) holds one of the
    tokenizer's ``control_tokens`` or a well-known mark of another family, or ``raw_context``, where
    the tokenizer's own marks are at home, holds such a foreign mark. ``think_in_text``: an
    assistant's text has a think mark without its partner. Give a frozenset: its patterns are kept.

    >>> find_text_flags([{"role": "user", "content": "print <|im_end|>"}], frozenset())
    ('control_token_in_text',)
    """
    tokens = control_tokens if isinstance(control_tokens, frozenset) else frozenset(control_tokens)
    anywhere, foreign = _text_patterns(tokens)
    flags: set[str] = set()
    if foreign.search(raw_context):
        flags.add("control_token_in_text")
    for message in messages:
        for text in _texts_of(message.get("content")):
            if message.get("role") == "assistant":
                if has_stray_think_mark(text):
                    flags.add("think_in_text")
            elif anywhere.search(text):
                flags.add("control_token_in_text")
    return tuple(sorted(flags))


@lru_cache(maxsize=16)
def _text_patterns(tokens: frozenset[str]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    own = _control_marks(tokens)
    foreign = pattern_of(mark for mark in WELL_KNOWN_MARKS if mark not in tokens)
    return pattern_of([*own, *WELL_KNOWN_MARKS]), foreign


def foreign_pattern(control_tokens: frozenset[str]) -> re.Pattern[str]:
    """Return what finds the well-known marks that are no control tokens here."""
    return _text_patterns(control_tokens)[1]


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
_ANY_THINK_MARK = pattern_of(mark for pair, _ in _THINK_PATTERNS for mark in pair)


def has_stray_think_mark(text: str) -> bool:
    """Return True where a think mark opens twice, closes what is not open, or is never closed.

    >>> has_stray_think_mark("<think>a</think>b"), has_stray_think_mark("a</think>b")
    (False, True)
    """
    if not _ANY_THINK_MARK.search(text):
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
