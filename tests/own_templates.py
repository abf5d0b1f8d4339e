"""Small chat templates of our own, each with one habit that real templates have."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pipeline.answer.probe import probe_turns
from pipeline.answer.turn import TurnFacts
from pipeline.prompt.chat_template import ChatTemplates
from pipeline.prompt.plain import PlainDialect
from pipeline.prompt.request import ChatRequest

DIALECT = PlainDialect(datetime(2024, 7, 26))
TOKENS = frozenset(
    {
        *("<bos>", "<eos>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>"),
        *(
            "<tool_call>",
            "</tool_call>",
            "<|user|>",
            "<|assistant|>",
            "<|observation|>",
            "<|call|>",
        ),
        *("<|start|>", "<|message|>", "<|end|>", "<|return|>", "[INST]", "[/INST]"),
        *("<|say|>", "<|said|>", "<|over|>", "<|turn|>"),
    }
)

_CALLS = "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
_CHATML_TURN = (
    "<|im_start|>{{ m.role }}\n{{ m.content or '' }}" + _CALLS + "<|im_end|>\n{% endfor %}"
)

CHATML = (
    "{% for m in messages %}"
    + _CHATML_TURN
    + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Ends each turn with one token and a newline."""

THINK_OPEN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}"
    "{{ m.content or '' }}" + _CALLS + "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{{ '<think>\n' if enable_thinking is not defined or enable_thinking else '<think>\n\n</think>\n\n' }}"
    "{% endif %}"
)
"""Opens a think block in the prompt, writes an empty one for an answer without reasoning (Qwen3.5)."""

EMPTY_BLOCK = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and (loop.last or m.reasoning_content) %}"
    "<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}"
    "{{ m.content or '' }}" + _CALLS + "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{{ '<think>\n\n</think>\n\n' if enable_thinking is false else '' }}{% endif %}"
)
"""Writes an empty think block before an answer without reasoning, the prompt none (Qwen3)."""

BUDGET = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>\n{% endif %}"
    "{{ m.content or '' }}" + _CALLS + "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{{ '<think>\nNo budget.</think>' if thinking_budget == 0 else '' }}{% endif %}"
)
"""Writes a think block around reasoning alone, and a closed one in a prompt without budget (Seed-OSS)."""

FIELDS = CHATML.replace(
    _CALLS,
    "{% for call in m.tool_calls or [] %}<tool_call>\n<function={{ call.function.name }}>\n"
    "{% for name, value in call.function.arguments.items() %}"
    "<parameter={{ name }}>\n{{ value }}\n</parameter>\n{% endfor %}"
    "</function>\n</tool_call>{% endfor %}",
)
"""Writes each argument by itself, without quotes (Qwen3-Coder)."""

KEYWORDS = CHATML.replace(
    _CALLS,
    "{% for call in m.tool_calls or [] %}[{{ call.function.name }}("
    "{% for name, value in call.function.arguments.items() %}{{ ', ' if not loop.first else '' }}"
    '{{ name }}={% if value is string %}"{{ value }}"{% else %}{{ value }}{% endif %}{% endfor %}'
    ")]{% endfor %}",
)
"""Writes a call as Python does (Llama 4)."""

THOUGHT_DELETED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ (m.content or '').split('</think>')[-1] }}" + _CALLS + "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
"""Opens a think block in the prompt and deletes all thought from the turn (DeepSeek-R1)."""

NEXT_HEADER = (
    "{% for m in messages %}{{ {'user': '<|user|>', 'tool': '<|observation|>', 'system': '<|system|>'}"
    ".get(m.role, '<|assistant|>') }}\n{{ m.content or '' }}" + _CALLS + "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""A turn ends with the next header only (GLM)."""

CHANNELS = (
    "{% for m in messages %}<|start|>{{ m.role }}"
    "{% if m.role == 'assistant' %}"
    "{% if m.reasoning_content %} to=self<|message|>{{ m.reasoning_content }}<|end|><|start|>assistant{% endif %}"
    "{% if m.tool_calls %} to=tool<|message|>{{ m.tool_calls[0].function | tojson }}<|call|>"
    "{% else %} to=user<|message|>{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}{% endif %}"
    "{% else %}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
"""Writes a header of its own before an answer, and another end of turn in history (gpt-oss)."""

FRAMED = (
    "<bos>{% for m in messages %}<|turn|>{{ m.role }}<|say|>{{ m.content }}<|said|><|over|>{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant<|say|>{% endif %}"
)
"""Closes the text before it ends the turn (cohere)."""

SYSTEM_MOVES = (
    "<bos>{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% for m in messages %}"
    "{% if m.role == 'user' %}[INST]{{ system + '\n\n' if system and loop.last else '' }}{{ m.content }}[/INST]"
    "{% elif m.role == 'assistant' %}{{ m.content or '' }}"
    + _CALLS
    + "<eos>{% endif %}{% endfor %}"
)
"""Writes the system text where a user's message is the last one (Mistral)."""

PLAIN_TEXT = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""Has no control tokens at all."""


def templates_of(source: str) -> ChatTemplates:
    """Return the template as a tokenizer's only one."""
    return ChatTemplates({"default": source}, {"bos_token": "<bos>", "eos_token": "<eos>"})


def facts_of(source: str, *stops: str, **kwargs: Any) -> TurnFacts:
    """Return what the template does with a turn, under a tokenizer with `TOKENS`."""
    return probe_turns(DIALECT, templates_of(source), kwargs, TOKENS, stops)


def prompt_of(source: str, messages: list[dict[str, Any]], **kwargs: Any) -> str:
    """Return the prompt of ``messages``."""
    return DIALECT.render_prompt(ChatRequest(messages, None, kwargs), templates_of(source)).text


USER = {"role": "user", "content": "Which door?"}


def call_of(**arguments: Any) -> dict[str, Any]:
    """Return an assistant's message that calls the tool ``open_door``."""
    function = {"name": "open_door", "arguments": arguments}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call00001", "type": "function", "function": function}],
    }
