"""Rows -> batches -> device -> frozen step."""
