"""Small checkpoints of every family, and ways to spoil them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from builders import lively
from safetensors.numpy import load_file, save_file

from rlhf_jax.config import ModelConfig
from rlhf_jax.config.model import RopeScaling
from rlhf_jax.models.convert.families import FAMILIES
from rlhf_jax.models.convert.save import save_pretrained

LLAMA = ModelConfig(vocab=24, width=16, layers=2, heads=4, kv_heads=2, mlp=12, max_length=10, tied=False)
GPT2 = dataclasses.replace(
    LLAMA, kv_heads=4, mlp=64, norm="layer", position="learned", activation="gelu", bias=True, tied=True
)
BERT = dataclasses.replace(
    GPT2,
    causal=False,
    norm_at="after",
    norm_eps=1e-12,
    embedding_norm=True,
    token_types=2,
    activation="gelu_exact",
)
GEMMA2 = dataclasses.replace(
    LLAMA,
    head_dim=6,
    norm="rms+1",
    norm_at="around",
    norm_eps=1e-6,
    activation="geglu",
    window=3,
    full_layers=(1,),
    query_scale=24**-0.5,
    embedding_scale=math.sqrt(16),
    attention_softcap=50.0,
    logit_softcap=30.0,
    tied=True,
)
T5 = ModelConfig(
    vocab=24,
    width=16,
    layers=3,
    encoder_layers=2,
    heads=4,
    kv_heads=4,
    head_dim=6,
    mlp=12,
    max_length=10,
    norm_eps=1e-6,
    position="relative",
    relative_buckets=8,
    relative_distance=9,
    query_scale=1.0,
    activation="relu",
    output_scale=0.25,
    start=3,
)
SMALL = {
    "llama": LLAMA,
    "mistral": dataclasses.replace(LLAMA, window=5),
    "qwen2": dataclasses.replace(LLAMA, qkv_bias=True, window=5, full_layers=(0,)),
    "qwen3": dataclasses.replace(LLAMA, qk_norm=True, head_dim=6, tied=True),
    "gemma2": GEMMA2,
    "gemma3_text": dataclasses.replace(
        GEMMA2,
        attention_softcap=None,
        logit_softcap=None,
        local_rope_base=100.0,
        rope_scaling=RopeScaling("linear", 8.0),
        qk_norm=True,
    ),
    "gpt2": GPT2,
    "gpt_neox": dataclasses.replace(GPT2, position="rope", rope_share=0.5, parallel=True, tied=False),
    "opt": dataclasses.replace(GPT2, activation="relu", mlp=12),
    "bert": BERT,
    "roberta": dataclasses.replace(BERT, token_types=1, norm_eps=1e-5),
    "t5": T5,
}
FAMILY = {family.model_type: family for family in FAMILIES}
DECODERS = [name for name, config in SMALL.items() if config.kind == "decoder"]
SINGLE = "model.safetensors"


def saved(folder: Path, name: str = "llama", config: ModelConfig | None = None, **settings: Any) -> Path:
    """A checkpoint of random numbers, of a family's small model or of this one."""
    config = SMALL[name] if config is None else config
    save_pretrained(folder, config, lively(config), family=FAMILY[name], **settings)
    return folder


def edit_config(folder: Path, *without: str, **changes: Any) -> Path:
    """Changes fields of config.json, and takes out others."""
    path = folder / "config.json"
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in fields.items() if name not in without}))
    return folder


def edit_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> Path:
    """Changes the dictionary of tensors of a single file; what `change` returns, where that is a dictionary, takes its place."""
    tensors = load_file(folder / SINGLE)
    changed = change(tensors)
    save_file(changed if isinstance(changed, dict) else tensors, folder / SINGLE)
    return folder


def assert_same(found: Any, expected: Any) -> None:
    """Two trees of the same structure and the same numbers."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
