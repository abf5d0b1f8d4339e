"""Text -> ids and back; the fast encoder is checked against the tokenizer's own."""
