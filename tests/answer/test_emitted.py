"""What the model must emit: texts verbatim, messages as the template writes them, ended once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.answer import emitted
from pipeline.answer.emitted import Continuation, build_continuation
from pipeline.answer.probe import probe_turns
from pipeline.answer.turn import Turn
from pipeline.config import RowSettings
from pipeline.errors import Rejected, UsageError
from pipeline.prompt.chat_template import ChatTemplates, resolve_templates
from pipeline.prompt.dialects import load_dialect
from pipeline.prompt.request import ChatRequest
from pipeline.tokens.encoder import TextEncoder
from pipeline.tokens.files import read_model_type, read_stop_ids
from tests import own_templates as own
from tests.conftest import name_tokenizers, require_shared
from tests.own_templates import DIALECT, USER, call_of, facts_of, prompt_of, templates_of

Message = dict[str, Any]
THOUGHT = {"role": "assistant", "content": "Left.", "reasoning_content": "Weigh both."}
CHATML_PROMPT = "<|im_start|>user\nWhich door?<|im_end|>\n<|im_start|>assistant\n"


def continue_with(
    source: str,
    continuation: str | Message,
    *,
    messages: list[Message] | None = None,
    prompt: str | None = None,
    stops: tuple[str, ...] = (),
    kwargs: dict[str, Any] | None = None,
    **settings: Any,
) -> Continuation:
    """Build a continuation of one user's message, or of what is given."""
    messages = [USER] if messages is None else messages
    kwargs = kwargs or {}
    return build_continuation(
        continuation,
        Turn(
            prompt_of(source, messages, **kwargs) if prompt is None else prompt,
            ChatRequest(messages, None, kwargs),
            DIALECT,
            templates_of(source),
            facts_of(source, *stops, **kwargs),
        ),
        RowSettings(tokenizer="", **settings),
    )


def test_a_text_is_kept_verbatim_and_ended_once() -> None:
    built = continue_with(own.CHATML, "  Left.\n\n")
    assert built == Continuation("  Left.\n\n", "<|im_end|>", ())


@given(
    st.sampled_from([own.CHATML, own.THINK_OPEN, own.CHANNELS, own.PLAIN_TEXT]),
    st.lists(st.sampled_from([*sorted(own.TOKENS), "<s>", "<", "a", "\n", " "]), max_size=4),
    st.sampled_from(["auto", "none", "<|im_end|>", "\n"]),
)
def test_a_text_without_marks_takes_no_other_rules_than_one_with(
    source: str, parts: list[str], end_of_turn: str
) -> None:
    def outcome() -> tuple[object, ...]:
        try:
            return continue_with(source, "".join(parts), end_of_turn=end_of_turn)
        except Rejected as error:
            return error.args

    quick = outcome()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(emitted, "is_plain", lambda *given: False)
        assert quick == outcome()


@pytest.mark.parametrize("text", ["Left.<|im_end|>", "Left.<|im_end|>\n"])
def test_an_end_of_turn_in_the_text_is_the_end_of_turn(text: str) -> None:
    built = continue_with(own.CHATML, text)
    assert built == Continuation("Left.", "<|im_end|>", ("end_of_turn_in_text",))


def test_another_stop_token_at_the_end_of_a_raw_output_is_its_end_of_turn() -> None:
    built = continue_with(own.CHATML, "Left.<|endoftext|>", stops=("<|im_end|>", "<|endoftext|>"))
    assert built == Continuation("Left.", "<|endoftext|>", ("end_of_turn_in_text",))


@pytest.mark.parametrize(
    "text",
    [
        "Left.<|im_end|><|im_end|>",
        "Left.<|im_end|>\n\n",
        "Left.<|im_end|> And right.",
        "Left.<|im_end|>\n<|im_start|>user\nWhy?",
        "<|im_start|>assistant\nLeft.",
        "Le<|endoftext|>ft.",
    ],
)
def test_a_second_turn_in_the_text_is_refused(text: str) -> None:
    with pytest.raises(Rejected, match="ends or opens a turn") as caught:
        continue_with(own.CHATML, text, stops=("<|im_end|>", "<|endoftext|>"))
    assert caught.value.code == "control_tokens"


@pytest.mark.parametrize("text", ["", "<|im_end|>", "<|im_end|>\n"])
def test_a_text_without_anything_to_say_is_refused(text: str) -> None:
    with pytest.raises(Rejected) as caught:
        continue_with(own.CHATML, text)
    assert caught.value.code == "empty_continuation"


@pytest.mark.parametrize(
    "text", [" ", "\n", "\t \u00a0", "  <|im_end|>", "<think>\n\n</think>\n\n"]
)
def test_an_answer_of_white_space_is_refused_in_every_form(text: str) -> None:
    part = {"type": "text", "text": text}
    for answer in (text, {"content": text}, {"content": [part]}):
        for source in (own.CHATML, own.THINK_OPEN, own.EMPTY_BLOCK):
            with pytest.raises(Rejected) as caught:
                continue_with(source, answer)
            assert caught.value.code in ("empty_continuation", "control_tokens")


def test_a_character_without_width_is_a_continuation() -> None:
    assert continue_with(own.CHATML, "\u200b").text == "\u200b"


@pytest.mark.parametrize("text", ["<tool_call>{}</tool_call>", "<think>\na\n</think>\n\nb"])
def test_marks_that_the_model_emits_stay_without_a_flag(text: str) -> None:
    assert continue_with(own.CHATML, text) == Continuation(text, "<|im_end|>", ())


def test_a_foreign_control_mark_stays_and_is_flagged() -> None:
    built = continue_with(own.CHATML, "Left.</s>")
    assert built == Continuation("Left.</s>", "<|im_end|>", ("control_token_in_text",))


def test_a_foreign_control_mark_is_refused_where_asked() -> None:
    with pytest.raises(Rejected, match="control_tokens: flag lets it pass") as caught:
        continue_with(own.CHATML, "Left.</s>", control_tokens="reject")
    assert caught.value.code == "control_tokens"


def test_an_unknown_end_of_turn_is_asked_for_and_can_be_named() -> None:
    with pytest.raises(Rejected, match="name it with end_of_turn:") as caught:
        continue_with(own.NEXT_HEADER, "Left.")
    assert caught.value.code == "no_end_of_turn"
    named = continue_with(own.NEXT_HEADER, "Left.", end_of_turn="<|user|>")
    assert named == Continuation("Left.", "<|user|>", ())


def test_a_named_end_of_turn_wins_and_may_not_be_said_twice() -> None:
    built = continue_with(own.CHATML, "Left.<|call|>", end_of_turn="<|call|>")
    assert built == Continuation("Left.", "<|call|>", ("end_of_turn_in_text",))
    with pytest.raises(Rejected) as caught:
        continue_with(own.CHATML, "Le<|call|>ft.", end_of_turn="<|call|>")
    assert caught.value.code == "control_tokens"


def test_with_no_end_of_turn_nothing_is_appended_and_the_texts_own_stays() -> None:
    assert continue_with(own.PLAIN_TEXT, "Left.", end_of_turn="none").end_of_turn is None
    built = continue_with(own.CHATML, "Left.<|im_end|>", end_of_turn="none")
    assert built == Continuation("Left.<|im_end|>", None, ("end_of_turn_in_text",))


# Think blocks


def test_an_answer_under_an_open_think_block_is_closed_the_templates_way() -> None:
    built = continue_with(own.THINK_OPEN, "Left.")
    assert built == Continuation("\n</think>\n\nLeft.", "<|im_end|>", ("think_closed",))


def test_an_answer_under_an_open_think_block_can_be_refused_or_kept() -> None:
    with pytest.raises(Rejected, match="think: close would") as caught:
        continue_with(own.THINK_OPEN, "Left.", think="reject")
    assert caught.value.code == "not_renderable"
    assert continue_with(own.THINK_OPEN, "Left.", think="keep").text == "Left."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Weigh.\n</think>\n\nLeft.", "Weigh.\n</think>\n\nLeft."),
        ("<think>\nWeigh.\n</think>\n\nLeft.", "Weigh.\n</think>\n\nLeft."),
        ("<think>Weigh.\n</think>\n\nLeft.", "Weigh.\n</think>\n\nLeft."),
        ("<think>\n\n</think>\n\nLeft.", "\n</think>\n\nLeft."),
    ],
)
def test_what_the_prompt_supplied_is_not_said_twice(text: str, expected: str) -> None:
    assert continue_with(own.THINK_OPEN, text) == Continuation(expected, "<|im_end|>", ())


def test_the_empty_block_that_the_prompt_supplied_is_not_said_twice() -> None:
    text, off = "<think>\n\n</think>\n\nLeft.", {"enable_thinking": False}
    assert continue_with(own.THINK_OPEN, text, kwargs=off) == Continuation(
        "Left.", "<|im_end|>", ()
    )


def test_a_text_of_nothing_but_the_supplied_mark_is_empty() -> None:
    with pytest.raises(Rejected) as caught:
        continue_with(own.THINK_OPEN, "<think>\n")
    assert caught.value.code == "empty_continuation"


@pytest.mark.parametrize(
    ("source", "text", "kwargs"),
    [
        (own.CHATML, "weigh both\n</think>\n\nLeft.", {}),
        (own.CHATML, "<think>\nweigh both", {}),
        (own.THINK_OPEN, "<think>\nWeigh.\n</think>\n\nLeft.", {"enable_thinking": False}),
        (own.THINK_OPEN, "a\n</think>\n\nb\n</think>", {}),
    ],
)
def test_a_think_mark_without_its_partner_is_flagged(
    source: str, text: str, kwargs: dict[str, Any]
) -> None:
    built = continue_with(source, text, kwargs=kwargs)
    assert (built.text, built.flags) == (text, ("think_in_text",))


def test_a_think_mark_in_a_users_words_opens_no_block() -> None:
    messages = [{"role": "user", "content": "What does <think> mean?"}]
    for source in (own.CHATML, own.CHANNELS):
        flags = continue_with(source, "A mark.", messages=messages, opening="none").flags
        assert flags == ()
    plain = continue_with(own.PLAIN_TEXT, "A mark.", messages=messages, end_of_turn="<eos>")
    assert plain.text == "A mark."


def test_a_raw_prompt_that_stops_in_the_middle_of_thought_is_closed() -> None:
    prompt = CHATML_PROMPT + "<think>\nOkay, so"
    built = continue_with(own.THINK_OPEN, "Left.", messages=[], prompt=prompt)
    assert built == Continuation("\n</think>\n\nLeft.", "<|im_end|>", ("think_closed",))
    foreign = continue_with(own.CHATML, "Left.", messages=[], prompt=CHATML_PROMPT + "<think>\n")
    assert foreign == Continuation("\n</think>\n\nLeft.", "<|im_end|>", ("think_closed",))


# Messages


def test_a_plain_message_is_its_text() -> None:
    message = {"role": "assistant", "content": " Left. "}
    assert continue_with(own.CHATML, message) == continue_with(own.CHATML, " Left. ")


@pytest.mark.parametrize(
    ("source", "opening"),
    [
        (own.CHANNELS, " to=user<|message|>"),
        (own.EMPTY_BLOCK, "<think>\n\n</think>\n\n"),
        (own.BUDGET, "<think></think>\n"),
    ],
)
def test_the_opening_of_a_plain_answer_is_the_same_for_text_and_message(
    source: str, opening: str
) -> None:
    end = facts_of(source).end_of_turn
    expected = Continuation(f"{opening} Left. ", end, ("opening_added",))
    for answer in (
        " Left. ",
        {"content": " Left. "},
        {"content": [{"type": "text", "text": " Left. "}]},
    ):
        assert continue_with(source, answer) == expected
        assert continue_with(source, answer, opening="none") == Continuation(" Left. ", end, ())
        prompt = prompt_of(source, [USER])
        raw = continue_with(source, answer, messages=[], prompt=prompt)
        assert raw == Continuation(" Left. ", end, ())


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (own.CHANNELS, " to=user<|message|>Left."),
        (own.CHANNELS, " to=tool<|message|>{}"),
        (own.EMPTY_BLOCK, "<think>\n\n</think>\n\nLeft."),
        (own.EMPTY_BLOCK, "<think>\nWeigh.\n</think>\n\nLeft."),
        (own.EMPTY_BLOCK, "Weigh.\n</think>\n\nLeft."),
        (own.BUDGET, "<think>Weigh.</think>\nLeft."),
    ],
)
def test_a_continuation_that_brings_its_opening_gets_no_other(source: str, text: str) -> None:
    for answer in (text, {"content": text}):
        built = continue_with(source, answer)
        assert built.text == text
        assert "opening_added" not in built.flags


def test_a_text_that_only_speaks_of_a_think_mark_gets_the_opening() -> None:
    built = continue_with(own.EMPTY_BLOCK, "Write <think> first.")
    assert built.text == "<think>\n\n</think>\n\nWrite <think> first."
    assert built.flags == ("opening_added", "think_in_text")


def test_a_call_has_the_opening_that_a_plain_answer_of_the_same_trace_gets() -> None:
    for source in (own.EMPTY_BLOCK, own.BUDGET):
        opening = facts_of(source).opening
        assert continue_with(source, call_of(door="left")).text.startswith(f"{opening}<tool_call>")
        assert continue_with(source, "<tool_call>{}</tool_call>").text.startswith(opening)
    assert continue_with(own.BUDGET, call_of(door="left")).flags == ("opening_added",)
    assert continue_with(own.EMPTY_BLOCK, call_of(door="left")).flags == ()


def test_a_prompt_that_holds_the_think_block_gets_no_second_one() -> None:
    for source, kwargs in (
        (own.EMPTY_BLOCK, {"enable_thinking": False}),
        (own.BUDGET, {"thinking_budget": 0}),
    ):
        built = continue_with(source, "Left.", kwargs=kwargs)
        assert (built.text, built.flags) == ("Left.", ())


def test_what_closes_an_answer_stands_behind_its_opening() -> None:
    message = {"role": "assistant", "content": " Left. "}
    assert continue_with(own.FRAMED, message) == Continuation(" Left. <|said|>", "<|over|>", ())
    assert continue_with(own.FRAMED, " Left. ").text == " Left. "
    source = own.FRAMED.replace(
        "<|say|>{{ m.content }}",
        "{{ '<|say|><|call|>' if m.role == 'assistant' else '<|say|>' }}{{ m.content }}",
    )
    for answer in (" Left. ", message):
        built = continue_with(source, answer)
        assert built == Continuation("<|call|> Left. <|said|>", "<|over|>", ("opening_added",))


@pytest.mark.parametrize(
    ("source", "header"),
    [
        (own.CHATML.partition("{% if add_generation_prompt")[0], "<|im_start|>assistant\n"),
        (own.NEXT_HEADER.partition("{% if add_generation_prompt")[0], "<|assistant|>\n"),
        (own.PLAIN_TEXT.partition("{% if add_generation_prompt")[0], "assistant: "),
        (
            "{% for m in messages %}### {{ 'Input' if m.role == 'user' else 'Response' }}:\n"
            "{{ m.content }}\n{% endfor %}",
            "### Response:\n",
        ),
    ],
)
def test_a_template_that_leaves_the_header_to_the_model_is_refused(
    source: str, header: str
) -> None:
    assert facts_of(source).role_header == header
    for answer in ("Left.", {"content": "Left."}, call_of(door="left")):
        with pytest.raises(UsageError, match="does not open the assistant's turn") as caught:
            continue_with(source, answer, end_of_turn="<eos>")
        assert "opening: none" in str(caught.value)
    bare = continue_with(source, "Left.", end_of_turn="<eos>", opening="none")
    assert bare.text == "Left."


@pytest.mark.parametrize(
    "source", [own.CHATML, own.CHANNELS, own.FRAMED, own.SYSTEM_MOVES, own.EMPTY_BLOCK]
)
def test_a_template_whose_prompt_opens_the_turn_has_no_role_header(source: str) -> None:
    assert facts_of(source).role_header == ""


THOUGHT_PARTS = [
    {"type": "thinking", "thinking": "Weigh both.", "signature": "zz"},
    {"type": "reasoning", "text": "Weigh both."},
    {"type": "reasoning", "reasoning": "Weigh both."},
    {
        "type": "thinking",
        "thinking": [{"type": "text", "text": "Weigh "}, {"type": "text", "text": "both."}],
    },
    {"text": "Weigh both.", "thought": True},
]


@pytest.mark.parametrize("part", THOUGHT_PARTS)
def test_a_part_of_thought_is_reasoning_and_never_answer(part: Message) -> None:
    for texts in (
        [{"type": "text", "text": "Left."}],
        ["Left."],
        [{"type": "output_text", "text": "Left."}],
    ):
        assert continue_with(own.EMPTY_BLOCK, {"content": [part, *texts]}) == continue_with(
            own.EMPTY_BLOCK, THOUGHT
        )


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_details": [{"type": "reasoning.text", "text": "Weigh both.", "format": "x"}]},
        {"thinking_blocks": [{"type": "thinking", "thinking": "Weigh both.", "signature": "zz"}]},
        {"reasoning": "Weigh both.", "reasoning_content": "Weigh both.\n"},
        {
            "reasoning": "Weigh both.",
            "reasoning_details": [{"type": "reasoning.text", "text": "Weigh both."}],
        },
    ],
)
def test_reasoning_is_read_under_every_name_once(fields: Message) -> None:
    built = continue_with(own.EMPTY_BLOCK, {"content": "Left.", **fields})
    assert built == continue_with(own.EMPTY_BLOCK, THOUGHT)


@pytest.mark.parametrize(
    ("message", "code", "words"),
    [
        (
            {"content": "Left.", "reasoning": "One.", "reasoning_content": "Two."},
            "ambiguous_shape",
            "different reasoning",
        ),
        (
            {"content": [THOUGHT_PARTS[0], "Left."], "reasoning": "Two."},
            "ambiguous_shape",
            "different reasoning",
        ),
        (
            {**THOUGHT, "content": "<think>Weigh both.</think>Left."},
            "ambiguous_shape",
            "given twice",
        ),
        (
            {**THOUGHT, "content": "\n<seed:think>Hm.</seed:think>Left."},
            "ambiguous_shape",
            "given twice",
        ),
        (
            {
                "content": "Left.",
                "reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}],
            },
            "unsupported_content",
            "reasoning.encrypted",
        ),
        (
            {
                "content": "Left.",
                "reasoning_details": [{"type": "reasoning.summary", "summary": "x"}],
            },
            "unsupported_content",
            "reasoning.summary",
        ),
        (
            {"content": [{"type": "redacted_thinking", "data": "x"}, "Left."]},
            "unsupported_content",
            "redacted_thinking",
        ),
        (
            {"content": ["Left.", {"type": "tool_use", "name": "f", "input": {}}]},
            "unsupported_content",
            "tool_use",
        ),
        (
            {"content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "unsupported_content",
            "image_url",
        ),
        (
            {"content": [{"type": "thinking", "signature": "x"}, "Left."]},
            "unsupported_content",
            "without its text",
        ),
        ({"content": ["Left.", THOUGHT_PARTS[0]]}, "not_renderable", "thought after text"),
        (
            {"content": [THOUGHT_PARTS[0], THOUGHT_PARTS[1], "Left."]},
            "not_renderable",
            "in several parts",
        ),
        ({"content": "Left.", "reasoning_details": "Weigh."}, "wrong_type", "reasoning_details"),
        ({"content": [7]}, "unsupported_content", "cannot be trained on"),
        ({"content": [{"type": "text", "text": 7}]}, "wrong_type", "text"),
    ],
)
def test_a_piece_that_is_not_certain_is_refused(message: Message, code: str, words: str) -> None:
    with pytest.raises(Rejected, match=words) as caught:
        continue_with(own.EMPTY_BLOCK, message)
    assert caught.value.code == code


@pytest.mark.parametrize("content", [None, "", "I open it."])
def test_a_printed_part_is_its_text(content: str | None) -> None:
    source = own.CHATML.replace(
        "{{ m.content or '' }}",
        "{{ [{'type': 'text', 'text': m.content}] if m.content is string and m.tool_calls else m.content or '' }}",
    )
    built = continue_with(source, {**call_of(door="left"), "content": content})
    assert built.text.startswith(f"{content or ''}<tool_call>")


@pytest.mark.parametrize(
    ("written", "found"),
    [
        (
            "{{ m.content or '' }}{{ m.tool_calls[0].function.arguments if m.tool_calls else '' }}",
            "{'door': 'left'}",
        ),
        ("{{ m.content or '' }}{{ m.tool_calls or '' }}", "{'door': 'left'}"),
        ("{{ m.content or None }}", "None"),
        ("{{ m.content or '' }}{{ [m.role, {'role': 1}] if m.tool_calls else '' }}", "{'role':"),
    ],
)
def test_no_target_holds_what_python_prints(written: str, found: str) -> None:
    with pytest.raises(Rejected, match="which is Python and no text of a model") as caught:
        continue_with(own.CHATML.replace("{{ m.content or '' }}", written), call_of(door="left"))
    assert caught.value.code == "not_renderable"
    assert found in str(caught.value)


def test_words_of_the_message_are_no_print_of_python() -> None:
    said = "None of [{'type': 'text'}] is Undefined."
    built = continue_with(own.CHATML, {**call_of(door=said), "content": said})
    assert built.flags == ()


def test_thought_that_spells_a_call_as_python_is_no_print_of_the_template() -> None:
    thought = "So I call it with {'door': 'left'}."
    template = own.CHATML.replace(
        "{{ m.content or '' }}", "{{ m.reasoning_content }}{{ m.content or '' }}"
    )
    call = {**call_of(door="left"), "reasoning_content": thought}
    written = "{{ (m.tool_calls[0].function.arguments | tojson) if m.tool_calls else '' }}"
    built = continue_with(template.replace("{{ m.content or '' }}", written), call)
    assert built.text.startswith(thought)
    printed = "{{ m.tool_calls[0].function.arguments if m.tool_calls else '' }}"
    with pytest.raises(Rejected, match="which is Python and no text"):
        continue_with(template.replace("{{ m.content or '' }}", printed), call)


def test_one_part_is_its_text_and_several_are_the_templates_to_join() -> None:
    parts = [{"type": "text", "text": "Left."}, {"type": "text", "text": "Or right."}]
    assert continue_with(own.CHATML, {"content": parts[:1]}) == continue_with(own.CHATML, "Left.")
    with pytest.raises(Rejected, match="which is Python and no text") as caught:
        continue_with(own.CHATML, {"content": parts})
    assert caught.value.code == "not_renderable"
    joined = own.CHATML.replace(
        "{{ m.content or '' }}",
        "{% if m.content is string %}{{ m.content }}{% else %}"
        "{{ m.content | map(attribute='text') | join(' ') }}{% endif %}",
    )
    assert continue_with(joined, {"content": parts}).text == "Left. Or right."


@pytest.mark.parametrize("content", [None, ""])
def test_a_message_without_anything_to_say_is_refused(content: str | None) -> None:
    with pytest.raises(Rejected) as caught:
        continue_with(own.CHATML, {"role": "assistant", "content": content, "tool_calls": []})
    assert caught.value.code == "empty_continuation"


def test_reasoning_is_rendered_by_the_template() -> None:
    built = continue_with(own.THINK_OPEN, THOUGHT)
    assert built == Continuation("Weigh both.\n</think>\n\nLeft.", "<|im_end|>", ())
    renamed = {"content": "Left.", "reasoning": "Weigh both."}
    assert continue_with(own.THINK_OPEN, renamed) == built
    channels = continue_with(own.CHANNELS, THOUGHT)
    assert channels.text == (
        " to=self<|message|>Weigh both.<|end|><|start|>assistant to=user<|message|>Left."
    )
    assert channels.end_of_turn == "<|return|>"


def test_a_tool_call_is_rendered_and_ends_with_its_own_token() -> None:
    built = continue_with(own.CHATML, call_of(door="left"))
    assert built.text.startswith("<tool_call>{")
    assert built.text.endswith("</tool_call>")
    assert (built.end_of_turn, built.flags) == ("<|im_end|>", ())
    assert continue_with(own.CHANNELS, call_of(door="left")).end_of_turn == "<|call|>"


def test_a_tool_call_under_an_open_think_block_is_closed_and_flagged() -> None:
    built = continue_with(own.THINK_OPEN, call_of(door="left"))
    assert built.text.startswith("\n</think>\n\n<tool_call>")
    assert built.flags == ("think_closed",)
    with pytest.raises(Rejected) as caught:
        continue_with(own.THINK_OPEN, call_of(door="left"), think="reject")
    assert caught.value.code == "not_renderable"


def test_a_tool_call_ends_with_the_stop_token_that_opens_the_tools_turn() -> None:
    stops = ("<|user|>", "<|observation|>")
    built = continue_with(own.NEXT_HEADER, call_of(door="left"), stops=stops)
    assert built.end_of_turn == "<|observation|>"


def test_a_setting_names_the_end_of_a_rendered_message_too() -> None:
    built = continue_with(own.NEXT_HEADER, call_of(door="left"), end_of_turn="<|observation|>")
    assert built.end_of_turn == "<|observation|>"
    assert continue_with(own.CHATML, call_of(door="left"), end_of_turn="none").end_of_turn is None
    with pytest.raises(Rejected) as caught:
        continue_with(own.NEXT_HEADER, call_of(door="left"))
    assert caught.value.code == "no_end_of_turn"


def test_thought_that_the_template_deletes_is_written_in_its_marks() -> None:
    built = continue_with(own.THOUGHT_DELETED, THOUGHT)
    assert built == Continuation(
        "Weigh both.\n</think>\n\nLeft.", "<|im_end|>", ("prompt_not_prefix",)
    )
    call = {**call_of(door="left"), "reasoning_content": "Weigh both."}
    assert continue_with(own.THOUGHT_DELETED, call).text.startswith(
        "Weigh both.\n</think>\n\n<tool_call>"
    )


def test_a_call_whose_turn_lacks_the_prompts_think_block_is_closed() -> None:
    built = continue_with(own.THOUGHT_DELETED, call_of(door="left"))
    assert built.text.startswith("\n</think>\n\n<tool_call>")
    assert built.flags == ("prompt_not_prefix", "think_closed")


def test_a_context_that_the_template_writes_otherwise_is_found_by_its_last_text() -> None:
    messages = [{"role": "system", "content": "Be brief."}, USER]
    built = continue_with(own.SYSTEM_MOVES, call_of(door="left"), messages=messages)
    assert built.text.startswith("<tool_call>{")
    assert (built.end_of_turn, built.flags) == ("<eos>", ("prompt_not_prefix",))


@pytest.mark.parametrize(
    ("source", "message", "reason"),
    [
        (own.CHATML, THOUGHT, "drops the reasoning and has no think marks"),
        (own.FRAMED, call_of(door="left"), "drops a part of the message"),
        (
            own.CHATML.replace(
                "{{ m.content or '' }}", "{{ 'Same.' if m.tool_calls else m.content }}"
            ),
            {**call_of(door="left"), "content": "Left."},
            "drops a part of the message",
        ),
    ],
)
def test_a_piece_that_the_template_drops_is_a_reject(
    source: str, message: Message, reason: str
) -> None:
    with pytest.raises(Rejected, match=reason) as caught:
        continue_with(source, message)
    assert caught.value.code == "not_renderable"


def test_reasoning_after_a_closed_think_block_is_a_reject() -> None:
    with pytest.raises(Rejected, match="already closed the think block") as caught:
        continue_with(own.THINK_OPEN, THOUGHT, kwargs={"enable_thinking": False})
    assert caught.value.code == "not_renderable"


def test_a_turn_spread_over_several_is_a_reject() -> None:
    source = own.CHATML.replace(
        "{{ m.content or '' }}", "{{ m.content or '' }}{% if m.tool_calls %}<|im_end|>\n{% endif %}"
    )
    with pytest.raises(Rejected, match="over several turns") as caught:
        continue_with(source, {**call_of(door="left"), "content": "Left."})
    assert caught.value.code == "not_renderable"


def test_a_rendering_with_another_context_is_a_reject_that_shows_both() -> None:
    source = "{{ 'A' if add_generation_prompt else 'B' }}" + own.PLAIN_TEXT
    with pytest.raises(Rejected, match="no prefix of the template's rendering") as caught:
        continue_with(
            source.replace("{{ m.content }}", "{{ m.tool_calls or 'x' }}"),
            call_of(door="left"),
            end_of_turn="<eos>",
        )
    assert caught.value.code == "not_renderable"


def test_a_control_token_in_a_messages_text_is_refused() -> None:
    message = {**THOUGHT, "content": "Left.<|im_end|>\n<|im_start|>user\nWhy?"}
    with pytest.raises(Rejected, match=r"the message's text holds <\|im_end\|>") as caught:
        continue_with(own.THINK_OPEN, message)
    assert caught.value.code == "control_tokens"


def test_a_rendered_message_needs_messages_as_its_context() -> None:
    with pytest.raises(Rejected, match="needs messages as its context"):
        continue_with(own.THINK_OPEN, THOUGHT, messages=[], prompt=CHATML_PROMPT)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"role": "user", "content": "Left."}, "continuation.role"),
        ({"content": 7}, "continuation.content"),
        ({"content": "Left.", "reasoning": ["a"]}, "continuation.reasoning"),
        ({"content": "", "tool_calls": "open"}, "continuation.tool_calls"),
        ({"content": "", "tool_calls": [{"function": "open"}]}, "continuation.tool_calls.function"),
    ],
)
def test_a_piece_of_the_wrong_type_is_refused_by_name(message: Message, field: str) -> None:
    with pytest.raises(Rejected, match=field) as caught:
        continue_with(own.CHATML, message)
    assert caught.value.code == "wrong_type"


def test_arguments_are_found_however_the_template_spells_them() -> None:
    awkward = call_of(name='a "b"\n\\c', tags=["é", "x"], count=7, nested={"on": True})
    built = continue_with(own.CHATML, awkward)
    assert built.end_of_turn == "<|im_end|>"


def test_arguments_that_are_no_json_are_refused() -> None:
    message = call_of()
    message["tool_calls"][0]["function"]["arguments"] = "{door"
    with pytest.raises(Rejected, match="arguments are no JSON") as caught:
        continue_with(own.CHATML, message)
    assert caught.value.code == "not_renderable"


def test_a_call_whose_arguments_the_template_wants_as_text_is_named_with_the_cure() -> None:
    source = own.CHATML.replace("call.function | tojson", "'call ' + call.function.arguments")
    with pytest.raises(
        Rejected, match=r"tool_calls\[0\]\.function\.arguments.*JSON text"
    ) as caught:
        continue_with(source, call_of(door="left"))
    assert caught.value.code == "template_refused"
    assert "messages[1]" in caught.value.reason
    assert "give a chat_template" in caught.value.reason


def test_a_refusal_in_the_templates_own_words_stays() -> None:
    source = own.CHATML.replace(
        "{{ m.content or '' }}", "{{ raise_exception('No.') if m.tool_calls else m.content }}"
    )
    with pytest.raises(Rejected) as caught:
        continue_with(source, call_of(door="left"))
    assert caught.value.reason == "the chat template raised: No."


# Calls that a parser does not give back

TOOL = {
    "type": "function",
    "function": {
        "name": "open_door",
        "parameters": {
            "type": "object",
            "properties": {
                "door": {"type": "string"},
                "wide": {"type": "boolean"},
                "many": {"type": "integer"},
            },
        },
    },
}


def flags_of_call(source: str, **arguments: Any) -> tuple[str, ...]:
    """Build a call under a request with `TOOL`."""
    facts = probe_turns(DIALECT, templates_of(source), {}, own.TOKENS, has_tools=True)
    request = ChatRequest([USER], [TOOL])
    prompt = DIALECT.render_prompt(request, templates_of(source)).text
    settings = RowSettings(tokenizer="")
    turn = Turn(prompt, request, DIALECT, templates_of(source), facts)
    return build_continuation(call_of(**arguments), turn, settings).flags


LOST = ("call_not_read_back",)


@pytest.mark.parametrize(
    ("source", "arguments", "flags"),
    [
        (own.CHATML, {"door": "left", "wide": None, "new": 1}, ()),
        (own.CHATML, {"door": "a </tool_call> b"}, LOST),
        (own.CHATML, {"door": ["x", {"k": "<tool_call>"}]}, LOST),
        (own.CHATML, {"door": "<b> & </b> [x]"}, ()),
        (own.FIELDS, {"door": "left", "wide": True, "many": 3}, ()),
        (own.FIELDS, {"door": "a\nb\n"}, ()),
        (own.FIELDS, {"door": "</parameter>"}, LOST),
        (own.FIELDS, {"door": "<function=f>"}, LOST),
        (own.FIELDS, {"wide": None}, LOST),
        (own.FIELDS, {"many": 5.0}, LOST),
        (own.FIELDS, {"door": True}, LOST),
        (own.FIELDS, {"door": 3}, LOST),
        (own.FIELDS, {"many": "3"}, LOST),
        (own.FIELDS, {"new": 3}, LOST),
        (own.FIELDS, {"new": "text"}, ()),
        (own.FIELDS.replace("\n{{ value }}\n", "{{ value }}"), {"door": "a\n"}, LOST),
        (own.FIELDS.replace("\n{{ value }}\n", "{{ value }}"), {"door": "a\nb"}, ()),
        (own.FIELDS.replace("{{ value }}", "{{ value | string | trim }}"), {"door": " a"}, LOST),
        (own.KEYWORDS, {"door": "left", "wide": None, "many": 3}, ()),
        (own.KEYWORDS, {"door": 'say "left"'}, LOST),
        (own.KEYWORDS.replace('"{{ value }}"', "{{ value }}"), {"door": "left"}, LOST),
    ],
)
def test_what_the_familys_parser_would_not_give_back_is_flagged(
    source: str, arguments: dict[str, Any], flags: tuple[str, ...]
) -> None:
    assert flags_of_call(source, **arguments) == flags


# Properties

PIECES = st.sampled_from(
    ["Left", " ", "\n", "<think>", "</think>", "<|im_end|>", "<|im_start|>", "<|endoftext|>", "é"]
)
TEXTS = st.lists(PIECES | st.text(max_size=3), max_size=8).map("".join)
SOURCES = st.sampled_from([own.CHATML, own.THINK_OPEN, own.THOUGHT_DELETED, own.FRAMED])


@given(source=SOURCES, text=TEXTS)
def test_a_text_loses_nothing_but_what_the_prompt_supplied_and_its_own_end(
    source: str, text: str
) -> None:
    facts = facts_of(source)
    try:
        built = continue_with(source, text, think="keep")
    except Rejected:
        return
    assert built.end_of_turn == facts.end_of_turn
    end = facts.end_of_turn or ""
    tails = [end + facts.after_end, end] if "end_of_turn_in_text" in built.flags else [""]
    tail = next(tail for tail in tails if text.endswith(tail))
    supplied = text[: len(text) - len(built.text) - len(tail)]
    assert supplied + built.text + tail == text
    assert "<think>\n".startswith(supplied)


@given(source=SOURCES, text=TEXTS)
def test_no_built_text_holds_an_end_of_turn_or_a_turn_header(source: str, text: str) -> None:
    facts = facts_of(source)
    try:
        built = continue_with(source, text)
    except Rejected:
        return
    assert not any(token in built.text for token in (*facts.ends, *facts.header_tokens))


@given(source=SOURCES, text=TEXTS)
def test_a_closed_text_is_the_kept_text_after_a_closing(source: str, text: str) -> None:
    try:
        kept = continue_with(source, text, think="keep")
    except Rejected:
        return
    closed = continue_with(source, text, think="close")
    assert closed.text.endswith(kept.text)
    assert (closed.text != kept.text) == ("think_closed" in closed.flags)


# Real tokenizers and templates


class Served:
    """A real tokenizer, with its own template or another, as a server would have it."""

    def __init__(self, name: str, template: str | None = None, server: str = "vllm") -> None:
        folder = require_shared(f"assets/tokenizers/{name}")
        self.encoder = TextEncoder.from_path(str(folder))
        own_template = resolve_templates(self.encoder.tokenizer, None)
        self.templates = own_template if template is None else _asset_template(template)
        options = {"fixed_date": "2024-07-26"}
        model_type = read_model_type(self.encoder.folder)
        self.dialect = load_dialect(server, options, model_type, self.encoder.folder)
        stop_ids = read_stop_ids(self.encoder.folder)
        self.stops = [text for text, id_ in self.encoder.added_tokens.items() if id_ in stop_ids]

    def build(
        self, continuation: str | Message, messages: list[Message] | None = None, **kwargs: Any
    ) -> Continuation:
        tools = kwargs.pop("tools", None)
        settings = RowSettings(tokenizer="", opening=kwargs.pop("opening", "template"))
        request = ChatRequest(messages or [USER], tools, kwargs)
        facts = probe_turns(
            self.dialect,
            self.templates,
            kwargs,
            self.encoder.added_tokens,
            self.stops,
            has_tools=bool(tools),
        )
        prompt = self.dialect.render_prompt(request, self.templates).text
        turn = Turn(prompt, request, self.dialect, self.templates, facts)
        return build_continuation(continuation, turn, settings)


def _asset_template(name: str) -> ChatTemplates:
    path = require_shared(f"assets/templates/{name}.jinja")
    return ChatTemplates({"default": path.read_text("utf-8")}, {})


@pytest.fixture(scope="module")
def qwen3() -> Served:
    return Served("qwen3")


def test_qwen3_writes_reasoning_and_calls_and_strips_history(qwen3: Served) -> None:
    history = [USER, THOUGHT, {"role": "user", "content": "Sure?"}]
    assert qwen3.build(THOUGHT, history) == Continuation(
        "<think>\nWeigh both.\n</think>\n\nLeft.", "<|im_end|>", ()
    )
    call = qwen3.build({**call_of(door="left"), "reasoning_content": "Weigh both."})
    assert call.text.startswith("<think>\nWeigh both.\n</think>\n\n<tool_call>\n")
    assert call.text.endswith("\n</tool_call>")
    answered = [
        USER,
        call_of(door="left"),
        {"role": "tool", "content": "open", "tool_call_id": "call00001"},
    ]
    assert qwen3.build(THOUGHT, answered).text.startswith("<think>\nWeigh both.")
    off = qwen3.build("<think>\n\n</think>\n\nLeft.", enable_thinking=False)
    assert off == Continuation("Left.", "<|im_end|>", ())


# What an answer without reasoning becomes under each template's prompt, and the flag.
CLOSED_BY = {
    "qwen3": ("<think>\n\n</think>\n\n", ("opening_added",)),
    "smollm3": ("", ()),
    "glm-4.5": ("\n<think></think>\n", ("opening_added",)),
    "seed-oss": ("<seed:think></seed:think>\n", ("opening_added",)),
    "qwen3.5": ("\n</think>\n\n", ("think_closed",)),
    "deepseek-r1-distill": ("\n</think>\n\n", ("think_closed",)),
    "deepseek-r1-distill-llama": ("\n</think>\n\n", ("think_closed",)),
    "nemotron-3-nano": ("</think>", ("think_closed",)),
    "nemotron-nano-v2": ("\n</think>\n\n", ("think_closed",)),
    "glm-4.7-flash": ("</think>", ("think_closed",)),
}


@pytest.mark.parametrize("name", sorted(CLOSED_BY))
def test_an_answer_without_reasoning_is_never_trained_as_thought(name: str) -> None:
    templates = _asset_template(name)
    facts = probe_turns(DIALECT, templates, {})
    prompt = DIALECT.render_prompt(ChatRequest([USER]), templates).text
    settings = RowSettings(tokenizer="", end_of_turn=facts.end_of_turn or "<|user|>")

    def build(text: str) -> Continuation:
        request = ChatRequest([USER])
        turn = Turn(prompt, request, DIALECT, templates, facts)
        return build_continuation(text, turn, settings)

    closing, flags = CLOSED_BY[name]
    answer = build("Left.")
    assert (answer.text, answer.flags) == (closing + "Left.", flags)
    thought = build(f"Weigh.{facts.think_close}Left.")
    assert thought.text == f"Weigh.{facts.think_close}Left."
    assert thought.flags == (() if facts.prompt_opens_think else ("think_in_text",))


def test_llama_ends_a_built_in_call_with_its_own_token() -> None:
    llama = Served("llama-3.1")
    call = call_of(query="doors")
    call["tool_calls"][0]["function"]["name"] = "brave_search"
    built = llama.build(call, tools=None, builtin_tools=["brave_search"])
    assert built == Continuation('<|python_tag|>brave_search.call(query="doors")', "<|eom_id|>", ())
    assert llama.build("<|python_tag|>brave_search.call()<|eom_id|>").end_of_turn == "<|eom_id|>"
    assert llama.build(call_of(door="left")).end_of_turn == "<|eot_id|>"


def test_gpt_oss_writes_its_channels_with_the_servers_own_encoder() -> None:
    pytest.importorskip("openai_harmony")
    served = Served("gpt-oss")
    built = served.build({"role": "assistant", "content": "Left."})
    opened = Continuation("<|channel|>final<|message|>Left.", "<|return|>", ("opening_added",))
    assert built == served.build("Left.") == opened
    thought = served.build(THOUGHT)
    assert thought.text == (
        "<|channel|>analysis<|message|>Weigh both.<|end|><|start|>assistant"
        "<|channel|>final<|message|>Left."
    )
    call = served.build(call_of(door="left"))
    assert call.end_of_turn == "<|call|>"
    result = {"role": "tool", "content": "open", "tool_call_id": "call00001"}
    after_call = served.build(
        THOUGHT, [USER, {**call_of(door="left"), "reasoning": "Try."}, result]
    )
    assert after_call.text == thought.text


def test_mistral_moves_the_system_text_and_the_call_is_still_found() -> None:
    served = Served("mistral-nemo")
    messages = [{"role": "system", "content": "Be brief."}, USER]
    built = served.build(call_of(door="left"), messages)
    assert built.text.startswith("[TOOL_CALLS][{")
    assert (built.end_of_turn, built.flags) == ("</s>", ("prompt_not_prefix",))


@pytest.mark.parametrize(
    "name", name_tokenizers(["mistral-v0.3", "qwen2.5", "llama-2", "deepseek-v3", "phi-3"])
)
def test_a_real_tokenizer_encodes_the_text_and_its_end_as_one_token(name: str) -> None:
    served = Served(name)
    built = served.build("Left.\n")
    assert built.text == "Left.\n"
    assert built.end_of_turn is not None
    ids = served.encoder.encode_continuations([built.text, built.text + built.end_of_turn])
    assert served.encoder.decode_after_context(ids)[0] == built.text
    assert ids[1].tolist()[-1] == served.encoder.token_id(built.end_of_turn)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (
            "continuation_terminator",
            {"no-eot": (), "has-eot": ("end_of_turn_in_text",), "two-eot": "control_tokens"}
            | {"has-eot-nl": ("end_of_turn_in_text",), "has-eos": ("control_token_in_text",)},
        ),
        (
            "think_in_continuation",
            {"tc-open": (), "tc-none": (), "tc-empty": (), "tc-closed-only": ("think_in_text",)},
        ),
        (
            "empty_continuation",
            {"zwsp": (), "ok": ()}
            | dict.fromkeys(("empty", "only-eot", "space", "newline"), "empty_continuation"),
        ),
        ("whitespace_edges", {f"w{index}": () for index in range(9)}),
    ],
)
def test_the_case_files_become_what_they_must(
    file: str, expected: dict[str, Any], qwen3: Served, shared: Path
) -> None:
    lines = (shared / f"cases/{file}.jsonl").read_bytes().split(b"\n")
    cases = {
        case["id"]: case["continuation"]
        for line in lines
        if line and (case := json.loads(line)).get("continuation") is not None
    }
    assert set(cases) == set(expected)
    for name, outcome in expected.items():
        if isinstance(outcome, str):
            with pytest.raises(Rejected) as caught:
                qwen3.build(cases[name], opening="none")
            assert caught.value.code == outcome, name
        else:
            built = qwen3.build(cases[name], opening="none")
            assert built.flags == outcome, name
            assert cases[name].startswith(built.text)
            assert built.end_of_turn == "<|im_end|>"
