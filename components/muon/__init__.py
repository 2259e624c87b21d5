"""Muon: momentum, orthogonalised (https://kellerjordan.github.io/posts/muon/)."""

from titan_motif.components.muon.coefficients import Coefficients, Method, named_coefficients
from titan_motif.components.muon.gate import TooManySkippedSteps
from titan_motif.components.muon.newton_schulz import orthogonalize
from titan_motif.components.muon.optimizer import Mode, ParallelMuon, Scale

__all__ = [
    "Coefficients",
    "Method",
    "Mode",
    "ParallelMuon",
    "Scale",
    "TooManySkippedSteps",
    "named_coefficients",
    "orthogonalize",
]
