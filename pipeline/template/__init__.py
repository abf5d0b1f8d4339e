"""The chat template: resolved, rendered, and probed for what it does."""
