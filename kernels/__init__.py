"""Operators on plain tensors: torch and triton only, no configuration, no process group."""

# transformers probes for a top-level package named `kernels` and reads its version. Should this
# folder ever be imported under that bare name, the attribute keeps the probe from raising.
__version__ = "0.0.0"

from titan_motif.kernels.attention import (
    AttentionImplementation,
    AttentionStatistics,
    attention,
    attention_problem,
    fastest_attention,
    fastest_attention_on,
    grouped_differential_attention,
)
from titan_motif.kernels.cast_scaled import cast_scaled
from titan_motif.kernels.documents import Documents, documents_of
from titan_motif.kernels.largest_logits import key_heads, largest_logits
from titan_motif.kernels.launch import Implementation, default_implementation
from titan_motif.kernels.momentum import advance_momentum, apply_update
from titan_motif.kernels.poly_norm import poly_norm, poly_norm_mul
from titan_motif.kernels.poly_norm_parts import poly_norm_mul_given_sums, poly_norm_power_sums
from titan_motif.kernels.rms_norm import add_rms_norm, rms_norm
from titan_motif.kernels.symmetric_matmul import symmetric_product

__all__ = [
    "AttentionImplementation",
    "AttentionStatistics",
    "Documents",
    "Implementation",
    "add_rms_norm",
    "advance_momentum",
    "apply_update",
    "attention",
    "attention_problem",
    "cast_scaled",
    "default_implementation",
    "documents_of",
    "fastest_attention",
    "fastest_attention_on",
    "grouped_differential_attention",
    "key_heads",
    "largest_logits",
    "poly_norm",
    "poly_norm_mul",
    "poly_norm_mul_given_sums",
    "poly_norm_power_sums",
    "rms_norm",
    "symmetric_product",
]
