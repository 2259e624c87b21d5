"""The jobs that `titan-motif bench train` measures, and what they are compared with."""

from typing import NamedTuple

from titan_motif.bench.composition import Composition, compose
from titan_motif.components.float8 import FLOAT8
from titan_motif.study.axes import without_float8
from titan_motif.study.runner import Row


class Contender(NamedTuple):
    """A job to measure."""

    precision: str
    """bf16 (float32 on a CPU) or fp8."""
    model: str = "motif2"
    """A network of titan_motif.study.cell."""
    settings: tuple[str, ...] = ()
    """Beside those that all have: section.field=value."""
    is_composed: bool = False
    """Whether one GPU does more than its part of the optimizer's work."""

    def resets(self) -> list[str]:
        """Return settings that undo a job's for FP8, which one without FP8 must not have."""
        return without_float8() if self.precision == "bf16" else []

    def overrides(self, recipe: str, emulate: bool) -> list[str]:
        """Return the job's settings that make it, beside those of the workload."""
        settings = [*COMPILED, *(f"--{setting}" for setting in self.settings)]
        if self.precision == "fp8":
            settings += [f"--model.converters={FLOAT8}", f"--{FLOAT8}.recipe_name={recipe}"]
            if emulate:
                settings.append(f"--{FLOAT8}.emulate=true")
        return settings


COMPILED = (
    "--compile.enable=true",
    "--activation_checkpoint.mode=none",
    # What torchtitan's autocast does on one GPU: weights in bf16 stay until the backward pass.
    "--parallelism.fsdp_reshard_after_forward=never",
)
PLAIN = ("model.kernels=torch", "model.attention=sdpa")
MUON = ("optimizer.name=ParallelMuon", "optimizer.qk_clip=true")
CONTENDERS = {
    "llama3-bf16": Contender("bf16", "llama3"),
    "llama3-fp8": Contender("fp8", "llama3"),
    "llama3-wide-bf16": Contender("bf16", "llama3_widened"),
    "llama3-wide-fp8": Contender("fp8", "llama3_widened"),
    "ours-bf16": Contender("bf16"),
    "ours-fp8": Contender("fp8"),
    "ours-plain-bf16": Contender("bf16", settings=PLAIN),
    "ours-muon-bf16": Contender("bf16", settings=MUON, is_composed=True),
    "ours-muon-fp8": Contender("fp8", settings=MUON, is_composed=True),
}


def compositions(rows: dict[str, Row], optimizers: Row, tokens: int) -> dict[str, Composition]:
    """Return the steps of a large job: of what trains with Muon, and of the peers to compare with.

    A peer's AdamW, which works on each number by itself, is shared evenly by the ranks.
    """
    composed = {}
    for name, row in rows.items():
        if CONTENDERS[name].is_composed:
            parts = optimizers["adamw_ms"], optimizers["muon_ms"]
            composed[name] = compose(row, tokens, *parts)
        elif CONTENDERS[name].model != "motif2":
            composed[name] = compose(row, tokens, row["update_ms"] / optimizers["ranks"], 0.0)
    return composed


def ratios(
    rows: dict[str, Row], composed: dict[str, Composition]
) -> dict[str, dict[str, float | None]]:
    """Return by cell its TFLOPS over the peer's, and its tokens/s over the widened peer's.

    Both of the same precision; steps that were composed over steps that were composed.
    """
    speeds = {name: row["tokens_per_second"] for name, row in rows.items()}
    flops = {name: row["flops_per_token"] for name, row in rows.items()}
    big = {name: one.tokens_per_second for name, one in composed.items()}
    found: dict[str, dict[str, float | None]] = {}
    for kind, known in (("", speeds), (", composed", big)):
        for name, speed in known.items():
            precision = CONTENDERS[name].precision
            peer, wide = f"llama3-{precision}", f"llama3-wide-{precision}"
            found[name + kind] = {
                "tflops_over_llama3": speed * flops[name] / (known[peer] * flops[peer])
                if peer in known
                else None,
                "tokens_over_wide": speed / known[wide] if wide in known else None,
            }
    return found
