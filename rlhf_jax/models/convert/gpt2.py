"""GPT-2: weights stored input first, queries, keys and values in one tensor.

Sources: the configuration and modelling files of transformers; Radford et al. 2019.
"""

from __future__ import annotations

from typing import Any

from rlhf_jax.config import ModelConfig
from rlhf_jax.models.convert.family import Family, linear, normed
from rlhf_jax.models.convert.fields import Fields
from rlhf_jax.models.convert.table import Tensor


def table(config: ModelConfig) -> dict[str, Tensor]:
    """The tensors of a layer, of both embeddings, and of the last norm."""
    lines = {
        "tokens/embedding": Tensor("wte.weight", "v d -> v d"),
        "places/embedding": Tensor("wpe.weight", "p d -> p d"),
        **normed("final_norm", "ln_f", bias=True),
        **normed("attention_norm", "h.{}.ln_1", bias=True),
        **normed("mlp_norm", "h.{}.ln_2", bias=True),
        **linear("attention/o", "h.{}.attn.c_proj", "(h k) d -> h k d", "d -> d"),
        **linear("mlp/up", "h.{}.mlp.c_fc", "d m -> d m", "m -> m"),
        **linear("mlp/down", "h.{}.mlp.c_proj", "m d -> m d", "d -> d"),
    }
    for part, name in enumerate("qkv"):
        lines[f"attention/{name}/kernel"] = Tensor("h.{}.attn.c_attn.weight", "d (3 h k) -> d h k", part)
        lines[f"attention/{name}/bias"] = Tensor("h.{}.attn.c_attn.bias", "(3 h k) -> h k", part)
    return lines


def read(fields: Fields) -> ModelConfig:
    """The shape of a GPT-2."""
    fields.only(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    fields.get("reorder_and_upcast_attn", False)  # in which precision, not what
    width, heads = fields.count("n_embd", 768), fields.count("n_head", 12)
    return ModelConfig(
        vocab=fields.count("vocab_size", 50_257),
        width=width,
        layers=fields.count("n_layer", 12),
        heads=heads,
        kv_heads=heads,
        mlp=fields.count("n_inner", None) or 4 * width,
        max_length=fields.count("n_positions", 1024),
        norm="layer",
        norm_eps=fields.number("layer_norm_epsilon", 1e-5),
        position="learned",
        activation=fields.one_of(
            "activation_function",
            "gelu_new",
            {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_exact", "relu": "relu"},
        ),
        bias=True,
        tied=bool(fields.get("tie_word_embeddings", True)),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """The fields of a GPT-2."""
    c = config
    return {
        "vocab_size": c.vocab,
        "n_embd": c.width,
        "n_layer": c.layers,
        "n_head": c.heads,
        "n_inner": c.mlp,
        "n_positions": c.max_length,
        "layer_norm_epsilon": c.norm_eps,
        "activation_function": {"gelu": "gelu_new", "gelu_exact": "gelu", "relu": "relu"}.get(c.activation),
        "tie_word_embeddings": c.tied,
    }


GPT2 = Family(
    "gpt2",
    "GPT2LMHeadModel",
    read,
    write,
    table,
    "transformer.",
    buffers=(r".*\.attn\.bias", r".*\.attn\.masked_bias"),
)
