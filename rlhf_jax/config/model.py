"""The shape of a model, and the mesh of devices it lies on."""

from __future__ import annotations

import dataclasses
from typing import Literal

from rlhf_jax.checks import one_of, positive, require


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices stand along each axis; their product must be the number of devices used."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        positive(self, "data", "fsdp", "tensor")

    @property
    def devices(self) -> int:
        return self.data * self.fsdp * self.tensor

    @property
    def row_shards(self) -> int:
        """Over how many devices the rows of a batch are split."""
        return self.data * self.fsdp


ONE_DEVICE = MeshConfig()


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder: Llama-like by default, GPT-2-like with `norm="layer", position="learned", activation="gelu", bias=True`."""

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    max_length: int
    head_dim: int | None = None  # None: width / heads
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    position: Literal["rope", "learned"] = "rope"
    rope_base: float = 10_000.0
    activation: Literal["swiglu", "gelu"] = "swiglu"
    bias: bool = False
    tied: bool = True
    head: Literal["lm", "scalar", "lm+scalar"] = "lm"
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; parameters and softmax stay float32
    remat: bool = False  # recompute each layer in the backward pass
    logit_chunk: int = 128  # columns of the output layer alive at once

    def __post_init__(self):
        positive(self, "vocab", "width", "layers", "heads", "kv_heads", "mlp", "max_length", "logit_chunk", "norm_eps")
        positive(self, "head_dim", "rope_base")
        one_of(self, "norm", "position", "activation", "head", "dtype")
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
            require(self.head_size % 2 == 0, f"head_dim={self.head_size} is odd; rotary positions turn pairs")

    @property
    def head_size(self) -> int:
        return self.width // self.heads if self.head_dim is None else self.head_dim

    @property
    def scalar_head(self) -> bool:
        return "scalar" in self.head

    @property
    def lm_head(self) -> bool:
        return "lm" in self.head
