"""BERT and RoBERTa against transformers: the same function and gradient, in and out; and the files of old releases."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from encoders import (
    BERT,
    ENCODERS,
    LABELS,
    ROBERTA,
    compiled,
    encoder_export_difference,
    encoder_gradient_error,
    encoder_pair,
    exported_encoder,
    outputs_difference,
    packed_difference_of,
    rows_of,
    saved_pair,
    their_outputs,
)
from families import LENGTHS, random_model, tensor
from safetensors.numpy import load_file, save_file

from rlhf_jax.config import MeshConfig
from rlhf_jax.mesh import make_mesh
from rlhf_jax.models import build_model
from rlhf_jax.models.convert.bert import BERT as BERT_FAMILY
from rlhf_jax.models.convert.bert import ROBERTA as ROBERTA_FAMILY
from rlhf_jax.models.convert.fields import Fields
from rlhf_jax.models.convert.load import load_pretrained
from rlhf_jax.models.convert.save import family_of, save_pretrained

every_encoder = pytest.mark.parametrize("name", ENCODERS)
Tensors = dict[str, np.ndarray]


@every_encoder
def test_outputs_are_those_of_transformers_however_rows_are_padded(name):
    assert outputs_difference(name) <= 2e-5


@every_encoder
def test_texts_in_one_row_do_not_see_each_other(name):
    assert packed_difference_of(name) <= 1e-5


@every_encoder
def test_the_gradient_is_that_of_torch(name):
    assert encoder_gradient_error(name) <= 1e-4


@every_encoder
def test_transformers_reads_what_was_written(name):
    assert encoder_export_difference(name) <= 1e-6


def assert_same(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(x, y)


@every_encoder
def test_in_out_and_in_again_changes_nothing(name):
    once, twice = encoder_pair(name).ours, load_pretrained(exported_encoder(name))
    assert (twice.config, twice.family, twice.labels) == (once.config, once.family, once.labels)
    assert_same(once.params, twice.params)


def changed(
    name: str, folder: Path, tensors: Callable[[Tensors], Tensors] = dict, fields: dict[str, Any] | None = None
) -> Path:
    """A copy of a tiny encoder with other tensors, or other fields of its config.json (None: without it)."""
    shutil.copytree(encoder_pair(name).folder, folder)
    file, config = folder / "model.safetensors", folder / "config.json"
    save_file(tensors(load_file(file)), file)
    given = json.loads(config.read_text()) | (fields or {})
    config.write_text(json.dumps({key: value for key, value in given.items() if value is not None}))
    return folder


def test_tensors_by_the_names_of_the_first_releases(tmp_path):
    def old(tensors: Tensors) -> Tensors:
        names = {name: name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta") for name in tensors}
        return {names[name]: value for name, value in tensors.items()}

    folder = changed("BERT, masked", tmp_path / "old", old)
    assert any(name.endswith("LayerNorm.gamma") for name in load_file(folder / "model.safetensors"))
    assert_same(load_pretrained(folder).params, encoder_pair("BERT, masked").ours.params)


def test_a_tensor_by_its_old_and_its_new_name_is_refused(tmp_path):
    norm = "bert.embeddings.LayerNorm"
    folder = changed("BERT, masked", tmp_path / "both", lambda t: t | {f"{norm}.gamma": t[f"{norm}.weight"].copy()})
    with pytest.raises(
        ValueError, match=r"tensor 'bert.embeddings.LayerNorm.\w+' is in model.safetensors too, as 'bert"
    ):
        load_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "head", "trunk"), [("BERT", "cls.predictions", "bert"), ("RoBERTa", "lm_head", "roberta")]
)
def test_copies_of_tied_tensors_and_what_is_not_computed_are_no_faults(tmp_path, name, head, trunk):
    def more(tensors: Tensors) -> Tensors:
        square = np.ones((32, 32), np.float32)
        return tensors | {
            f"{head}.decoder.weight": tensors[f"{trunk}.embeddings.word_embeddings.weight"].copy(),
            f"{head}.decoder.bias": tensors[f"{head}.bias"].copy(),
            f"{trunk}.embeddings.position_ids": np.arange(9)[None],
            f"{trunk}.pooler.dense.weight": square,
            f"{trunk}.pooler.dense.bias": square[0].copy(),
            **({"cls.seq_relationship.weight": square[:2].copy()} if name == "BERT" else {}),
        }

    folder = changed(f"{name}, masked", tmp_path / "more", more)
    assert_same(load_pretrained(folder).params, encoder_pair(f"{name}, masked").ours.params)


@pytest.mark.parametrize("copy", ["cls.predictions.decoder.bias", "cls.predictions.decoder.weight"])
def test_a_copy_that_differs_is_named(tmp_path, copy):
    original = {"bias": "cls.predictions.bias", "weight": "bert.embeddings.word_embeddings.weight"}[copy.split(".")[-1]]
    folder = changed("BERT, masked", tmp_path / "other", lambda t: t | {copy: t[original] + 1})
    with pytest.warns(UserWarning, match=f"'{copy}' differs from '{original}', and is ignored"):
        loaded = load_pretrained(folder)
    assert_same(loaded.params, encoder_pair("BERT, masked").ours.params)


def test_what_bert_was_pretrained_with_is_read_as_its_masked_language_model():
    config = transformers.BertConfig(**BERT[1])
    both = saved_pair("BERT, pretraining", random_model(config, transformers.AutoModelForPreTraining))
    batch = rows_of(LENGTHS, 20)
    with torch.no_grad():
        theirs = both.theirs(tensor(batch.tokens), attention_mask=tensor(batch.segments)).prediction_logits.numpy()
    ours = np.asarray(jax.jit(both.model.logits)(both.ours.params, batch))
    filled = np.asarray(batch.segments) != 0
    assert np.abs(ours - theirs)[filled].max() <= 2e-5


@pytest.mark.parametrize(("name", "kind"), [("bare BERT", BERT), ("bare RoBERTa", ROBERTA)])
def test_a_model_without_a_head_gives_hidden_states_to_go_on_from(tmp_path, name, kind):
    both = saved_pair(name, random_model(getattr(transformers, kind[0])(**kind[1]), transformers.AutoModel))
    batch, params = rows_of(LENGTHS, 20), both.ours.params
    with torch.no_grad():
        theirs = both.theirs(tensor(batch.tokens), attention_mask=tensor(batch.segments)).last_hidden_state.numpy()
    ours = np.asarray(jax.jit(both.model.hidden)(params, batch))
    assert np.abs(ours - theirs)[np.asarray(batch.segments) != 0].max() <= 2e-5
    judge = jax.eval_shape(build_model(dataclasses.replace(both.ours.config, head="scalar")).init, jax.random.key(0))
    assert judge.keys() - params.keys() == {"pool", "score"}
    for function in (both.model.logits, both.model.scores, both.model.class_logits):
        with pytest.raises(ValueError, match="this encoder has head='none'"):
            function(params, batch)
    with pytest.raises(ValueError, match="an encoder without a head is not written"):
        save_pretrained(tmp_path / "out", both.ours.config, params)


def test_every_device_reads_its_part():
    name = "RoBERTa, 3 labels"
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    spread, batch = load_pretrained(encoder_pair(name).folder, mesh), rows_of(LENGTHS, 20)
    assert_same(spread.params, encoder_pair(name).ours.params)
    shard = spread.params["pool"]["kernel"].addressable_shards[0].data
    assert shard.shape == (16, 32)
    with torch.no_grad():
        theirs = their_outputs(encoder_pair(name).theirs, batch).numpy()
    np.testing.assert_allclose(compiled(name)(spread.params, batch), theirs, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("BERT, masked", {"position_embedding_type": "relative_key"}, "'position_embedding_type' is 'relative_key'"),
        ("BERT, masked", {"is_decoder": True}, "'is_decoder' is True"),
        ("BERT, masked", {"add_cross_attention": True}, "'add_cross_attention' is True"),
        ("BERT, masked", {"hidden_act": "silu"}, "'hidden_act' is 'silu'; expected 'gelu' or 'gelu_new'"),
        ("BERT, masked", {"type_vocab_size": 0}, "'type_vocab_size' is 0"),
        ("BERT, masked", {"architectures": ["BertForTokenClassification"]}, "'BertForTokenClassification' is not supp"),
        (
            "BERT, 1 label",
            {"id2label": {"0": "a", "1": "b"}},
            r"'classifier.weight' is \[1, 32\] .* expected \[2, 32\]",
        ),
        ("BERT, 3 labels", {"id2label": {}}, "config.json: a classifier of 0 labels; expected 1 or more"),
        ("RoBERTa, masked", {"pad_token_id": 0}, "'pad_token_id' is 0; this library computes 1 only"),
        ("RoBERTa, masked", {"hidden_act": "relu"}, "'hidden_act' is 'relu'"),
        ("RoBERTa, masked", {"max_position_embeddings": 2}, "'max_position_embeddings' is 2; expected more than the 2"),
    ],
)
def test_what_is_not_computed_is_refused_by_its_name(tmp_path, name, fields, message):
    with pytest.raises(ValueError, match=message):
        load_pretrained(changed(name, tmp_path / "changed", fields=fields))


def test_the_fields_of_old_configs_are_understood(tmp_path):
    old = {
        "directionality": "bidi",
        "pooler_fc_size": 768,
        "pooler_num_attention_heads": 12,
        "pooler_num_fc_layers": 3,
        "pooler_size_per_head": 128,
        "pooler_type": "first_token_transform",
        "position_embedding_type": "absolute",
    }
    load_pretrained(changed("BERT, 3 labels", tmp_path / "chinese", fields=old))  # warnings are errors


def test_absent_fields_are_those_of_transformers(tmp_path):
    for name, plain in (("BERT, masked", transformers.BertConfig()), ("RoBERTa, masked", transformers.RobertaConfig())):
        family = encoder_pair(name).ours.family
        empty, full = (family.read(Fields(raw, tmp_path)) for raw in ({}, plain.to_dict()))
        assert empty == full


def test_classes_keep_their_names_and_number(tmp_path):
    ours = encoder_pair("BERT, 3 labels").ours
    assert ours.labels == tuple(LABELS["id2label"].values())
    with pytest.raises(ValueError, match=r"2 labels, .* for 3 classes"):
        save_pretrained(tmp_path / "two", ours.config, ours.params, labels=("a", "b"))
    save_pretrained(tmp_path / "unnamed", ours.config, ours.params)
    assert load_pretrained(tmp_path / "unnamed").labels == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_the_bias_of_an_encoders_scores_is_in_the_file():
    file = load_file(exported_encoder("BERT, 1 label") / "model.safetensors")
    np.testing.assert_array_equal(
        file["classifier.bias"], encoder_pair("BERT, 1 label").ours.params["score"]["bias"][None]
    )
    assert "rlhf_jax_score_bias" not in (exported_encoder("BERT, 1 label") / "config.json").read_text()


def test_a_padding_id_that_roberta_would_count_from_is_refused(tmp_path):
    ours = encoder_pair("RoBERTa, masked").ours
    with pytest.raises(ValueError, match="pad_token_id is 0; a roberta computes something else with any but 1"):
        save_pretrained(tmp_path / "out", ours.config, ours.params, family=ROBERTA_FAMILY, ids={"pad_token_id": 0})
    assert family_of(ours.config) is BERT_FAMILY  # says every shape of a RoBERTa, so that who read one gives the family
    written = save_pretrained(tmp_path / "bert", ours.config, ours.params, ids={"pad_token_id": 0})
    again = load_pretrained(tmp_path / "bert")
    assert (written, again.config) == (BERT_FAMILY, ours.config)
    assert_same(again.params, ours.params)
