"""Llama 2 and 3, and what shares their layers: Mistral, Qwen2, Qwen2.5 and Qwen3. Gemma adds norms to the same table.

Sources: the configuration and modelling files of transformers; Touvron et al. 2023 (arXiv:2307.09288), Llama Team 2024 (arXiv:2407.21783),
Jiang et al. 2023 (arXiv:2310.06825), Qwen Team 2024 (arXiv:2412.15115) and 2025 (arXiv:2505.09388).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from rlhf_jax.config import ModelConfig
from rlhf_jax.models.convert.family import Family, linear, normed
from rlhf_jax.models.convert.fields import Fields, layer_types, rope_parameters
from rlhf_jax.models.convert.table import Tensor

BUFFERS = (r".*rotary_emb\.inv_freq",)


def table(config: ModelConfig) -> dict[str, Tensor]:
    """The tensors of a layer, of the embedding, and of the last norm."""
    c = config
    biased = c.bias or c.qkv_bias
    attention, mlp = "layers.{}.self_attn", "layers.{}.mlp"
    lines = {
        "tokens/embedding": Tensor("embed_tokens.weight", "v d -> v d"),
        **normed("final_norm", "norm", bias=False),
        **normed("attention_norm", "layers.{}.input_layernorm", bias=False),
        **normed("mlp_norm", "layers.{}.post_attention_layernorm", bias=False),
        **linear("attention/q", f"{attention}.q_proj", "(h k) d -> d h k", "(h k) -> h k" if biased else None),
        **linear("attention/k", f"{attention}.k_proj", "(g k) d -> d g k", "(g k) -> g k" if biased else None),
        **linear("attention/v", f"{attention}.v_proj", "(g k) d -> d g k", "(g k) -> g k" if biased else None),
        **linear("attention/o", f"{attention}.o_proj", "d (h k) -> h k d", "d -> d" if c.bias else None),
        **linear("mlp/gate", f"{mlp}.gate_proj", "m d -> d m", "m -> m" if c.bias else None),
        **linear("mlp/up", f"{mlp}.up_proj", "m d -> d m", "m -> m" if c.bias else None),
        **linear("mlp/down", f"{mlp}.down_proj", "d m -> m d", "d -> d" if c.bias else None),
    }
    if c.qk_norm:
        for name in ("q_norm", "k_norm"):
            lines[f"attention/{name}/scale"] = Tensor(f"{attention}.{name}.weight", "k -> k")
    return lines


def shape(fields: Fields, *, kv_heads: int | None = None, length: int = 2048, tied: bool = False) -> dict[str, Any]:
    """What all of them call by the same names; a file without a number of key-value heads means `kv_heads`, or one for each head."""
    heads, width = fields.count("num_attention_heads"), fields.count("hidden_size")
    size, grouped = fields.count("head_dim", None), fields.get("num_key_value_heads", kv_heads)
    return {
        "vocab": fields.count("vocab_size"),
        "width": width,
        "layers": fields.count("num_hidden_layers"),
        "heads": heads,
        "kv_heads": heads if grouped is None else fields.count("num_key_value_heads", kv_heads),
        "mlp": fields.count("intermediate_size"),
        "max_length": fields.count("max_position_embeddings", length),
        "head_dim": None if size is None or size * heads == width else size,
        "norm_eps": fields.number("rms_norm_eps", 1e-6),
        "tied": bool(fields.get("tie_word_embeddings", tied)),
    }


def written(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `shape`."""
    c = config
    return {
        "vocab_size": c.vocab,
        "hidden_size": c.width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_size,
        "intermediate_size": c.mlp,
        "max_position_embeddings": c.max_length,
        "rms_norm_eps": c.norm_eps,
        "tie_word_embeddings": c.tied,
    }


def read_llama(fields: Fields) -> ModelConfig:
    """The shape of a Llama."""
    base, scaling = fields.rope()
    fields.only(hidden_act="silu")
    biased = (bool(fields.get("attention_bias", False)), bool(fields.get("mlp_bias", False)))
    if biased[0] != biased[1]:
        raise ValueError(
            f"{fields.path}: attention_bias={biased[0]} with mlp_bias={biased[1]}; this library computes both or neither"
        )
    return ModelConfig(**shape(fields), rope_base=base, rope_scaling=scaling, bias=biased[0])


def write_llama(config: ModelConfig) -> dict[str, Any]:
    """The fields of a Llama."""
    c = config
    return written(c) | {
        "hidden_act": "silu",
        "attention_bias": c.bias,
        "mlp_bias": c.bias,
        "rope_parameters": rope_parameters(c.rope_base, c.rope_scaling),
    }


def read_mistral(fields: Fields) -> ModelConfig:
    """The shape of a Mistral: a Llama, every layer of which may have a window."""
    base, scaling = fields.rope()
    fields.only(hidden_act="silu")
    window = fields.count("sliding_window", 4096) if fields.get("sliding_window", 4096) is not None else None
    return ModelConfig(**shape(fields, kv_heads=8, length=131_072), rope_base=base, rope_scaling=scaling, window=window)


def write_mistral(config: ModelConfig) -> dict[str, Any]:
    """The fields of a Mistral."""
    c = config
    return written(c) | {
        "hidden_act": "silu",
        "sliding_window": c.window,
        "rope_parameters": rope_parameters(c.rope_base, c.rope_scaling),
    }


def read_qwen(fields: Fields) -> ModelConfig:
    """What Qwen2 and Qwen3 share: a Llama whose upper layers may have a window."""
    base, scaling = fields.rope()
    fields.only(hidden_act="silu")
    numbers = shape(fields, kv_heads=32, length=32_768)
    layers = numbers["layers"]
    first = fields.count("max_window_layers", 28) if fields.get("max_window_layers", 28) else 0
    used = bool(fields.get("use_sliding_window", False))
    window = fields.get("sliding_window", 4096)
    window = fields.count("sliding_window", 4096) if used and window is not None else None
    default = layer_types(layers, window, tuple(range(min(first, layers))))
    full = fields.windows(layers, default)
    if window is None or len(full) == layers:
        return ModelConfig(**numbers, rope_base=base, rope_scaling=scaling)
    return ModelConfig(**numbers, rope_base=base, rope_scaling=scaling, window=window, full_layers=full)


def write_qwen(config: ModelConfig) -> dict[str, Any]:
    """The fields that Qwen2 and Qwen3 share."""
    c = config
    return written(c) | {
        "hidden_act": "silu",
        "use_sliding_window": c.window is not None,
        "sliding_window": c.window,
        "max_window_layers": len(c.full_layers) if c.window is not None else c.layers,
        "layer_types": layer_types(c.layers, c.window, c.full_layers),
        "rope_parameters": rope_parameters(c.rope_base, c.rope_scaling),
    }


def read_qwen2(fields: Fields) -> ModelConfig:
    """The shape of a Qwen2 or Qwen2.5: queries, keys and values have biases."""
    return dataclasses.replace(read_qwen(fields), qkv_bias=True)


def read_qwen3(fields: Fields) -> ModelConfig:
    """The shape of a Qwen3: queries and keys are normed."""
    fields.only(attention_bias=False)
    config = read_qwen(fields)
    # Its heads have 128 dimensions where the file does not say.
    size = fields.count("head_dim", 128)
    return dataclasses.replace(config, qk_norm=True, head_dim=None if size * config.heads == config.width else size)


LLAMA = Family("llama", "LlamaForCausalLM", read_llama, write_llama, table, "model.", buffers=BUFFERS)
MISTRAL = Family("mistral", "MistralForCausalLM", read_mistral, write_mistral, table, "model.", buffers=BUFFERS)
QWEN2 = Family("qwen2", "Qwen2ForCausalLM", read_qwen2, write_qwen, table, "model.", buffers=BUFFERS)
QWEN3 = Family("qwen3", "Qwen3ForCausalLM", read_qwen3, write_qwen, table, "model.", buffers=BUFFERS)
