"""From the tensors of a small model to those of a larger one that computes the same function.

Width after HyperCloning (https://arxiv.org/abs/2409.12903): the residual stream is the small one's
m times over, [x, x, ...]; what reads it has its columns m times over and divided by m, what writes
it its rows m times over. The feed-forward layer grows alike. Signal heads are copied within their
group, what o_proj reads of a head is divided by its copies; noise heads, keys and values stay, so
that differential attention becomes grouped differential attention of any ratio. Whole groups can be
copied too. Depth after LLaMA-Pro (https://arxiv.org/abs/2401.02415): inserted blocks are copies of
the block before whose o_proj and down_proj are zero, so that they add nothing.

Everything here is plain data; `growth/tensors.py` makes the tensors.
"""

from dataclasses import dataclass, replace

from titan_motif.model.args import Motif2ModelArgs

SAME = ("head_dim", "vocab_size", "norm_eps", "attn_norm_eps")
"""What no growth changes."""


@dataclass(frozen=True)
class Axis:
    """How a tensor grows along a dimension: the large one's index i is the small one's index[i].

    In units of `unit` neighbouring rows or columns, such as a head.
    """

    index: tuple[int, ...]
    unit: int = 1
    is_read: bool = False
    """Whether the copies are summed by the product, and so divided by how many there are."""

    @property
    def is_unchanged(self) -> bool:
        """Whether nothing is copied or moved."""
        return self.index == tuple(range(len(self.index)))

    @property
    def copies(self) -> tuple[int, ...]:
        """How many copies the source of each large index has."""
        counts = dict.fromkeys(self.index, 0)
        for source in self.index:
            counts[source] += 1
        return tuple(counts[source] for source in self.index)


@dataclass(frozen=True)
class Origin:
    """What a tensor of the large model is made of."""

    name: str
    """The small model's tensor."""
    axes: tuple[Axis, ...]
    is_zero: bool = False
    """Whether it is that tensor's shape alone: of what an inserted block writes."""
    is_new: bool = False
    """Whether it belongs to an inserted block, or shares its origin with another tensor: its
    gradients are not the small one's."""
    divisor: int = 1
    """What all of it is divided by, beside its axes' copies."""


class GrowthError(ValueError):
    """Two models of which one cannot be grown into the other; one line."""


def growth_problems(small: Motif2ModelArgs, large: Motif2ModelArgs) -> list[str]:
    """Return everything that keeps one model from being grown into the other."""
    problems = []
    for name in SAME:
        then, now = getattr(small, name), getattr(large, name)
        if then != now:
            problems.append(f"{name} is {now} and was {then}; growth keeps it")
    for name in ("dim", "hidden_dim", "n_kv_heads"):
        then, now = getattr(small, name), getattr(large, name)
        if now % then:
            problems.append(f"{name} is {now}; a multiple of the small model's {then} is needed")
    if large.n_layers < small.n_layers:
        problems.append(f"n_layers is {large.n_layers}; at least {small.n_layers} are needed")
    if bool(small.grouped_ratio) != bool(large.grouped_ratio):
        problems.append(
            f"grouped_ratio is {large.grouped_ratio} and was {small.grouped_ratio}; plain and "
            "differential attention do not grow into one another"
        )
    elif small.grouped_ratio:
        if large.grouped_ratio < small.grouped_ratio:
            problems.append(
                f"grouped_ratio is {large.grouped_ratio}; at least the small model's "
                f"{small.grouped_ratio} is needed"
            )
        if large.num_groups % small.num_groups:
            problems.append(
                f"n_heads is {large.n_heads}: {large.num_groups} groups; a multiple of the small "
                f"model's {small.num_groups} is needed"
            )
    elif large.n_heads % small.n_heads:
        problems.append(
            f"n_heads is {large.n_heads}; a multiple of the small model's {small.n_heads} is needed"
        )
    if large.tie_embeddings and not small.tie_embeddings:
        problems.append("tie_embeddings is true; two matrices of the small model cannot become one")
    return problems


def changes_of_function(small: Motif2ModelArgs, large: Motif2ModelArgs) -> dict[str, str]:
    """Return what makes the large model compute something else, and from what to what."""
    changes = {}
    if small.rope_theta != large.rope_theta:
        changes["rope_theta"] = f"{small.rope_theta:g} -> {large.rope_theta:g}"
    if large.lam_init is not None and large.lam_init != carried_lam_init(small, large):
        changes["lam_init"] = "not those of the small model's layers"
    return changes


def carried_lam_init(small: Motif2ModelArgs, large: Motif2ModelArgs) -> tuple[float, ...]:
    """Return lambda's constant of each large layer: of the small layer that it was made of."""
    return tuple(small.layer_lam_init[source] for source, _ in layer_origins(small, large))


def layer_origins(small: Motif2ModelArgs, large: Motif2ModelArgs) -> list[tuple[int, bool]]:
    """Return, of each large layer, its small one and whether it is an inserted copy of it.

    Inserted layers are spread evenly: of 32 to 40, one after every 4.
    """
    inserted = large.n_layers - small.n_layers
    after = [(i + 1) * small.n_layers // inserted - 1 for i in range(inserted)]
    return [
        entry
        for layer in range(small.n_layers)
        for entry in [(layer, False)] + [(layer, True)] * after.count(layer)
    ]


def map_tensors(small: Motif2ModelArgs, large: Motif2ModelArgs) -> dict[str, Origin]:
    """Return the origin of every tensor of the large model, by our names, in their order.

    Raises: GrowthError naming what does not fit
    """
    problems = growth_problems(small, large)
    if problems:
        raise GrowthError("; ".join(problems))
    width = _tiled(small.dim, large.dim)
    read_width = replace(width, is_read=True)
    vocabulary = Axis(tuple(range(small.vocab_size)))
    embedding = "tok_embeddings.weight"
    output = embedding if small.tie_embeddings else "output.weight"
    is_parted = small.tie_embeddings and not large.tie_embeddings
    origins = {embedding: Origin(embedding, (vocabulary, width), is_new=is_parted)}
    layers = layer_origins(small, large)
    for layer, (source, is_inserted) in enumerate(layers):
        for name in _scalar_names(large):
            size = 3 if name == "poly_weight" else 1 if name == "poly_bias" else small.head_dim
            axes = (Axis(tuple(range(size))),)
            origins[f"scalars.layers.{layer}.{name}"] = Origin(
                f"scalars.layers.{source}.{name}", axes, is_new=is_inserted
            )
    for layer, (source, is_inserted) in enumerate(layers):
        for name, axes in _block_axes(small, large).items():
            writes = name in ("attention.o_proj.weight", "feed_forward.down_proj.weight")
            origins[f"layers.{layer}.{name}"] = Origin(
                f"layers.{source}.{name}", axes, is_inserted and writes, is_new=is_inserted
            )
    # A tied output reads the copies undivided: the norm before it is divided instead.
    divisor = large.dim // small.dim if large.tie_embeddings else 1
    origins["norm.weight"] = Origin("norm.weight", (width,), divisor=divisor)
    if not large.tie_embeddings:
        origins["output.weight"] = Origin(output, (vocabulary, read_width), is_new=is_parted)
    return origins


def _block_axes(small: Motif2ModelArgs, large: Motif2ModelArgs) -> dict[str, tuple[Axis, ...]]:
    width, hidden = _tiled(small.dim, large.dim), _tiled(small.hidden_dim, large.hidden_dim)
    read_width, read_hidden = replace(width, is_read=True), replace(hidden, is_read=True)
    queries, outputs, keys = _heads(small, large)
    values = Axis(tuple(range(small.value_dim)))
    axes = {
        "attention_norm.weight": (width,),
        "attention.q_proj.weight": (queries, read_width),
        "attention.k_proj.weight": (keys, read_width),
        "attention.v_proj.weight": (keys, read_width),
        "attention.o_proj.weight": (width, outputs),
        "attention.head_norm.weight": (values,),
        "ffn_norm.weight": (width,),
        "feed_forward.gate_proj.weight": (hidden, read_width),
        "feed_forward.up_proj.weight": (hidden, read_width),
        "feed_forward.down_proj.weight": (width, read_hidden),
    }
    if not small.grouped_ratio:
        del axes["attention.head_norm.weight"]
    return axes


def _heads(small: Motif2ModelArgs, large: Motif2ModelArgs) -> tuple[Axis, Axis, Axis]:
    """Return how query heads, what o_proj reads of their outputs, and key heads grow.

    A large group is a copy of the group `times` below it (interleaved, not tiled), so that it meets
    a copy of the keys that its source met; keys come in pairs of signal and noise.
    """
    if not small.grouped_ratio:
        times = large.n_heads // small.n_heads
        heads = tuple(head // times for head in range(large.n_heads))
        keys = _interleaved(small.n_kv_heads, large.n_kv_heads)
        unit = small.head_dim
        return Axis(heads, unit), Axis(heads, unit, is_read=True), Axis(keys, unit)
    ratio, wide = small.grouped_ratio, large.grouped_ratio
    signals = tuple(head * ratio // wide for head in range(wide))  # copies of one side by side
    times = large.num_groups // small.num_groups
    queries, outputs = [], []
    for group in range(large.num_groups):
        source = group // times
        queries += [source * (ratio + 1) + head for head in (*signals, ratio)]
        outputs += [source * ratio + head for head in signals]
    pairs = _interleaved(small.n_kv_heads // 2, large.n_kv_heads // 2)
    keys = tuple(2 * pair + of_noise for pair in pairs for of_noise in (0, 1))
    return (
        Axis(tuple(queries), small.head_dim),
        Axis(tuple(outputs), small.value_dim, is_read=True),
        Axis(keys, small.head_dim),
    )


def _tiled(small: int, large: int) -> Axis:
    return Axis(tuple(i % small for i in range(large)))


def _interleaved(small: int, large: int) -> tuple[int, ...]:
    return tuple(i * small // large for i in range(large))


def _scalar_names(args: Motif2ModelArgs) -> tuple[str, ...]:
    lambdas = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2") if args.grouped_ratio else ()
    return (*lambdas, "poly_weight", "poly_bias")
