"""A continuation -> what the model must emit."""
