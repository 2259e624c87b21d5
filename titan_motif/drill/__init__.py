"""Faults put into small real runs, and what becomes of them: `titan-motif drill`."""
