"""The shape of a model, and the mesh of devices it lies on."""

from __future__ import annotations

import dataclasses
from typing import Literal

from rlhf_jax.checks import fraction, not_negative, one_of, positive, require


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices stand along each axis; their product must be the number of devices used."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1
    slices: int = 1  # of TPUs, with a network between them that `data` alone uses

    def __post_init__(self):
        positive(self, "data", "fsdp", "tensor", "context", "slices")
        require(self.data % self.slices == 0, f"data={self.data} does not split over slices={self.slices}")

    @property
    def devices(self) -> int:
        return self.data * self.fsdp * self.tensor * self.context

    @property
    def row_shards(self) -> int:
        """Over how many devices the rows of a batch are split."""
        return self.data * self.fsdp


ONE_DEVICE = MeshConfig()


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary positions are stretched over longer texts than a model was first trained on.

    linear: every position divided by `factor`. llama3: only slow pairs, those of which fewer than `low_turns` fit into `original_length`
    positions; those of more than `high_turns` are left as they are, and between the two it passes from one to the other.
    Source: Chen et al. 2023 (arXiv:2306.15595); Llama Team 2024 (arXiv:2407.21783), as released.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_turns: float = 1.0
    high_turns: float = 4.0
    original_length: int = 8192

    def __post_init__(self):
        one_of(self, "kind")
        positive(self, "factor", "low_turns", "high_turns", "original_length")
        require(
            self.high_turns > self.low_turns, f"high_turns={self.high_turns} must be above low_turns={self.low_turns}"
        )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder, an encoder, or both. A decoder is Llama-like by default, GPT-2-like with `norm="layer", position="learned",
    activation="gelu", bias=True`.

    An encoder (`causal=False`) is BERT-like with `norm="layer", norm_at="after", embedding_norm=True, token_types=2, position="learned",
    activation="gelu_exact", bias=True`. Its heads: `lm` is of the token that stands there (masked language models), `scalar` one score per
    row and `classes` the logits of `classes` labels, both of the row's first token through a dense layer and tanh; `none` is none.

    With `encoder_layers` it is an encoder-decoder: the encoder reads the prompt, the decoder writes the reply and attends to it. T5 has
    `position="relative", query_scale=1.0, activation="relu", norm_eps=1e-6, output_scale=width**-0.5`.

    `models/presets.py` has the published sizes of the families; `models/convert/` reads and writes their checkpoints.
    """

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    max_length: int
    head_dim: int | None = None  # None: width / heads
    norm: Literal["rms", "rms+1", "layer"] = "rms"  # rms+1: its scale is stored less 1, as in Gemma
    norm_at: Literal["before", "around", "after"] = "before"  # of attention and feed-forward; after: behind the sum
    norm_eps: float = 1e-5
    parallel: bool = False  # attention and feed-forward read the same input
    causal: bool = True  # False: an encoder, whose tokens see all of their segment
    encoder_layers: int | None = None  # of the encoder in front of `layers` of decoder; None: none
    start: int = 0  # the token that such a decoder reads first
    embedding_norm: bool = False
    token_types: int = 0  # rows of a table of which every token adds the first: batches have no types; 0: no table
    position: Literal["rope", "learned", "relative"] = (
        "rope"  # relative: a learned number per head and distance, added to scores
    )
    relative_buckets: int = 32  # of distances, half of them for either direction in an encoder
    relative_distance: int = 128  # from which on all are one bucket
    rope_base: float = 10_000.0
    rope_share: float = 1.0  # of each head's dimensions that are turned, the first ones
    rope_scaling: RopeScaling | None = None  # not of local layers that have a base of their own
    local_rope_base: float | None = None  # of layers with a window; None: rope_base, and its scaling
    window: int | None = None  # tokens that a query sees, itself included; None: all before it
    full_layers: tuple[int, ...] = ()  # those that see everything although there is a window
    query_scale: float | None = None  # None: head_dim ** -0.5
    qk_norm: bool = False  # RMSNorm of each head's queries and keys
    attention_softcap: float | None = None  # c tanh(score / c), before the mask
    logit_softcap: float | None = None
    embedding_scale: float = 1.0
    output_scale: float = 1.0  # of what the output layer reads
    activation: Literal["swiglu", "geglu", "gelu", "gelu_exact", "relu"] = "swiglu"
    bias: bool = False
    qkv_bias: bool = False  # of these three also where bias is off
    tied: bool = True
    head: Literal["lm", "scalar", "lm+scalar", "classes", "none"] = "lm"
    classes: int | None = None  # labels of the head "classes"
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; parameters and softmax stay float32
    cache_dtype: Literal["float32", "bfloat16"] | None = None  # of keys and values kept while sampling; None: dtype
    # What the backward pass makes again of each layer: nothing, all but products with weights, or all.
    remat: Literal["none", "products", "layers"] = "none"
    unroll: bool = (
        False  # layers one behind the other, not in a loop: faster on CPUs, and compiled as long as there are many
    )
    # Columns of the output layer alive at once, made again in the backward pass; None: all, and kept for it, which is faster.
    logit_chunk: int | None = 128
    gather_once: bool = (
        False  # sampling gathers all weights before it begins and holds them, rather than a layer's at every token
    )

    def __post_init__(self):
        positive(self, "vocab", "width", "layers", "heads", "kv_heads", "mlp", "max_length", "logit_chunk", "norm_eps")
        positive(self, "head_dim", "rope_base", "rope_share", "local_rope_base", "window", "query_scale")
        positive(self, "attention_softcap", "logit_softcap", "embedding_scale", "output_scale", "classes")
        positive(self, "encoder_layers", "relative_buckets", "relative_distance")
        not_negative(self, "token_types", "start")
        fraction(self, "rope_share")
        one_of(self, "norm", "norm_at", "position", "activation", "head", "dtype", "cache_dtype", "remat")
        require(
            self.heads % self.kv_heads == 0,
            f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}; each key-value head serves heads / kv_heads",
        )
        if self.head_dim is None:
            require(
                self.width % self.heads == 0,
                f"width={self.width} does not divide into heads={self.heads}; set head_dim",
            )
        if self.position == "rope":
            require(
                self.rotary_size % 2 == 0,
                f"head_dim={self.head_size} times rope_share={self.rope_share} is {self.rotary_size}, which is odd; "
                "rotary positions turn pairs",
            )
        require(
            not self.parallel or self.norm_at == "before",
            f"norm_at={self.norm_at!r}: parallel layers have their norms before",
        )
        require(
            all(0 <= layer < self.layers for layer in self.full_layers),
            f"full_layers={self.full_layers} must be numbers of the layers, 0 to {self.layers - 1}",
        )
        for name in ("full_layers", "local_rope_base"):
            require(not getattr(self, name) or self.window is not None, f"{name} needs a window")
        encoder_only, decoder_only = ("classes", "none"), ("lm+scalar",)
        require(
            self.head not in (encoder_only if self.causal else decoder_only),
            f"head={self.head!r} is for {'encoders' if self.causal else 'decoders'}, and causal is {self.causal}",
        )
        require(
            (self.classes is not None) == (self.head == "classes"),
            f"classes={self.classes} with head={self.head!r}: head 'classes' needs their number, and no other head has one",
        )
        require(
            self.causal or self.window is None, "a window is of decoders; an encoder (causal=False) sees everything"
        )
        if self.encoder_layers is not None:
            self._check_encoder_decoder()
        require(
            self.position != "relative" or self.encoder_layers is not None,
            "position='relative' is of encoder-decoders; set encoder_layers, or another position",
        )

    def _check_encoder_decoder(self) -> None:
        require(self.causal, "causal=False: the decoder behind encoder_layers is causal; leave it")
        require(self.start < self.vocab, f"start={self.start} is no token: vocab={self.vocab}")
        for name, only in (
            *(("position", "relative"), ("norm_at", "before"), ("parallel", False)),
            *(("window", None), ("embedding_norm", False), ("token_types", 0)),
        ):
            value = getattr(self, name)
            require(value == only, f"{name}={value!r}: an encoder-decoder (encoder_layers) has {name}={only!r}")
        smallest = self.relative_buckets // 4  # distances of either direction that have a bucket of their own
        require(
            self.relative_buckets % 4 == 0 and self.relative_distance > 2 * smallest,
            f"relative_buckets={self.relative_buckets} must be a multiple of 4, and relative_distance={self.relative_distance} above half "
            "as many",
        )

    @property
    def kind(self) -> Literal["decoder", "encoder", "encoder-decoder"]:
        """Which network it is."""
        if self.encoder_layers is not None:
            return "encoder-decoder"
        return "decoder" if self.causal else "encoder"

    @property
    def kept_dtype(self) -> str:
        """In which keys and values wait for the tokens to come."""
        return self.cache_dtype or self.dtype

    @property
    def head_size(self) -> int:
        return self.width // self.heads if self.head_dim is None else self.head_dim

    @property
    def rotary_size(self) -> int:
        """Dimensions of a head that are turned."""
        return int(self.head_size * self.rope_share)

    @property
    def scalar_head(self) -> bool:
        return "scalar" in self.head

    @property
    def lm_head(self) -> bool:
        return "lm" in self.head
