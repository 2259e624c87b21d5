"""The sections of a job's TOML file that differ from torchtitan's, or that it does not have.

Every other section is torchtitan's own (torchtitan/config/job_config.py). Under torchtitan's own
entry, `job.custom_config_module = "titan_motif.config"` merges this module's JobConfig.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import titan_motif.device  # noqa: F401  (before anything of torchtitan)

# isort: split
import torchtitan.config.job_config as torchtitan_config

from titan_motif.components.curriculum.schedule import RunPlan
from titan_motif.components.float8 import Recipe
from titan_motif.components.lr_schedule import DecayType
from titan_motif.components.muon import Balance, Method, Mode, Scale
from titan_motif.config_data import Curriculum, Sft
from titan_motif.kernels import AttentionImplementation, Implementation


@dataclass
class ModelArguments:
    """Overrides of a flavor's arguments (titan_motif.model.Motif2ModelArgs); None keeps its own."""

    dim: int | None = None
    """Width of the residual stream."""
    n_layers: int | None = None
    """Number of blocks."""
    n_heads: int | None = None
    """Query heads, signal and noise together."""
    n_kv_heads: int | None = None
    """Key heads."""
    head_dim: int | None = None
    """Width of one query or key head."""
    hidden_dim: int | None = None
    """Width of the feed-forward layer."""
    grouped_ratio: int | None = None
    """Signal heads for each noise head; 0 is plain attention."""
    vocab_size: int | None = None
    """Entries of the embedding."""
    max_seq_len: int | None = None
    """Longest sequence that the model is meant for."""
    rope_theta: float | None = None
    """Base of the rotary position embedding."""
    lam_init: list[float] | None = None
    """lambda's constant for each layer, as `titan-motif grow` prints them; None is the formula."""


@dataclass
class Model(torchtitan_config.Model):
    """Which network to train."""

    name: str = "motif2"
    """The train spec: always motif2."""
    flavor: str = "debug"
    """A shape that has a name: debug, 100m_standard, 100m_gda, 2_6b, 12_7b."""
    hf_assets_path: str = "auto"
    """
    Folder of the tokenizer in Hugging Face format; 'auto' is the folder `tokenizer` in
    training.dataset_path, where the built-in corpus has its own.
    """
    kernels: Implementation = "auto"
    """
    Path of the norms and of PolyNorm: 'triton', 'torch' (plain PyTorch), or 'auto', which is triton
    on a GPU and torch on CPU.
    """
    attention: AttentionImplementation = "auto"
    """
    Path of differential attention: 'triton' (a GPU of compute capability 8.0 on, bfloat16), 'sdpa'
    (PyTorch's, four calls), or 'auto', the faster one that was measured: triton on Hopper, else
    sdpa. Plain attention (grouped_ratio 0) is always SDPA's.
    """
    args: ModelArguments = field(default_factory=ModelArguments)
    """Overrides of the flavor's arguments."""


@dataclass
class Training(torchtitan_config.Training):
    """How long, how large, and in which precision."""

    dataset: Literal["builtin", "prepared"] = "builtin"
    """
    'builtin' is the corpus made from this Python installation (run_train.sh prepares it);
    'prepared' is the curriculum's sources, or a folder that holds train/tokens.npy and
    validation/tokens.npy.
    """
    dataset_path: str = "data/builtin"
    """Folder of the prepared corpus; the curriculum's sources lie in it."""
    builtin_vocab_size: int = 1024
    """Entries of the tokenizer that is trained on the built-in corpus."""
    mask_documents: bool = False
    """
    Let tokens attend within their document only, in training and validation; a document ends with
    the tokenizer's end-of-text token.
    """
    restart_positions: bool = False
    """Count positions from the beginning of each document; needs mask_documents."""
    local_batch_size: int = 8
    """
    Sequences in a rank's micro-batch; -1 is global_batch_size / data-parallel ranks, one
    micro-batch a step.
    """
    mixed_precision_param: Literal["auto", "bfloat16", "float32"] = "auto"
    """
    Dtype of the matrix products and of the gradients that they give (lambda and PolyNorm's scalars
    stay in float32). Parameters, and gradients once they are reduced, are in training.dtype. 'auto'
    is bfloat16 on an accelerator and float32 on CPU.
    """
    mixed_precision_reduce: Literal["float32", "bfloat16"] = "float32"
    """Dtype in which gradients are summed over ranks: bfloat16 sends half as much."""


@dataclass
class Muon:
    """Muon's own settings; they need optimizer.name = "ParallelMuon"."""

    adamw_lr: float | None = None
    """Learning rate of what AdamW updates; None is optimizer.lr."""
    momentum: float = 0.95
    """Of the moving sum of gradients that is orthogonalised."""
    nesterov: bool = True
    """Look one step ahead: orthogonalise gradient + momentum x the moving sum."""
    scale: Scale = "match_adamw"
    """
    Factor of an orthogonalised matrix: 'match_adamw' (0.2 sqrt(max(rows, columns)), with AdamW's
    learning rates), 'spectral' (sqrt(max(1, rows / columns))), 'none'.
    """
    coefficients: Literal["muon", "motif", "polar_express"] = "motif"
    """Polynomials of Newton-Schulz: Keller Jordan's, the report's, or the Polar Express'."""
    polar_express_steps: int = 5
    """Steps of 'polar_express'; the others have five."""
    method: Method = "auto"
    """
    Form of Newton-Schulz: 'direct' (on the matrix), 'gram' (on its Gram matrix), or 'auto', the
    faster one for each shape.
    """
    mode: Mode = "parallel"
    """
    'parallel': each matrix is orthogonalised by one rank, its owner; 'distributed': every rank
    gathers and orthogonalises all (the report's baseline); 'exact': as parallel, in the parameters'
    dtype and one matrix at a time, so that neither chunks nor ranks change a bit.
    """
    chunk_size: int = -1
    """Matrices that are exchanged together; -1 is 4 for each rank that shares them."""
    owner_scope: int = -1
    """Replicas (HSDP) that share owners: a divisor of their number; -1 is the fastest, predicted
    from operations and bytes."""
    muon_patterns: list[str] = field(default_factory=list)
    """Names of parameters that Muon updates besides the matrices of blocks, such as
    "layers.0.*"; each has to match."""
    adamw_patterns: list[str] = field(default_factory=list)
    """Names of parameters that AdamW updates although they are matrices of blocks."""


@dataclass
class Optimizer(torchtitan_config.Optimizer):
    """What updates the parameters. beta1, beta2 and eps are AdamW's, weight_decay is everyone's."""

    name: Literal["ParallelMuon", "AdamW", "Adam"] = "AdamW"
    """'ParallelMuon' is Muon for the matrices of blocks and AdamW for all else."""
    qk_clip: bool = False
    """
    After each step, scale down the query and key weights of heads whose largest logit passed
    qk_clip_threshold; with ParallelMuon that is MuonClip.
    """
    qk_clip_threshold: float = 100.0
    """Largest attention logit (scaled by 1 / sqrt(head_dim)) that a head may keep."""
    qk_clip_interval: int = 1
    """Steps from one clip to the next."""
    qk_clip_balance: Balance = "symmetric"
    """
    How queries and keys share a correction gamma: 'symmetric' is a square root each; 'grouped'
    moves a key head that G query heads share by gamma^(1 / (1 + sqrt(G))), and them by the rest.
    """
    muon: Muon = field(default_factory=Muon)
    """Muon's own settings."""


@dataclass
class LRScheduler(torchtitan_config.LRScheduler):
    """The learning rate over the tokens seen: linear warm-up, a stable part, decay.

    A step stands for the tokens that this job reads in it, which phases of a curriculum may change,
    and the schedule is total_steps (or training.steps) of them long.
    """

    warmup_tokens: int = -1
    """Tokens of the warm-up; -1 is warmup_steps."""
    warmup_ratio: float | None = None
    """The warm-up as a share of the steps, in place of warmup_steps."""
    decay_tokens: int = -1
    """Tokens of the decay at the end; -1 is decay_ratio of the steps."""
    decay_type: DecayType = "linear"
    """
    Shape of the decay: 'linear', 'cosine' (half a period), 'sqrt' (1 - sqrt of the part that is
    over), 'inverse_sqrt' (1 / sqrt of tokens, from 1 to min_lr_factor).
    """
    plan: ClassVar[RunPlan | None] = None
    """No setting: what the job reads when, left by `resolve` for whoever gets this section."""


@dataclass
class Float8Linear(torchtitan_config.Float8Linear):
    """Products of linear layers in FP8 (titan_motif.components.float8); they need
    model.converters = ["quantize.linear.float8"]. The output projection is never among them."""

    recipe_name: Recipe = "rowwise_with_gw_hp"
    """
    'rowwise_with_gw_hp' scales rows, and computes the weight's gradient in bfloat16 (the report's);
    'rowwise' scales rows in all three products; 'tensorwise' has one scale a tensor.
    """
    enable_fsdp_float8_all_gather: bool = False
    """Gather weights in FP8 over ranks; with 'tensorwise'."""
    precompute_float8_dynamic_scale_for_fsdp: bool = False
    """Compute all weights' scales at once after each step; with enable_fsdp_float8_all_gather."""
    filter_fqns: list[str] = field(default_factory=list)
    """Parts of names of linear layers to leave out, such as "layers.0." or "k_proj"."""
    emulate: bool = False
    """Round as FP8 does, and multiply in the activations' dtype: on any device, for tests."""


@dataclass
class QuantizedLinear(torchtitan_config.QuantizedLinear):
    """Linear layers in fewer bits."""

    float8: Float8Linear = field(default_factory=Float8Linear)
    """In FP8."""


@dataclass
class Quantize(torchtitan_config.Quantize):
    """Training in fewer bits."""

    linear: QuantizedLinear = field(default_factory=QuantizedLinear)
    """Linear layers."""


@dataclass
class LossSettings:
    """How the loss is computed (titan_motif.components.loss)."""

    chunk_tokens: int = 4096
    """Tokens of a rank whose logits are held at a time: fewer take less memory, and more time."""
    z_loss: float = 0.0
    """
    Weight c of the z-loss, c log(Z)^2 a token, which keeps logits from drifting; 0 leaves it out.
    The losses that are reported are without it.
    """


@dataclass
class Metrics(torchtitan_config.Metrics):
    """What a run reports."""

    enable_tensorboard: bool = True
    """Write TensorBoard events under dump_folder/tb."""
    # ASSUMPTION: the report names noise heads that suppress everything as a sign, and no bound.
    noise_ratio_bound: float = 1.0
    """
    Warn when a layer's noise maps, times lambda, are this many times as large as its signal maps
    (norms of their outputs): the noise heads then suppress what the signal heads find.
    """


@dataclass
class Checkpoint(torchtitan_config.Checkpoint):
    """When to save, what to keep, where to begin."""

    last_save_model_only: bool = False
    """Save the model alone at the end; such a step cannot be continued from."""


@dataclass
class MovingAverage:
    """The mean of the last saved steps, fed back as weights (the Motif-2.6B report)."""

    enable: bool = False
    """Do so; off in every job of ours, as in the 12.7B report."""
    interval_tokens: int = 8_000_000_000
    """Whenever the tokens seen pass a multiple of it."""
    num_checkpoints: int = 6
    """Saved steps that the mean is of; while there are fewer, nothing is done."""


@dataclass
class ActivationCheckpoint(torchtitan_config.ActivationCheckpoint):
    """What is recomputed in the backward pass instead of kept."""

    mode: Literal["selective", "full", "memory_budget", "none"] = "none"
    """Type of activation checkpointing."""
    selective_ac_option: str = "products"
    """
    What 'selective' keeps: 'products' the results of all matrix products and of attention (norms,
    rotation, PolyNorm and casts are computed again); 'op' of every second product and of attention,
    as torchtitan; a number n everything, in all blocks but each n-th, which keeps nothing.
    """


@dataclass
class Comm(torchtitan_config.Comm):
    """How long a collective may take, and what is recorded of collectives.

    A rank that waits for another longer than this ends the run, with every rank's last collectives
    written to dump_folder/comm_traces (PyTorch's flight recorder; NCCL only, on by default).
    """

    init_timeout_seconds: int = 1800
    """Until a start's first step has ended: loading and compiling fall into this time."""
    train_timeout_seconds: int = 600
    """After it. What may keep a rank: a synchronous save, compiling for validation's shapes."""


@dataclass
class Validation(torchtitan_config.Validation):
    """Loss on the held-out split; its data come from training.dataset_path."""

    dataset: str = ""
    """Always empty: validation reads the validation split of training.dataset_path."""
    steps: int = -1
    """Micro-batches that each rank evaluates; -1 evaluates the whole held-out split."""


@dataclass
class StepCheck:
    """
    Which steps are applied: those in which loss, gradients and their norm, parameters, the
    optimizer's state, and attention's largest logits where they are recorded, are finite on all
    ranks. Another changes nothing.
    """

    max_skipped_steps: int = 10
    """Steps in a row that may be skipped; one more stops the run. A parameter or a state that is
    not finite stops it at once."""
    loss_spike: Literal["ignore", "skip", "stop"] = "ignore"
    """
    What to do where the loss is more than spike_z_score standard deviations above the mean of the
    last spike_window steps: nothing, leave the step out, or stop the run before it is applied. A
    phase, and a change of length, begin with an empty window.
    """
    spike_z_score: float = 6.0
    """Standard deviations."""
    spike_window: int = 128
    """Steps that were applied; before there are so many nothing is a spike."""


@dataclass
class Watchdog:
    """What ends a run that stands still: with the rank that the others wait for, and its stacks."""

    enable: bool = True
    """Watch over every rank."""
    stall_seconds: float = -1.0
    """
    What reading a batch, or a step's passes and update, may take, and how long a process may be
    stopped, whatever it does; -1 is half of comm.train_timeout_seconds, after which a collective
    ends the run itself, and names nobody. Up to 16 s more go by before the run is ended.
    """
    slow_seconds: float = -1.0
    """
    What loading, a step of a new length or batch (which compiles), a save with what is due after a
    step, waiting for it, and a batch of validation may take; -1 is half of
    comm.init_timeout_seconds. An evaluation has evaluation.timeout_seconds.
    """

    def limits(self, comm: Comm) -> tuple[float, float]:
        """Return both, in seconds."""
        stall, slow = self.stall_seconds, self.slow_seconds
        return (
            comm.train_timeout_seconds / 2 if stall == -1 else stall,
            comm.init_timeout_seconds / 2 if slow == -1 else slow,
        )


@dataclass
class Evaluation:
    """Benchmarks at intervals, as `titan-motif evaluate` runs them (docs/evaluation.md)."""

    enable: bool = False
    """
    Put `tasks` to the model every `freq` steps, and at the last one. Each rank then holds a whole
    model; lm-evaluation-harness, the extra `eval`, has to be installed.
    """
    freq: int = 1000
    """Steps from one evaluation to the next."""
    tasks: list[str] = field(default_factory=list)
    """Names of tasks, presets and local tasks, as in `titan-motif evaluate --tasks`."""
    num_fewshot: int | None = None
    """Solved examples before each question; None is each task's own number."""
    limit: int | None = None
    """Documents of each task; None is all of them."""
    batch_size: int = 8
    """Rows that run at once, on each rank."""
    max_length: int | None = None
    """Tokens that the network is given at most; None is what it is meant for."""
    max_new_tokens: int | None = None
    """Most tokens of a generated text; None is each task's own number."""
    chat: bool = False
    """Put each question as a user's turn, in the tokenizer's chat template."""
    timeout_seconds: int = 3600
    """Longest wait of a rank for others that still evaluate; a longer one ends the run."""


@dataclass
class Summary:
    """What is written when a run ends."""

    enable: bool = True
    """Write summary.json, a loss curve as PNG, and samples, and print them."""
    sample_tokens: int = 48
    """Length of each of the three samples, in tokens; 0 leaves samples out."""


@dataclass
class JobConfig(torchtitan_config.JobConfig):
    """A job: torchtitan's sections and ours."""

    model: Model = field(default_factory=Model)
    training: Training = field(default_factory=Training)
    curriculum: Curriculum = field(default_factory=Curriculum)
    sft: Sft = field(default_factory=Sft)
    optimizer: Optimizer = field(default_factory=Optimizer)
    lr_scheduler: LRScheduler = field(default_factory=LRScheduler)
    quantize: Quantize = field(default_factory=Quantize)
    loss: LossSettings = field(default_factory=LossSettings)
    metrics: Metrics = field(default_factory=Metrics)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    moving_average: MovingAverage = field(default_factory=MovingAverage)
    activation_checkpoint: ActivationCheckpoint = field(default_factory=ActivationCheckpoint)
    comm: Comm = field(default_factory=Comm)
    validation: Validation = field(default_factory=Validation)
    evaluation: Evaluation = field(default_factory=Evaluation)
    step_check: StepCheck = field(default_factory=StepCheck)
    watchdog: Watchdog = field(default_factory=Watchdog)
    summary: Summary = field(default_factory=Summary)
