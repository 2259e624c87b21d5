"""How much of a GPU's memory a step takes: arithmetic over the sizes of a job, nothing is run.

A step is followed through the moments at which it may hold most, and the largest counts:

    loss             activations of all blocks, the logits of a chunk, the head (output projection)
    head's gradient  the same activations; the head's gradient is scaled, then reduced
    last block       its backward pass: the other blocks' activations, and one block's at work
    first block      its backward pass: the other activations gone, their gradients there
    embedding        after all activations, the reduction of its gradient
    optimizer        all gradients, and what Muon exchanges
    evaluation       between steps, where a job asks for it: the whole model, no gradients

What is counted are tensors, as torch.cuda.max_memory_allocated does. titan_motif.activations has
the activations; beside them FSDP (PyTorch's fully_shard) holds

    gathered   a group's parameters in the dtype of products, and over several ranks a buffer: the
               next group's, or the one that the group's own came in (of the head)
    reduced    gradients in the dtype of products, then a copy in that of the reduction, which stays
               until the next group's is made. One rank alone copies once more

Left out, each under a percent: tokens, angles, the float32 scalars' gathered copies, cuBLAS' work
space, validation (no activations are kept there), and what an evaluation computes.
"""

from dataclasses import dataclass
from typing import NamedTuple

from titan_motif.activations import BlockForm, Kept, backward_bytes, kept_bytes
from titan_motif.model import Motif2ModelArgs


class Group(NamedTuple):
    """Elements of parameters that FSDP gathers together, on one rank."""

    whole: int = 0
    """Gathered: a tensor-parallel rank's part."""
    shard: int = 0


class Groups(NamedTuple):
    """The groups of a model."""

    block: Group
    """Each of them."""
    embedding: Group
    """Of no elements if it is tied to the head."""
    head: Group
    """The last norm and the output projection; a tied embedding stays gathered for the step."""
    scalars: Group


@dataclass(frozen=True)
class Job:
    """What decides how much memory a step takes, the tokens of a micro-batch aside."""

    args: Motif2ModelArgs
    form: BlockForm
    kept: tuple[Kept, ...]
    """Of each block."""
    groups: Groups
    state_elements: int
    """Of the optimizer's state, on a rank, in the parameters' dtype."""
    exchange_bytes: int
    """Of Muon's step: buffers, and what Newton-Schulz needs."""
    ranks: int
    """That share parameters by FSDP."""
    parameter_bytes: int
    """Of an element, as of its reduced gradient."""
    reduce_bytes: int
    """Of an element of a gradient on its way."""
    gathered_bytes: int
    """Of an element of a block's gathered parameters."""
    accumulates: bool
    """Whether a step has more than one micro-batch: gradients are then there from the first on."""
    keeps_gathered: bool
    """Whether parameters stay gathered from the forward to the backward pass."""
    has_replicas: bool
    """Whether reduced gradients are summed over replicas too."""
    loss_chunk_tokens: int
    compiles_loss: bool
    evaluation_bytes: int = 0
    """Of the whole model that is evaluated, with its largest parameter as it is gathered."""


@dataclass(frozen=True)
class Parts:
    """Bytes on a rank at one moment."""

    parameters: int = 0
    gradients: int = 0
    """Reduced and sharded."""
    optimizer: int = 0
    activations: int = 0
    unsharded: int = 0
    """Gathered parameters, and gradients that are not reduced yet."""
    exchange: int = 0
    logits: int = 0
    evaluation: int = 0
    """The whole model."""

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(vars(self).values())


def moments(job: Job, tokens: int) -> dict[str, Parts]:
    """Return the most that is held at each moment of a step.

    Tokens are those of a micro-batch of a data-parallel rank; tensor-parallel ones share them.
    """
    step = _Step(job, tokens)
    found = {
        "loss": [step.loss()],
        "head's gradient": [step.head_scaling(), *step.head_reduction()],
        "last block": [step.last_block()],
        "first block": [step.first_block(), *step.block_reduction()],
        "embedding": [step.embedding(), *step.embedding_reduction()],
        "optimizer": [step.optimizer()],
    }
    if job.evaluation_bytes:
        found["evaluation"] = [step.evaluation()]
    return {name: max(parts, key=lambda p: p.total) for name, parts in found.items()}


def peak(job: Job, tokens: int) -> tuple[str, Parts]:
    """Return the moment at which most is held, and what."""
    return max(moments(job, tokens).items(), key=lambda moment: moment[1].total)


def largest_batch(job: Job, seq_len: int, limit_bytes: float) -> int:
    """Return how many sequences a micro-batch may have; 0 if there is no room for one."""

    def fits(sequences: int) -> bool:
        return peak(job, sequences * seq_len)[1].total <= limit_bytes

    if not fits(1):
        return 0
    fitting, beyond = 1, 2
    while fits(beyond):
        fitting, beyond = beyond, 2 * beyond
    while beyond - fitting > 1:
        middle = (fitting + beyond) // 2
        fitting, beyond = (middle, beyond) if fits(middle) else (fitting, middle)
    return fitting


class _Step:
    """A step's moments. `block_bytes` and the like are gathered parameters."""

    def __init__(self, job: Job, tokens: int) -> None:
        self.job, self.tokens = job, tokens
        self.size = job.form.element_bytes
        self.is_tied, self.gathers = job.args.tie_embeddings, job.ranks > 1
        block, embedding, head, scalars = job.groups
        self.num_blocks = len(job.kept)
        self.shards = self.num_blocks * block.shard + embedding.shard + head.shard + scalars.shard
        self.block_bytes = job.gathered_bytes * block.whole
        self.embedding_bytes, self.head_bytes = (self.size * g.whole for g in (embedding, head))
        all_gathered = self.num_blocks * self.block_bytes + self.embedding_bytes
        self.stays = all_gathered if job.keeps_gathered else 0
        # Activations: a tensor of the residual stream's width, whole and as it lies between blocks.
        self.wide = tokens * job.args.dim * self.size
        self.cut = self.wide / job.form.tensor_parallel
        self.kept = [tokens * kept_bytes(job.args, job.form, kept) for kept in job.kept]
        self.at_work = tokens * backward_bytes(job.args, job.form)

    def _parts(self, reduced: int, activations: float, unsharded: float, **more: int) -> Parts:
        """Return what is held beside all parameters and the optimizer's state.

        Args: reduced: elements of this rank's gradients so far
        """
        if self._keeps_reduced:
            unsharded += self.job.reduce_bytes * reduced
        return Parts(
            parameters=self.job.parameter_bytes * self.shards,
            gradients=self.job.parameter_bytes * (self.shards if self.job.accumulates else reduced),
            optimizer=self.job.parameter_bytes * self.job.state_elements,
            activations=round(activations),
            unsharded=round(unsharded),
            **more,
        )

    def _reduction(
        self, group: Group, reduced: int, activations: float, beside: float
    ) -> list[Parts]:
        """Return what is held while a gradient is copied, and while the copy is reduced."""
        reduce = self.job.reduce_bytes
        copied = beside + (self.size + reduce) * group.whole
        # Over several ranks the gradient itself is still there (foreach_reduce's loop has it in a
        # variable).
        sent = copied if self.gathers else beside + reduce * group.whole
        if self._copies_reduced and not self._keeps_reduced:
            sent += reduce * group.shard  # else what is received becomes the gradient
        return [
            self._parts(reduced, activations, copied),
            self._parts(reduced + group.shard, activations, sent),
        ]

    @property
    def _copies_reduced(self) -> bool:
        """Whether what is received of a gradient is not the gradient itself."""
        return self.job.reduce_bytes != self.job.parameter_bytes or self.job.accumulates

    @property
    def _keeps_reduced(self) -> bool:
        """Whether what is received stays until the pass ends: FSDP holds what replicas sum up."""
        return self.job.has_replicas and self._copies_reduced

    # ---- the head

    @property
    def _rows(self) -> int:
        """Of the vocabulary, on a rank."""
        return self.job.args.vocab_size // self.job.form.tensor_parallel

    @property
    def _has_many_chunks(self) -> bool:
        return self.tokens > self.job.loss_chunk_tokens

    @property
    def _head_gradient(self) -> int:
        """Made in the forward pass: summed in float32 over chunks, if there are several."""
        return (4 if self._has_many_chunks else self.size) * self._rows * self.job.args.dim

    def loss(self) -> Parts:
        """Hidden states before and after the norm, and their gradient; a chunk's logits."""
        hidden = self.cut + 2 * self.wide
        if self.job.form.tensor_parallel > 1:  # after the norm also as each rank has them
            hidden += self.cut
        logits = min(self.job.loss_chunk_tokens, self.tokens) * self._rows
        # Uncompiled, two steps of the softmax in float32; a single chunk's before its gradient.
        softmax = 0 if self.job.compiles_loss else 8 * logits
        gradient = self._head_gradient
        if not self._has_many_chunks:
            softmax = max(softmax - gradient, 0)
        copies = 2 if self.gathers and not self.is_tied else 1
        return self._parts(
            0,
            sum(self.kept) + hidden,
            copies * self.head_bytes + self.stays + gradient,
            logits=self.size * logits + softmax,
        )

    def head_scaling(self) -> Parts:
        """The backward pass begins: the head's gradient, in float32 and in the products' dtype."""
        scaled = self.head_bytes if self._has_many_chunks and self.size < 4 else 0
        return self._parts(
            0,
            sum(self.kept) + self.cut + self.wide,
            self.head_bytes + self._head_gradient + scaled + self.stays + self._next_block,
        )

    def head_reduction(self) -> list[Parts]:
        if self.is_tied:  # with the embedding's, at the end
            return []
        activations = sum(self.kept) + self.cut
        return self._reduction(self.job.groups.head, 0, activations, self.stays + self._next_block)

    @property
    def _next_block(self) -> float:
        """A block that is gathered ahead in the backward pass."""
        return self.block_bytes if self.gathers and not self.job.keeps_gathered else 0

    # ---- blocks

    def _block(self, before: int) -> Parts:
        """Return what is held in a block's backward pass.

        Args: before: blocks before it
        """
        block, _, head, _ = self.job.groups
        after = self.num_blocks - 1 - before
        ahead = self._next_block if before else self._next_embedding
        if self.job.keeps_gathered:
            ahead = before * self.block_bytes + self.embedding_bytes
        # At the widest place one weight has its gradient: that of the down projection.
        own = self.block_bytes + self.size * self._down_elements
        if self.is_tied:  # gathered all the time; its gradient waits for the embedding's part
            own += 2 * self.head_bytes
        # The copy that is still being reduced: of the block after it, or the head's.
        copied = block.whole if after else 0 if self.is_tied else head.whole
        reduced = after * block.shard + (0 if self.is_tied else head.shard)
        return self._parts(
            reduced,
            sum(self.kept[:before]) + self.at_work,
            own + ahead + self.job.reduce_bytes * copied,
        )

    def last_block(self) -> Parts:
        return self._block(before=self.num_blocks - 1)

    def first_block(self) -> Parts:
        return self._block(before=0)

    def block_reduction(self) -> list[Parts]:
        """Of the first block's gradients, after all activations."""
        block = self.job.groups.block
        reduced = self._reduced_but_last - block.shard
        return self._reduction(block, reduced, self.cut, self._next_embedding)

    @property
    def _down_elements(self) -> int:
        return self.job.args.dim * self.job.args.hidden_dim // self.job.form.tensor_parallel

    @property
    def _next_embedding(self) -> float:
        return self.embedding_bytes if self.gathers else 0

    # ---- the embedding

    @property
    def _reduced_but_last(self) -> int:
        head = 0 if self.is_tied else self.job.groups.head.shard
        return self.num_blocks * self.job.groups.block.shard + head

    def embedding(self) -> Parts:
        """It is gathered once more, and has its gradient; a tied one has two, of both ends."""
        copies = 3 * self.head_bytes if self.is_tied else 2 * self.embedding_bytes
        if self.job.form.tensor_parallel > 1:  # made of all rows, before a rank takes its own
            copies += self.size * self.job.args.vocab_size * self.job.args.dim
        copied = self.job.reduce_bytes * self.job.groups.block.whole
        return self._parts(self._reduced_but_last, self.cut, copies + copied)

    def embedding_reduction(self) -> list[Parts]:
        group = self.job.groups.head if self.is_tied else self.job.groups.embedding
        return self._reduction(group, self._reduced_but_last, self.cut, 0)

    # ---- the optimizer

    def optimizer(self) -> Parts:
        return Parts(
            parameters=self.job.parameter_bytes * self.shards,
            gradients=self.job.parameter_bytes * self.shards,
            optimizer=self.job.parameter_bytes * self.job.state_elements,
            exchange=self.job.exchange_bytes,
        )

    # ---- between steps

    def evaluation(self) -> Parts:
        return Parts(
            parameters=self.job.parameter_bytes * self.shards,
            optimizer=self.job.parameter_bytes * self.job.state_elements,
            evaluation=self.job.evaluation_bytes,
        )
