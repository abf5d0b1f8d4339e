"""Names of the keys that rows have: what a reader of tables reads, and what a row must not lose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

# Names of the answer that is to be trained, and names of an answer of the model.
BETTER: Final = ("continuation", "continuations", "chosen", "better")
ANSWERS: Final = (
    *("response", "completion", "output", "answer", "correction", "corrected", "preferred"),
    *("corrected_response", "better_response", "better_answer", "revised", "edited_response"),
)
# Names of an answer that is not to be trained: by a pair's key, or by what some logs call it.
WORSE: Final = ("rejected", "worse")
ORIGINALS: Final = (
    *("original", "original_response", "original_answer", "original_completion", "original_output"),
    *("rejected_response", "worse_response", "worse_answer", "bad", "bad_response", "negative"),
    *("incorrect", "loser", "dispreferred"),
)
PROMPTS: Final = ("prompt", "context", "messages", "conversations", "instruction", "input")
SYSTEMS: Final = ("system", "system_prompt", "system_message", "instructions")
THOUGHTS: Final = ("reasoning", "reasoning_content", "reasoning_details", "thinking")
IDS: Final = (
    *("decision_idx", "context_ids", "continuation_ids", "continuations_ids"),
    *("prompt_token_ids", "token_ids", "continuation_mask"),
)
MASKS: Final = (
    *("loss_mask", "loss_masks", "response_mask", "completion_mask", "action_mask"),
    *("assistant_mask", "assistant_masks", "labels", "attention_mask"),
)
SWITCHES: Final = ("train", "loss", "label", "kto_tag")
RECORDS: Final = ("request", "body", "extra_body")
PROMPT_SWITCHES: Final[Mapping[str, Any]] = {
    "add_generation_prompt": True,
    "continue_final_message": False,
    "add_special_tokens": False,
    "chat_template": None,
    "truncate_prompt_tokens": None,
}
"""Request fields that change the prompt and have no place in an example, each with the value that
changes nothing (vllm/entrypoints/openai/chat_completion/protocol.py)."""
TOOL_NAMES: Final = ("tools", "functions", "tool_definitions")
"""Names under which rows keep the tools of their request."""
OPTION_NAMES: Final = ("chat_template_kwargs", "enable_thinking", "thinking", "reasoning_effort")
"""Names of options that reach a chat template."""
REQUEST: Final = ("function_call", "documents", "choices", "history")
OWN: Final = ("weight", "memories", "reason", "conversation")
MEDIA: Final = ("images", "image", "videos", "video", "audios", "audio")
OUTCOMES: Final = (
    *("finish_reason", "stop_reason", "stop_reasons", "status", "status_code", "error"),
    *("truncated", "is_truncated", "aborted"),
)
NAMES: Final = ("id", "custom_id")

KNOWN_KEYS: Final = frozenset(
    {
        *(*BETTER, *ANSWERS, *WORSE, *ORIGINALS, *PROMPTS, *SYSTEMS, *THOUGHTS, *IDS),
        *(*MASKS, *SWITCHES, *RECORDS, *PROMPT_SWITCHES, *TOOL_NAMES, *OPTION_NAMES),
        *(*REQUEST, *OWN, *MEDIA, *OUTCOMES, *NAMES),
    }
)
"""Every key that some shape reads, or that names what a row must not lose."""

FOREIGN_KEYS: Final = frozenset(
    {
        *("request_body", "requestBody", "response_body", "responseBody", "kwargs", "inputs"),
        *("prompt_ids", "response_ids", "completion_ids", "response_token_ids", "input_ids"),
        *("completion_token_ids", "output_token_ids", "tokens", "response_length"),
        *("chat", "dialog", "dialogue", "turns", "traj", "prompt_messages", "completion_message"),
        *("outputs", "contents", "systemInstruction", "system_instruction"),
        *("gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.system_instructions"),
        *("gen_ai.tool.definitions", "attributes.llm.input_messages"),
        *("attributes.llm.output_messages", "attributes.llm.tools"),
        "attributes.llm.invocation_parameters",
    }
)
"""Keys of other tools, under which a row is read where no shape has it as it stands."""
