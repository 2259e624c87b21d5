"""Models as files: ours, and those that the rest of the world reads."""
