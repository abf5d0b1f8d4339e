"""The length policies as a contract: whatever the conversation, template and policy, a row that had
to be shortened says so, fits, ends where the model was asked, and is a prompt the server would build."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import config_from_mapping
from pipeline.errors import Rejected
from pipeline.examples.decisions import find_decision_points
from pipeline.examples.example import TrainingExample
from pipeline.prompt.request import ChatRequest
from pipeline.rows.builder import RowBuilder
from pipeline.rows.lengths import find_cuts, keep_from
from pipeline.rows.table import BoundedRow
from pipeline.types import Message
from tests import own_templates
from tests.conftest import ROOT, name_tokenizers, require_shared

BUNDLED = ROOT / "configs" / "tokenizer"
OWN = ("bundled", "CHATML", "THINK_OPEN", "NEXT_HEADER", "FRAMED", "SYSTEM_MOVES", "PLAIN_TEXT")
FAMILIES = ("qwen3", "qwen3.5", "llama-3.1", "gemma-3", "mistral-v0.3", "deepseek-v3")
POLICIES = ("drop_turns", "cut_left", "reject")
# A fifth of the profile's number for each template and policy, so that there are more per policy.
SHARE = settings(
    max_examples=hypothesis.settings.default.max_examples // 5,
    suppress_health_check=list(hypothesis.HealthCheck),
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "open_door",
            "description": "Open a door.",
            "parameters": {"type": "object", "properties": {"door": {"type": "string"}}},
        },
    }
]


# ---- conversations

WORDS = st.lists(
    st.sampled_from(["red", "door", "7", "été", "你好", "\n", "0", "‡", "{}"]), min_size=1
)
TEXTS = WORDS.map(" ".join).filter(str.strip)


def say(role: str) -> st.SearchStrategy[Message]:
    return TEXTS.map(lambda text: {"role": role, "content": text})


ANSWERS = st.builds(
    lambda text, thought: (
        {"role": "assistant", "content": text}
        | ({"reasoning_content": thought} if thought is not None else {})
    ),
    TEXTS,
    st.none() | TEXTS,
)
CALLS = st.builds(
    lambda text, result: [
        own_templates.call_of(door=text),
        {"role": "tool", "tool_call_id": "call00001", "name": "open_door", "content": result},
    ],
    TEXTS,
    TEXTS,
)
STEPS = ANSWERS.map(lambda answer: [answer]) | CALLS
# Several users in a row, then what the assistant did until the next one.
TURNS = st.tuples(st.lists(say("user"), min_size=1, max_size=3), st.lists(STEPS, max_size=3))


@st.composite
def conversations(draw: st.DrawFn) -> TrainingExample:
    """Draw an example whose context ends with a user's message or a tool's result."""
    messages = draw(st.lists(say("system"), max_size=2))
    if draw(st.integers(0, 9)) == 0:
        messages.append({"role": "assistant", "content": "Hello."})
    for users, steps in draw(st.lists(TURNS, min_size=1, max_size=6)):
        messages += users + [message for step in steps for message in step]
    while messages[-1]["role"] not in ("user", "tool"):
        messages.pop()
    has_calls = any("tool_calls" in message for message in messages)
    tools = TOOLS if has_calls or draw(st.booleans()) else None
    return TrainingExample(
        "a",
        continuation=draw(TEXTS),
        messages=messages,
        decision_idx=len(messages),
        tools=tools,
    )


@st.composite
def alternating(draw: st.DrawFn) -> TrainingExample:
    """Draw an example that templates which insist on turns by turns take: no tools, one at a time."""
    messages = draw(st.lists(say("system"), max_size=1))
    for user, answer in draw(st.lists(st.tuples(say("user"), say("assistant")), max_size=8)):
        messages += [user, answer]
    messages.append(draw(say("user")))
    return TrainingExample(
        "a", continuation=draw(TEXTS), messages=messages, decision_idx=len(messages)
    )


# ---- builders


@lru_cache
def builder_of(name: str) -> RowBuilder:
    """Return a builder under a template of our own, or under one of the families."""
    values: dict[str, Any] = {"input": "-", "output": "-", "tokenizer": str(BUNDLED)}
    if name in FAMILIES:
        values["tokenizer"] = str(require_shared(f"assets/tokenizers/{name}"))
        values["server_options"] = {"fixed_date": "2024-07-26"}
    if name in ("bundled", *FAMILIES):
        return RowBuilder(config_from_mapping(values, "test"))
    # Their ends of turn are no tokens of this tokenizer.
    values["end_of_turn"] = "<|im_end|>"
    with TemporaryDirectory() as folder:
        template = Path(folder, "template.jinja")
        template.write_text(getattr(own_templates, name), "utf-8")
        return RowBuilder(config_from_mapping({**values, "chat_template": str(template)}, "test"))


@dataclass(frozen=True)
class Case:
    """One example under one policy: what came out, and what comes out where everything fits."""

    builder: RowBuilder
    example: TrainingExample
    whole: BoundedRow
    found: BoundedRow | Rejected
    settings: dict[str, Any]
    renders: int

    @property
    def messages(self) -> list[Message]:
        assert self.example.messages is not None
        return self.example.messages

    def encode(self, messages: list[Message]) -> list[int] | None:
        """Return the ids of the server's own prompt of other messages; None where it refuses them."""
        request = ChatRequest(messages, self.example.tools, self.example.chat_template_kwargs)
        try:
            prompt = self.builder.dialect.render_prompt(request, self.builder.templates)
        except Rejected:
            return None
        return self.builder.encoder.encode([prompt.text])[0].tolist()


def build(name: str, example: TrainingExample, **policy: Any) -> Case:
    """Build the example's row without and with the policy, and count what the policy renders."""
    builder = copy.copy(builder_of(name))
    points = find_decision_points(example)
    (whole,) = builder.build(points, 100_000)
    if isinstance(whole, Rejected):
        # A template may refuse several users in a row, or tools.
        hypothesis.reject()
    assert not {"truncated", "turn_cut", "turns_dropped", "raw_cut"} & set(whole.flags)
    max_len = max(2, int(policy.pop("share") * whole.total_len))
    policy["min_context"] = min(policy.get("min_context", 1), max_len - 1)
    policy["max_len"] = max_len
    contexts, asked = copy.copy(builder.contexts), list[int]()

    def encode_counted(request: ChatRequest, messages: list[Message]) -> Any:
        asked.append(len(messages))
        return builder_of(name).contexts.encode_messages(request, messages)

    config = dataclasses.replace(vars(builder)["_config"], **policy)
    vars(contexts).update(encode_messages=encode_counted)
    vars(builder).update(_config=config, contexts=contexts)
    (found,) = builder.build(points)
    return Case(builder, example, whole, found, policy, len(asked))


POLICY = st.fixed_dictionaries(
    {
        "share": st.floats(0.05, 1.1),
        "overlong_last_turn": st.sampled_from(["cut_left", "reject"]),
        "overlong_continuation": st.sampled_from(["reject", "cut_right"]),
        "min_context": st.integers(1, 40),
        "max_continuation": st.none() | st.integers(1, 20),
    }
)


# ---- what holds of every row


def check_row(case: Case) -> None:
    """Check all that the contract says of a row or its reject."""
    whole, found, policy = case.whole, case.found, case.settings
    room = policy["max_len"] - min(policy["min_context"], whole.context_len)
    limit = min(room, policy["max_continuation"] or room)
    asked = whole.total_len - whole.context_len
    is_cut_right = asked > limit and policy["overlong_continuation"] == "cut_right"
    if asked > limit and not is_cut_right:
        assert isinstance(found, Rejected)
        assert found.code == "continuation_too_long"
        return
    fits = whole.context_len + min(asked, limit) <= policy["max_len"]
    if isinstance(found, Rejected):
        assert found.code == "too_long"
        assert not fits
        assert policy["overlong"] != "cut_left"
        return
    check_numbers(case, found, is_cut_right=is_cut_right, fits=fits)
    if policy["overlong"] == "drop_turns" and not fits:
        check_kept_messages(case, found)
    assert case.renders <= math.ceil(math.log2(max(1, len(find_cuts(case.messages))))) + 8
    if policy["overlong"] != "drop_turns" or fits:
        assert case.renders == 0


def check_numbers(case: Case, row: BoundedRow, *, is_cut_right: bool, fits: bool) -> None:
    whole, flags = case.whole, set(row.flags)
    assert row.total_len <= case.settings["max_len"]
    assert row.context_len >= min(case.settings["min_context"], whole.context_len)
    continuation = row.input_ids[row.context_len :].tolist()
    meant = whole.input_ids[whole.context_len :].tolist()
    assert ("continuation_cut" in flags) == is_cut_right
    assert continuation == meant[: len(continuation)]
    assert (len(continuation) < len(meant)) == is_cut_right
    assert ("truncated" in flags) == (row.dropped_tokens > 0) == (not fits)
    assert row.dropped_tokens == whole.context_len - row.context_len
    assert ("turns_dropped" in flags) == (row.dropped_messages > 0)
    assert not {"turns_dropped", "turn_cut"} & flags or "truncated" in flags
    assert set(whole.flags) == flags - {
        *("truncated", "turns_dropped", "turn_cut", "continuation_cut")
    }
    # Where the model is asked to speak is never cut off, whatever goes before it.
    context, asked = row.input_ids[: row.context_len], whole.input_ids[: whole.context_len]
    # (In a row that is shorter than the generation prompt, a BOS takes one place of it.)
    has_bos = int(context[0]) == case.builder.encoder.bos_id
    tail = min(len(context) - has_bos, count_generation_prompt(case))
    assert context[len(context) - tail :].tolist() == asked[len(asked) - tail :].tolist()


def count_generation_prompt(case: Case) -> int:
    """Return the length of the generation prompt in tokens."""
    request = ChatRequest(case.messages, case.example.tools)
    prompt = case.builder.dialect.render_prompt(request, case.builder.templates).text
    try:
        turn = case.builder.dialect.render_turn(request, case.builder.templates).text
    except Rejected:
        return 1
    return len(case.builder.encoder.encode([prompt.removeprefix(turn)])[0])


def check_kept_messages(case: Case, row: BoundedRow) -> None:
    """Check that what stays is pinned or a suffix, as long as can be, and as the server renders it."""
    messages, room = case.messages, case.settings["max_len"] - (row.total_len - row.context_len)
    kept = kept_messages(messages, row.dropped_messages)
    check_shape(messages, kept)
    context = row.input_ids[: row.context_len].tolist()
    if "turn_cut" not in row.flags:
        assert "turns_dropped" in row.flags
        assert context == case.encode(kept)
        assert case.encode(kept) is not None
    else:
        assert case.settings["overlong_last_turn"] == "cut_left"
        assert len(context) == room
    lengths = [
        len(ids) if (ids := case.encode(keep_from(messages, cut))) else None
        for cut in find_cuts(messages)
    ]
    accepted = [length for length in lengths if length is not None]
    if accepted == lengths and all(left >= right for left, right in pairwise(accepted)):
        fitting = [length for length in accepted if length <= room]
        assert ("turn_cut" in row.flags) == (not fitting)
        assert not fitting or len(context) == fitting[0]


def kept_messages(messages: list[Message], dropped: int) -> list[Message]:
    """Return what stays of ``messages`` where ``dropped`` of them went."""
    choices = [keep_from(messages, cut) for cut in find_cuts(messages)]
    (kept,) = [kept for kept in [messages, *choices] if len(messages) - len(kept) == dropped]
    return kept


def check_shape(messages: list[Message], kept: list[Message]) -> None:
    roles = [message["role"] for message in messages]
    pinned = next((at for at, role in enumerate(roles) if role != "system"), len(roles))
    assert kept[:pinned] == messages[:pinned]
    rest = kept[pinned:]
    assert rest
    if len(kept) == len(messages):
        return
    assert rest[0]["role"] == "user"
    last_user = len(roles) - 1 - roles[::-1].index("user")
    users = next(
        at for at, message in enumerate([*rest, {"role": ""}]) if message["role"] != "user"
    )
    if rest != messages[len(messages) - len(rest) :]:
        # The last users' messages, then the newest steps after them.
        assert rest[:users] == messages[last_user + 1 - users : last_user + 1]
        assert rest[users]["role"] == "assistant"
        assert rest[users:] == messages[len(messages) - len(rest) + users :]
        assert len(messages) - len(rest) + users > last_user
    else:
        assert users == len(rest) or roles[last_user + 1 - users] == "user" or users >= 1
    # The run of users that the kept part begins with is whole.
    start = messages.index(rest[0]) if messages.count(rest[0]) == 1 else None
    assert start is None or start == 0 or roles[start - 1] != "user"
    for before, message in pairwise(kept):
        assert message["role"] != "tool" or before["role"] in ("assistant", "tool")


@pytest.mark.parametrize("overlong", POLICIES)
@pytest.mark.parametrize("name", OWN)
def test_rows_keep_the_contract_under_templates_of_our_own(name: str, overlong: str) -> None:
    @SHARE
    @given(conversations(), POLICY)
    def check(example: TrainingExample, policy: dict[str, Any]) -> None:
        check_row(build(name, example, overlong=overlong, **policy))

    check()


@pytest.mark.parametrize("overlong", POLICIES)
@pytest.mark.parametrize("name", name_tokenizers(FAMILIES))
def test_rows_keep_the_contract_under_the_families_templates(name: str, overlong: str) -> None:
    builder_of(name)
    strategy: Callable[[], st.SearchStrategy[TrainingExample]] = (
        alternating if name in ("gemma-3", "mistral-v0.3") else conversations
    )

    @SHARE
    @given(strategy(), POLICY)
    def check(example: TrainingExample, policy: dict[str, Any]) -> None:
        check_row(build(name, example, overlong=overlong, **policy))

    check()


@SHARE
@given(st.text("abc \n", min_size=1, max_size=200), st.sampled_from(POLICIES), st.data())
def test_a_context_given_as_text_can_only_be_cut_or_refused(
    context: str, overlong: str, data: st.DataObject
) -> None:
    case = build(
        "bundled",
        TrainingExample("a", context, "4"),
        share=data.draw(st.floats(0.05, 1.1)),
        overlong=overlong,
    )
    found, whole, max_len = case.found, case.whole, case.settings["max_len"]
    if isinstance(found, Rejected):
        is_overlong = whole.total_len - whole.context_len >= max_len
        assert found.code == ("continuation_too_long" if is_overlong else "too_long")
        assert is_overlong or overlong == "reject"
        assert whole.total_len > max_len
        return
    assert found.total_len == min(max_len, whole.total_len)
    assert found.input_ids.tolist() == whole.input_ids[-found.total_len :].tolist()
    assert found.dropped_tokens == whole.total_len - found.total_len
    assert set(found.flags) == ({"truncated", "raw_cut"} if found.dropped_tokens else set())
    assert (found.dropped_messages, case.renders) == (0, 0)


def test_many_turns_cost_few_renders() -> None:
    turn = [{"role": "user", "content": "Which door?"}, {"role": "assistant", "content": "Left."}]
    messages = [*turn * 90, turn[0]]
    example = TrainingExample("a", continuation="x", messages=messages, decision_idx=181)
    for share in (0.02, 0.3, 0.5, 0.99):
        case = build("CHATML", example, share=share, overlong="drop_turns")
        assert isinstance(case.found, BoundedRow)
        assert case.found.flags == ("truncated", "turns_dropped")
        assert 1 <= case.renders <= 7


def test_a_system_message_that_fills_the_row_gives_way_and_the_question_stays() -> None:
    messages = [{"role": "system", "content": "red " * 200}, {"role": "user", "content": "Which?"}]
    example = TrainingExample("a", continuation="x", messages=messages, decision_idx=2)
    case = build("CHATML", example, share=0.1, overlong="drop_turns")
    assert isinstance(case.found, BoundedRow)
    assert case.found.flags == ("truncated", "turn_cut")
    text = case.builder.encoder.decode(case.found.input_ids[: case.found.context_len])
    assert text.endswith("<|im_start|>user\nWhich?<|im_end|>\n<|im_start|>assistant\n")
    assert np.array_equal(case.whole.input_ids[-case.found.total_len :], case.found.input_ids)
