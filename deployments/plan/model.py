"""A model as its config.json describes it: what each layer weighs, what a token leaves in the KV cache.

The formulas were checked against instantiated Hugging Face models (Qwen2.5, Llama 3, Mistral, Mixtral, Qwen3,
Qwen3-MoE, Gemma 2 and 3, DeepSeek-V2): the parameter counts are exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Self

from django.utils.translation import gettext as _

from deployments.plan.hosts import BadInput
from deployments.plan.quantisation import Precision

Config = Mapping[str, Any]

#: What transformers fills in when a config.json leaves it out.
_DEFAULTS: Mapping[str, Config] = {
    "gemma3_text": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
    },
    "gemma2": {"max_position_embeddings": 8192},
}
_TIED_BY_DEFAULT = ("gemma", "cohere")
_NESTED = ("text_config", "llm_config", "language_config")
_INHERITED = ("torch_dtype", "dtype", "quantization_config", "tie_word_embeddings", "architectures")
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")
#: Rotary scalings whose factor is not to be applied to the configured length again (vLLM, config/model.py).
_ALREADY_SCALED = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling", "default", None)
VOCABULARY_PADDING = 64
_MOST = 1 << 50


class Layer(NamedTuple):
    """Parameters of one decoder layer, by how tensor parallelism treats them."""

    split: int  # divided by the tensor size
    kv: int  # K and V projections: divided, but a KV head is never cut, it is copied instead
    experts: int  # of all routed experts together: divided
    whole: int  # on every rank: norms, router, MLA's down-projections


@dataclass(frozen=True)
class ModelConfig:
    """Geometry and precision of a decoder-only model.

    ``latent`` is the width MLA keeps for a token and layer (0: ordinary attention). ``extra`` are parameters
    outside the language model (a vision tower, say), which sit on the first stage.
    """

    architecture: str
    layers: tuple[Layer, ...]
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: tuple[int, ...]  # MLP widths that are cut by the tensor size; the experts' first
    experts: int
    experts_per_token: int
    vocabulary: int
    tied: bool
    latent: int
    longest: int  # tokens, 0: the config does not say
    rotary: int  # rows of rotary cache are this wide
    sliding: bool  # some layers keep only a window: our KV figure is then an upper bound
    extra: int
    precision: Precision

    @classmethod
    def from_config(cls, config: Config, checkpoint_bytes: int | None = None) -> Self:
        """Reads a parsed config.json. Raises `BadInput` with one sentence when something needed is missing.

        ``checkpoint_bytes`` is the size of the tensors on disk where known: exact for quantised weights, and
        it shows what the config does not (a vision tower).
        """
        text = _language_model(config)
        hidden, heads = _whole(text, "hidden_size"), _whole(text, "num_attention_heads")
        count = _whole(text, "num_hidden_layers", most=10_000)
        head_dim = text.get("head_dim") or max(1, hidden // heads)
        latent = text["kv_lora_rank"] + text["qk_rope_head_dim"] if text.get("kv_lora_rank") else 0
        kv_heads = text.get("num_key_value_heads") or text.get("num_kv_heads") or heads
        experts = _experts(text)
        model = cls(
            architecture=(config.get("architectures") or [text.get("model_type") or _("unknown")])[0],
            layers=tuple(_layer(text, i, heads, kv_heads, head_dim) for i in range(count)),
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            intermediate=_widths(text, experts),
            experts=experts,
            experts_per_token=text.get("num_experts_per_tok") or text.get("experts_per_token") or 1,
            vocabulary=_whole(text, "vocab_size"),
            tied=text.get("tie_word_embeddings", str(text.get("model_type")).startswith(_TIED_BY_DEFAULT)),
            latent=latent,
            longest=_longest(text),
            rotary=text.get("qk_rope_head_dim") or int(head_dim * (text.get("partial_rotary_factor") or 1)),
            sliding=_slides(text),
            extra=_vision(config),
            precision=Precision.from_config(text),
        )
        _check(model)
        return model.with_checkpoint(checkpoint_bytes) if checkpoint_bytes else model

    @cached_property
    def embedding(self) -> int:
        """Parameters of the embedding, and as many of the LM head; vLLM pads the vocabulary."""
        return self.padded_vocabulary * self.hidden

    @property
    def padded_vocabulary(self) -> int:
        return -(-self.vocabulary // VOCABULARY_PADDING) * VOCABULARY_PADDING

    @cached_property
    def parameters(self) -> int:
        """All parameters of the language model, as published (the vocabulary is not padded)."""
        tables = self.vocabulary * self.hidden * (1 if self.tied else 2) + self.hidden
        return tables + sum(sum(layer) for layer in self.layers)

    @cached_property
    def weights_bytes(self) -> int:
        """Bytes of all weights on one GPU without any parallelism."""
        p, layers = self.precision, sum(sum(layer) for layer in self.layers)
        tables = self.parameters - layers + self.extra
        return int(tables * p.other + sum(self.layer_bytes(layer) for layer in self.layers))

    def layer_bytes(self, layer: Layer, tensor: int = 1) -> float:
        """Bytes of a layer on one of ``tensor`` ranks."""
        p = self.precision
        copies = 1 if self.latent else max(1, tensor // self.kv_heads)
        whole = p.linear if self.latent else p.other  # MLA's down-projections outweigh norms and router by far
        split = (layer.split + layer.kv * copies) * p.linear + layer.experts * p.expert
        return split / tensor + layer.whole * whole

    def kv_bytes_per_token(self, tensor: int, kv_width: float) -> int:
        """Bytes one token leaves in one layer's cache on one rank; MLA's latent is copied to all ranks."""
        if self.latent:
            return int(self.latent * kv_width)
        return int(2 * max(1, self.kv_heads // tensor) * self.head_dim * kv_width)

    def with_checkpoint(self, size: int) -> Self:
        """The same model, corrected by the size of its tensors on disk, in bytes."""
        if self.precision.quantised:
            rest = replace(self, precision=self.precision.scaled(0)).weights_bytes
            ratio = max(0.0, size - rest) / max(1, self.weights_bytes - rest)
            return replace(self, precision=self.precision.scaled(ratio))
        missing = size / self.precision.stored - self.parameters
        return replace(self, extra=int(missing) if missing > 0.005 * self.parameters else 0)


def _check(model: ModelConfig) -> None:
    """Raise `BadInput` where something that is counted is no whole number, or is beyond any model."""
    least = {"heads": 1, "kv_heads": 1, "head_dim": 1, "experts_per_token": 1}
    names = ("heads", "kv_heads", "head_dim", "experts", "experts_per_token", "latent", "longest", "rotary", "extra")
    found = [(name, getattr(model, name)) for name in names]
    found += [("intermediate_size", width) for width in model.intermediate]
    found += [("num_hidden_layers", size) for layer in set(model.layers) for size in layer]
    for name, value in found:
        if isinstance(value, bool) or not isinstance(value, int) or not least.get(name, 0) <= value <= _MOST:
            raise BadInput(
                _("config.json says %(key)s is %(value)r, which is no number that a model can have.")
                % {"key": name, "value": value}
            )


def _language_model(config: Config) -> Config:
    """The text part of a multi-modal config, with the defaults that transformers would fill in."""
    text = dict(config)
    for key in _NESTED:
        if isinstance(config.get(key), dict):
            text = {**{k: config[k] for k in _INHERITED if k in config}, **config[key]}
            break
    return {**_DEFAULTS.get(str(text.get("model_type")), {}), **text}


def _whole(config: Config, key: str, most: int = 1 << 31) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
        raise BadInput(
            _("config.json says %(key)s is %(value)r; a whole number from 1 to %(most)d is needed.")
            % {"key": key, "value": value, "most": most}
        )
    return value


def _experts(c: Config) -> int:
    return int(c.get("num_local_experts") or c.get("num_experts") or c.get("n_routed_experts") or 0)


def _sparse(c: Config, i: int) -> bool:
    """Whether layer ``i`` has experts instead of one dense MLP."""
    return (
        _experts(c) > 0
        and i >= (c.get("first_k_dense_replace") or 0)
        and i not in (c.get("mlp_only_layers") or ())
        and (i + 1) % (c.get("decoder_sparse_step") or 1) == 0
    )


def _layer(c: Config, i: int, heads: int, kv_heads: int, head_dim: int) -> Layer:
    split, kv, whole = (
        _latent_attention(c, heads) if c.get("kv_lora_rank") else _attention(c, heads, kv_heads, head_dim)
    )
    mlp, experts, router = _experts_of(c) if _sparse(c, i) else (_dense(c), 0, 0)
    norms = (4 if str(c.get("model_type")).startswith(("gemma2", "gemma3")) else 2) * c["hidden_size"]
    return Layer(split + mlp, kv, experts, whole + router + norms)


def _attention(c: Config, heads: int, kv_heads: int, head_dim: int) -> tuple[int, int, int]:
    h, kind = c["hidden_size"], str(c.get("model_type"))
    split, kv, whole = 2 * h * heads * head_dim, 2 * h * kv_heads * head_dim, 0
    if kind in ("qwen2", "qwen2_moe") or c.get("attention_bias"):
        split, kv = split + heads * head_dim, kv + 2 * kv_heads * head_dim
        whole += h if c.get("attention_bias") else 0  # Llama's o_proj has a bias too, Qwen2's has none
    if kind.startswith(("qwen3", "gemma3")):
        whole += 2 * head_dim  # norms of Q and K
    return split, kv, whole


def _latent_attention(c: Config, heads: int) -> tuple[int, int, int]:
    """DeepSeek's MLA: the down-projections are small and copied, the up-projections divide by heads."""
    h, rank, rope = c["hidden_size"], c["kv_lora_rank"], c["qk_rope_head_dim"]
    per_head = c["qk_nope_head_dim"] + rope
    low = c.get("q_lora_rank")
    query, query_whole = (low * heads * per_head, h * low + low) if low else (h * heads * per_head, 0)
    up = rank * heads * (c["qk_nope_head_dim"] + c["v_head_dim"]) + heads * c["v_head_dim"] * h
    return query + up, 0, query_whole + h * (rank + rope) + rank


def _dense(c: Config) -> int:
    h, width = c["hidden_size"], c.get("intermediate_size") or 4 * c["hidden_size"]
    return int(3 * h * width + ((2 * width + h) if c.get("mlp_bias") else 0))


def _experts_of(c: Config) -> tuple[int, int, int]:
    """Shared experts, routed experts, router."""
    h, count = c["hidden_size"], _experts(c)
    width = c.get("moe_intermediate_size") or c["intermediate_size"]
    shared = 3 * h * width * (c.get("n_shared_experts") or 0)
    router = h * count + (count if c.get("model_type") == "deepseek_v3" else 0)
    if c.get("shared_expert_intermediate_size"):
        shared, router = 3 * h * c["shared_expert_intermediate_size"], router + h
    return shared, 3 * h * width * count, router


def _widths(c: Config, experts: int) -> tuple[int, ...]:
    """MLP widths that are cut into as many pieces as the tensor size."""
    dense = c.get("intermediate_size") or 4 * c["hidden_size"]
    sparse = [_sparse(c, i) for i in range(c["num_hidden_layers"])]
    widths = [c.get("moe_intermediate_size") or dense] if experts else []
    widths += [] if all(sparse) else [dense]
    shared = c.get("shared_expert_intermediate_size")
    return tuple(widths + ([shared] if shared else []))


def _longest(c: Config) -> int:
    """The longest context that the config allows, in tokens, derived as vLLM 0.32 does."""
    lengths = [c[key] for key in _LENGTHS if isinstance(c.get(key), int)]
    length = c.get("model_max_length") or min(lengths, default=0)
    rope = c.get("rope_parameters") or c.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type")
    if kind not in _ALREADY_SCALED and "gemma3" not in str(c.get("model_type")):
        length *= rope.get("factor") or 1
    return int(length)


def _slides(c: Config) -> bool:
    kinds = c.get("layer_types") or ()
    by_name = str(c.get("model_type")).startswith(("gemma2", "gemma3"))
    return by_name or any("sliding" in kind or "linear" in kind for kind in kinds)


def _vision(config: Config) -> int:
    """Parameters of a vision tower, roughly: a plain transformer encoder."""
    v = config.get("vision_config")
    if not isinstance(v, dict):
        return 0
    width = v.get("hidden_size") or v.get("embed_dim") or 1152
    depth = v.get("num_hidden_layers") or v.get("depth") or 27
    return int(depth * (4 * width * width + 2 * width * (v.get("intermediate_size") or 4 * width)))
