"""T5, T5 v1.1 and Flan-T5: encoder-decoders with relative positions, which one table per stack holds, and scores that are not scaled.

The first T5 ties its output layer to the table of tokens and scales what that reads; v1.1 and Flan-T5 have one of their own, and gated
feed-forwards. Since transformers 5 config.json says `tie_word_embeddings` for both, and `scale_decoder_outputs` tells them apart: the
output layer is its own where the file has one. Rewards are those of the classifier: both halves read the text, the decoder one token
behind, and the score is read where the text ends.
Sources: the configuration and modelling files of transformers; Raffel et al. 2020 (arXiv:1910.10683).
"""

from __future__ import annotations

from typing import Any

from rlhf_jax.config import ModelConfig
from rlhf_jax.models.convert.family import Family, linear
from rlhf_jax.models.convert.fields import Fields
from rlhf_jax.models.convert.table import Tensor

ACTIVATIONS = {
    "relu": "relu",
    "gated-gelu": "geglu",
    "gated-silu": "swiglu",
    "gelu": "gelu_exact",
    "gelu_new": "gelu",
}
COMPUTED = {"relu": "relu", "geglu": "gelu_new", "swiglu": "silu", "gelu_exact": "gelu", "gelu": "gelu_new"}
GATED = ("geglu", "swiglu")


def table(config: ModelConfig) -> dict[str, Tensor]:
    """The tensors of both stacks; those of a classifier stand one name deeper."""
    trunk = "" if config.lm_head else "transformer."
    lines = {"tokens/embedding": Tensor(f"{trunk}shared.weight", "v d -> v d")}
    for stack, places in (("encoder", {"mlp": 1}), ("decoder", {"cross": 1, "mlp": 2})):
        block = f"{trunk}{stack}.block.{{}}.layer"
        lines |= {
            f"{stack}/relative/embedding": Tensor(
                f"{trunk}{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "b h -> b h"
            ),
            f"{stack}/final_norm/scale": Tensor(f"{trunk}{stack}.final_layer_norm.weight", "d -> d"),
            f"{stack}/attention_norm/scale": Tensor(f"{block}.0.layer_norm.weight", "d -> d"),
            **_attention(f"{stack}/attention", f"{block}.0.SelfAttention"),
            f"{stack}/mlp_norm/scale": Tensor(f"{block}.{places['mlp']}.layer_norm.weight", "d -> d"),
            **_feed_forward(f"{stack}/mlp", f"{block}.{places['mlp']}.DenseReluDense", config.activation in GATED),
        }
        if "cross" in places:
            lines |= _attention(f"{stack}/cross/attention", f"{block}.1.EncDecAttention")
            lines[f"{stack}/cross/norm/scale"] = Tensor(f"{block}.1.layer_norm.weight", "d -> d")
    return lines


def _attention(path: str, name: str) -> dict[str, Tensor]:
    lines = {f"{path}/{part}/kernel": Tensor(f"{name}.{part}.weight", "(h k) d -> d h k") for part in "qkv"}
    return lines | {f"{path}/o/kernel": Tensor(f"{name}.o.weight", "d (h k) -> h k d")}


def _feed_forward(path: str, name: str, gated: bool) -> dict[str, Tensor]:
    parts = {"gate": "wi_0", "up": "wi_1"} if gated else {"up": "wi"}
    lines = {f"{path}/{ours}/kernel": Tensor(f"{name}.{theirs}.weight", "m d -> d m") for ours, theirs in parts.items()}
    return lines | {f"{path}/down/kernel": Tensor(f"{name}.wo.weight", "d m -> m d")}


def heads(config: ModelConfig) -> dict[str, Tensor]:
    """The tensors of the output layer, or of the classifier."""
    if config.lm_head:
        return {} if config.tied else {"unembed/kernel": Tensor("lm_head.weight", "v d -> d v")}
    dense = linear("pool", "classification_head.dense", "e d -> d e", "d -> d")
    return dense | linear("score", "classification_head.out_proj", "1 d -> d", "1 ->")


def read(fields: Fields) -> ModelConfig:
    """The shape of a T5. There is no longest text; `n_positions`, where it is said, is of what it was trained on."""
    fields.only(is_decoder=False)
    fields.get("scalable_attention", None)
    width, layers, heads = fields.count("d_model", 512), fields.count("num_layers", 6), fields.count("num_heads", 8)
    activation = fields.one_of("feed_forward_proj", "relu", ACTIVATIONS)
    fields.only(dense_act_fn=COMPUTED[activation], is_gated_act=activation in GATED)
    tied = fields.get("tie_word_embeddings", True) is not False
    scaled = fields.get("scale_decoder_outputs", tied)
    start, size = fields.get("decoder_start_token_id", None), fields.count("d_kv", 64)
    return ModelConfig(
        vocab=fields.count("vocab_size", 32_128),
        width=width,
        layers=fields.count("num_decoder_layers", None) or layers,
        encoder_layers=layers,
        heads=heads,
        kv_heads=heads,
        mlp=fields.count("d_ff", 2048),
        max_length=fields.count("n_positions", 512),
        head_dim=None if size * heads == width else size,
        norm_eps=fields.number("layer_norm_epsilon", 1e-6),
        position="relative",
        relative_buckets=fields.count("relative_attention_num_buckets", 32),
        relative_distance=fields.count("relative_attention_max_distance", 128),
        query_scale=1.0,
        activation=activation,
        output_scale=width**-0.5 if scaled else 1.0,
        tied=tied,
        start=int(start if start is not None else fields.get("pad_token_id", None) or 0),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """The fields of a T5."""
    c = config
    proj = {ours: theirs for theirs, ours in ACTIVATIONS.items()}[c.activation]
    return {
        "vocab_size": c.vocab,
        "d_model": c.width,
        "d_kv": c.head_size,
        "d_ff": c.mlp,
        "num_layers": c.encoder_layers,
        "num_decoder_layers": c.layers,
        "num_heads": c.heads,
        "n_positions": c.max_length,
        "relative_attention_num_buckets": c.relative_buckets,
        "relative_attention_max_distance": c.relative_distance,
        "layer_norm_epsilon": c.norm_eps,
        "feed_forward_proj": proj,
        "is_encoder_decoder": True,
        "decoder_start_token_id": c.start,
        "tie_word_embeddings": c.tied,
        "scale_decoder_outputs": c.output_scale != 1.0,
    }


T5 = Family(
    "t5",
    "T5ForConditionalGeneration",
    read,
    write,
    table,
    "",
    heads=heads,
    own_output=True,
    copies={
        f"{trunk}{stack}.embed_tokens.weight": f"{trunk}shared.weight"
        for trunk in ("", "transformer.")
        for stack in ("encoder", "decoder")
    },
    # Of the first releases: a table that attention to the prompt has, and does not use.
    buffers=(r"(transformer\.)?decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
)
