"""What the model must emit after a prompt: text, messages, think blocks, sampled ids."""
