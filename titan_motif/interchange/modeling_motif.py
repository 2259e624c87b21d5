"""Motif-2 for Hugging Face transformers: plain PyTorch, with a key-value cache.

This file goes into every exported directory and stands alone: it imports nothing but torch and
transformers. The network is that of https://arxiv.org/abs/2511.07464: grouped differential
attention, PolyNorm, pre-norm blocks.
"""

import math

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

# The cache of keys and values had another name in outputs before transformers 5.
CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"


class MotifConfig(PretrainedConfig):
    """The shape of a network, under the names of the released checkpoints."""

    model_type = "Motif"
    keys_to_ignore_at_inference = ("past_key_values",)

    def __init__(
        self,
        vocab_size: int = 219_520,
        hidden_size: int = 4096,
        intermediate_size: int = 16_384,
        num_hidden_layers: int = 40,
        num_attention_heads: int = 40,
        num_key_value_heads: int = 16,
        head_dim: int | None = None,
        grouped_ratio: int = 1,
        max_position_embeddings: int = 32_768,
        rope_theta: float = 1e6,
        rms_norm_eps: float = 1e-6,
        attn_rms_norm_eps: float = 1e-5,
        lam_init: list[float] | None = None,
        use_cache: bool = True,
        tie_word_embeddings: bool = False,
        **more,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim or hidden_size // num_attention_heads
        self.grouped_ratio = grouped_ratio
        self.max_position_embeddings = max_position_embeddings
        self.rope_theta = rope_theta
        self.rms_norm_eps = rms_norm_eps
        self.attn_rms_norm_eps = attn_rms_norm_eps
        self.lam_init = lam_init
        self.use_cache = use_cache
        super().__init__(tie_word_embeddings=tie_word_embeddings, **more)

    def lambda_constant(self, layer: int) -> float:
        """lambda's constant of a 0-based layer; the released formula where none is given."""
        if self.lam_init is not None:
            return self.lam_init[layer]
        return 0.8 - 0.6 * math.exp(-0.3 * (layer - 1))


class MotifRMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, in float32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        wide = _at_least_float32(x)
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (normed * self.weight.to(wide.dtype)).to(x.dtype)


class MotifPolyNorm(nn.Module):
    """w0 N(x^3) + w1 N(x^2) + w2 N(x) + b, N(z) = z / sqrt(mean(z^2) + eps), in float32."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.full((3,), 1 / 3)), nn.Parameter(torch.zeros(1))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return it in float32 at least: the product that follows is rounded once."""
        wide = _at_least_float32(x)
        weight, out = self.weight.to(wide.dtype), self.bias.to(wide.dtype)
        for w, power in zip(weight, (3, 2, 1), strict=True):
            z = wide**power
            out = out + w * z * torch.rsqrt(z.square().mean(-1, keepdim=True) + self.eps)
        return out


class MotifMLP(nn.Module):
    """down(PolyNorm(gate(x)) * up(x))."""

    def __init__(self, config: MotifConfig) -> None:
        super().__init__()
        dim, hidden = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(dim, hidden, bias=False)
        self.up_proj = nn.Linear(dim, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)
        self.act_fn = MotifPolyNorm(config.rms_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        gated = self.act_fn(self.gate_proj(x))
        return self.down_proj((gated * self.up_proj(x)).to(x.dtype))


class MotifAttention(nn.Module):
    """Grouped differential attention; without noise heads (grouped_ratio 0), plain attention."""

    def __init__(self, config: MotifConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.lam_init = config.lambda_constant(layer)
        dim, head_dim, ratio = config.hidden_size, config.head_dim, config.grouped_ratio
        heads, keys = config.num_attention_heads, config.num_key_value_heads
        self.q_proj = nn.Linear(dim, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(dim, keys * head_dim, bias=False)
        self.v_proj = nn.Linear(dim, keys * head_dim, bias=False)
        outputs = heads * head_dim
        if ratio:
            outputs = heads // (ratio + 1) * ratio * 2 * head_dim
            for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"):
                self.register_parameter(name, nn.Parameter(torch.zeros(head_dim)))
            self.subln = MotifRMSNorm(2 * head_dim, config.attn_rms_norm_eps)
        self.o_proj = nn.Linear(outputs, dim, bias=False)

    def forward(
        self,
        x: Tensor,  # (batch, seq, dim)
        rotation: tuple[Tensor, Tensor],
        mask: Tensor,  # (batch, 1, seq, keys) bool
        cache: DynamicCache | None,
    ) -> Tensor:
        def heads(projected: Tensor) -> Tensor:  # (batch, heads, seq, head_dim)
            return projected.unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)

        q, k = _rotate(heads(self.q_proj(x)), rotation), _rotate(heads(self.k_proj(x)), rotation)
        v = heads(self.v_proj(x))
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        attend = self._plain if self.config.grouped_ratio == 0 else self._differential
        return self.o_proj(attend(q, k, v, mask).transpose(1, 2).flatten(2))

    def _plain(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        times = q.shape[1] // k.shape[1]
        k, v = (tensor.repeat_interleave(times, 1) for tensor in (k, v))
        return F.scaled_dot_product_attention(q, k, v, mask)

    def _differential(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        ratio = self.config.grouped_ratio
        grouped = q.unflatten(1, (-1, ratio + 1))
        groups = grouped.shape[1]
        signal, noise = grouped[:, :, :ratio].flatten(1, 2), grouped[:, :, ratio]
        times = groups // (k.shape[1] // 2)  # groups that share a pair of keys
        # A pair's two value heads are one, twice as wide.
        values = torch.cat((v[:, 0::2], v[:, 1::2]), -1).repeat_interleave(times, 1)
        signal_keys, noise_keys = (k[:, i::2].repeat_interleave(times, 1) for i in (0, 1))
        signal_out = F.scaled_dot_product_attention(
            signal,
            signal_keys.repeat_interleave(ratio, 1),
            values.repeat_interleave(ratio, 1),
            mask,
        )
        noise_out = F.scaled_dot_product_attention(noise, noise_keys, values, mask)
        out = signal_out - self._lam(q) * noise_out.repeat_interleave(ratio, 1)
        return self.subln(out) * (1 - self.lam_init)

    def _lam(self, like: Tensor) -> Tensor:
        kind = torch.promote_types(like.dtype, torch.float32)
        q1, k1, q2, k2 = (
            getattr(self, f"lambda_{name}").to(kind) for name in ("q1", "k1", "q2", "k2")
        )
        lam = (q1 * k1).sum().exp() - (q2 * k2).sum().exp() + self.lam_init
        return lam.to(like.dtype)


class MotifDecoderLayer(nn.Module):
    """h = x + attention(norm(x)); out = h + mlp(norm(h))."""

    def __init__(self, config: MotifConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = MotifRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = MotifAttention(config, layer)
        self.post_attention_layernorm = MotifRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MotifMLP(config)

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor,
        cache: DynamicCache | None,
    ) -> Tensor:
        h = x + self.self_attn(self.input_layernorm(x), rotation, mask, cache)
        return h + self.mlp(self.post_attention_layernorm(h))


class MotifPreTrainedModel(PreTrainedModel):
    """What transformers has to know of every Motif model."""

    config_class = MotifConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = False
    _no_split_modules = ("MotifDecoderLayer",)
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2", "act_fn")

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)


class MotifModel(MotifPreTrainedModel):
    """Embedding, blocks, final norm."""

    def __init__(self, config: MotifConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            MotifDecoderLayer(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = MotifRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        cache: DynamicCache | None = None,
        **_: object,
    ) -> BaseModelOutputWithPast:
        """Return the final hidden states; `cache` is the newer name of past_key_values."""
        past_key_values = cache if past_key_values is None else past_key_values
        h = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        batch, seq = h.shape[:2]
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        before = 0 if past_key_values is None else past_key_values.get_seq_length()
        places = torch.arange(before, before + seq, device=h.device)
        if attention_mask is None:
            attention_mask = torch.ones(batch, before + seq, device=h.device)
        is_token = attention_mask[:, : before + seq].bool()
        if position_ids is None:
            position_ids = (is_token.long().cumsum(-1) - 1).clamp(min=0)[:, before:]
        keys = torch.arange(before + seq, device=h.device)
        mask = (keys <= places[:, None]) & is_token[:, None]
        # What is padding attends to itself: a row without any key would be NaN.
        mask = (mask | (keys == places[:, None]))[:, None]
        rotation = self._rotation(position_ids, h.dtype)
        kept = past_key_values if use_cache else None
        if kept is not None and not isinstance(kept, DynamicCache):
            raise ValueError(f"the cache is a {type(kept).__name__}; a DynamicCache is needed")
        for layer in self.layers:
            h = layer(h, rotation, mask, kept)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(h), **{CACHE: kept})

    def _rotation(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines of each position's angles, (batch, 1, seq, head_dim / 2)."""
        head_dim = self.config.head_dim
        steps = torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device)
        angles = positions[..., None].double() * self.config.rope_theta ** (-steps / head_dim)
        kind = torch.promote_types(dtype, torch.float32)
        return angles.cos().to(kind)[:, None], angles.sin().to(kind)[:, None]


class MotifForCausalLM(MotifPreTrainedModel, GenerationMixin):
    """A MotifModel and its output projection."""

    _tied_weights_keys = (
        {"lm_head.weight": "model.embed_tokens.weight"}
        if int(transformers.__version__.split(".")[0]) >= 5
        else ["lm_head.weight"]
    )

    def __init__(self, config: MotifConfig) -> None:
        super().__init__(config)
        self.model = MotifModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **more: object,
    ) -> CausalLMOutputWithPast:
        """Return logits (batch, seq, vocab), and the mean loss where labels are given."""
        found = self.model(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            **more,
        )
        h = found.last_hidden_state
        if isinstance(logits_to_keep, Tensor):  # positions
            h = h[:, logits_to_keep]
        elif labels is None:  # the loss is of all positions
            h = h[:, -logits_to_keep:]
        logits = self.lm_head(h)
        loss = None
        if labels is not None:
            predictions = logits[:, :-1].flatten(0, 1).float()
            loss = F.cross_entropy(predictions, labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE: getattr(found, CACHE)})


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the (i, i + head_dim / 2) pairs of each head by their position's angles."""
    cos, sin = rotation
    first, second = x.to(cos.dtype).chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
