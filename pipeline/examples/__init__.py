"""A line -> `TrainingExample` -> decision points; other people's shapes."""
