"""Muon: momentum, orthogonalised (https://kellerjordan.github.io/posts/muon/)."""

from titan_motif.components.muon.coefficients import Coefficients, named_coefficients
from titan_motif.components.muon.method import Method, Mode
from titan_motif.components.muon.newton_schulz import orthogonalize
from titan_motif.components.muon.optimizer import ParallelMuon, Scale
from titan_motif.components.muon.qk_clip import Balance, QKClip

__all__ = [
    "Balance",
    "Coefficients",
    "Method",
    "Mode",
    "ParallelMuon",
    "QKClip",
    "Scale",
    "named_coefficients",
    "orthogonalize",
]
