"""Sets on the Hugging Face Hub."""
