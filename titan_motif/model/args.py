"""The shape of a Motif-2 network, and the shapes that have names."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from torchtitan.config import JobConfig
from torchtitan.protocols.model import BaseModelArgs

from titan_motif.kernels import AttentionImplementation, Implementation


@dataclass
class Motif2ModelArgs(BaseModelArgs):
    """The shape of a network. The defaults are the `debug` flavor's; checked when made."""

    dim: int = 160
    """Width of the residual stream."""
    n_layers: int = 4
    """Number of blocks."""
    n_heads: int = 10
    """Query heads, signal and noise together."""
    n_kv_heads: int = 4
    """Key heads (and value heads). Differential attention takes them in pairs."""
    head_dim: int = 16
    """Width of one query or key head; values of differential attention are twice as wide."""
    hidden_dim: int = 448
    """Width of the feed-forward layer."""
    grouped_ratio: int = 4
    """Signal heads for each noise head; 1 is plain differential attention, 0 has no noise heads."""
    vocab_size: int = 1024
    """Entries of the embedding."""
    max_seq_len: int = 2048
    """Longest sequence that the model is meant for."""
    rope_theta: float = 1e6
    """Base of the rotary position embedding."""
    norm_eps: float = 1e-6
    """Epsilon of the block norms and of PolyNorm."""
    attn_norm_eps: float = 1e-5
    """Epsilon of the norm on each head's output."""
    tie_embeddings: bool = False
    """Whether the output projection is the embedding itself."""
    lam_init: tuple[float, ...] | None = None
    """lambda's constant for each layer; None gives the released formula (`released_lam_init`)."""
    kernels: Implementation = "auto"
    """Which path the operators take (titan_motif.kernels); `model.kernels` of the job."""
    attention: AttentionImplementation = "auto"
    """Which path attention takes; `model.attention` of the job."""
    loss_chunk_tokens: int = 4096
    """Tokens of a rank whose logits the loss holds at a time; `loss.chunk_tokens` of the job."""
    z_loss: float = 0.0
    """Weight of the z-loss; `loss.z_loss` of the job."""
    init_std: float = 0.05
    """Standard deviation of the initial weights (see titan_motif.model.initialization)."""
    init_seed: int = 0
    """Seed of the initial weights; taken from `debug.seed` of the job."""

    def __post_init__(self) -> None:
        self.check()

    @property
    def num_groups(self) -> int:
        """Groups of `grouped_ratio` signal heads and one noise head."""
        return self.n_heads // (self.grouped_ratio + 1)

    @property
    def num_signal_heads(self) -> int:
        """All query heads but the noise heads."""
        return self.num_groups * self.grouped_ratio if self.grouped_ratio else self.n_heads

    @property
    def value_dim(self) -> int:
        """Width of one head's output: two value heads side by side, if there are noise heads."""
        return 2 * self.head_dim if self.grouped_ratio else self.head_dim

    @property
    def layer_lam_init(self) -> tuple[float, ...]:
        """lambda's constant of each layer."""
        if self.lam_init is not None:
            return self.lam_init
        return tuple(released_lam_init(layer) for layer in range(self.n_layers))

    def check(self) -> None:
        """Raise ValueError, one line, where the numbers do not make a network."""
        sizes = ("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_dim")
        for name in (*sizes, "vocab_size", "max_seq_len"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is {value!r}; a positive integer is needed")
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; RoPE needs an even number")
        if type(self.grouped_ratio) is not int or self.grouped_ratio < 0:
            raise ValueError(f"grouped_ratio is {self.grouped_ratio!r}; 0 or more is needed")
        if self.n_heads % (self.grouped_ratio + 1):
            raise ValueError(
                f"n_heads is {self.n_heads}; with grouped_ratio {self.grouped_ratio} it must be a "
                f"multiple of {self.grouped_ratio + 1}"
            )
        if self.grouped_ratio and self.n_kv_heads % 2:
            raise ValueError(f"n_kv_heads is {self.n_kv_heads}; noise heads need an even number")
        shared = self.n_kv_heads // 2 if self.grouped_ratio else self.n_kv_heads
        sharing = self.num_groups if self.grouped_ratio else self.n_heads
        if sharing % shared:
            raise ValueError(
                f"n_kv_heads is {self.n_kv_heads}; {sharing} groups of query heads cannot share "
                f"{shared} key heads{' pairs' if self.grouped_ratio else ''} evenly"
            )
        if self.lam_init is not None and len(self.lam_init) != self.n_layers:
            raise ValueError(
                f"lam_init has {len(self.lam_init)} entries; {self.n_layers} layers need one each"
            )

    def override(self, chosen: dict[str, Any]) -> None:
        """Replace the fields whose value is not None, and check the whole again."""
        for name, value in chosen.items():
            if value is not None:
                setattr(self, name, tuple(value) if isinstance(value, list) else value)
        self.check()

    def update_from_config(self, job_config: JobConfig, **kwargs) -> None:
        """Take over what the job decides: overrides, and the seed of the initial weights."""
        self.override(asdict(job_config.model.args))
        if job_config.training.seq_len > self.max_seq_len:
            raise ValueError(
                f"training.seq_len is {job_config.training.seq_len}; "
                f"{job_config.model.flavor} allows at most {self.max_seq_len}"
            )
        self.init_seed = job_config.debug.seed or 0
        self.kernels = job_config.model.kernels
        self.attention = job_config.model.attention
        self.loss_chunk_tokens = job_config.loss.chunk_tokens
        self.z_loss = job_config.loss.z_loss

    def get_nparams_and_flops(self, model: nn.Module, seq_len: int) -> tuple[int, int]:
        """Return (parameters, floating-point operations a token for forward and backward).

        Counted as torchtitan counts: 6 for each weight of a matrix product, and attention's
        products over the full square (not the causal half); nothing recomputed. A query head
        meets keys of width head_dim and values of width value_dim.
        """
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        embedding = self.vocab_size * self.dim
        multiplied = num_parameters if self.tie_embeddings else num_parameters - embedding
        attention = self.n_layers * self.n_heads * (self.head_dim + self.value_dim) * seq_len
        return num_parameters, 6 * multiplied + 6 * attention


def released_lam_init(layer: int) -> float:
    """lambda's constant of a 0-based layer, as the released models have it.

    Equation: 0.8 - 0.6 exp(-0.3 (i - 1)), -0.0099 at layer 0.
    Departs:  the differential transformer (https://arxiv.org/abs/2410.05258) means i to count
              from 1; the released code hands in the 0-based index, and its weights want that.
    """
    return 0.8 - 0.6 * math.exp(-0.3 * (layer - 1))


FLAVORS: dict[str, Motif2ModelArgs] = {
    "debug": Motif2ModelArgs(),
    # ASSUMPTION: the report's third experiment asks for two models of about 100M; the shapes are
    # ours: 24 signal heads in both, feed-forward widths chosen for equal parameter counts
    # (within 0.01%).
    "100m_standard": Motif2ModelArgs(
        dim=768,
        n_layers=10,
        n_heads=24,
        n_kv_heads=6,
        head_dim=64,
        hidden_dim=1984,
        grouped_ratio=0,
        vocab_size=16384,
        max_seq_len=4096,
        init_std=0.02,
    ),
    "100m_gda": Motif2ModelArgs(
        dim=768,
        n_layers=10,
        n_heads=30,
        n_kv_heads=6,
        head_dim=64,
        hidden_dim=1344,
        grouped_ratio=4,
        vocab_size=16384,
        max_seq_len=4096,
        init_std=0.02,
    ),
    "2_6b": Motif2ModelArgs(
        dim=2048,
        n_layers=32,
        n_heads=16,
        n_kv_heads=16,
        head_dim=128,
        hidden_dim=8192,
        grouped_ratio=1,
        vocab_size=219_520,
        max_seq_len=16_384,
        rope_theta=5e5,
        init_std=0.02,
        tie_embeddings=True,
    ),
    "12_7b": Motif2ModelArgs(
        dim=4096,
        n_layers=40,
        n_heads=40,
        n_kv_heads=16,
        head_dim=128,
        hidden_dim=16_384,
        grouped_ratio=4,
        vocab_size=219_520,
        max_seq_len=32_768,
        rope_theta=1e6,
        init_std=0.02,
    ),
}
"""The shapes that have names; the larger two are those of the released models."""
