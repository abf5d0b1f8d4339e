"""The context-frozen forward and backward for a transformers model."""
