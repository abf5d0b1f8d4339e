"""Where a conversation may be cut, and what a cut leaves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Rejected
from pipeline.rows.lengths import (
    KeptTurns,
    cut_inside,
    drop_turns,
    find_cuts,
    keep_from,
    measure_ends,
)
from pipeline.tokens.ids import Ids
from pipeline.types import Message

LETTERS = {"s": "system", "d": "developer", "u": "user", "a": "assistant", "t": "tool"}


def talk(roles: str, size: int = 3) -> list[Message]:
    """Return a message per letter; the digits of its content are its place."""
    return [
        {"role": LETTERS[letter], "content": f"{at:03d}" * size} for at, letter in enumerate(roles)
    ]


def spell(messages: Sequence[Message]) -> str:
    return "".join(message["role"][0] for message in messages)


def encode(messages: Sequence[Message]) -> Ids:
    """Return an id per character: the role's first letter, the content, and a generation prompt."""
    text = "".join(f"{message['role'][0]}{message['content']}." for message in messages)
    return np.array([ord(char) for char in f"^{text}a"], np.int32)


class Encoder:
    """Counts what is asked of it, and may refuse."""

    def __init__(self, refuse: str = "") -> None:
        self.asked: list[str] = []
        self._refuse = refuse

    def __call__(self, messages: Sequence[Message]) -> Ids:
        self.asked.append(spell(messages))
        if self._refuse and spell(messages).startswith(self._refuse):
            raise Rejected("template_refused", "no")
        return encode(messages)


# ---- where


@pytest.mark.parametrize(
    ("roles", "kept"),
    [
        ("su", []),
        ("u", []),
        ("suau", ["su"]),
        ("suauau", ["suau", "su"]),
        # A call goes with its results, and the results of the last user's question need their call.
        ("suatau", ["su"]),
        ("suatat", ["suat"]),
        ("suatatat", ["suatat", "suat"]),
        ("suattat", ["suat"]),
        ("suauatat", ["suatat", "suat"]),
        # Several users in a row are one turn, whose first is never cut off.
        ("suuauu", ["suu"]),
        ("suuatat", ["suuat"]),
        ("uuu", []),
        # All system messages at the start stay, a later one belongs to its turn.
        ("sdsuau", ["sdsu"]),
        ("suasuau", ["suau", "su"]),
        # A greeting is the first to go.
        ("sauau", ["suau", "su"]),
        ("au", ["u"]),
        # Without a user the newest steps stay.
        ("satat", ["sat"]),
        ("at", []),
        ("s", []),
        ("", []),
    ],
)
def test_a_cut_leaves_the_pinned_messages_and_whole_turns(roles: str, kept: list[str]) -> None:
    messages = talk(roles)
    assert [spell(keep_from(messages, cut)) for cut in find_cuts(messages)] == kept


def test_the_last_users_messages_stay_when_steps_after_them_go() -> None:
    messages = talk("suauuatatat")
    (cut, *_) = [cut for cut in find_cuts(messages) if cut > 7]
    kept = keep_from(messages, cut)
    assert kept == [messages[0], *messages[3:5], *messages[cut:]]


@given(st.text("sduat", max_size=25))
def test_cuts_ascend_and_each_leaves_less_than_the_one_before(roles: str) -> None:
    messages = talk(roles)
    sizes = [len(messages), *(len(keep_from(messages, cut)) for cut in find_cuts(messages))]
    assert find_cuts(messages) == sorted(set(find_cuts(messages)))
    assert sizes == sorted(set(sizes), reverse=True)
    assert sizes[-1] > 0 or not messages


@given(st.text("sduat", max_size=25))
def test_no_cut_begins_with_a_result_or_leaves_one_without_its_call(roles: str) -> None:
    messages = talk(roles)
    for cut in find_cuts(messages):
        assert roles[cut] in "ua"
        kept = spell(keep_from(messages, cut)).lstrip("sd")
        assert kept[0] == "u" or "u" not in roles
        # What stood right before a result still does: a call is never parted from its results.
        whole = keep_from(messages, cut)
        for at, message in enumerate(whole):
            if message["role"] == "tool":
                assert whole[at - 1] == messages[messages.index(message) - 1]


# ---- how far


@given(st.text("ua", min_size=1, max_size=40), st.integers(1, 200))
def test_as_much_stays_as_fits(roles: str, room: int) -> None:
    messages, encoder = talk(roles), Encoder()
    cuts = find_cuts(messages)
    kept = drop_turns(messages, room, encoder, len(encode(messages)))
    if not cuts:
        assert kept is None
        return
    assert kept is not None
    choices = [keep_from(messages, cut) for cut in cuts]
    expected = next((each for each in choices if len(encode(each)) <= room), choices[-1])
    assert list(kept.messages) == expected
    assert kept.ids.tolist() == encode(expected).tolist()
    assert kept.dropped_messages == len(messages) - len(expected) > 0
    assert len(encoder.asked) <= len(cuts).bit_length() + 4


@given(st.integers(300, 5_000), st.integers(0, 2**32))
def test_only_contexts_about_as_long_as_the_room_are_tried(room: int, seed: int) -> None:
    sizes = np.random.default_rng(seed).integers(1, 40, 400)
    turns = zip(talk("ua" * 200), sizes, strict=True)
    messages: list[Message] = [{**each, "content": "x" * size} for each, size in turns]
    encoder, whole_len = Encoder(), len(encode(messages))
    kept = drop_turns(messages, room, encoder, whole_len)
    choices = [keep_from(messages, cut) for cut in find_cuts(messages)]
    assert kept is not None
    assert list(kept.messages) == next(each for each in choices if len(encode(each)) <= room)
    most = 2 * max(len(kept.messages), 20)
    assert max(map(len, encoder.asked)) <= most
    assert len(encoder.asked) <= 8


def test_a_context_without_a_turn_to_drop_has_none() -> None:
    assert drop_turns(talk("su"), 3, encode, 9) is None


def test_a_cut_that_the_server_refuses_counts_as_too_long() -> None:
    encoder = Encoder(refuse="suaua")
    kept = drop_turns(talk("suauauau"), 10_000, encoder, 20_000)
    assert kept is not None
    assert spell(kept.messages) == "suau"


def test_a_server_that_refuses_every_cut_leaves_the_whole() -> None:
    assert drop_turns(talk("auauau"), 10_000, Encoder(refuse="u"), 20_000) is None


def test_what_is_kept_says_which_messages_it_has() -> None:
    messages = talk("suau")
    kept = drop_turns(messages, 1, encode, len(encode(messages)))
    assert isinstance(kept, KeptTurns)
    assert kept.messages == (messages[0], messages[3])
    assert kept.dropped_messages == 2


# ---- inside


@given(st.integers(0, 12), st.integers(0, 12), st.integers(1, 39))
def test_a_cut_inside_keeps_both_ends(head_len: int, tail_len: int, room: int) -> None:
    ids = np.arange(40, dtype=np.int32)
    kept = cut_inside(ids, head_len, tail_len, room)
    if not head_len or head_len + tail_len >= room:
        assert kept is None
        return
    assert kept is not None
    assert kept.tolist() == [*range(head_len), *range(40 - room + head_len, 40)]
    assert kept[-tail_len or len(kept) :].tolist() == list(range(40))[40 - tail_len :]


@pytest.mark.parametrize("content", ["what?", "0", "\u2021", "000", "\u20210", "0\u2021", ""])
def test_the_ends_are_what_stands_around_the_contents(content: str) -> None:
    messages: list[Message] = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": content},
        {"role": "assistant", "content": "so"},
        {"role": "tool", "content": content},
    ]
    assert measure_ends(messages, encode(messages), encode) == (len("^sbe brief.u"), len(".a"))
    assert measure_ends(messages[:2], encode(messages[:2]), encode) == (len("^sbe brief.u"), 2)


def test_no_ends_where_nothing_but_the_system_speaks_or_the_server_refuses() -> None:
    messages = talk("ss")
    assert measure_ends(messages, encode(messages), encode) == (0, 0)
    messages = talk("su")
    ids = encode(messages)
    assert measure_ends(messages, ids, Encoder(refuse="su")) == (0, 0)


def test_measuring_leaves_the_messages_as_they_were() -> None:
    messages, before = talk("suat"), talk("suat")
    measure_ends(messages, encode(messages), encode)
    assert messages == before
