"""Muon: momentum, orthogonalised (https://kellerjordan.github.io/posts/muon/)."""

from titan_motif.components.muon.coefficients import Coefficients, named_coefficients
from titan_motif.components.muon.newton_schulz import orthogonalize
from titan_motif.components.muon.optimizer import ParallelMuon

__all__ = ["Coefficients", "ParallelMuon", "named_coefficients", "orthogonalize"]
