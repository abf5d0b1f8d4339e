"""Input files to lines: paths, archives, strict JSON, tables, and which shape each file has."""
