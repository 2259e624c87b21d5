"""A page of a run, from what the run has written."""
