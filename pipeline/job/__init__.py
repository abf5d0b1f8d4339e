"""The whole job: prepare, map, count, seal, publish, append."""
