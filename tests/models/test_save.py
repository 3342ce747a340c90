"""A model written as transformers writes it: whole or not at all, and only where a family can say what it is."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from builders import lively
from checkpoints import DECODERS, FAMILY, LLAMA, SINGLE, SMALL, assert_same, saved
from safetensors import safe_open

from rlhf_jax.config import MeshConfig
from rlhf_jax.config.model import RopeScaling
from rlhf_jax.mesh import make_mesh
from rlhf_jax.models.convert.load import load_pretrained
from rlhf_jax.models.convert.save import FREE, family_of, lost_fields, save_pretrained
from rlhf_jax.models.convert.store import INDEX
from rlhf_jax.sharding import place


def listed(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- what is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILY)
def test_what_is_written_reads_back_to_the_bit(tmp_path, name):
    found = load_pretrained(saved(tmp_path / "a", name))
    assert (found.config, found.family.model_type) == (SMALL[name], name)
    assert_same(found.params, lively(SMALL[name]))


def test_a_folder_has_config_weights_and_generation_settings(tmp_path):
    folder = saved(tmp_path / "a", ids={"eos_token_id": 2, "pad_token_id": None})
    assert listed(tmp_path) == {"a"}
    assert listed(folder) == {"config.json", "generation_config.json", SINGLE}
    fields, generation = (json.loads((folder / name).read_text()) for name in ("config.json", "generation_config.json"))
    assert fields["architectures"] == ["LlamaForCausalLM"]
    assert (fields["model_type"], fields["dtype"], fields["eos_token_id"]) == ("llama", "float32", 2)
    assert generation == {"_from_model_config": True, "eos_token_id": 2, "pad_token_id": None}


@pytest.mark.parametrize("name", FAMILY)
def test_weights_are_written_in_bfloat16_where_that_is_asked_for(tmp_path, name):
    folder = saved(tmp_path / "a", name, dtype="bfloat16")
    with safe_open(folder / SINGLE, framework="np") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"BF16"}  # noqa: SIM118  not a mapping
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    rounded = jax.tree.map(lambda x: np.asarray(x).astype(ml_dtypes.bfloat16), lively(SMALL[name]))
    assert_same(load_pretrained(folder, dtype="bfloat16").params, rounded)


def test_no_file_is_larger_than_the_limit_but_for_one_tensor(tmp_path):
    folder, limit = saved(tmp_path / "a", limit=2000), 2000
    index = json.loads((folder / INDEX).read_text())
    files = sorted(folder.glob("*.safetensors"))
    assert [path.name for path in files] == [
        f"model-{n + 1:05d}-of-{len(files):05d}.safetensors" for n in range(len(files))
    ]
    found = {}
    for path in files:
        tensors = safetensors.numpy.load_file(path)
        size = sum(x.nbytes for x in tensors.values())
        assert size <= limit or len(tensors) == 1
        found |= {name: path.name for name in tensors}
    assert index["weight_map"] == found
    assert index["metadata"]["total_size"] == 4 * sum(leaf.size for leaf in jax.tree.leaves(lively(LLAMA)))
    whole = safetensors.numpy.load_file(saved(tmp_path / "b") / SINGLE)
    assert whole.keys() == found.keys()


def test_parameters_on_eight_devices_are_written_as_from_one(tmp_path):
    params = place(lively(LLAMA), make_mesh(MeshConfig(2, 2, 2)))
    save_pretrained(tmp_path / "a", LLAMA, params)
    one = saved(tmp_path / "b")
    assert (tmp_path / "a" / SINGLE).read_bytes() == (one / SINGLE).read_bytes()


@pytest.mark.parametrize("name", DECODERS)
def test_a_reward_model_keeps_the_bias_of_its_score(tmp_path, name):
    config = dataclasses.replace(SMALL[name], head="scalar")
    folder = saved(tmp_path / "a", name, config)
    fields = json.loads((folder / "config.json").read_text())
    assert fields["architectures"] == [FAMILY[name].scorer]
    assert fields["id2label"] == {"0": "score"}
    assert fields["rlhf_jax_score_bias"] == float(lively(config)["score"]["bias"]) != 0.0
    assert not (folder / "generation_config.json").exists()
    found = load_pretrained(folder)
    assert found.config == config
    assert_same(found.params, lively(config))


@pytest.mark.parametrize("scaling", [RopeScaling("linear", 4.0), RopeScaling("llama3", 8.0, 1.5, 3.0, 32)])
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt_neox"])
def test_stretched_positions_are_written(tmp_path, name, scaling):
    config = dataclasses.replace(SMALL[name], rope_scaling=scaling, rope_base=500.0)
    assert load_pretrained(saved(tmp_path / "a", name, config)).config == config


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_how_much_of_a_head_is_turned_is_written(tmp_path, share):
    """transformers takes a quarter where a GPT-NeoX does not say."""
    from transformers import AutoConfig

    folder = saved(tmp_path / "a", "gpt_neox", dataclasses.replace(SMALL["gpt_neox"], rope_share=share))
    assert AutoConfig.from_pretrained(folder).rope_parameters["partial_rotary_factor"] == share
    assert load_pretrained(folder).config.rope_share == share


def test_what_lies_beside_a_model_is_written_with_it(tmp_path):
    saved(tmp_path / "a", beside=lambda folder: (folder / "tokenizer.model").write_bytes(b"pieces"))
    assert (tmp_path / "a" / "tokenizer.model").read_bytes() == b"pieces"


# --- which family --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in FAMILY if name not in ("opt", "roberta")])
def test_the_family_of_a_shape_is_found(name):
    assert family_of(SMALL[name]).model_type == name


def test_how_a_model_is_computed_changes_no_family():
    config = dataclasses.replace(LLAMA, head="scalar", dtype="bfloat16", remat="layers", logit_chunk=4)
    assert lost_fields(config, FAMILY["llama"]) == []
    assert {field.name for field in dataclasses.fields(LLAMA)} >= set(FREE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "layer"}, r"the nearest is llama, which is not norm='layer'$"),
        (
            {"activation": "relu", "qk_norm": True, "head_dim": 6},
            r"the nearest is qwen3, which is not activation='relu'$",
        ),
        ({"norm_at": "after"}, r"the nearest is llama, which is not norm_at='after'$"),
        ({"embedding_scale": 2.0}, r"the nearest is llama, which is not embedding_scale=2\.0$"),
        ({"logit_softcap": 30.0}, r"which is not logit_softcap=30\.0$"),
        ({"rope_share": 0.5}, r"the nearest is llama, which is not rope_share=0\.5$"),
        ({"query_scale": 0.3}, r"the nearest is llama, which is not query_scale=0\.3$"),
        ({"window": 5, "full_layers": (1,)}, r"the nearest is mistral, which is not full_layers=\(1,\)$"),
    ],
)
def test_a_shape_that_no_family_says_is_refused_with_the_nearest(tmp_path, changes, message):
    config = dataclasses.replace(LLAMA, **changes)
    with pytest.raises(ValueError, match=message) as error:
        save_pretrained(tmp_path / "a", config, lively(config))
    assert str(error.value).startswith(
        "no family of llama, mistral, qwen2, qwen3, gemma2, gemma3_text, gpt2, gpt_neox, opt, bert, roberta, t5 "
    )
    assert listed(tmp_path) == set()


def test_a_family_that_cannot_say_the_shape_is_refused(tmp_path):
    with pytest.raises(ValueError, match="window=5"):
        save_pretrained(tmp_path / "a", SMALL["mistral"], lively(SMALL["mistral"]), family=FAMILY["llama"])
    assert listed(tmp_path) == set()


# --- what is refused, and what is left behind ------------------------------------------------------------------------


def test_two_heads_are_refused(tmp_path):
    config = dataclasses.replace(LLAMA, head="lm+scalar")
    with pytest.raises(ValueError, match=r"a policy with a value head .*; save it with head 'lm' or 'scalar'"):
        save_pretrained(tmp_path / "a", config, lively(config))
    assert listed(tmp_path) == set()


def test_a_folder_with_something_in_it_is_refused_and_an_empty_one_taken(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(FileExistsError, match=f"{name} is there already; choose another"):
            saved(tmp_path / name)
    assert listed(tmp_path / "full") == {"notes"}
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    load_pretrained(saved(tmp_path / "empty"))
    load_pretrained(saved(tmp_path / "deep" / "down"))


def test_a_write_that_breaks_off_leaves_nothing(tmp_path, monkeypatch):
    written = []
    save_file = safetensors.numpy.save_file

    def breaking(tensors, path, metadata):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        save_file(tensors, path, metadata)

    monkeypatch.setattr(safetensors.numpy, "save_file", breaking)
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path / "a", limit=2000)
    assert len(written) == 2
    assert listed(tmp_path) == set()


def test_a_failure_beside_the_model_leaves_nothing(tmp_path):
    def failing(folder):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        saved(tmp_path / "a", beside=failing)
    assert listed(tmp_path) == set()


@pytest.mark.parametrize(
    "damage",
    [lambda x: x + (x == x.max()), lambda x: x.astype(np.float16), lambda x: x.reshape(-1), lambda x: np.abs(x)],
    ids=["a number", "dtype", "shape", "signs"],
)
def test_a_file_that_does_not_read_back_is_not_left(tmp_path, monkeypatch, damage):
    save_file = safetensors.numpy.save_file

    def damaging(tensors, path, metadata):
        name = "model.layers.1.self_attn.q_proj.weight"
        save_file(tensors | {name: damage(tensors[name])}, path, metadata)

    monkeypatch.setattr(safetensors.numpy, "save_file", damaging)
    with pytest.raises(
        OSError, match=r"tensor 'model\.layers\.1\.self_attn\.q_proj\.weight' does not read back as it was"
    ):
        saved(tmp_path / "a")
    assert listed(tmp_path) == set()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.pop("final_norm"), r"\['final_norm/scale'\] are of the tree or the shape only"),
        (lambda p: p.update(score={"kernel": jnp.zeros(16)}), r"\['score/kernel'\] are of the tree or the shape only"),
        (lambda p: p.update(final_norm={"scale": jnp.zeros(8)}), r"final_norm/scale is \[8\]; expected \[16\]"),
        (
            lambda p: p.update(layers=p["layers"] | {"attention_norm": {"scale": jnp.zeros((3, 16))}}),
            r"layers/attention_norm/scale is \[3, 16\]; expected \[2, 16\]",
        ),
    ],
)
def test_parameters_of_another_model_are_refused_by_name(tmp_path, change, message):
    params = dict(lively(LLAMA))
    change(params)
    with pytest.raises(ValueError, match=message):
        save_pretrained(tmp_path / "a", LLAMA, params)
    assert listed(tmp_path) == set()
