"""The shards of an input mapped, assembled, published."""
