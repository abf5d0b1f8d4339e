"""What each trait of a chat template means for training: one sentence per value."""

from __future__ import annotations

from typing import Final

MEANINGS: Final = {
    ("renders", "yes"): "Conversations of this kind become rows.",
    ("renders", "refused"): "No conversation becomes a row; raw contexts do.",
    ("content", "text"): "Content is text; a list of parts must be joined before it gets here.",
    (
        "content",
        "parts",
    ): "Content is a list of parts; plain text is lost unless the server wraps it.",
    ("content", "both"): "Content may be text or a list of parts.",
    ("system", "yes"): "A system message is in the context.",
    ("system", "moved"): (
        "A system message is in the context only where a user's message is the last (Mistral)."
    ),
    ("system", "dropped"): "A system message is silently left out, as it is when served.",
    ("system", "error"): "Rows with a system message are rejected, as the server refuses them.",
    ("two_users", "ok"): "Two user messages in a row are rendered.",
    ("two_users", "lost"): "Of two user messages in a row one is left out.",
    ("two_users", "error"): "Roles must alternate; other rows are rejected.",
    ("assistant_first", "ok"): "A conversation may begin with the assistant.",
    ("assistant_first", "lost"): "An assistant's message at the start is left out.",
    ("assistant_first", "error"): "A conversation that begins with the assistant is rejected.",
    ("tools", "yes"): "Tool definitions are in the context.",
    ("tools", "ignored"): "Tool definitions are silently left out, as they are when served.",
    ("tools", "error"): "Rows with tools are rejected.",
    ("tool_arguments_dict", "yes"): "Tool calls with arguments as an object are rendered.",
    ("tool_arguments_dict", "lost"): "Tool calls with arguments as an object are left out.",
    ("tool_arguments_dict", "error"): "Arguments as an object, as vLLM passes them, are refused.",
    ("tool_arguments_text", "yes"): "Tool calls with arguments as JSON text are rendered.",
    ("tool_arguments_text", "lost"): "Tool calls with arguments as JSON text are left out.",
    ("tool_arguments_text", "error"): "Arguments as JSON text are refused; vLLM parses them first.",
    ("tool_reply", "yes"): "A tool's answer is in the context.",
    ("tool_reply", "lost"): "A tool's answer is silently left out, as it is when served.",
    ("tool_reply", "error"): "Rows with a tool's answer are rejected.",
    ("generation_prompt", "yes"): "The prompt opens the assistant's turn.",
    (
        "generation_prompt",
        "none",
    ): "The prompt ends with the last message; the turn needs no header.",
    ("think_prompt", "open"): (
        "The prompt ends inside a think block: a continuation that does not close it is closed "
        "(think: close) and flagged think_closed."
    ),
    (
        "think_prompt",
        "closed",
    ): "The prompt has closed the think block: a continuation has no reasoning.",
    (
        "think_prompt",
        "none",
    ): "The prompt says nothing of thought; reasoning is the continuation's to open.",
    ("reasoning", "kept>kept"): "Reasoning is rendered in the last turn and in history.",
    (
        "reasoning",
        "kept>dropped",
    ): "Reasoning is rendered in the last turn and left out of history.",
    ("reasoning", "dropped>kept"): "Reasoning is rendered in history only.",
    ("reasoning", "dropped>dropped"): (
        "The reasoning field is left out: a message with reasoning is rejected unless the template "
        "has think marks to write it with."
    ),
    ("inline_thought", "kept>kept"): "Thought written in the content stays in every turn.",
    ("inline_thought", "kept>dropped"): "Thought written in the content is cut from history.",
    (
        "inline_thought",
        "dropped>kept",
    ): "Thought written in the content is cut from the last turn only.",
    ("inline_thought", "dropped>dropped"): (
        "Thought written in the content is cut from every turn; as continuation it is kept verbatim."
    ),
    (
        "prefix",
        "prefix",
    ): "The prompt is a prefix of the finished turn, so the rest is what is trained.",
    ("prefix", "white_space"): (
        "The finished turn has other white space after its header than the prompt; a rendered message "
        "is flagged prompt_not_prefix."
    ),
    ("prefix", "think"): (
        "The prompt has a think block that the finished turn lacks; a rendered message is flagged "
        "prompt_not_prefix."
    ),
    ("prefix", "no"): (
        "The finished turn has another context than the prompt; a message with reasoning or tool "
        "calls may be rejected."
    ),
    ("history_prefix", "yes"): "A turn reads the same in history as when it was said.",
    ("history_prefix", "no"): (
        "A turn reads otherwise in history than when it was said: each decision point is rendered anew."
    ),
    ("user_space", "kept"): "White space at the edges of a user's text reaches the model.",
    (
        "user_space",
        "trimmed",
    ): "White space at the edges of a user's text is cut, as it is when served.",
    (
        "assistant_space",
        "kept",
    ): "White space at the edges of an assistant's text stays in history.",
    ("assistant_space", "trimmed"): (
        "White space at the edges of an assistant's text is cut from history; a continuation keeps it."
    ),
    ("clock", "read"): "The date is in the prompt: rows need server_options.fixed_date.",
    ("clock", "not read"): "The prompt does not depend on the day.",
    (
        "end_of_turn",
        "unknown",
    ): "Rows are rejected until end_of_turn: names the token that ends a turn.",
    ("end_of_turn", ""): "This token ends every continuation, once.",
}
"""Sentence by trait and value; the empty value stands for any other."""
