"""Muon: momentum, orthogonalised (https://kellerjordan.github.io/posts/muon/)."""

from titan_motif.components.muon.coefficients import Coefficients, named_coefficients
from titan_motif.components.muon.newton_schulz import orthogonalize

__all__ = ["Coefficients", "named_coefficients", "orthogonalize"]
