"""A request -> the prompt that the server renders."""
