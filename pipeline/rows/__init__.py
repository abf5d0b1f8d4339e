"""Decision points -> rows: context, boundary, length policy, table."""
