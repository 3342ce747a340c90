"""What Tunix's workloads share: its Llama with random weights, a tokenizer, the optimiser, and taking turns."""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from tunix.models.llama3 import model as llama3

from benchmarks.peers.protocol import Gate

VERSIONS = {name: importlib.metadata.version(name) for name in ("google-tunix", "jax", "flax", "optax")}


class Scores(llama3.Llama3):
    """Llama that gives each token a number, [B, T, 1], in place of the logits of the next. Tunix ships no such model for tied embeddings:
    `create_critic_model` replaces an output layer, which they do without."""

    def __init__(self, config: llama3.ModelConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.score = nnx.Linear(config.embed_dim, 1, use_bias=False, rngs=rngs)

    def __call__(self, input_tokens, positions, cache, attention_mask, segment_ids=None):
        x = self.embedder.encode(input_tokens)
        for layer in self.layers:
            _, x = layer(x, positions, None, attention_mask)
        return self.score(self.final_norm(x))


def llama(task: dict[str, Any], kind: type[llama3.Llama3] = llama3.Llama3, seed: int = 0) -> llama3.Llama3:
    """A model of the task's shape. All its matrices are drawn: Tunix leaves those of the feed-forward at zero, to be read from a file."""
    size = task["model"]
    config = llama3.ModelConfig(
        num_layers=size["layers"],
        vocab_size=size["vocab"],
        embed_dim=size["width"],
        hidden_dim=size["mlp"],
        num_heads=size["heads"],
        head_dim=size["width"] // size["heads"],
        num_kv_heads=size["kv_heads"],
        rope_theta=10_000,
        norm_eps=size["norm_eps"],
        weight_tying=True,
    )
    model = kind(config, rngs=nnx.Rngs(seed))
    leaves, tree = jax.tree.flatten(nnx.state(model, nnx.Param))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    drawn = [
        0.02 * jax.random.normal(key, leaf.shape, jnp.float32) if leaf.ndim > 1 else leaf
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    nnx.update(model, jax.tree.unflatten(tree, drawn))
    return model


def parameters(model: nnx.Module) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


class Numbers:
    """A token is its number, and a text numbers with spaces between. Those that pad and stop are beyond the vocabulary, so that no response
    is shorter than it may be."""

    def __init__(self, vocab: int):
        self._vocab = vocab

    def encode(self, text: str, **_: Any) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(map(str, ids))

    def bos_id(self) -> None:
        return None

    def pad_id(self) -> int:
        return self._vocab

    def eos_id(self) -> int:
        return self._vocab + 1


def adam(task: dict[str, Any]) -> optax.GradientTransformation:
    """AdamW with clipping, as ours."""
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(task["lr"], b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.0)
    )


def turns(gate: Gate, batches: Iterable[Any], *models: nnx.Module) -> Iterator[Any]:
    """The batches, over and over. The gate is asked when the trainer wants another one, after all that it has set off is done."""
    waiting = False
    while True:
        for batch in batches:
            if waiting:
                jax.block_until_ready([nnx.state(model) for model in models])
                if not gate.passed():
                    return
            waiting = True
            yield batch
