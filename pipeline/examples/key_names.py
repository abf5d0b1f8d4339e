"""What a key means that no shape knows: told by the words of its name, not by a list of names.

``corrected_answer``, ``humanCorrection`` and ``ideal_response`` name another answer, whatever writes
them; ``decisionIdx`` is ``decision_idx``. The last word counts (an ``answer_type`` is no answer), and a
word before it that says the answer is the worse one.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from functools import lru_cache
from typing import Final

from pipeline.lines.known_keys import KNOWN_KEYS

# An answer of the model, or what it should have been.
_ANSWERS: Final = frozenset(
    {
        *("answer", "response", "completion", "continuation", "output", "reply", "generation"),
        *("correction", "corrected", "revision", "revised", "edit", "edited", "fix", "fixed"),
        *("rewrite", "rewritten", "improved", "improvement", "ideal", "chosen", "preferred"),
        *("accepted", "winner", "better", "best", "positive", "desired", "suggestion"),
        *("suggested", "demonstration", "correct", "prediction", "generated", "assistant"),
    }
)
# What an answer is measured by: a short form of it that the answer itself holds.
_REFERENCES: Final = frozenset(
    {"truth", "reference", "gold", "golden", "target", "expected", "solution"}
)
_WORSE: Final = frozenset(
    {
        *(
            "rejected",
            "worse",
            "worst",
            "bad",
            "wrong",
            "original",
            "initial",
            "incorrect",
            "loser",
        ),
        *("losing", "negative", "neg", "dispreferred", "nonpreferred", "non", "flawed", "unsafe"),
        *("before", "old", "previous", "undesired", "disliked"),
    }
)
_STRONG: Final = frozenset(
    {
        *(
            "correction",
            "corrected",
            "chosen",
            "preferred",
            "better",
            "improved",
            "ideal",
            "revised",
        ),
        *("rejected", "worse", "dispreferred", "continuation", "decision"),
    }
)
_SYSTEMS: Final = frozenset({"system", "sys", "preamble", "developer"})
_QUESTIONS: Final = frozenset({"question", "query", "prompt", "instruction", "instructions"})
_VERDICTS: Final = frozenset(
    {"correct", "good", "accepted", "approved", "preferred", "chosen", "acceptable", "positive"}
)
_RATINGS: Final = frozenset(
    {
        "label",
        "tag",
        "rating",
        "thumb",
        "feedback",
        "verdict",
        "judgment",
        "judgement",
        "vote",
        "quality",
    }
)
_BAD_WORDS: Final = frozenset(
    {
        *("false", "0", "no", "bad", "worse", "rejected", "reject", "negative", "down", "wrong"),
        *("dislike", "disliked", "incorrect", "fail", "failed", "thumbs_down", "unacceptable"),
    }
)
_MASKED: Final = frozenset({"mask", "masked", "ignore", "ignored", "exclude", "excluded", "skip"})
_BEGUN: Final = frozenset(
    {"prefix", "partial", "prefill", "continue", "incomplete", "unfinished", "streaming", "begun"}
)
_TRAINED: Final = frozenset({"trainable", "training", "trained", "supervised", "learn", *_VERDICTS})
_SCORES: Final = frozenset({"rank", "ranking", "score", "reward", "rating"})
_CHOICES: Final = frozenset({"selected", "preference", "choice", "best", "winner"})
# Words that say of what kind a value is, not what it means.
_NEUTRAL: Final = frozenset(
    {"text", "content", "message", "msg", "value", "str", "string", "raw", "is", "was", "the"}
)
_SINGULAR: Final = {
    "is": "is",
    "was": "was",
    "pos": "pos",
    "sys": "sys",
    "instructions": "instructions",
}
_PLACES: Final = frozenset({"idx", "index", "point", "position", "indx", "place"})
# Long enough that a letter wrong or twisted names nothing else.
_OFTEN_MISSPELT: Final = (
    *("continuation", "continuations", "decisionidx", "chosen", "rejected", "response"),
    *("correction", "completion", "messages", "conversations"),
)


@lru_cache(maxsize=4096)
def find_meaning(name: str) -> str:
    """Return what an unknown key is: a known key spelt otherwise, a meaning, or nothing.

    The meanings: ``ANSWER``, ``REFERENCE``, ``ORIGINAL`` (an answer that is not to be trained),
    ``SYSTEM``, ``QUESTION``.

    >>> find_meaning("corrected_answer"), find_meaning("answer_type"), find_meaning("decisionIdx")
    ('ANSWER', '', 'decision_idx')
    """
    words = _split_words(name)
    if not words:
        return ""
    bare = "".join(words)
    known = _bare_known().get(re.sub(r"[\W_]", "", name).casefold())
    if known:
        return known
    if words[0] == "decision" and words[-1] in _PLACES:
        return "decision_idx"
    # A conversation_id names a conversation, and is no misspelt list of them.
    is_long = len(bare) > 6 and words[-1] != "id"
    near = get_close_matches(bare, _OFTEN_MISSPELT, 1, 0.88) if is_long else []
    if near and abs(len(near[0]) - len(bare)) <= 1:
        return _bare_known()[near[0]]
    meant = [word for word in words if word not in _NEUTRAL] or words
    last = meant[-1]
    names_answer = last in _ANSWERS or last in _REFERENCES
    if (names_answer or last in _WORSE) and not _WORSE.isdisjoint(meant):
        return "ORIGINAL"
    if last in _REFERENCES:
        return "REFERENCE"
    if names_answer:
        return "ANSWER"
    if meant[0] in _SYSTEMS and (len(meant) == 1 or meant[-1] in _QUESTIONS | {"instruction"}):
        return "SYSTEM"
    return "QUESTION" if last in _QUESTIONS else ""


@lru_cache(maxsize=4096)
def is_strong(name: str) -> bool:
    """Say whether a name tells answers apart even deep in a record that nobody reads (``corrected``)."""
    return not _STRONG.isdisjoint(_split_words(name))


def is_bad_verdict(name: str, value: object) -> bool:
    """Say whether a value calls the answer the worse one: ``is_correct: false``, ``rating: bad``.

    Numbers are no verdict: nobody knows their scale.
    """
    if value is False:
        return bool(_last_word(name) in _VERDICTS)
    return (
        isinstance(value, str)
        and value.strip().lower() in _BAD_WORDS
        and _last_word(name) in _VERDICTS | _RATINGS
    )


@lru_cache(maxsize=4096)
def says_untrained(name: str, value: object) -> bool:
    """Say whether a message's key takes it out of what is trained, in words other than ours.

    >>> says_untrained("masked", True), says_untrained("trainable", False), says_untrained("done", True)
    (True, True, False)
    """
    if value is True:
        return _last_word(name) in _MASKED
    return value is False and _last_word(name) in _TRAINED


@lru_cache(maxsize=4096)
def is_begun(name: str) -> bool:
    """Say whether true under this name says that the model was to go on with a message (``prefix``)."""
    return _last_word(name) in _BEGUN


@lru_cache(maxsize=4096)
def is_mask(name: str) -> bool:
    """Say whether numbers under this name say which tokens or turns are trained (``train_mask``)."""
    words = _split_words(name)
    return bool(words) and words[-1] in ("mask", "weight") and "special" not in words


@lru_cache(maxsize=4096)
def _last_word(name: str) -> str:
    """Return the word that says what a value is, empty where there is none."""
    words = [word for word in _split_words(name) if word not in _NEUTRAL]
    return words[-1] if words else ""


@lru_cache(maxsize=4096)
def is_selection(name: str, *, of_each: bool) -> bool:
    """Say whether numbers under this name prefer one of several answers.

    One number for each of them (``scores``), else one number that points to the best (``best_idx``).
    """
    words = [word for word in _split_words(name) if word not in _NEUTRAL | _PLACES]
    meant = _SCORES | _CHOICES | _VERDICTS if of_each else _CHOICES | _VERDICTS
    return bool(words) and words[-1] in meant


def _split_words(name: str) -> list[str]:
    """Return the words of a name, small and in the singular.

    >>> _split_words("bestResponses_2")
    ['best', 'response']
    """
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
    return [_SINGULAR.get(word) or word.removesuffix("s") for word in map(str.lower, words)]


@lru_cache(maxsize=1)
def _bare_known() -> dict[str, str]:
    """Return the known keys by their letters alone."""
    return {re.sub(r"[\W_]", "", name).casefold(): name for name in sorted(KNOWN_KEYS)}
