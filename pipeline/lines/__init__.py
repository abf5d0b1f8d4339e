"""Input files -> lines: byte-exact, every one accounted for."""
