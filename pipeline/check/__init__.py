"""What a tokenizer, a template and a running server do."""
