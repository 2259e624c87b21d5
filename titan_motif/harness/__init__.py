"""lm-evaluation-harness, an optional package: whether it is there, and tasks by their names."""
