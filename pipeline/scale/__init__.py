"""Many machines: the shards of a job made by tasks of an engine, in one folder that all can reach."""
