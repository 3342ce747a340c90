"""Published sizes: as many parameters as the published weights, the shape of their config.json, and a family that writes it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import jax
import pytest
from checkpoints import FAMILY

from rlhf_jax.models import build_model
from rlhf_jax.models.convert.load import read_config
from rlhf_jax.models.convert.save import lost_fields, stored_tensors
from rlhf_jax.models.presets import PRESETS, preset

# Of the weights as they are published, each tensor once. The text models of Gemma 3 are what is left of the whole ones without the picture
# model (416,866,032) and its projection. The files of Qwen3's two smallest have their tied output layer a second time.
PUBLISHED = {
    "pythia-14m": 14_067_712,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "opt-125m": 125_239_296,
    "opt-1.3b": 1_315_758_080,
    "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280,
    "opt-30b": 29_974_540_288,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 751_632_384 - 151_936 * 1024,
    "qwen3-1.7b": 2_031_739_904 - 151_936 * 2048,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "gemma-3-4b": 4_300_079_472 - 416_866_032 - 1152 * (2560 + 1),
    "gemma-3-12b": 12_187_325_040 - 416_866_032 - 1152 * (3840 + 1),
    # With what ours lack: of BERT the pooler and the head for pairs of sentences, of RoBERTa 514 numbers of positions, which are a buffer.
    "bert-base-uncased": 110_106_428 - 768 * (768 + 1) - 2 * (768 + 1),
    "bert-large-uncased": 336_226_108 - 1024 * (1024 + 1) - 2 * (1024 + 1),
    "bert-base-cased": 108_932_934 - 768 * (768 + 1) - 2 * (768 + 1),
    "bert-large-cased": 334_661_958 - 1024 * (1024 + 1) - 2 * (1024 + 1),
    "bert-base-chinese": 102_882_442 - 768 * (768 + 1) - 2 * (768 + 1),
    "roberta-base": 124_697_947 - 514,
    "roberta-large": 355_412_571 - 514,
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-3b": 2_851_598_336,
    "t5-11b": 11_307_321_344,
    "flan-t5-small": 76_961_152,
    "flan-t5-base": 247_577_856,
    "flan-t5-large": 783_150_080,
    "flan-t5-xl": 2_849_757_184,
    "flan-t5-xxl": 11_135_332_352,
    "gemma-3-27b": 27_432_406_640 - 416_866_032 - 1152 * (5376 + 1),
}
TYPES = {
    "pythia": "gpt_neox",
    "gpt2": "gpt2",
    "opt": "opt",
    "llama": "llama",
    "mistral": "mistral",
    "qwen2.5": "qwen2",
    "qwen3": "qwen3",
    "gemma-2": "gemma2",
    "gemma-3": "gemma3_text",
    "bert": "bert",
    "roberta": "roberta",
    "t5": "t5",
    "flan-t5": "t5",
}
every_preset = pytest.mark.parametrize("name", PRESETS)


def family_of(name: str):
    (model_type,) = (value for start, value in TYPES.items() if name.startswith(start))
    return FAMILY[model_type]


def count(name: str) -> int:
    """Numbers in the tensors of its checkpoint; OPT's and RoBERTa's have two rows of positions that are none of our parameters."""
    shapes = jax.eval_shape(build_model(PRESETS[name]).init, jax.random.key(0))
    stored = sum(math.prod(shape) for _, shape, _ in stored_tensors(PRESETS[name], shapes, family_of(name)))
    ours = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert stored - ours == (2 * PRESETS[name].width if name.startswith(("opt", "roberta")) else 0)
    return stored


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_has_as_many_parameters_as_the_published_weights(name):
    assert count(name) == PUBLISHED[name]


def test_every_preset_is_counted():
    assert PRESETS.keys() - PUBLISHED.keys() == {"opt-66b"}
    assert round(count("opt-66b"), -9) == 66_000_000_000


@every_preset
def test_its_family_can_say_it(name):
    assert lost_fields(PRESETS[name], family_of(name)) == []


@every_preset
def test_it_says_the_function_only(name):
    plain = {field.name: field.default for field in dataclasses.fields(PRESETS[name])}
    assert all(getattr(PRESETS[name], field) == plain[field] for field in ("head", "dtype", "remat", "logit_chunk"))


# As they stand on the hub, from copies of them.
HUB = {
    "llama-3.1-8b": """{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 128000,
        "eos_token_id": 128001, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
        "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.43.0.dev0", "use_cache": true,
        "vocab_size": 128256}""",
    "llama-3.2-3b": """{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 128000,
        "eos_token_id": 128001, "head_dim": 128, "hidden_act": "silu", "hidden_size": 3072, "initializer_range": 0.02,
        "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama", "num_attention_heads": 24,
        "num_hidden_layers": 28, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 32.0,
        "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.45.0.dev0",
        "use_cache": true, "vocab_size": 128256}""",
    "qwen2.5-0.5b": """{"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643,
        "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864, "max_position_embeddings": 32768,
        "max_window_layers": 24, "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1", "use_cache": true, "use_mrope": false, "use_sliding_window": false, "vocab_size": 151936}""",
    "gemma-2-27b": """{"architectures": ["Gemma2ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
        "final_logit_softcapping": 30.0, "head_dim": 128, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 4608, "initializer_range": 0.02, "intermediate_size": 36864, "max_position_embeddings": 8192,
        "model_type": "gemma2", "num_attention_heads": 32, "num_hidden_layers": 46, "num_key_value_heads": 16, "pad_token_id": 0,
        "query_pre_attn_scalar": 144, "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096, "sliding_window_size": 4096,
        "torch_dtype": "float32", "transformers_version": "4.42.0.dev0", "use_cache": true, "vocab_size": 256000,
        "_attn_implementation": "eager"}""",
    "gemma-3-1b": """{"architectures": ["Gemma3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "attn_logit_softcapping": null, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 106],
        "final_logit_softcapping": null, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152,
        "initializer_range": 0.02, "intermediate_size": 6912, "max_position_embeddings": 32768, "model_type": "gemma3_text",
        "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1, "pad_token_id": 0, "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": 512,
        "sliding_window_pattern": 6, "torch_dtype": "bfloat16", "transformers_version": "4.52.4", "use_cache": true,
        "vocab_size": 262144}""",
}


@pytest.mark.parametrize("name", HUB)
def test_it_is_what_the_published_file_says_and_every_field_of_that_is_understood(tmp_path: Path, name):
    (tmp_path / "config.json").write_text(HUB[name])
    family, config, raw = read_config(tmp_path)  # a warning would be an error
    assert config == PRESETS[name]
    assert (family.model_type, family.architecture) == (raw["model_type"], raw["architectures"][0])


def test_a_name_that_is_close_is_offered():
    assert preset("pythia-70m") is PRESETS["pythia-70m"]
    with pytest.raises(KeyError, match=r"no preset 'pythia-71m'; did you mean pythia-70m or "):
        preset("pythia-71m")
    with pytest.raises(KeyError, match=r"no preset 'megatron'; there are "):
        preset("megatron")


def test_the_presets_are_not_to_be_changed():
    with pytest.raises(TypeError):
        PRESETS["mine"] = PRESETS["gpt2"]  # pyright: ignore[reportIndexIssue]
