"""torchtitan's own Llama-3 as wide as a network of ours: the peer of whole training steps.

Model, parallelisation, loss, optimizer, learning rate and FP8 are torchtitan's, run by its Trainer;
data, tokenizer and metrics are ours, so that both read the same and are counted alike.
"""

import math
from dataclasses import replace
from typing import Any

import torch
import torchtitan.train
from torch import nn
from torchtitan.components.loss import build_cross_entropy_loss
from torchtitan.components.lr_scheduler import build_lr_schedulers
from torchtitan.components.optimizer import build_optimizers
from torchtitan.components.quantization.float8 import Float8LinearConverter
from torchtitan.models.llama3 import Transformer, TransformerModelArgs, parallelize_llama
from torchtitan.models.llama3.model.model import TransformerBlock
from torchtitan.protocols.model_converter import register_model_converter
from torchtitan.protocols.train_spec import TrainSpec, get_train_spec, register_train_spec

from titan_motif.config import JobConfig
from titan_motif.model import Motif2ModelArgs
from titan_motif.model.model import Block
from titan_motif.network import model_args

NAME, FLOAT8 = "llama3_peer", "torchtitan.quantize.linear.float8"
WIDTH_MULTIPLE = 256
"""Of a width that is chosen: that of torchtitan's own flavors of this size."""


def peer_arguments(args: Motif2ModelArgs, is_widened: bool = False) -> TransformerModelArgs:
    """Return the Llama-3 of a network's width and depth.

    Heads are as wide as ours, as many as fill `dim`, which is what a Llama has. Widened, its
    feed-forward layer makes a block's parameters as many as those of ours.
    """
    n_heads = args.dim // args.head_dim
    sharing = max(n for n in range(1, args.n_kv_heads + 1) if n_heads % n == 0)
    plain = TransformerModelArgs(
        dim=args.dim,
        n_layers=args.n_layers,
        n_heads=n_heads,
        n_kv_heads=sharing,
        vocab_size=args.vocab_size,
        rope_theta=args.rope_theta,
        **_of_width(args.dim, args.hidden_dim),
    )
    if not is_widened:
        return plain
    width = equal_parameter_width(args, plain)
    return replace(plain, **_of_width(args.dim, width))


def equal_parameter_width(args: Motif2ModelArgs, plain: TransformerModelArgs) -> int:
    """Return the feed-forward width at which a Llama block has our block's parameters.

    To the nearest multiple of WIDTH_MULTIPLE, or of the largest power of 2 in our own width where
    that is smaller; a unit of width is three matrices' row or column, in both networks.
    """
    with torch.device("meta"):
        missing = _count(Block(args)) - _count(TransformerBlock(0, plain))
    multiple = _multiple(args.hidden_dim)
    width = args.hidden_dim + missing / (3 * args.dim)
    return multiple * max(round(width / multiple), 1)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _multiple(width: int) -> int:
    return math.gcd(width, WIDTH_MULTIPLE)


def _of_width(dim: int, width: int) -> dict[str, Any]:
    """Return what makes torchtitan's formula, two thirds of 4 dim times a factor, give a width."""
    return {
        "ffn_dim_multiplier": width / int(2 * 4 * dim / 3),
        "multiple_of": _multiple(width),
    }


def build_peer(config: JobConfig, is_widened: bool) -> torchtitan.train.Trainer:
    """Build torchtitan's Trainer for the peer of the network that a job of ours names.

    As in ours, the output projection is never in FP8.
    """
    arguments = peer_arguments(model_args(config), is_widened)
    ours = get_train_spec(config.model.name)
    spec = TrainSpec(
        model_cls=Transformer,
        model_args={config.model.flavor: arguments},
        parallelize_fn=parallelize_llama,
        pipelining_fn=None,
        build_optimizers_fn=build_optimizers,
        build_lr_schedulers_fn=build_lr_schedulers,
        build_dataloader_fn=ours.build_dataloader_fn,
        build_tokenizer_fn=ours.build_tokenizer_fn,
        build_loss_fn=build_cross_entropy_loss,
        build_metrics_processor_fn=ours.build_metrics_processor_fn,
    )
    register_train_spec(NAME, spec)
    config.model.name = NAME
    if config.model.converters:
        # Under a name of its own: the plain one is our converter's.
        register_model_converter(Float8LinearConverter, FLOAT8)
        config.model.converters = [FLOAT8]
        config.quantize.linear.float8.filter_fqns = ["output"]
    return torchtitan.train.Trainer(config)
