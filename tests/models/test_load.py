"""A checkpoint folder read: every family, however its tensors are called and stored; and what is wrong is said by name."""

from __future__ import annotations

import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest
from builders import lively
from checkpoints import FAMILY, LLAMA, SMALL, assert_same, edit_config, edit_tensors, saved

from rlhf_jax.models.convert.load import load_pretrained

every_family = pytest.mark.parametrize("name", FAMILY)
Q = "model.layers.1.self_attn.q_proj.weight"


@every_family
def test_a_checkpoint_gives_its_shape_and_parameters(tmp_path, name):
    found = load_pretrained(saved(tmp_path / "a", name))
    assert (found.config, found.family, found.folder) == (SMALL[name], FAMILY[name], tmp_path / "a")
    assert_same(found.params, lively(SMALL[name]))


@every_family
def test_shards_say_the_same_as_one_file(tmp_path, name):
    folder = saved(tmp_path / "a", name, limit=3000)
    assert len(list(folder.glob("*.safetensors"))) > 3
    assert_same(load_pretrained(folder).params, lively(SMALL[name]))


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_numbers_of_any_width_become_those_asked_for(tmp_path, stored, wanted):
    folder = edit_tensors(saved(tmp_path / "a"), lambda w: {name: x.astype(stored) for name, x in w.items()})
    found = load_pretrained(folder, dtype=wanted).params
    assert_same(found, jax.tree.map(lambda x: np.asarray(x).astype(stored).astype(wanted), lively(LLAMA)))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(wanted)}


TRUNKS = {"gpt2": "transformer.", "opt": "model.", "llama": "model.", "gemma2": "model.", "gpt_neox": "gpt_neox."}


@pytest.mark.parametrize("name", TRUNKS)
def test_names_without_their_first_part_are_found(tmp_path, name):
    """As in the hub's own GPT-2, and wherever a trunk was saved alone."""
    folder = edit_tensors(
        saved(tmp_path / "a", name), lambda w: {key.removeprefix(TRUNKS[name]): x for key, x in w.items()}
    )
    assert_same(load_pretrained(folder).params, lively(SMALL[name]))


BUFFERS = {
    "llama": ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"],
    "gemma3_text": ["model.rotary_emb.inv_freq"],
    "gpt2": ["transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias"],
    "gpt_neox": [
        "gpt_neox.layers.0.attention.bias",
        "gpt_neox.layers.0.attention.masked_bias",
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq",
    ],
}


@pytest.mark.parametrize("name", BUFFERS)
def test_buffers_are_passed_over(tmp_path, name):
    folder = edit_tensors(saved(tmp_path / "a", name), lambda w: w.update({key: np.ones(3) for key in BUFFERS[name]}))
    assert_same(load_pretrained(folder).params, lively(SMALL[name]))


@pytest.mark.parametrize("head", ["lm", "scalar"])
def test_an_output_layer_of_a_tied_model_is_the_embedding_or_is_warned_of(tmp_path, head):
    config = dataclasses.replace(LLAMA, tied=True, head=head)
    folder = saved(tmp_path / "a", config=config)
    edit_tensors(folder, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"]}))
    assert_same(load_pretrained(folder).params, lively(config))
    for other in (np.ones((24, 16), np.float32), np.ones((24, 15), np.float32), np.ones(24, np.float32)):
        edit_tensors(folder, lambda w, other=other: w.update({"lm_head.weight": other}))
        with pytest.warns(
            UserWarning, match=r"'lm_head.weight' differs from 'model.embed_tokens.weight', and is ignored"
        ):
            assert_same(load_pretrained(folder).params, lively(config))


@pytest.mark.parametrize("row", [0, -1])
def test_an_output_layer_differs_wherever_it_does(tmp_path, row):
    """Rows are compared in blocks, of which this one has two."""
    config = dataclasses.replace(LLAMA, tied=True, vocab=5000)
    folder = saved(tmp_path / "a", config=config)

    def other(w):
        w["lm_head.weight"] = w["model.embed_tokens.weight"].copy()
        w["lm_head.weight"][row, -1] += 1

    edit_tensors(folder, other)
    with pytest.warns(UserWarning, match="differs"):
        load_pretrained(folder)


@pytest.mark.parametrize("bias", [0.25, None])
def test_the_bias_of_a_score_is_that_of_the_config_or_none(tmp_path, bias):
    config = dataclasses.replace(LLAMA, head="scalar")
    folder = saved(tmp_path / "a", config=config)
    edit_config(folder, *(() if bias else ("rlhf_jax_score_bias",)), **({"rlhf_jax_score_bias": bias} if bias else {}))
    score = load_pretrained(folder).params["score"]
    assert float(score["bias"]) == (bias or 0.0)
    np.testing.assert_array_equal(score["kernel"], lively(config)["score"]["kernel"])


# --- what is not as it should be -------------------------------------------------------------------------------------


def test_missing_unexpected_and_renamed_tensors_are_named(tmp_path):
    folder = saved(tmp_path / "a")
    edit_tensors(folder, lambda w: w.update({"model.layers.1.self_attn.query.weight": w.pop(Q)}))
    with pytest.raises(ValueError, match="those of a llama of this shape; missing: ") as error:
        load_pretrained(folder)
    assert f"missing: '{Q}'; unexpected: 'model.layers.1.self_attn.query.weight'" in str(error.value)
    assert str(folder) in str(error.value)


def test_of_many_missing_tensors_the_first_are_named_and_the_rest_counted(tmp_path):
    folder = edit_tensors(saved(tmp_path / "a"), lambda w: {k: x for k, x in w.items() if "layers" not in k})
    with pytest.raises(ValueError, match=r"missing: ('model\.layers\.\d\S+', ){4}'model\S+' and 13 more$"):
        load_pretrained(folder)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tmp_path):
    folder = edit_tensors(saved(tmp_path / "a"), lambda w: w.update({Q: w[Q][:, :15]}))
    with pytest.raises(
        ValueError, match=r"another shape: .* is \[16, 15\] in model.safetensors, expected \[16, 16\]$"
    ) as e:
        load_pretrained(folder)
    assert Q in str(e.value)


def test_a_config_of_another_shape_than_the_tensors_is_found_out(tmp_path):
    with pytest.raises(
        ValueError, match=r"another shape: .*embed_tokens.weight' is \[24, 16\] .*, expected \[25, 16\]"
    ):
        load_pretrained(edit_config(saved(tmp_path / "a"), vocab_size=25))
    with pytest.raises(ValueError, match=r"missing: 'model.layers.2"):
        load_pretrained(edit_config(saved(tmp_path / "b"), num_hidden_layers=3))
    with pytest.raises(ValueError, match=r"unexpected: 'model.layers.1"):
        load_pretrained(edit_config(saved(tmp_path / "c"), num_hidden_layers=1))


def test_a_tied_model_with_an_output_layer_only_lacks_its_embedding(tmp_path):
    folder = saved(tmp_path / "a", config=dataclasses.replace(LLAMA, tied=True))
    edit_tensors(folder, lambda w: w.update({"lm_head.weight": w.pop("model.embed_tokens.weight")}))
    with pytest.raises(ValueError, match=r"missing: 'model.embed_tokens.weight'; unexpected: 'lm_head.weight'"):
        load_pretrained(folder)


def test_whole_numbers_are_no_weights(tmp_path):
    folder = edit_tensors(saved(tmp_path / "a"), lambda w: w.update({Q: w[Q].astype(np.int32)}))
    with pytest.raises(
        ValueError, match=r"model\.safetensors: tensor .*q_proj.weight' is I32; expected one of F32, F16"
    ):
        load_pretrained(folder)


def test_an_empty_file_lacks_everything(tmp_path):
    with pytest.raises(ValueError, match=r"missing: .* and \d+ more$"):
        load_pretrained(edit_tensors(saved(tmp_path / "a"), lambda w: w.clear()))
