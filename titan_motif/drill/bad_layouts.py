"""Bad configs of the drill: settings of debug.toml's with which no ranks, network or data fit."""

from typing import NamedTuple

WITHOUT_PHASES = (
    "curriculum.enable = false",
    "training.steps = 450",
    "training.seq_len = 128",
    "training.local_batch_size = -1",
    "training.global_batch_size = 8",
)
"""The same as a run of equal steps."""


class Together(NamedTuple):
    """Settings in debug.toml."""

    key: str
    """What the refusal names."""
    words: str
    """Of the refusal: what was found, what is allowed."""
    settings: tuple[str, ...]
    """Each as section.field = value; of a field that comes twice the later one."""
    processes: int = 2


LAYOUTS = (
    Together(
        "parallelism.tensor_parallel_degree",
        "3 tensor-parallel ranks; their product must divide the 2 processes",
        ("parallelism.tensor_parallel_degree = 3",),
    ),
    Together(
        "parallelism.tensor_parallel_degree",
        "is 4; 2 groups of heads cannot be cut by it: one of 1, 2 can",
        ("parallelism.tensor_parallel_degree = 4",),
        processes=4,
    ),
    Together(
        "parallelism.data_parallel_shard_degree",
        "is 4; 2 processes with 1 replicas x 1 tensor-parallel ranks allow -1 or 2",
        ("parallelism.data_parallel_shard_degree = 4",),
    ),
    Together(
        "parallelism.data_parallel_replicate_degree",
        "is 2 with nothing sharded: replicas alone are not supported",
        ("parallelism.data_parallel_replicate_degree = 2",),
    ),
    Together(
        "parallelism.pipeline_parallel_degree",
        "is 2; only 1 is allowed",
        ("parallelism.pipeline_parallel_degree = 2",),
    ),
    Together(
        "training.global_batch_size",
        "a multiple of local_batch_size x data-parallel ranks (4 x 2 = 8) is needed",
        (
            *WITHOUT_PHASES,
            "training.local_batch_size = 4",
            "training.global_batch_size = 10",
        ),
    ),
    Together(
        "training.global_batch_size",
        "is 8; 3 data-parallel ranks cannot share it evenly",
        (*WITHOUT_PHASES,),
        processes=3,
    ),
    Together(
        "training.local_batch_size",
        "is -1 and global_batch_size too; give one of them",
        (
            *WITHOUT_PHASES,
            "training.global_batch_size = -1",
        ),
    ),
    Together(
        "model.args.n_heads",
        "n_heads is 7; with grouped_ratio 4 it must be a multiple of 5",
        ("model.args.n_heads = 7",),
    ),
    Together("model.args.head_dim", "RoPE needs an even number", ("model.args.head_dim = 15",)),
    Together(
        "model.args.lam_init", "4 layers need one each", ("model.args.lam_init = [0.1, 0.2]",)
    ),
    Together(
        "training.seq_len",
        "is 4096; debug allows at most 2048",
        (
            *WITHOUT_PHASES,
            "training.seq_len = 4096",
        ),
    ),
    Together(
        "training.builtin_vocab_size",
        "the model's embedding has 1024 entries",
        ("training.builtin_vocab_size = 4096",),
    ),
    Together(
        "model.attention",
        "is 'triton'; plain attention (grouped_ratio 0) runs SDPA: 'auto' or 'sdpa' is allowed",
        (
            'model.attention = "triton"',
            "model.args.grouped_ratio = 0",
            "model.args.n_heads = 8",
        ),
    ),
    Together(
        "curriculum.phases.3.weights_start",
        "sums to 0.9; 1 is needed",
        ("curriculum.phases.3.weights_start = { english = 0.6, code = 0.3 }",),
    ),
    Together(
        "curriculum.phases.1.weights_end",
        "gives 'code' -0.5; at least 0 is needed",
        ("curriculum.phases.1.weights_end = { english = 1.5, code = -0.5 }",),
    ),
    Together(
        "curriculum.phases.2.weights_start",
        "names the group 'maths'; the groups of the sources are english, code, mathematics",
        ("curriculum.phases.2.weights_start = { english = 0.5, maths = 0.5 }",),
    ),
    Together(
        "curriculum.phases.2.until_tokens",
        "is 300,000; phase 'long' begins at 327,680 tokens: more is needed",
        ("curriculum.phases.2.until_tokens = 300_000",),
    ),
    Together(
        "curriculum.phases.3.until_tokens",
        "with batches of 2,048 tokens that is step",
        ("curriculum.phases.3.until_tokens = 400_000_000_000_000",),
    ),
    Together(
        "curriculum.phases.3.until_tokens",
        "at most 1,000,000,000,000,000 is allowed",
        ("curriculum.phases.3.until_tokens = 9_000_000_000_000_000",),
    ),
    Together(
        "curriculum.phases.1.seq_len",
        "is 96; a divisor of the longest, 256, is needed",
        ("curriculum.phases.1.seq_len = 96",),
    ),
    Together(
        "curriculum.phases.2.global_batch_tokens",
        "a multiple of seq_len 256 is needed, such as 768 or 1,024",
        ("curriculum.phases.2.global_batch_tokens = 1000",),
    ),
    Together(
        "curriculum.phases.3.global_batch_tokens_end",
        "is 102,400; phase 'annealing' has 40,960 tokens: at most that is allowed",
        ("curriculum.phases.3.global_batch_tokens_end = 102_400",),
    ),
    Together(
        "curriculum.total_tokens",
        "is 460800; it needs a phase with until_share",
        ("curriculum.total_tokens = 460_800",),
    ),
    Together(
        "curriculum.caps",
        "gives 'code' 1.5; above 0 to 1 is allowed",
        ("curriculum.caps = { code = 1.5 }",),
    ),
    Together(
        "curriculum.sources.2.name",
        "is 'english'; another source has that name",
        ('curriculum.sources.2.name = "english"',),
    ),
    Together(
        "training.seq_len",
        "is 128; the phases of the curriculum decide it: leave it out",
        ("training.seq_len = 128",),
    ),
    Together(
        "training.steps", "is 500; the phases make 385: -1 takes all", ("training.steps = 500",)
    ),
)
