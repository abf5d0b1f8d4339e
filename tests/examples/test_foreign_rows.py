"""Rows of other tools are read as the messages that they are, or refused with the key."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Rejected
from pipeline.examples.decisions import find_decision_points
from pipeline.examples.example import TrainingExample
from pipeline.examples.foreign_turns import name_spelling, respell_turns
from pipeline.examples.shapes import ReadRow, read_row
from tests.conftest import ROOT

Row = dict[str, Any]
Message = dict[str, Any]

USER: Message = {"role": "user", "content": "Rain in Oslo?"}
ANSWER: Message = {"role": "assistant", "content": "Yes, rain."}
RESULT: Message = {"role": "tool", "content": "rain", "tool_call_id": "t1"}
OSLO = {"city": "Oslo"}


def asking(**more: Any) -> Message:
    call = {"type": "function", "function": {"name": "weather", "arguments": OSLO}, **more}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


TALK = [USER, ANSWER]
CALLING = [USER, asking(id="t1"), RESULT, ANSWER]

LANGCHAIN_CALL = {"name": "weather", "args": OSLO, "id": "t1", "type": "tool_call"}
# What LangChain's messages have beside what they say (`model_dump`).
LANGCHAIN = {"additional_kwargs": {}, "response_metadata": {}, "name": None, "id": None}


def constructed(kind: str, **kwargs: Any) -> Row:
    path = ["langchain", "schema", "messages", kind]
    return {"lc": 1, "type": "constructor", "id": path, "kwargs": {**LANGCHAIN, **kwargs}}


# A line of each shape, the shape that the summary counts, and what a server would have been sent.
GOLDEN: list[tuple[str, Row, list[Message]]] = [
    # WildChat: allenai/WildChat-1M, dataset card.
    (
        "conversation as sharegpt",
        {
            "conversation_hash": "h",
            "model": "m",
            "conversation": [
                {**each, "language": "English", "toxic": False, "redacted": False, "header": {}}
                for each in TALK
            ],
            "turn": 1,
        },
        TALK,
    ),
    # LMSYS-Chat-1M: lmsys/lmsys-chat-1m, dataset card.
    ("conversation as sharegpt", {"conversation_id": "l1", "conversation": TALK, "turn": 1}, TALK),
    ("sharegpt", {"conversations": TALK}, TALK),
    ("chat as openai", {"chat": TALK}, TALK),
    ("traj as openai", {"task_id": 1, "reward": 1.0, "info": {}, "traj": CALLING}, CALLING),
    ("sharegpt", {"conversations": json.dumps(TALK)}, TALK),
    ("sharegpt", {"conversations": CALLING}, CALLING),
    (
        "sharegpt",
        {
            "conversations": [
                {"from": "Human", "value": "Rain in Oslo?"},
                {"from": "tool_call", "value": json.dumps({"name": "weather", "arguments": OSLO})},
                {"from": "tool_response", "value": "rain"},
                {"from": "chatgpt", "value": "Yes, rain."},
            ]
        },
        [USER, asking(), {"role": "tool", "content": "rain"}, ANSWER],
    ),
    (
        "from+value as openai",
        {
            "messages": [
                {"from": "human", "value": "Rain in Oslo?"},
                {"from": "gpt", "value": "Yes, rain."},
            ]
        },
        TALK,
    ),
    (
        "roles as openai",
        {"messages": [{**USER, "role": "User"}, {**ANSWER, "role": "Chatbot"}]},
        TALK,
    ),
    # Answers beside what was asked.
    ("messages+output as openai_log", {"messages": [USER], "output": "Yes, rain."}, TALK),
    ("messages+answer as openai_log", {"messages": [USER], "answer": "Yes, rain."}, TALK),
    ("prompt+output as openai_log", {"prompt": [USER], "output": ANSWER}, TALK),
    ("openai_log", {"prompt": [USER], "response": "Yes, rain."}, TALK),
    # Respan's logs; LiteLLM's standard logging payload.
    (
        "prompt_messages+completion_message as openai_log",
        {"prompt_messages": [USER], "completion_message": ANSWER},
        TALK,
    ),
    (
        "openai_log",
        {
            "status": "success",
            "messages": [USER],
            "response": {"choices": [{"message": ANSWER, "finish_reason": "stop"}]},
            "model_parameters": {"tools": [{"type": "function", "function": {"name": "weather"}}]},
        },
        TALK,
    ),
    # LiteLLM's spend logs: both as JSON text.
    (
        "openai_log",
        {
            "messages": json.dumps([USER]),
            "response": json.dumps({"choices": [{"message": ANSWER, "finish_reason": "stop"}]}),
        },
        TALK,
    ),
    (
        "messages+output as openai_log",
        {"messages": json.dumps([USER]), "output": '{"sky": "rain"}'},
        [USER, {"role": "assistant", "content": '{"sky": "rain"}'}],
    ),
    # MLflow (`search_traces`), Weave, Langfuse, OpenHands, LangSmith.
    (
        "request+response as openai_log",
        {
            "request": json.dumps({"messages": [USER]}),
            "response": json.dumps({"choices": [{"message": ANSWER, "finish_reason": "stop"}]}),
        },
        TALK,
    ),
    (
        "request+response as openai_log",
        {"request": json.dumps({"messages": [USER]}), "response": json.dumps("Yes, rain.")},
        TALK,
    ),
    (
        "inputs+output as openai_log",
        {
            "op_name": "openai.chat.completions.create",
            "inputs": {"self": {}, "model": "m", "messages": [USER]},
            "output": {"choices": [{"message": ANSWER, "finish_reason": "stop"}]},
        },
        TALK,
    ),
    (
        "input+output as openai_log",
        {"type": "GENERATION", "traceId": "t", "input": [USER], "output": ANSWER},
        TALK,
    ),
    (
        "input+output as openai_log",
        {"input": {"args": [], "kwargs": {"messages": [USER]}}, "output": "Yes, rain."},
        TALK,
    ),
    (
        "kwargs+response as openai_log",
        {"kwargs": {"messages": [USER]}, "response": {"choices": [{"message": ANSWER}]}},
        TALK,
    ),
    (
        "inputs+outputs as openai_log",
        {
            "inputs": {"messages": [[constructed("HumanMessage", content="Rain in Oslo?")]]},
            "outputs": {
                "generations": [[{"message": constructed("AIMessage", content="Yes, rain.")}]]
            },
        },
        TALK,
    ),
    # OpenTelemetry, OpenLLMetry, OpenInference.
    (
        "gen_ai.input.messages+gen_ai.output.messages as openai_log",
        {
            "gen_ai.request.model": "m",
            "gen_ai.system_instructions": json.dumps([{"type": "text", "content": "Be brief."}]),
            "gen_ai.input.messages": json.dumps(
                [
                    {"role": "user", "parts": [{"type": "text", "content": "Rain in Oslo?"}]},
                    {
                        "role": "assistant",
                        "parts": [
                            {"type": "tool_call", "id": "t1", "name": "weather", "arguments": OSLO}
                        ],
                    },
                    {
                        "role": "tool",
                        "parts": [{"type": "tool_call_response", "id": "t1", "result": "rain"}],
                    },
                ]
            ),
            "gen_ai.output.messages": [
                {
                    "role": "assistant",
                    "parts": [{"type": "text", "content": "Yes, rain."}],
                    "finish_reason": "stop",
                }
            ],
        },
        [{"role": "system", "content": "Be brief."}, *CALLING],
    ),
    (
        "gen_ai.prompt+gen_ai.completion as openai_log",
        {
            "attributes": {
                "gen_ai.prompt.0.role": "user",
                "gen_ai.prompt.0.content": "Rain in Oslo?",
                "gen_ai.completion.0.role": "assistant",
                "gen_ai.completion.0.content": "Yes, rain.",
                "gen_ai.completion.0.finish_reason": "stop",
            }
        },
        TALK,
    ),
    (
        "llm.input_messages+llm.output_messages as openai_log",
        {
            "attributes.llm.input_messages": [
                {"message.role": "user", "message.content": "Rain in Oslo?"},
                {
                    "message.role": "assistant",
                    "message.content": "",
                    "message.tool_calls": [
                        {
                            "tool_call.id": "t1",
                            "tool_call.function.name": "weather",
                            "tool_call.function.arguments": OSLO,
                        }
                    ],
                },
                {"message.role": "tool", "message.content": "rain", "message.tool_call_id": "t1"},
            ],
            "attributes.llm.output_messages": [
                {
                    "message.role": "assistant",
                    "message.contents": [
                        {"message_content.type": "text", "message_content.text": "Yes, rain."}
                    ],
                }
            ],
        },
        CALLING,
    ),
    # Gemini: a tuning file, and a call.
    (
        "contents as openai",
        {
            "systemInstruction": {"role": "system", "parts": [{"text": "Be brief."}]},
            "contents": [
                {"role": "user", "parts": [{"text": "Rain in Oslo?"}]},
                {"role": "model", "parts": [{"functionCall": {"name": "weather", "args": OSLO}}]},
                {
                    "role": "user",
                    "parts": [
                        {"functionResponse": {"name": "weather", "response": {"sky": "grå"}}}
                    ],
                },
                {"role": "model", "parts": [{"text": "Yes, "}, {"text": "rain."}]},
            ],
        },
        [
            {"role": "system", "content": "Be brief."},
            USER,
            asking(),
            {"role": "tool", "content": '{"sky":"grå"}', "name": "weather"},
            ANSWER,
        ],
    ),
    (
        "request+response as openai_log",
        {
            "request": {"contents": [{"role": "user", "parts": [{"text": "Rain in Oslo?"}]}]},
            "response": {
                "candidates": [
                    {
                        "content": {
                            "role": "model",
                            "parts": [
                                {"text": "Look up.", "thought": True},
                                {"text": "Yes, rain."},
                            ],
                        },
                        "finishReason": "STOP",
                    }
                ]
            },
        },
        [USER, {**ANSWER, "reasoning_content": "Look up."}],
    ),
    # Vercel's AI SDK: model messages, and messages of its UI.
    (
        "content parts as openai",
        {
            "messages": [
                {"role": "user", "content": "Rain in Oslo?"},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "reasoning", "text": "Look up."},
                        {
                            "type": "tool-call",
                            "toolCallId": "t1",
                            "toolName": "weather",
                            "input": OSLO,
                        },
                    ],
                },
                {
                    "role": "tool",
                    "content": [
                        {
                            "type": "tool-result",
                            "toolCallId": "t1",
                            "toolName": "weather",
                            "output": {"type": "text", "value": "rain"},
                        }
                    ],
                },
                ANSWER,
            ]
        },
        [USER, {**asking(id="t1"), "reasoning_content": "Look up."}, RESULT, ANSWER],
    ),
    (
        "parts as openai",
        {
            "messages": [
                {"id": "m1", "role": "user", "parts": [{"type": "text", "text": "Rain in Oslo?"}]},
                {
                    "id": "m2",
                    "role": "assistant",
                    "parts": [
                        {"type": "step-start"},
                        {
                            "type": "tool-weather",
                            "toolCallId": "t1",
                            "state": "output-available",
                            "input": OSLO,
                            "output": "rain",
                        },
                        {"type": "step-start"},
                        {"type": "text", "text": "Yes, rain.", "state": "done"},
                    ],
                },
            ]
        },
        CALLING,
    ),
    # LangChain: `model_dump`, `messages_to_dict`, `dumpd`.
    (
        "type+content as openai",
        {
            "messages": [
                {"type": "human", "content": "Rain in Oslo?", **LANGCHAIN},
                {"type": "ai", "content": "", **LANGCHAIN, "tool_calls": [LANGCHAIN_CALL]},
                {"type": "tool", "content": "rain", "tool_call_id": "t1", "status": "success"},
                {"type": "ai", "content": "Yes, rain.", **LANGCHAIN, "tool_calls": []},
            ]
        },
        CALLING,
    ),
    (
        "type+data as openai",
        {
            "messages": [
                {"type": "human", "data": {"type": "human", "content": "Rain in Oslo?"}},
                {"type": "ai", "data": {**LANGCHAIN, "type": "ai", "content": "Yes, rain."}},
            ]
        },
        TALK,
    ),
    (
        "lc as openai",
        {
            "messages": [
                constructed("HumanMessage", content="Rain in Oslo?", type="human"),
                constructed(
                    "AIMessage",
                    content="",
                    tool_calls=[LANGCHAIN_CALL],
                    additional_kwargs={"tool_calls": asking(id="t1")["tool_calls"]},
                ),
                constructed("ToolMessage", content="rain", tool_call_id="t1"),
                constructed("AIMessage", content="Yes, rain.", type="ai"),
            ]
        },
        CALLING,
    ),
]


# A line of ids, the shape that the summary counts, and the context and the answer of each of its rows.
IDS: list[tuple[str, Row, list[tuple[list[int], list[int]]]]] = [
    # verl: AgentLoopOutput.
    (
        "prompt_ids+response_ids+response_mask as own",
        {
            "prompt_ids": [1, 2],
            "response_ids": [3, 4, 5, 6, 7],
            "response_mask": [1, 1, 0, 0, 1],
            "response_logprobs": [-0.1],
            "num_turns": 3,
        },
        [([1, 2], [3, 4]), ([1, 2, 3, 4, 5, 6], [7])],
    ),
    # TRL: what a rollout function returns.
    (
        "prompt_ids+completion_ids as own",
        {"prompt_ids": [1, 2], "completion_ids": [3, 4], "logprobs": [-0.1, -0.2]},
        [([1, 2], [3, 4])],
    ),
    # SkyRL: a batch of one, as it is dumped.
    (
        "prompt_token_ids+response_ids+loss_masks as own",
        {"prompt_token_ids": [[1]], "response_ids": [[3, 4]], "loss_masks": [[0, 1]]},
        [([1, 3], [4])],
    ),
    # slime: Sample.
    (
        "tokens+response_length+loss_mask as own",
        {"tokens": [1, 2, 3], "response_length": 2, "loss_mask": [1, 0], "status": "completed"},
        [([1], [2])],
    ),
    (
        "input_ids+labels as own",
        {
            "input_ids": [1, 2, 3, 4, 5],
            "labels": [-100, 2, -100, 4, 5],
            "attention_mask": [1, 1, 1, 1, 1],
        },
        [([1], [2]), ([1, 2, 3], [4, 5])],
    ),
    (
        "input_ids+assistant_masks as own",
        {"input_ids": [1, 2, 3], "assistant_masks": [False, True, False]},
        [([1], [2])],
    ),
    (
        "context_ids+continuation_ids+loss_mask as own",
        {"context_ids": [1], "continuation_ids": [2, 3], "loss_mask": [0, 0, 1]},
        [([1, 2], [3])],
    ),
]


def read(row: Row, format: str = "auto") -> ReadRow:
    return read_row(row, format, "file:1")


def refuse(row: Row) -> Rejected:
    with pytest.raises(Rejected) as caught:
        read(row)
    return caught.value


def said(found: ReadRow) -> list[Message]:
    """Return the context and the answer, without what no server reads of a message."""
    example = found.example
    answer = example.continuation
    spoken = {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
    kept = ("role", "content", "tool_calls", "tool_call_id", "reasoning_content", "name")
    return [
        {key: message[key] for key in kept if message.get(key) is not None}
        for message in [*(example.messages or [])[: example.decision_idx], spoken]
    ]


@pytest.mark.parametrize(("format", "row", "messages"), GOLDEN, ids=lambda value: str(value)[:60])
def test_a_line_of_each_shape_is_read_as_its_messages(
    format: str, row: Row, messages: list[Message]
) -> None:
    found = read(json.loads(json.dumps(row)))
    assert (found.format, said(found)) == (format, messages)


@pytest.mark.parametrize(
    ("row", "code", "words"),
    [
        (
            {"conversation": [{"role": "user", "content": "q"}, {"role": "narrator", "content": "a"}]},
            "wrong_type",
            "conversations[1].role: expected one of human",
        ),
        ({"conversation": [{"human": "q", "assistant": "a"}]}, "missing_field", "[0].role: missing"),
        (
            {"messages": [USER, {"type": "ai", "data": {"type": "human", "content": "a"}}]},
            "ambiguous_shape",
            "messages[1].type: another",
        ),
        (
            {"messages": [USER, {"type": "ai", "content": "a", "invalid_tool_calls": [{"id": "t"}]}]},
            "unsupported_content",
            "messages[1].invalid_tool_calls",
        ),
        (
            {"messages": [USER, {"type": "ai", "content": "a", "tool_calls": [{"name": "w"}]}]},
            "wrong_type",
            "messages[1].tool_calls[0]: expected the name and the arguments",
        ),
        (
            {"messages": [USER, {"type": "ai", "content": "a", "tool_calls": [{**LANGCHAIN_CALL, "x": 1}]}]},
            "wrong_type",
            "messages[1].tool_calls[0].x: a call cannot say this",
        ),
        (
            {
                "messages": [
                    {"type": "human", "content": "q"},
                    {"type": "ai", "content": "a", "response_metadata": {"finish_reason": "length"}},
                ]
            },
            "missing_field",
            "with a weight other than 0",
        ),
        (
            {"messages": [USER, {"role": "assistant", "parts": [
                {"type": "tool-w", "toolCallId": "t", "state": "input-available", "input": {}}
            ]}]},
            "unsupported_content",
            "messages[1].parts[0].state: expected a call that came back",
        ),
        (
            {"messages": [USER, {"role": "assistant", "parts": [
                {"type": "tool_call", "id": "t", "name": "w", "arguments": {}},
                {"type": "text", "content": "Yes."},
            ]}]},
            "unsupported_content",
            "messages[1].parts[1]: stands behind",
        ),
        (
            {"contents": [{"role": "user", "parts": [
                {"functionResponse": {"name": "w", "response": {}}}, {"text": "And?"}
            ]}]},
            "unsupported_content",
            "messages[0].parts: results beside text",
        ),
        (
            {"messages": [{"role": "user", "parts": [{"type": "reasoning", "text": "a"}]}, ANSWER]},
            "unsupported_content",
            "messages[0].parts[0]: only an assistant",
        ),
        (
            {"messages": [{"role": "user", "parts": [{"type": "file", "url": "x"}]}, ANSWER]},
            "unsupported_content",
            "messages[0].parts[0].type",
        ),
        (
            {"messages": [{"role": "user", "content": "a", "parts": [{"text": "b"}]}, {"type": "ai", "content": "c"}]},
            "ambiguous_shape",
            "messages[0].content: another text than its parts",
        ),
        (
            {"request": json.dumps({"messages": [USER]}), "response": '{"sky": "rain"}'},
            "ambiguous_shape",
            "response: JSON that is no answer of a chat API",
        ),
        ({"messages": TALK, "output": "Else."}, "ambiguous_shape", "output:"),
        (
            {"messages": [constructed("HumanMessage", content="q"), constructed("AIMessage", content="a")], "output": "Else."},
            "ambiguous_shape",
            "output:",
        ),
        ({"messages": [USER], "output": "a", "rejected": "b"}, "missing_field", "continuation: missing"),
        (
            {"input": [USER], "output": constructed(
                "AIMessage", content="Half", response_metadata={"finish_reason": "length"}
            )},
            "no_end_of_turn",
            "finish_reason: length",
        ),
        (
            {"input": [USER], "output": constructed(
                "AIMessage", content="Half", response_metadata={"stop_reason": "max_tokens"}
            )},
            "no_end_of_turn",
            "stop_reason: max_tokens",
        ),
        (
            {"inputs": {"messages": [[USER]]}, "outputs": {"generations": [[
                {"message": constructed("AIMessage", content="Half"), "generation_info": {"finish_reason": "length"}}
            ]]}},
            "no_end_of_turn",
            "finish_reason: length",
        ),
        ({"input": [USER], "output": "a", "level": "ERROR"}, "missing_field", "level: the call failed"),
        ({"inputs": {"messages": [USER]}, "output": "a", "exception": "boom"}, "missing_field", "exception:"),
        ({"input": [USER], "answer": "42"}, "missing_field", "the keys fit no shape"),
        ({"messages": [{"type": "system", "text": "a"}, ANSWER]}, "missing_field", "messages[0]"),
        ({"input": "q", "output": "a"}, "missing_field", "rename input to instruction"),
        (
            {"contents": [{"role": "user", "parts": [{"text": "q"}]}], "tools": [{"functionDeclarations": []}]},
            "unsupported_content",
            "tools: may hold tools in Gemini's form",
        ),
        (
            {"inputs": {"messages": [USER]}, "output": {"choices": [{"message": ANSWER, "finish_reason": "length"}]}},
            "no_end_of_turn",
            "choices[0].finish_reason: length",
        ),
        ({"messages": [{"source": "user", "content": "q", "type": "TextMessage"}]}, "missing_field", "role"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_what_is_lossy_or_unsure_is_refused_with_its_key(row: Row, code: str, words: str) -> None:
    error = refuse(row)
    assert (error.code, words in error.reason) == (code, True), str(error)


def test_arguments_with_dots_or_numbers_for_names_stay_as_they_are() -> None:
    arguments = {"a.b": 1, "c": {"0": "x"}}
    call = {"tool_call.function.name": "f", "tool_call.function.arguments": arguments}
    row = {
        "llm.input_messages": [{"message.role": "user", "message.content": "q"}],
        "llm.output_messages": [{"message.role": "assistant", "message.tool_calls": [call]}],
    }
    answer = said(read(row))[-1]
    assert answer["tool_calls"][0]["function"] == {"name": "f", "arguments": arguments}


def test_reading_a_row_changes_nothing_of_it() -> None:
    for _, row, _ in GOLDEN:
        before = json.dumps(row)
        read(row)
        assert json.dumps(row) == before
    messages = {"messages": [{"role": "user", "parts": [{"type": "text", "content": "q"}]}]}
    answers = {"messages": [{"role": "assistant", "parts": [{"type": "text", "content": "a"}]}]}
    nested = {"attributes": {"gen_ai": {"input": messages, "output": answers, "usage": 3}}}
    before = json.dumps(nested)
    assert read(nested).unread == {"attributes"}
    assert json.dumps(nested) == before


def test_a_message_that_a_server_reads_as_it_stands_is_left_alone_beside_foreign_ones() -> None:
    critic = {"role": "critic", "content": "Too short.", "mood": "bad"}
    (asked, other, _) = (
        read({"messages": [{"type": "human", "content": "q"}, critic, ANSWER]}).example.messages
        or []
    )
    assert (asked["role"], other) == ("user", critic)


def test_tools_of_a_call_under_other_names_are_its_tools() -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    messages = {
        "llm.input_messages": [{"message.role": "user", "message.content": "q"}],
        "llm.output_messages": [{"message.role": "assistant", "message.content": "a"}],
    }
    for row in (
        {"input": {"messages": [USER], "tools": [tool]}, "output": "a"},
        {"inputs": {"messages": [USER], "functions": [tool["function"]]}, "output": "a"},
        {**messages, "llm.tools": [{"tool.json_schema": json.dumps(tool)}]},
        {**messages, "llm.invocation_parameters": json.dumps({"tools": [tool]})},
    ):
        assert read(row).example.tools == [tool], row


@pytest.mark.parametrize(("format", "row", "rows"), IDS, ids=lambda value: str(value)[:60])
def test_each_run_of_ones_of_a_rollout_is_a_row(
    format: str, row: Row, rows: list[tuple[list[int], list[int]]]
) -> None:
    found = read(row)
    assert found.format == format
    points = find_decision_points(found.example)
    assert [
        (each.example.context_ids, list(each.continuation_ids or ())) for each in points
    ] == rows
    assert find_decision_points(found.example, "last") == points[-1:]
    assert TrainingExample.from_dict({**found.example.to_dict(), "id": "a"}).to_dict() == {
        **found.example.to_dict(),
        "id": "a",
    }


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt_ids": [1], "response_ids": [2], "response_mask": [1, 1, 1]}, "response_mask: 3 for 1"),
        ({"prompt_ids": [1], "response_ids": [2], "response_mask": [1, 1]}, "a token of the prompt"),
        ({"prompt_ids": [1], "response_ids": [2], "loss_mask": [0]}, "loss_mask: trains nothing"),
        ({"prompt_ids": [1], "response_ids": [2], "loss_mask": [{}]}, "loss_mask: expected ones"),
        ({"prompt_ids": [[1], [2]], "response_ids": [[2], [3]]}, "prompt_ids: expected one list"),
        ({"tokens": [1, 2], "response_length": 2}, "response_length: expected 1 to 1"),
        ({"input_ids": [1, 2, 3], "labels": [2, 3, -100]}, "labels[0]: expected -100, or the id"),
        ({"input_ids": [1, 2], "labels": [-100]}, "labels: 1 for 2 input_ids"),
        ({"input_ids": [1, True], "labels": [-100, 1]}, "input_ids: expected whole numbers"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_ids_that_a_mask_does_not_fit_are_refused_with_its_key(row: Row, words: str) -> None:
    error = refuse(row)
    assert (error.code, words in error.reason) == ("bad_ids", True), str(error)


def test_a_mask_that_leaves_ids_out_beside_their_text_is_ambiguous() -> None:
    row = {"prompt": [USER], "tokens": [1, 2, 3], "response_length": 2, "response": "Yes."}
    assert read({**row, "loss_mask": [1, 1]}).example.continuation_ids == [2, 3]
    assert "no context beside them" in refuse({**row, "loss_mask": [0, 1]}).reason


@given(st.lists(st.booleans(), min_size=1, max_size=30).filter(any))
def test_the_rows_of_a_mask_hold_what_it_marks_and_nothing_else(marks: list[bool]) -> None:
    ids = list(range(100, 100 + len(marks)))
    found = read({"prompt_ids": [7], "response_ids": ids, "response_mask": list(map(int, marks))})
    trained: list[int] = []
    for point in find_decision_points(found.example):
        own = list(point.continuation_ids or ())
        assert [*(point.example.context_ids or ()), *own] == [7, *ids][: own[-1] - 100 + 2]
        trained += own
    assert trained == [id_ for id_, mark in zip(ids, marks, strict=True) if mark]


def test_a_mask_of_very_many_runs_over_many_ids_is_refused_before_it_fills_the_memory() -> None:
    ids = [5] * 12_000
    row = {"prompt_ids": [1], "response_ids": ids, "response_mask": [1, 0] * 6_000}
    with pytest.raises(Rejected, match="6000 runs of ones"):
        find_decision_points(read(row).example)


def test_a_row_that_is_refused_under_our_names_says_which_it_was_read_with() -> None:
    error = refuse({"conversation": [{"role": "user", "content": "q"}]})
    assert error.reason.endswith("(read with conversation under our names)")


def test_a_conversation_that_is_a_name_or_stands_beside_messages_is_no_list_of_turns() -> None:
    named = read({"messages": TALK, "conversation": "c7"})
    assert (named.format, named.example.conversation) == ("openai", "c7")
    other = [{"role": "user", "content": "Else?"}, {"role": "assistant", "content": "No."}]
    assert refuse({"messages": TALK, "conversation": other}).code == "ambiguous_shape"


def test_the_id_of_a_conversation_beside_its_messages_is_counted_and_no_list_of_turns() -> None:
    assert read({"messages": TALK, "conversation_id": "l1"}).unread == {"conversation_id"}


TEXTS = st.text(min_size=1).filter(str.strip)


@given(
    texts=st.lists(TEXTS, min_size=2, max_size=6),
    spelling=st.sampled_from(
        [
            lambda role, text: {"from": {"user": "human"}.get(role, "gpt"), "value": text},
            lambda role, text: {"type": {"user": "human"}.get(role, "ai"), "content": text},
            lambda role, text: {"role": role.upper(), "content": text},
            lambda role, text: {"role": role, "parts": [{"type": "text", "content": text}]},
            lambda role, text: {"role": role, "content": "", "parts": [{"text": text}]},
            lambda role, text: constructed(
                "HumanMessage" if role == "user" else "AIMessageChunk", content=text
            ),
        ]
    ),
)
def test_any_spelling_of_a_conversation_is_read_as_that_conversation(
    texts: list[str], spelling: Any
) -> None:
    roles = ["user", "assistant"] * 3
    spelled = [spelling(role, text) for role, text in zip(roles, texts, strict=False)]
    assert all(map(name_spelling, spelled))
    for message, role, text in zip(respell_turns(spelled, "turns"), roles, texts, strict=False):
        assert (message["role"], message["content"]) == (role, text)


def test_each_line_of_the_table_on_the_page_of_formats_is_read() -> None:
    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\|.*\| `(\{.*\})` \|$", page, re.MULTILINE)
    assert len(lines) >= 5
    for line in lines:
        assert " as " in read(json.loads(line)).format, line
