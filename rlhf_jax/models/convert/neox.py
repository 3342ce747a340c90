"""GPT-NeoX and Pythia: attention and feed-forward side by side, a quarter of each head turned, three projections in one tensor.

Sources: the configuration and modelling files of transformers; Black et al. 2022 (arXiv:2204.06745); Biderman et al. 2023
(arXiv:2304.01373).
"""

from __future__ import annotations

from typing import Any

from rlhf_jax.config import ModelConfig
from rlhf_jax.models.convert.family import Family, linear, normed
from rlhf_jax.models.convert.fields import Fields, rope_parameters
from rlhf_jax.models.convert.table import Tensor


def table(config: ModelConfig) -> dict[str, Tensor]:
    """The tensors of a layer, of the embedding, and of the last norm."""
    attention, mlp = "layers.{}.attention", "layers.{}.mlp"
    lines = {
        "tokens/embedding": Tensor("embed_in.weight", "v d -> v d"),
        **normed("final_norm", "final_layer_norm", bias=True),
        **normed("attention_norm", "layers.{}.input_layernorm", bias=True),
        **normed("mlp_norm", "layers.{}.post_attention_layernorm", bias=True),
        **linear("attention/o", f"{attention}.dense", "d (h k) -> h k d", "d -> d"),
        **linear("mlp/up", f"{mlp}.dense_h_to_4h", "m d -> d m", "m -> m"),
        **linear("mlp/down", f"{mlp}.dense_4h_to_h", "d m -> m d", "d -> d"),
    }
    for part, name in enumerate("qkv"):
        lines[f"attention/{name}/kernel"] = Tensor(f"{attention}.query_key_value.weight", "(h 3 k) d -> d h k", part)
        lines[f"attention/{name}/bias"] = Tensor(f"{attention}.query_key_value.bias", "(h 3 k) -> h k", part)
    return lines


def read(fields: Fields) -> ModelConfig:
    """The shape of a GPT-NeoX."""
    fields.only(attention_bias=True)
    base, share = fields.number("rotary_emb_base", 10_000), fields.number("rotary_pct", 0.25)
    base, scaling, share = fields.partial_rope(base=base, share=share)
    heads = fields.count("num_attention_heads")
    return ModelConfig(
        vocab=fields.count("vocab_size"),
        width=fields.count("hidden_size"),
        layers=fields.count("num_hidden_layers"),
        heads=heads,
        kv_heads=heads,
        mlp=fields.count("intermediate_size"),
        max_length=fields.count("max_position_embeddings", 2048),
        norm="layer",
        norm_eps=fields.number("layer_norm_eps", 1e-5),
        parallel=bool(fields.get("use_parallel_residual", True)),
        rope_base=base,
        rope_scaling=scaling,
        rope_share=share,
        activation=fields.one_of(
            "hidden_act",
            "gelu",
            {
                "gelu": "gelu_exact",
                "gelu_new": "gelu",
                "gelu_pytorch_tanh": "gelu",
                "gelu_fast": "gelu",
                "relu": "relu",
            },
        ),
        bias=True,
        tied=bool(fields.get("tie_word_embeddings", False)),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """The fields of a GPT-NeoX."""
    c = config
    return {
        "vocab_size": c.vocab,
        "hidden_size": c.width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "intermediate_size": c.mlp,
        "max_position_embeddings": c.max_length,
        "layer_norm_eps": c.norm_eps,
        "use_parallel_residual": c.parallel,
        "attention_bias": True,
        "hidden_act": {"gelu_exact": "gelu", "gelu": "gelu_new", "relu": "relu"}.get(c.activation),
        "tie_word_embeddings": c.tied,
        "rope_parameters": rope_parameters(c.rope_base, c.rope_scaling, c.rope_share),
    }


NEOX = Family(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    read,
    write,
    table,
    "gpt_neox.",
    head="embed_out.weight",
    buffers=(r".*\.attention\.(bias|masked_bias)", r".*rotary_emb\.inv_freq"),
)
