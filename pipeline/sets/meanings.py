"""What each column, flag and reject code means, in a sentence for those who look at a set."""

from __future__ import annotations

from typing import Final, NamedTuple


class ColumnMeaning(NamedTuple):
    """Of one column: the unit of its values, or their type, and what they are."""

    unit: str
    words: str


COLUMN_MEANINGS: Final = {
    "input_ids": ColumnMeaning(
        "token ids", "context, then continuation with its end-of-turn token"
    ),
    "labels": ColumnMeaning(
        "token ids", "-100 on the context, the ids on the continuation; unshifted"
    ),
    "attention_mask": ColumnMeaning("0 or 1", "ones"),
    "context_len": ColumnMeaning(
        "tokens", "the boundary: index of the first token of the continuation"
    ),
    "total_len": ColumnMeaning("tokens", "length of the row"),
    "context_hash": ColumnMeaning("hex", "equal for rows whose contexts are equal"),
    "dropped_tokens": ColumnMeaning("tokens", "what the length policy removed from the context"),
    "dropped_messages": ColumnMeaning(
        "messages", "what the length policy removed from the context"
    ),
    "flags": ColumnMeaning("names", "what is worth knowing of the row; empty for most"),
    "id": ColumnMeaning("text", "the example's id"),
    "conversation": ColumnMeaning("text", "the conversation that the example came from"),
    "source": ColumnMeaning("file:line", "where the example stood in the input"),
    "decision_idx": ColumnMeaning(
        "messages", "number of messages before the decision point; -1 where unknown"
    ),
    "preference": ColumnMeaning("name", "empty, `chosen` or `rejected`"),
    "reason": ColumnMeaning("text", "why the continuation is better, as the example said"),
    "memories": ColumnMeaning("texts", "what the example came from, as it said"),
    "weight": ColumnMeaning(
        "factor", "weight of the row in the loss; 1 where the example said nothing"
    ),
}

FLAG_MEANINGS: Final = {
    "truncated": "Shorter than what the server saw: the length policy removed tokens.",
    "turns_dropped": "Lost whole oldest turns and was rendered again.",
    "turn_cut": "Lost tokens inside a turn, so its context is no prompt that a server would build.",
    "raw_cut": "Had a context given as text, cut from the left.",
    "continuation_cut": "Had a continuation that alone did not fit, cut from the right: no end of turn.",
    "control_token_in_text": "Has a control token in the text of a user, system or tool message.",
    "end_of_turn_in_text": "Had a continuation that already ended with the end of turn; it is there once.",
    "double_bos": "Begins with two BOS tokens, as its context text or template says.",
    "no_bos": "Begins without the BOS that the tokenizer would add by itself.",
    "prompt_not_prefix": "Its rendered continuation does not begin with the prompt; another way found it.",
    "think_closed": "Got the closing of a think block that the prompt had left open.",
    "think_in_text": "Holds a think mark without its partner.",
    "arguments_coerced": "Has tool arguments that the server replaced by {}: they are no JSON object.",
    "normalised_by_tokenizer": "Decodes to the normalised form of its text (NFC).",
    "sampled_ids": "Uses ids that the server returned, not ids encoded from text.",
    "opening_added": "Got the opening that the template writes before a plain answer.",
    "message_dropped": "Has a context message with text that the prompt does not show.",
    "call_ids_renamed": "Has tool calls whose ids were replaced by ones that the template takes.",
    "call_not_read_back": "Has a tool call that the server's own parser would not give back as it is.",
    "prompt_ids_differ": "Has context ids that are not those of its messages rendered; the ids were kept.",
}

REJECT_REMEDIES: Final = {
    "bad_json": "Mend or remove the line: it is not strict JSON.",
    "not_an_object": "Write one JSON object a line.",
    "bad_encoding": "Save the file as UTF-8.",
    "line_too_long": "Split the example.",
    "missing_field": "Add the field named; put what was said into `content`.",
    "wrong_type": "Write the type or the role named.",
    "ambiguous_shape": "Keep the keys of one shape; the reason names the one to remove.",
    "bad_decision_idx": "Point at an assistant message, or at the end.",
    "empty_context": "Give at least one message or token of context.",
    "empty_continuation": "Write what the model should have said.",
    "lone_surrogate": "Mend the text: no UTF-8 holds half of a surrogate pair.",
    "duplicate_id": "Rename it, remove one, or choose with on_duplicate.",
    "template_refused": "The words are the chat template's own: give it what it takes.",
    "server_refused": "Send what the server takes.",
    "unsupported_content": "Text only: remove images, audio and files.",
    "no_end_of_turn": "Leave the cut answer out, or set end_of_turn.",
    "not_renderable": "Give the continuation as text; `context-frozen check` shows what the template knows.",
    "too_long": "Raise max_len, or choose another policy with overlong.",
    "continuation_too_long": "Raise max_len, or shorten the continuation.",
    "bad_ids": "Send the ids that the server returned.",
    "control_tokens": "Remove the control token from the text.",
}
