"""BERT and RoBERTa: encoders with norms behind the sums, for masked language models and classifiers.

Batches have no types of tokens, so every token is of type 0, as transformers has it where none are given; the table of types keeps all its
rows. RoBERTa counts positions from 2, behind its padding id, which therefore is 1. BERT's pooler is read with a classifier only, as part of
it, and the head that told whether two sentences follow each other not at all.
Sources: the configuration and modelling files of transformers; Devlin et al. 2019 (arXiv:1810.04805), Liu et al. 2019 (arXiv:1907.11692).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from rlhf_jax.config import ModelConfig
from rlhf_jax.models.convert.family import Family, linear, normed
from rlhf_jax.models.convert.fields import Fields
from rlhf_jax.models.convert.table import Tensor

OFFSET = 2
"""Rows of RoBERTa's positions in front of those that texts use."""
ACTIVATIONS = {"gelu": "gelu_exact", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu"}


def table(config: ModelConfig, *, offset: int = 0) -> dict[str, Tensor]:
    """The tensors of a layer and of the embeddings."""
    layer = "encoder.layer.{}"
    return {
        "tokens/embedding": Tensor("embeddings.word_embeddings.weight", "v d -> v d"),
        "places/embedding": Tensor("embeddings.position_embeddings.weight", "p d -> p d", skip=offset),
        "types/embedding": Tensor("embeddings.token_type_embeddings.weight", "t d -> t d"),
        **normed("embedding_norm", "embeddings.LayerNorm", bias=True),
        **normed("attention_norm", f"{layer}.attention.output.LayerNorm", bias=True),
        **normed("mlp_norm", f"{layer}.output.LayerNorm", bias=True),
        **linear("attention/q", f"{layer}.attention.self.query", "(h k) d -> d h k", "(h k) -> h k"),
        **linear("attention/k", f"{layer}.attention.self.key", "(h k) d -> d h k", "(h k) -> h k"),
        **linear("attention/v", f"{layer}.attention.self.value", "(h k) d -> d h k", "(h k) -> h k"),
        **linear("attention/o", f"{layer}.attention.output.dense", "d (h k) -> h k d", "d -> d"),
        **linear("mlp/up", f"{layer}.intermediate.dense", "m d -> d m", "m -> m"),
        **linear("mlp/down", f"{layer}.output.dense", "d m -> m d", "d -> d"),
    }


def heads(
    config: ModelConfig, *, masked: str, dense: str, norm: str, decoder: str, pooler: str, output: str
) -> dict[str, Tensor]:
    """The tensors of the masked language model or of the classifier, by the names of their parts."""
    square, vector = "e d -> d e", "d -> d"
    if config.head == "none":
        return {}
    if config.lm_head:
        lines = linear("transform/dense", f"{masked}.{dense}", square, vector)
        lines |= normed("transform/norm", f"{masked}.{norm}", bias=True)
        if config.tied:
            return lines | {"unembed/bias": Tensor(f"{masked}.bias", "v -> v")}
        return lines | linear("unembed", f"{masked}.{decoder}", "v d -> d v", "v -> v")
    lines = linear("pool", pooler, square, vector)
    if config.scalar_head:
        return lines | linear("score", output, "1 d -> d", "1 ->")
    return lines | linear("classify", output, "c d -> d c", "c -> c")


def read(fields: Fields, *, offset: int = 0) -> ModelConfig:
    """The shape of a BERT; not of those with relative positions, nor of decoders."""
    fields.only(position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    # Of the first releases, for one pooler only.
    fields.only(directionality="bidi", pooler_type="first_token_transform")
    for name in ("fc_size", "num_attention_heads", "num_fc_layers", "size_per_head"):
        fields.get(f"pooler_{name}", None)
    heads = fields.count("num_attention_heads", 12)
    places = fields.count("max_position_embeddings", 512)
    if places <= offset:
        raise ValueError(
            f"field 'max_position_embeddings' is {places}; expected more than the {offset} that no text uses"
        )
    return ModelConfig(
        vocab=fields.count("vocab_size", 50_265 if offset else 30_522),
        width=fields.count("hidden_size", 768),
        layers=fields.count("num_hidden_layers", 12),
        heads=heads,
        kv_heads=heads,
        mlp=fields.count("intermediate_size", 3072),
        max_length=places - offset,
        norm="layer",
        norm_at="after",
        norm_eps=fields.number("layer_norm_eps", 1e-12),
        causal=False,
        embedding_norm=True,
        token_types=fields.count("type_vocab_size", 2),
        position="learned",
        activation=fields.one_of("hidden_act", "gelu", ACTIVATIONS),
        bias=True,
        tied=bool(fields.get("tie_word_embeddings", True)),
    )


def read_roberta(fields: Fields) -> ModelConfig:
    """The shape of a RoBERTa; its masked language model has this activation whatever the layers have."""
    fields.only(pad_token_id=OFFSET - 1, hidden_act="gelu")
    return read(fields, offset=OFFSET)


def write(config: ModelConfig, *, offset: int = 0) -> dict[str, Any]:
    """The fields of a BERT."""
    c = config
    return {
        "vocab_size": c.vocab,
        "hidden_size": c.width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "intermediate_size": c.mlp,
        "max_position_embeddings": c.max_length + offset,
        "type_vocab_size": c.token_types,
        "layer_norm_eps": c.norm_eps,
        "hidden_act": {"gelu_exact": "gelu", "gelu": "gelu_new", "relu": "relu"}.get(c.activation),
        "tie_word_embeddings": c.tied,
    }


def write_roberta(config: ModelConfig) -> dict[str, Any]:
    """The fields of a RoBERTa."""
    return write(config, offset=OFFSET) | {"pad_token_id": OFFSET - 1}


BERT = Family(
    "bert",
    "BertForMaskedLM",
    read,
    write,
    table,
    "bert.",
    head="cls.predictions.decoder.weight",
    heads=partial(
        heads,
        masked="cls.predictions",
        dense="transform.dense",
        norm="transform.LayerNorm",
        decoder="decoder",
        pooler="bert.pooler.dense",
        output="classifier",
    ),
    # An untied model has the bias of its output layer beside it; what else is called bias is used by nothing then.
    buffers=(
        r"(bert\.)?embeddings\.position_ids",
        r"(bert\.)?pooler\..*",
        r"cls\.seq_relationship\..*",
        r"cls\.predictions\.bias",
    ),
    copies={"cls.predictions.decoder.bias": "cls.predictions.bias"},
    renamed={r"\bLayerNorm\.gamma$": "LayerNorm.weight", r"\bLayerNorm\.beta$": "LayerNorm.bias"},
)
ROBERTA = Family(
    "roberta",
    "RobertaForMaskedLM",
    read_roberta,
    write_roberta,
    partial(table, offset=OFFSET),
    "roberta.",
    head="lm_head.decoder.weight",
    heads=partial(
        heads,
        masked="lm_head",
        dense="dense",
        norm="layer_norm",
        decoder="decoder",
        pooler="classifier.dense",
        output="classifier.out_proj",
    ),
    buffers=(r"(roberta\.)?embeddings\.position_ids", r"(roberta\.)?pooler\..*", r"lm_head\.bias"),
    copies={"lm_head.decoder.bias": "lm_head.bias"},
)
