"""Data: commands that prepare what a run reads, and show it."""
