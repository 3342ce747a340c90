"""Published models by name: the shapes of their config.json files, without weights. `preset("pythia-70m")`.

A preset is the function alone: activations in float32, nothing recomputed; `dataclasses.replace` changes that. Of models that were released
more than once it is the base model (Qwen3: the only release of 32B is the trained one, and all sizes are as it). Of OPT-350M, whose
embeddings are projected, there is none; of Gemma 3 from 4B on, which read pictures too, it is the text model.

Sources: config.json of each model on the hub, as in LitGPT's table of them (Lightning-AI/litgpt, `litgpt/config.py`) but for GPT-2
(Radford et al. 2019, table 2), OPT (Zhang et al. 2022, arXiv:2205.01068, table 1), BERT (Devlin et al. 2019, section 3), RoBERTa (Liu et
al. 2019), T5 (Raffel et al. 2020, section 3.8) with its v1.1, and the two smallest Gemma 3, which are from copies of their own files. The
tests count parameters: each total is that of the published weights, to the last one, but for OPT-66B, of which only the 66 billion of its
name were at hand.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from rlhf_jax.config import ModelConfig
from rlhf_jax.config.model import RopeScaling
from rlhf_jax.overrides import unknown_name


def preset(name: str) -> ModelConfig:
    """The shape of a published model. Raises: KeyError with the closest names."""
    if name not in PRESETS:
        raise KeyError(unknown_name(f"preset {name!r}", name, PRESETS))
    return PRESETS[name]


def _sized(vocab: int, width: int, layers: int, heads: int, kv_heads: int, mlp: int, **rest: Any) -> ModelConfig:
    """A model of these sizes; a `head_dim` that follows from them is left out, as where a config.json is read."""
    if rest.get("head_dim") == width // heads and width % heads == 0:
        del rest["head_dim"]
    return ModelConfig(vocab=vocab, width=width, layers=layers, heads=heads, kv_heads=kv_heads, mlp=mlp, **rest)


def _pythia() -> Iterator[tuple[str, ModelConfig]]:
    """Biderman et al. 2023 (arXiv:2304.01373); the vocabulary is the tokenizer's, filled up to what training asked for."""
    settings: dict[str, Any] = {
        "norm": "layer",
        "parallel": True,
        "rope_share": 0.25,
        "activation": "gelu_exact",
        "bias": True,
        "tied": False,
    }
    for size, vocab, width, layers, heads, length in (
        ("14m", 50_304, 128, 6, 4, 512),
        ("70m", 50_304, 512, 6, 8, 2048),
        ("160m", 50_304, 768, 12, 12, 2048),
        ("410m", 50_304, 1024, 24, 16, 2048),
        ("1b", 50_304, 2048, 16, 8, 2048),
        ("1.4b", 50_304, 2048, 24, 16, 2048),
        ("2.8b", 50_304, 2560, 32, 32, 2048),
        ("6.9b", 50_432, 4096, 32, 32, 2048),
        ("12b", 50_688, 5120, 36, 40, 2048),
    ):
        yield (
            f"pythia-{size}",
            _sized(vocab, width, layers, heads, heads, 4 * width, max_length=length, **settings),
        )


def _learned(vocab: int, width: int, layers: int, heads: int, **rest: Any) -> ModelConfig:
    """GPT-2's layers."""
    return _sized(
        vocab, width, layers, heads, heads, 4 * width, norm="layer", position="learned", bias=True, tied=True, **rest
    )


def _gpt2() -> Iterator[tuple[str, ModelConfig]]:
    for name, width, layers, heads in (
        ("gpt2", 768, 12, 12),
        ("gpt2-medium", 1024, 24, 16),
        ("gpt2-large", 1280, 36, 20),
        ("gpt2-xl", 1600, 48, 25),
    ):
        yield name, _learned(50_257, width, layers, heads, max_length=1024, activation="gelu")


def _opt() -> Iterator[tuple[str, ModelConfig]]:
    for size, width, layers, heads in (
        ("125m", 768, 12, 12),
        ("1.3b", 2048, 24, 32),
        ("2.7b", 2560, 32, 32),
        ("6.7b", 4096, 32, 32),
        ("13b", 5120, 40, 40),
        ("30b", 7168, 48, 56),
        ("66b", 9216, 64, 72),
    ):
        yield f"opt-{size}", _learned(50_272, width, layers, heads, max_length=2048, activation="relu")


def _llama() -> Iterator[tuple[str, ModelConfig]]:
    """Touvron et al. 2023 (arXiv:2307.09288), Llama Team 2024 (arXiv:2407.21783); Jiang et al. 2023 (arXiv:2310.06825)."""
    second: dict[str, Any] = {"max_length": 4096, "tied": False}
    yield "llama-2-7b", _sized(32_000, 4096, 32, 32, 32, 11_008, **second)
    yield "llama-2-13b", _sized(32_000, 5120, 40, 40, 40, 13_824, **second)
    yield "llama-2-70b", _sized(32_000, 8192, 80, 64, 8, 28_672, **second)
    third: dict[str, Any] = {"max_length": 8192, "rope_base": 500_000.0, "tied": False}
    small = _sized(128_256, 4096, 32, 32, 8, 14_336, **third)
    large = _sized(128_256, 8192, 80, 64, 8, 28_672, **third)
    yield "llama-3-8b", small
    yield "llama-3-70b", large
    longer: dict[str, Any] = {"max_length": 131_072, "rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)}
    yield "llama-3.1-8b", dataclasses.replace(small, **longer)
    yield "llama-3.1-70b", dataclasses.replace(large, **longer)
    longer["rope_scaling"] = RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)
    third |= {"tied": True} | longer
    yield "llama-3.2-1b", _sized(128_256, 2048, 16, 32, 8, 8192, **third)
    yield "llama-3.2-3b", _sized(128_256, 3072, 28, 24, 8, 8192, **third)
    mistral: dict[str, Any] = {"max_length": 32_768, "tied": False}
    yield "mistral-7b-v0.1", _sized(32_000, 4096, 32, 32, 8, 14_336, window=4096, **mistral)
    yield "mistral-7b-v0.3", _sized(32_768, 4096, 32, 32, 8, 14_336, rope_base=1_000_000.0, **mistral)


def _qwen() -> Iterator[tuple[str, ModelConfig]]:
    """Qwen Team 2024 (arXiv:2412.15115) and 2025 (arXiv:2505.09388). The larger base models of Qwen2.5 have another norm_eps."""
    for size, vocab, width, layers, heads, kv_heads, mlp, length, eps in (
        ("0.5b", 151_936, 896, 24, 14, 2, 4864, 32_768, 1e-6),
        ("1.5b", 151_936, 1536, 28, 12, 2, 8960, 131_072, 1e-6),
        ("3b", 151_936, 2048, 36, 16, 2, 11_008, 32_768, 1e-6),
        ("7b", 152_064, 3584, 28, 28, 4, 18_944, 131_072, 1e-6),
        ("14b", 152_064, 5120, 48, 40, 8, 13_824, 131_072, 1e-5),
        ("32b", 152_064, 5120, 64, 40, 8, 27_648, 131_072, 1e-5),
        ("72b", 152_064, 8192, 80, 64, 8, 29_568, 131_072, 1e-5),
    ):
        rest: dict[str, Any] = {"max_length": length, "norm_eps": eps, "rope_base": 1_000_000.0, "qkv_bias": True}
        tied = size in ("0.5b", "1.5b", "3b")
        yield f"qwen2.5-{size}", _sized(vocab, width, layers, heads, kv_heads, mlp, tied=tied, **rest)
    for size, width, layers, heads, mlp in (
        ("0.6b", 1024, 28, 16, 3072),
        ("1.7b", 2048, 28, 16, 6144),
        ("4b", 2560, 36, 32, 9728),
        ("8b", 4096, 36, 32, 12_288),
        ("14b", 5120, 40, 40, 17_408),
        ("32b", 5120, 64, 64, 25_600),
    ):
        rest = {"max_length": 40_960, "norm_eps": 1e-6, "rope_base": 1_000_000.0, "qk_norm": True, "head_dim": 128}
        yield (
            f"qwen3-{size}",
            _sized(151_936, width, layers, heads, 8, mlp, tied=size in ("0.6b", "1.7b", "4b"), **rest),
        )


def _gemma_sized(vocab: int, width: int, layers: int, *sizes: int, every: int, scalar: int, **rest: Any) -> ModelConfig:
    """What both share: of `every` layers the last sees everything; scores are divided by the root of `scalar`."""
    return _sized(
        vocab,
        width,
        layers,
        *sizes,
        norm="rms+1",
        norm_at="around",
        norm_eps=1e-6,
        activation="geglu",
        query_scale=scalar**-0.5,
        embedding_scale=math.sqrt(width),
        full_layers=tuple(range(every - 1, layers, every)),
        tied=True,
        **rest,
    )


def _gemma() -> Iterator[tuple[str, ModelConfig]]:
    """Gemma Team 2024 (arXiv:2408.00118) and 2025 (arXiv:2503.19786)."""
    second: dict[str, Any] = {
        "every": 2,
        "window": 4096,
        "max_length": 8192,
        "attention_softcap": 50.0,
        "logit_softcap": 30.0,
    }
    for size, width, layers, heads, kv_heads, mlp, head_dim, scalar in (
        ("2b", 2304, 26, 8, 4, 9216, 256, 256),
        ("9b", 3584, 42, 16, 8, 14_336, 256, 256),
        ("27b", 4608, 46, 32, 16, 36_864, 128, 144),
    ):
        sizes = (256_000, width, layers, heads, kv_heads, mlp)
        yield f"gemma-2-{size}", _gemma_sized(*sizes, head_dim=head_dim, scalar=scalar, **second)
    third: dict[str, Any] = {"every": 6, "rope_base": 1_000_000.0, "local_rope_base": 10_000.0, "qk_norm": True}
    text = third | {"max_length": 32_768, "window": 512, "head_dim": 256, "scalar": 256}
    yield "gemma-3-270m", _gemma_sized(262_144, 640, 18, 4, 1, 2048, **text)
    yield "gemma-3-1b", _gemma_sized(262_144, 1152, 26, 4, 1, 6912, **text)
    third |= {"max_length": 131_072, "window": 1024, "rope_scaling": RopeScaling("linear", 8.0)}
    for size, width, layers, heads, kv_heads, mlp, head_dim, scalar in (
        ("4b", 2560, 34, 8, 4, 10_240, 256, 256),
        ("12b", 3840, 48, 16, 8, 15_360, 256, 256),
        ("27b", 5376, 62, 32, 16, 21_504, 128, 168),
    ):
        sizes = (262_208, width, layers, heads, kv_heads, mlp)
        yield f"gemma-3-{size}", _gemma_sized(*sizes, head_dim=head_dim, scalar=scalar, **third)


def _bert() -> Iterator[tuple[str, ModelConfig]]:
    """Masked language models; a classifier or reward model of such a trunk is one with another head."""
    shared: dict[str, Any] = {
        "norm": "layer",
        "norm_at": "after",
        "causal": False,
        "embedding_norm": True,
        "position": "learned",
        "activation": "gelu_exact",
        "bias": True,
        "max_length": 512,
    }
    bert = shared | {"norm_eps": 1e-12, "token_types": 2}
    roberta = shared | {"norm_eps": 1e-5, "token_types": 1}
    for name, vocab, rest in (
        ("bert-{}-uncased", 30_522, bert),
        ("bert-{}-cased", 28_996, bert),
        ("roberta-{}", 50_265, roberta),
    ):
        yield name.format("base"), _sized(vocab, 768, 12, 12, 12, 3072, **rest)
        yield name.format("large"), _sized(vocab, 1024, 24, 16, 16, 4096, **rest)
    yield "bert-base-chinese", _sized(21_128, 768, 12, 12, 12, 3072, **bert)


def _t5() -> Iterator[tuple[str, ModelConfig]]:
    """T5 and, of the shapes of T5 v1.1, Flan-T5 (Chung et al. 2022, arXiv:2210.11416)."""

    def sized(width: int, layers: int, heads: int, mlp: int, **rest: Any) -> ModelConfig:
        return _sized(
            *(32_128, width, layers, heads, heads, mlp),
            encoder_layers=layers,
            max_length=512,
            norm_eps=1e-6,
            position="relative",
            query_scale=1.0,
            **rest,
        )

    for size, width, layers, heads, mlp, head_dim in (
        ("small", 512, 6, 8, 2048, 64),
        ("base", 768, 12, 12, 3072, 64),
        ("large", 1024, 24, 16, 4096, 64),
        ("3b", 1024, 24, 32, 16_384, 128),
        ("11b", 1024, 24, 128, 65_536, 128),
    ):
        rest = {"head_dim": head_dim, "activation": "relu", "output_scale": width**-0.5}
        yield f"t5-{size}", sized(width, layers, heads, mlp, **rest)
    for size, width, layers, heads, mlp in (
        ("small", 512, 8, 6, 1024),
        ("base", 768, 12, 12, 2048),
        ("large", 1024, 24, 16, 2816),
        ("xl", 2048, 24, 32, 5120),
        ("xxl", 4096, 24, 64, 10_240),
    ):
        yield f"flan-t5-{size}", sized(width, layers, heads, mlp, head_dim=64, activation="geglu", tied=False)


PRESETS: Mapping[str, ModelConfig] = MappingProxyType(
    {name: config for family in (_pythia, _gpt2, _opt, _llama, _qwen, _gemma, _bert, _t5) for name, config in family()}
)
"""Every published size that is known here."""
