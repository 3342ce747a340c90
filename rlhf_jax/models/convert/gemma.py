"""Gemma 2 and the text model of Gemma 3: norms around attention and feed-forward, windows on most layers, scaled embeddings.

Sources: the configuration and modelling files of transformers; Gemma Team 2024 (arXiv:2408.00118) and 2025 (arXiv:2503.19786).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from rlhf_jax.config import ModelConfig
from rlhf_jax.models.convert import llama
from rlhf_jax.models.convert.family import Family, normed
from rlhf_jax.models.convert.fields import Fields, layer_types, rope_parameters
from rlhf_jax.models.convert.table import Tensor


def table(config: ModelConfig) -> dict[str, Tensor]:
    """Llama's tensors, with four norms a layer."""
    return llama.table(config) | {
        **normed("attention_post_norm", "layers.{}.post_attention_layernorm", bias=False),
        **normed("mlp_norm", "layers.{}.pre_feedforward_layernorm", bias=False),
        **normed("mlp_post_norm", "layers.{}.post_feedforward_layernorm", bias=False),
    }


def _read(fields: Fields, every: int, base: float, scaling: Any, **settings: Any) -> ModelConfig:
    fields.only(hidden_activation=("gelu_pytorch_tanh", None), hidden_act=("gelu_pytorch_tanh", "gelu", None))
    fields.only(attention_bias=False, use_bidirectional_attention=(None, False))
    fields.get("sliding_window_size", None)  # in files of Gemma 2 beside sliding_window, and read by nobody
    size = fields.count("head_dim", 256)
    numbers = llama.shape(fields, kv_heads=4, length=8192, tied=True)
    layers, heads, width = numbers["layers"], numbers["heads"], numbers["width"]
    default = ["sliding_attention" if (n + 1) % every else "full_attention" for n in range(layers)]
    numbers["head_dim"] = None if size * heads == width else size
    return ModelConfig(
        **numbers,
        norm="rms+1",
        norm_at="around",
        activation="geglu",
        rope_base=base,
        rope_scaling=scaling,
        window=fields.count("sliding_window", 4096),
        full_layers=fields.windows(layers, default),
        query_scale=fields.number("query_pre_attn_scalar", 256) ** -0.5,
        embedding_scale=math.sqrt(width),
        attention_softcap=fields.number("attn_logit_softcapping", settings.pop("attention_softcap"), optional=True),
        logit_softcap=fields.number("final_logit_softcapping", settings.pop("logit_softcap"), optional=True),
        **settings,
    )


def _written(config: ModelConfig) -> dict[str, Any]:
    c = config
    return llama.written(c) | {
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": c.window,
        "layer_types": layer_types(c.layers, c.window, c.full_layers),
        "query_pre_attn_scalar": round((c.head_size**-0.5 if c.query_scale is None else c.query_scale) ** -2),
        "attn_logit_softcapping": c.attention_softcap,
        "final_logit_softcapping": c.logit_softcap,
    }


def read_gemma2(fields: Fields) -> ModelConfig:
    """The shape of a Gemma 2: every other layer has a window."""
    base, scaling = fields.rope()
    return _read(fields, 2, base, scaling, attention_softcap=50.0, logit_softcap=30.0)


def write_gemma2(config: ModelConfig) -> dict[str, Any]:
    """The fields of a Gemma 2."""
    return _written(config) | {"rope_parameters": rope_parameters(config.rope_base, config.rope_scaling)}


def read_gemma3(fields: Fields) -> ModelConfig:
    """The shape of a Gemma 3 text model: every sixth layer sees everything, by another rotary base."""
    base, scaling = fields.rope("full_attention", base=1_000_000.0)
    local, local_scaling = fields.rope("sliding_attention")
    if not isinstance(fields.get("rope_parameters", None), dict):
        local, local_scaling = fields.number("rope_local_base_freq", 10_000.0), None
    if local_scaling is not None:
        raise ValueError(f"{fields.path}: rope scaling of layers with a window; this library computes none there")
    every = fields.count("sliding_window_pattern", 6)
    config = _read(
        fields, every, base, scaling, attention_softcap=None, logit_softcap=None, local_rope_base=local, qk_norm=True
    )
    return dataclasses.replace(config, max_length=fields.count("max_position_embeddings", 131_072))


def write_gemma3(config: ModelConfig) -> dict[str, Any]:
    """The fields of a Gemma 3 text model."""
    c = config
    local = c.rope_base if c.local_rope_base is None else c.local_rope_base
    return _written(c) | {
        "use_bidirectional_attention": False,
        "rope_parameters": {
            "full_attention": rope_parameters(c.rope_base, c.rope_scaling),
            "sliding_attention": rope_parameters(local, None),
        },
    }


GEMMA2 = Family("gemma2", "Gemma2ForCausalLM", read_gemma2, write_gemma2, table, "model.", buffers=llama.BUFFERS)
GEMMA3 = Family(
    "gemma3_text",
    "Gemma3ForCausalLM",
    read_gemma3,
    write_gemma3,
    table,
    "model.",
    buffers=llama.BUFFERS,
    called="Gemma3Text",
)
