"""Every family against transformers: the same function, the same gradient, the same text, in and out."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from families import (
    WRITERS,
    adapted_difference,
    different_tokens,
    export_difference,
    exported,
    gradient_error,
    logits_difference,
    packed_difference,
    pair,
    score_difference,
)

from rlhf_jax.models.convert.load import load_pretrained

every_writer = pytest.mark.parametrize("name", WRITERS)


@every_writer
def test_logits_are_those_of_transformers_however_rows_are_padded(name):
    assert logits_difference(name) <= 2e-5


@every_writer
def test_texts_in_one_row_do_not_see_each_other(name):
    assert packed_difference(name) <= 1e-5


@every_writer
def test_greedy_text_is_that_of_transformers(name):
    assert different_tokens(name) == 0


@every_writer
def test_the_gradient_is_that_of_torch(name):
    assert gradient_error(name) <= 1e-4


@every_writer
def test_transformers_reads_what_was_written(name):
    assert export_difference(name) <= 1e-6


@every_writer
def test_in_out_and_in_again_changes_nothing(name):
    once, twice = pair(name).ours, load_pretrained(exported(name))
    assert (twice.config, twice.family) == (once.config, once.family)
    assert jax.tree.structure(once.params) == jax.tree.structure(twice.params)
    for x, y in zip(jax.tree.leaves(once.params), jax.tree.leaves(twice.params), strict=True):
        np.testing.assert_array_equal(x, y)


@every_writer
def test_merged_adapters_do_in_transformers_what_they_did_here(name):
    assert adapted_difference(name) <= 2e-5


@every_writer
def test_a_reward_model_is_a_classifier_of_one_label_there(name):
    assert score_difference(name) <= 2e-5
