"""A reward model that we wrote gives in transformers the scores that it gives here, less the bias that transformers has no room for."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import torch
from builders import built, lively, right_padded
from checkpoints import DECODERS, FAMILY, SMALL, saved
from transformers import AutoModelForSequenceClassification


@pytest.mark.parametrize("name", DECODERS)
def test_transformers_gives_our_scores(tmp_path, name):
    config = dataclasses.replace(SMALL[name], head="scalar")
    theirs, loaded = AutoModelForSequenceClassification.from_pretrained(
        saved(tmp_path / "a", name, config), output_loading_info=True
    )
    assert not any(loaded.values()), loaded
    assert type(theirs).__name__ == FAMILY[name].scorer
    batch = right_padded([9, 9, 9], 9, vocab=config.vocab)  # whole rows: where theirs end depends on a pad id
    ours = np.asarray(jax.jit(built(config).scores)(lively(config), batch))
    with torch.no_grad():
        scores = [theirs.eval()(torch.tensor(np.asarray(row)[None]).long()).logits[0, 0] for row in batch.tokens]
    bias = float(lively(config)["score"]["bias"])
    np.testing.assert_allclose(ours, np.asarray(scores) + bias, atol=2e-5)
    assert np.std(ours) > 0.1
