"""Tasks of lm-evaluation-harness that need no download: their data are made here.

A task is a dictionary, the content of one of the harness's YAML files with functions in it; nothing
here imports the harness.
"""
