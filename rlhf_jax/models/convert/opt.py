"""OPT: GPT-2's layers with ReLU; the table of positions has two rows in front that no text uses.

Sources: the configuration and modelling files of transformers; Zhang et al. 2022 (arXiv:2205.01068).
"""

from __future__ import annotations

from typing import Any

from rlhf_jax.config import ModelConfig
from rlhf_jax.models.convert.family import Family, linear, normed
from rlhf_jax.models.convert.fields import Fields
from rlhf_jax.models.convert.table import Tensor


def table(config: ModelConfig) -> dict[str, Tensor]:
    """The tensors of a layer, of both embeddings, and of the last norm."""
    attention = "layers.{}.self_attn"
    return {
        "tokens/embedding": Tensor("embed_tokens.weight", "v d -> v d"),
        "places/embedding": Tensor("embed_positions.weight", "p d -> p d", skip=2),
        **normed("final_norm", "final_layer_norm", bias=True),
        **normed("attention_norm", "layers.{}.self_attn_layer_norm", bias=True),
        **normed("mlp_norm", "layers.{}.final_layer_norm", bias=True),
        **linear("attention/q", f"{attention}.q_proj", "(h k) d -> d h k", "(h k) -> h k"),
        **linear("attention/k", f"{attention}.k_proj", "(h k) d -> d h k", "(h k) -> h k"),
        **linear("attention/v", f"{attention}.v_proj", "(h k) d -> d h k", "(h k) -> h k"),
        **linear("attention/o", f"{attention}.out_proj", "d (h k) -> h k d", "d -> d"),
        **linear("mlp/up", "layers.{}.fc1", "m d -> d m", "m -> m"),
        **linear("mlp/down", "layers.{}.fc2", "d m -> m d", "d -> d"),
    }


def read(fields: Fields) -> ModelConfig:
    """The shape of an OPT; not of OPT-350M, whose embeddings are projected and whose norms stand behind the sums."""
    fields.only(enable_bias=True, layer_norm_elementwise_affine=True, do_layer_norm_before=True)
    fields.only(_remove_final_layer_norm=False)
    width, heads = fields.count("hidden_size", 768), fields.count("num_attention_heads", 12)
    fields.only(word_embed_proj_dim=(width, None))
    return ModelConfig(
        vocab=fields.count("vocab_size", 50_272),
        width=width,
        layers=fields.count("num_hidden_layers", 12),
        heads=heads,
        kv_heads=heads,
        mlp=fields.count("ffn_dim", 3072),
        max_length=fields.count("max_position_embeddings", 2048),
        norm="layer",
        position="learned",
        activation=fields.one_of(
            "activation_function", "relu", {"relu": "relu", "gelu": "gelu_exact", "gelu_new": "gelu"}
        ),
        bias=True,
        tied=bool(fields.get("tie_word_embeddings", True)),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """The fields of an OPT."""
    c = config
    return {
        "vocab_size": c.vocab,
        "hidden_size": c.width,
        "word_embed_proj_dim": c.width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "ffn_dim": c.mlp,
        "max_position_embeddings": c.max_length,
        "activation_function": {"relu": "relu", "gelu_exact": "gelu", "gelu": "gelu_new"}.get(c.activation),
        "do_layer_norm_before": True,
        "tie_word_embeddings": c.tied,
    }


OPT = Family("opt", "OPTForCausalLM", read, write, table, "model.decoder.")
