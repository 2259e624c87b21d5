"""Experiments: what the report leaves open, asked of small models, each ending in a page."""
