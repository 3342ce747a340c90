"""T5's checkpoints: which of the two output layers it is, as every release of transformers has said it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from builders import lively
from checkpoints import FAMILY, T5, assert_same, edit_config, edit_tensors, saved

from rlhf_jax.models.convert.fields import Fields
from rlhf_jax.models.convert.load import load_pretrained
from rlhf_jax.models.convert.save import lost_fields, save_pretrained

FLAN = dataclasses.replace(T5, activation="geglu", tied=False, output_scale=1.0)
HEAD, TABLE = "lm_head.weight", "shared.weight"


def read(**fields):
    return FAMILY["t5"].read(Fields({"model_type": "t5", **fields}, Path("config.json")))


def test_the_two_generations_are_told_apart_in_the_files_of_both_releases_of_transformers():
    first, second = read(d_model=16, num_heads=4), read(d_model=16, num_heads=4, tie_word_embeddings=False)
    assert (first.tied, first.output_scale, second.tied, second.output_scale) == (True, 0.25, False, 1.0)
    fifth = read(d_model=16, num_heads=4, tie_word_embeddings=True, scale_decoder_outputs=False)
    assert (fifth.tied, fifth.output_scale) == (True, 1.0)


def test_what_a_file_leaves_out_is_what_transformers_makes_of_it():
    import transformers

    theirs, ours = transformers.T5Config(), read()
    assert (ours.vocab, ours.width, ours.head_size, ours.mlp) == (
        theirs.vocab_size,
        theirs.d_model,
        theirs.d_kv,
        theirs.d_ff,
    )
    assert (ours.layers, ours.encoder_layers, ours.heads, ours.norm_eps) == (6, 6, 8, 1e-6)
    assert (ours.relative_buckets, ours.relative_distance, ours.start) == (32, 128, 0)
    assert read(num_layers=3, num_decoder_layers=2).layers == 2
    assert read(pad_token_id=5).start == 5
    assert read(pad_token_id=5, decoder_start_token_id=0).start == 0


@pytest.mark.parametrize("activation", ["relu", "geglu", "swiglu", "gelu", "gelu_exact"])
def test_every_feed_forward_is_written_and_read(activation):
    assert lost_fields(dataclasses.replace(T5, activation=activation), FAMILY["t5"]) == []


def test_a_feed_forward_that_contradicts_itself_is_refused():
    assert read(feed_forward_proj="gated-gelu", dense_act_fn="gelu_new", is_gated_act=True).activation == "geglu"
    with pytest.raises(ValueError, match="'dense_act_fn' is 'relu'; this library computes 'gelu_new' only"):
        read(feed_forward_proj="gated-gelu", dense_act_fn="relu")
    with pytest.raises(ValueError, match="'feed_forward_proj' is 'gated-tanh'; expected 'relu' or 'gated-gelu'"):
        read(feed_forward_proj="gated-tanh")


def test_an_output_layer_is_its_own_where_the_file_has_one_that_differs(tmp_path):
    """transformers 5 writes tie_word_embeddings true for all of them."""
    folder = edit_config(saved(tmp_path / "a", "t5", FLAN), tie_word_embeddings=True)
    found = load_pretrained(folder)
    assert found.config == FLAN
    assert_same(found.params, lively(FLAN))


def test_an_output_layer_that_repeats_the_table_is_tied_unless_the_file_says_otherwise(tmp_path):
    folder = edit_tensors(saved(tmp_path / "a", "t5"), lambda w: w.update({HEAD: w[TABLE].copy()}))
    found = load_pretrained(folder)
    assert found.config == T5
    assert_same(found.params, lively(T5))
    untied = load_pretrained(edit_config(folder, "scale_decoder_outputs", tie_word_embeddings=False))
    assert not untied.config.tied
    np.testing.assert_array_equal(untied.params["unembed"]["kernel"].T, untied.params["tokens"]["embedding"])


def test_without_an_output_layer_in_the_file_the_table_is_it(tmp_path):
    folder = edit_tensors(saved(tmp_path / "a", "t5", FLAN), lambda w: w.pop(HEAD) is None)
    assert load_pretrained(folder).config == dataclasses.replace(FLAN, tied=True)


def test_tables_that_transformers_repeats_or_does_not_use_are_no_surprise(tmp_path):
    unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"

    def repeat(w):
        w |= {"encoder.embed_tokens.weight": w[TABLE].copy(), "decoder.embed_tokens.weight": w[TABLE].copy()}
        w[unused] = np.zeros((8, 4), np.float32)

    folder = edit_tensors(saved(tmp_path / "a", "t5"), repeat)
    assert_same(load_pretrained(folder).params, lively(T5))


def test_a_table_of_distances_of_another_shape_is_named(tmp_path):
    name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    folder = edit_tensors(saved(tmp_path / "a", "t5"), lambda w: w.update({name: w[name][:4]}))
    with pytest.raises(ValueError, match=r"relative_attention_bias.weight' is \[4, 4\] in .*, expected \[8, 4\]"):
        load_pretrained(folder)


def test_a_layer_more_or_less_in_one_half_is_named(tmp_path):
    folder = saved(tmp_path / "a", "t5")
    with pytest.raises(ValueError, match=r"missing: 'encoder.block.2.layer.0.layer_norm.weight'"):
        load_pretrained(edit_config(folder, num_layers=3))
    with pytest.raises(ValueError, match=r"unexpected: 'decoder.block.2.layer.0.SelfAttention.k.weight'"):
        load_pretrained(edit_config(folder, num_layers=2, num_decoder_layers=2))


def test_the_start_token_is_where_generation_looks_for_it(tmp_path):
    save_pretrained(tmp_path / "a", T5, lively(T5), ids={"eos_token_id": 1, "pad_token_id": 0})
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "a" / name).read_text())["decoder_start_token_id"] == 3
