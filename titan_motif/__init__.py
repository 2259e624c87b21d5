"""titan_motif: a TorchTitan-style trainer for the Motif-2 family of language models."""

__version__ = "0.1.0"
