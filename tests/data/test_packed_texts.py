"""Packed rows learn what padded ones do, through real templates and tokenizers: the same loss and the same gradient."""

import functools

import jax
import numpy as np
import pytest
from builders import assert_trees_close

from rlhf_jax.config import ModelConfig
from rlhf_jax.data.batching.packing import pack, packed_rows
from rlhf_jax.data.batching.padding import cut, pad_right
from rlhf_jax.data.schema import Conversation, Demonstration, Document, Provenance, Turn
from rlhf_jax.data.sources import load_source
from rlhf_jax.data.tokens.encode import encode_conversation, encode_demonstration, encode_document
from rlhf_jax.data.tokens.templates import TEMPLATES
from rlhf_jax.data.tokens.tokenizer import ending_with, load_tokenizer
from rlhf_jax.losses.sft import sft_loss
from rlhf_jax.models import build_model

HERE = Provenance("test", "MIT")
LENGTH, ROW = 96, 256
ROWS, SINGLE = 6, 16
SAID = [
    Turn("user", "写一首诗。"),
    Turn("assistant", "床前明月光"),
    Turn("user", "再来一句"),
    Turn("assistant", "疑是地上霜"),
]
TOKENIZERS = {
    "mistral": "tokenizers/mistral-v1/tokenizer.model",
    "chinese": "tokenizers/chinese-llama/chinese_sp.model",
    "t5": "tokenizers/t5/spiece.model",
}


@functools.cache
def model_of(vocab):
    shape = ModelConfig(vocab=vocab, width=16, layers=2, heads=2, kv_heads=1, mlp=32, max_length=ROW, logit_chunk=64)
    model = build_model(shape)
    loss = functools.partial(sft_loss, logprobs=model.logprobs)
    return model.init(jax.random.key(0)), jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("how", ["first_fit", "best_fit"])
def test_packed_rows_have_the_loss_and_the_gradient_of_padded_ones(data_root, name, kind, how):
    template = TEMPLATES[name]
    tokenizer = ending_with(load_tokenizer(data_root / TOKENIZERS[kind]), template.end)
    files = {"en": "alpaca:instructions/rasbt/*.json", "zh": "alpaca:instructions/zh-supplement/culture.json"}
    records = [record for spec in files.values() for record in load_source(spec, data_root).records[:4]]
    examples = [encode_demonstration(r, tokenizer, template, LENGTH) for r in records if isinstance(r, Demonstration)]
    examples += encode_conversation(Conversation(tuple(SAID), HERE), tokenizer, template, LENGTH)
    examples += encode_document(Document("Once upon a time there was a cat. " * 6, HERE), tokenizer, LENGTH)
    short = [cut(example, LENGTH) for example in examples]
    packed = packed_rows(short, pack([example.size for example in short], ROW, how), ROW, tokenizer.pad)
    params, measure = model_of(tokenizer.vocab_size)
    # Filled up with rows of nothing, so that all cases are of one shape.
    one, other = (
        jax.tree.map(lambda leaf, rows=rows: np.pad(leaf, ((0, rows - len(leaf)), (0, 0))), batch)
        for batch, rows in ((packed, ROWS), (pad_right(examples, LENGTH, tokenizer.pad), SINGLE))
    )
    (packed_loss, packed_aux), packed_gradient = measure(params, one)
    (padded_loss, padded_aux), padded_gradient = measure(params, other)
    assert float(packed_aux.weight) == float(padded_aux.weight) > 50
    np.testing.assert_allclose(packed_loss, padded_loss, atol=1e-5)
    assert_trees_close(packed_gradient, padded_gradient, atol=1e-5)
