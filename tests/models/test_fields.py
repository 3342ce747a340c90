"""config.json: every form that a field has had, and every value that is refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from checkpoints import DECODERS, FAMILY

from rlhf_jax.config.model import RopeScaling
from rlhf_jax.models.convert.load import read_config

SIZES = {
    "vocab_size": 24,
    "hidden_size": 16,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "intermediate_size": 12,
}
LLAMA = SIZES | {"num_key_value_heads": 2}
GEMMA = LLAMA | {"head_dim": 6}
FIELDS = {
    "llama": LLAMA,
    "gpt2": {"n_embd": 16, "n_head": 4},
    "gpt_neox": SIZES | {"num_attention_heads": 2},  # so that a quarter of a head is a pair
    "opt": {"ffn_dim" if name == "intermediate_size" else name: size for name, size in SIZES.items()},
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "mistral": LLAMA,
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.fixture
def read(tmp_path: Path):
    """The shape of a config.json; of its family's smallest with these changes. Warnings are errors."""

    def shape(name: str, *without: str, **changes):
        fields = {"model_type": name} | FIELDS[name] | changes
        text = json.dumps({key: value for key, value in fields.items() if key not in without})
        (tmp_path / "config.json").write_text(text)
        return read_config(tmp_path)[1]

    return shape


V4_AND_V5 = {
    "llama: rope_theta": ("llama", {"rope_theta": 500.0}, {"rope_parameters": {"rope_theta": 500.0}}),
    "llama: rope_scaling with type": (
        "llama",
        {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}},
    ),
    "llama: rope_scaling with rope_type": (
        "llama",
        {"rope_theta": 500.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, **LLAMA3}},
    ),
    "llama: rope_scaling null": (
        "llama",
        {"rope_scaling": None, "rope_theta": 10_000.0},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}},
    ),
    "mistral: sliding_window null": (
        "mistral",
        {"sliding_window": None, "rope_theta": 1e6},
        {"sliding_window": None, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
    ),
    "qwen2: max_window_layers": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3},
        {
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["full_attention"] * 3 + ["sliding_attention"] * 4,
        },
    ),
    "qwen2: a window that is not used": (
        "qwen2",
        {"use_sliding_window": False, "sliding_window": 5, "max_window_layers": 3},
        {"use_sliding_window": False, "sliding_window": None, "layer_types": ["full_attention"] * 7},
    ),
    "gemma2: every other layer": (
        "gemma2",
        {"sliding_window": 5, "hidden_act": "gelu_pytorch_tanh", "cache_implementation": "hybrid"},
        {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"] * 3 + ["sliding_attention"]},
    ),
    "gemma3: two bases and a pattern": (
        "gemma3_text",
        {
            "rope_theta": 1e6,
            "rope_local_base_freq": 100.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "sliding_window_pattern": 3,
        },
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2 + ["sliding_attention"],
        },
    ),
    "gemma3: nothing said": (
        "gemma3_text",
        {},
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
            "layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
        },
    ),
    "gpt_neox: rotary_pct and rotary_emb_base": (
        "gpt_neox",
        {"rotary_pct": 0.5, "rotary_emb_base": 500},
        {"rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 500.0, "rope_type": "default"}},
    ),
    "gpt_neox: whole heads": (
        "gpt_neox",
        {"rotary_pct": 1.0},
        {"rope_parameters": {"partial_rotary_factor": 1.0, "rope_theta": 10_000.0, "rope_type": "default"}},
    ),
    "gpt_neox: nothing said": (
        "gpt_neox",
        {},
        {"rope_parameters": {"partial_rotary_factor": 0.25, "rope_theta": 10_000.0}},
    ),
}


@pytest.mark.parametrize(("name", "old", "new"), V4_AND_V5.values(), ids=V4_AND_V5)
def test_both_forms_of_a_file_say_the_same_shape(read, name, old, new):
    assert read(name, **old) == read(name, **new)


def test_what_those_forms_say(read):
    config = read("llama", rope_theta=500.0, rope_scaling={"type": "llama3", **LLAMA3})
    assert (config.rope_base, config.rope_scaling) == (500.0, RopeScaling("llama3", 8.0, 1.0, 4.0, 32))
    assert read("llama", rope_theta=5.0, rope_parameters={"rope_theta": 500.0}).rope_base == 500.0  # as in transformers
    config = read("qwen2", use_sliding_window=True, sliding_window=5, max_window_layers=3)
    assert (config.window, config.full_layers) == (5, (0, 1, 2))
    config = read("qwen2", use_sliding_window=True, sliding_window=5, max_window_layers=0)
    assert (config.window, config.full_layers) == (5, ())
    assert read("gemma2", sliding_window=5).full_layers == (1, 3, 5)
    config = read("gemma3_text", rope_theta=1e6, rope_local_base_freq=100.0, sliding_window_pattern=3)
    assert (config.rope_base, config.local_rope_base, config.full_layers) == (1e6, 100.0, (2, 5))
    config = read("gpt_neox", rotary_pct=0.5, rotary_emb_base=500)
    assert (config.rope_share, config.rope_base) == (0.5, 500.0)
    assert read("mistral").window == 4096
    assert read("mistral", sliding_window=None).window is None
    assert read("gemma2").attention_softcap == 50.0
    assert read("gemma2", attn_logit_softcapping=None).attention_softcap is None


@pytest.mark.parametrize(
    ("name", "absent", "null"),
    [("llama", 4, 4), ("mistral", 8, 4), ("qwen2", 32, 4), ("qwen3", 32, 4), ("gemma2", 4, 4), ("gemma3_text", 4, 4)],
)
def test_a_number_of_key_value_heads_that_is_not_said_is_that_of_the_configuration_class(read, name, absent, null):
    many = {"num_attention_heads": 32, "head_dim": 4} if absent > 4 else {}
    assert read(name, "num_key_value_heads", **many).kv_heads == absent
    assert read(name, num_key_value_heads=None).kv_heads == null


REFUSED = [
    ("llama", {"hidden_act": "gelu"}, "'hidden_act' is 'gelu'; this library computes 'silu' only"),
    (
        "llama",
        {"attention_bias": True},
        "attention_bias=True with mlp_bias=False; this library computes both or neither",
    ),
    ("llama", {"mlp_bias": True}, "attention_bias=False with mlp_bias=True"),
    ("mistral", {"hidden_act": "relu"}, "'hidden_act' is 'relu'"),
    ("qwen2", {"hidden_act": "gelu"}, "'hidden_act' is 'gelu'"),
    ("qwen3", {"attention_bias": True}, "'attention_bias' is True; this library computes False only"),
    ("gemma2", {"hidden_activation": "silu"}, "'hidden_activation' is 'silu'"),
    ("gemma2", {"hidden_act": "silu"}, "'hidden_act' is 'silu'"),
    ("gemma2", {"attention_bias": True}, "'attention_bias' is True"),
    (
        "gemma3_text",
        {"use_bidirectional_attention": True},
        "'use_bidirectional_attention' is True; .* None or False only",
    ),
    ("gpt2", {"scale_attn_weights": False}, "'scale_attn_weights' is False"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "'scale_attn_by_inverse_layer_idx' is True"),
    ("gpt2", {"add_cross_attention": True}, "'add_cross_attention' is True"),
    ("gpt2", {"activation_function": "tanh"}, "'activation_function' is 'tanh'; expected 'gelu_new' or .* or 'relu'"),
    ("gpt2", {"activation_function": ["relu"]}, r"'activation_function' is \['relu'\]; expected"),
    ("gpt_neox", {"attention_bias": False}, "'attention_bias' is False; this library computes True only"),
    ("gpt_neox", {"hidden_act": "silu"}, "'hidden_act' is 'silu'; expected 'gelu' or"),
    ("opt", {"enable_bias": False}, "'enable_bias' is False"),
    ("opt", {"layer_norm_elementwise_affine": False}, "'layer_norm_elementwise_affine' is False"),
    ("opt", {"do_layer_norm_before": False}, "'do_layer_norm_before' is False"),
    ("opt", {"_remove_final_layer_norm": True}, "'_remove_final_layer_norm' is True"),
    ("opt", {"word_embed_proj_dim": 8}, "'word_embed_proj_dim' is 8; this library computes 16 or None only"),
    ("opt", {"activation_function": "silu"}, "'activation_function' is 'silu'"),
    # Numbers
    ("llama", {"hidden_size": 0}, "'hidden_size' is 0; expected a whole number above 0"),
    ("llama", {"vocab_size": 24.0}, r"'vocab_size' is 24\.0; expected a whole number above 0"),
    ("llama", {"num_hidden_layers": True}, "'num_hidden_layers' is True"),
    ("llama", {"num_attention_heads": "4"}, "'num_attention_heads' is '4'"),
    ("llama", {"max_position_embeddings": None}, "'max_position_embeddings' is None"),
    ("llama", {"num_key_value_heads": 3}, "heads=4 is not a multiple of kv_heads=3"),
    ("llama", {"hidden_size": 18}, "width=18 does not divide into heads=4"),
    ("llama", {"rms_norm_eps": "small"}, "'rms_norm_eps' is 'small'; expected a number above 0"),
    ("llama", {"rms_norm_eps": None}, "'rms_norm_eps' is None"),
    ("gpt2", {"layer_norm_epsilon": -1e-5}, "'layer_norm_epsilon' is -1e-05"),
    ("gpt_neox", {"layer_norm_eps": 0}, "'layer_norm_eps' is 0"),
    ("gemma2", {"query_pre_attn_scalar": None}, "'query_pre_attn_scalar' is None"),
    ("gemma2", {"final_logit_softcapping": "none"}, "'final_logit_softcapping' is 'none'"),
    ("gemma2", {"sliding_window": None}, "'sliding_window' is None"),
    # Rotary positions
    ("llama", {"rope_theta": "10k"}, "'rope_theta' is '10k'"),
    ("llama", {"rope_scaling": "linear"}, "'rope_scaling' is 'linear'; expected an object"),
    ("llama", {"rope_parameters": [1]}, r"'rope_parameters' is \[1\]; expected an object"),
    (
        "llama",
        {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        "rope scaling 'yarn'; .* 'default', 'linear' and 'llama3'",
    ),
    ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "rope scaling 'dynamic'"),
    ("llama", {"rope_scaling": {"type": "linear"}}, "rope scaling 'linear' with {}: KeyError"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": -1.0}}, r"rope scaling 'linear' .*factor is -1\.0"),
    ("llama", {"rope_scaling": {"type": "llama3", "factor": 8.0}}, "rope scaling 'llama3' with .*low_freq_factor"),
    (
        "llama",
        {"rope_parameters": {"partial_rotary_factor": 0.5}},
        "'partial_rotary_factor' is 0.5; .* computes 1.0 only",
    ),
    ("llama", {"partial_rotary_factor": 0.5}, "'partial_rotary_factor' is 0.5"),
    ("gpt_neox", {"rotary_pct": 0.2}, "head_dim=8 times rope_share=0.2 is 1, which is odd"),
    (
        "gemma3_text",
        {"rope_parameters": {"rope_theta": 1e6}},
        "'rope_parameters' is .*; expected those of 'full_attention'",
    ),
    (
        "gemma3_text",
        {"rope_parameters": {"full_attention": {}, "sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
        "rope scaling of layers with a window",
    ),
    # Layers
    ("gemma2", {"layer_types": ["full_attention"]}, "'layer_types' is .*; expected 7 entries"),
    ("gemma2", {"layer_types": ["chunked_attention"] * 7}, "of full_attention or sliding_attention"),
    ("gemma2", {"layer_types": 7}, "'layer_types' is 7"),
]


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED, ids=[f"{n}, {c}" for n, c, _ in REFUSED])
def test_a_value_that_is_not_computed_here_is_refused_with_its_file_and_field(read, tmp_path, name, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        read(name, **changes)
    assert str(tmp_path / "config.json") in str(error.value)


@pytest.mark.parametrize("name", [name for name in DECODERS if name not in ("gpt2", "opt")])
def test_a_size_without_a_default_that_is_missing_is_named(read, name):
    for field in FIELDS[name].keys() & SIZES.keys():
        with pytest.raises(ValueError, match=f"no field '{field}'; expected a number"):
            read(name, field)


def test_fields_that_nobody_understood_are_named_in_one_warning(read):
    with pytest.warns(UserWarning, match=r"config\.json: fields .* ignored: clever_attention, sparse_layers$"):
        read("llama", sparse_layers=[1], clever_attention=True, off=False, none=None, torch_dtype="float16")


def test_a_dead_field_of_another_form_is_named_too(read):
    kinds = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    with pytest.warns(UserWarning, match="ignored: rope_local_base_freq"):
        read("gemma3_text", rope_parameters=kinds, rope_local_base_freq=50.0)


@pytest.mark.parametrize("name", DECODERS)
def test_every_family_reads_its_smallest_file_without_a_warning(read, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(name).head == "lm"


HEADS = [
    ({}, "lm"),
    ({"architectures": None}, "lm"),
    ({"architectures": ["LlamaForCausalLM"]}, "lm"),
    ({"architectures": ["LlamaModel"]}, "lm"),
    ({"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}, "scalar"),
    ({"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}, "scalar"),
]


@pytest.mark.parametrize(("changes", "head"), HEADS)
def test_the_head_is_that_of_the_architecture(read, changes, head):
    assert read("llama", **changes).head == head


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["LlamaForSequenceClassification"]}, "a classifier of 2 labels; expected 1"),
        ({"architectures": ["LlamaForSequenceClassification"], "id2label": None}, "a classifier of 2 labels"),
        (
            {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "a", "1": "b", "2": "c"}},
            "a classifier of 3 labels",
        ),
        (
            {"architectures": ["LlamaForTokenClassification"]},
            "'LlamaForTokenClassification' is not supported; .* LlamaForCausalLM, LlamaForSequenceClassification",
        ),
        ({"architectures": ["LlamaForCausalLM", "LlamaModel"]}, "architectures .*; expected one"),
    ],
)
def test_an_architecture_that_is_none_of_ours_is_refused(read, changes, message):
    with pytest.raises(ValueError, match=message):
        read("llama", **changes)


def test_the_classes_of_every_family_are_those_of_transformers():
    import transformers

    for family in FAMILY.values():
        assert hasattr(transformers, family.architecture), family.model_type
        assert hasattr(transformers, family.scorer), family.model_type
    assert FAMILY["gemma3_text"].scorer == "Gemma3TextForSequenceClassification"


def test_a_file_that_is_no_config_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json; expected a folder as transformers saves"):
        read_config(tmp_path)
    path = tmp_path / "config.json"
    for text, message in [
        ("{", "not JSON"),
        ("", "not JSON"),
        ("[1]", "a list; expected an object"),
        ("null", "a NoneType; expected an object"),
        ("{}", "model_type None is not supported; these are: llama, mistral, .*gpt_neox, opt"),
        ('{"model_type": "mamba"}', "model_type 'mamba' is not supported; these are: llama"),
        ('{"model_type": ["llama"]}', r"model_type \['llama'\] is not supported"),
        ('{"model_type": "llama", "quantization_config": {"bits": 4}}', "quantized weights; expected .* in float32"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=message) as error:
            read_config(tmp_path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("name", DECODERS)
def test_what_a_family_writes_it_reads_back(read, name):
    config = read(name)
    written = FAMILY[name].write(config)
    assert read(name, *FIELDS[name].keys() - written.keys(), **written) == config
