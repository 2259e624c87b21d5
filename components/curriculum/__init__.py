"""Which tokens a run reads, and in what order."""
