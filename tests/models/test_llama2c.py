from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.data.tokenizer import SentencePieceTokenizer
from rlhf_jax.models import build_model
from rlhf_jax.models.convert.llama2c import load_llama2c
from rlhf_jax.rollout.generate import generate
from rlhf_jax.rollout.replies import response_ids
from rlhf_jax.rollout.sampling import greedy_tokens
from rlhf_jax.types import TokenBatch

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, "
    "red ball. She wanted to play with it, but it was too high.\nLily's mom said, \"Lily, let's go to the park.\""
)
WIDTH, MLP, LAYERS, HEADS, KV_HEADS, VOCAB, LENGTH = 8, 6, 2, 2, 1, 5, 3
SIZE = WIDTH // HEADS
ORDER = {
    "embedding": (VOCAB, WIDTH),
    "attention_norm": (LAYERS, WIDTH),
    "q": (LAYERS, WIDTH, WIDTH),
    "k": (LAYERS, KV_HEADS * SIZE, WIDTH),
    "v": (LAYERS, KV_HEADS * SIZE, WIDTH),
    "o": (LAYERS, WIDTH, WIDTH),
    "mlp_norm": (LAYERS, WIDTH),
    "w1": (LAYERS, MLP, WIDTH),
    "w2": (LAYERS, WIDTH, MLP),
    "w3": (LAYERS, MLP, WIDTH),
    "final_norm": (WIDTH,),
    "rotary": (2, LENGTH, SIZE // 2),
}


def write(path: Path, *, tied: bool = False, header=None) -> dict[str, np.ndarray]:
    """A checkpoint of random numbers as llama2.c writes it; comes out as its arrays."""
    shapes = ORDER if tied else {**ORDER, "unembed": (VOCAB, WIDTH)}
    noise = np.random.default_rng(0)
    arrays = {name: noise.normal(size=shape).astype("<f4") for name, shape in shapes.items()}
    counts = [WIDTH, MLP, LAYERS, HEADS, KV_HEADS, VOCAB if tied else -VOCAB, LENGTH] if header is None else header
    path.write_bytes(np.array(counts, "<i4").tobytes() + b"".join(a.tobytes() for a in arrays.values()))
    return arrays


def row_of(tokens: list[int]) -> TokenBatch:
    array = jnp.array([tokens], jnp.int32)
    places = jnp.arange(len(tokens), dtype=jnp.int32)[None, :]
    return TokenBatch(array, places, jnp.ones_like(array), jnp.zeros_like(array, bool))


def test_the_story_model_tells_its_story(data_root):
    folder = data_root / "checkpoints" / "stories260K"
    config, params = load_llama2c(folder / "stories260K.bin")
    assert (config.width, config.layers, config.heads, config.kv_heads, config.vocab) == (64, 5, 8, 4, 512)
    tokenizer = SentencePieceTokenizer(folder / "tok512.model")
    run = partial(generate, model=build_model(config), new_tokens=110, stop=(tokenizer.eos,), choose=greedy_tokens)
    rollout = jax.jit(run)(params, row_of([1]), jax.random.split(jax.random.key(0), 1), 1.0)
    assert tokenizer.decode(response_ids(rollout)[0]).startswith(STORY)


def logits_of_llama2c(w: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """The forward pass as run.c does it, rotary pairs adjacent; [V] after the last token."""
    w = {name: x.astype(np.float64) for name, x in w.items()}

    def norm(x, weight):
        return x / np.sqrt((x**2).mean() + 1e-5) * weight

    def turn(x, position):
        for i in range(0, len(x), 2):
            angle = position * 10000.0 ** (-(i % SIZE) / SIZE)
            cos, sin = np.cos(angle), np.sin(angle)
            x[i], x[i + 1] = x[i] * cos - x[i + 1] * sin, x[i] * sin + x[i + 1] * cos
        return x

    cache = [[] for _ in range(LAYERS)]
    for position, token in enumerate(tokens):
        x = w["embedding"][token]
        for n in range(LAYERS):
            h = norm(x, w["attention_norm"][n])
            q = turn(w["q"][n] @ h, position).reshape(HEADS, SIZE)
            cache[n].append((turn(w["k"][n] @ h, position), w["v"][n] @ h))
            heads = []
            for head in q:
                scores = np.array([np.exp(head @ key / np.sqrt(SIZE)) for key, _ in cache[n]])
                heads.append(sum(s * value for s, (_, value) in zip(scores / scores.sum(), cache[n], strict=True)))
            x = x + w["o"][n] @ np.concatenate(heads)
            h = norm(x, w["mlp_norm"][n])
            gate = w["w1"][n] @ h
            x = x + w["w2"][n] @ (gate / (1 + np.exp(-gate)) * (w["w3"][n] @ h))
    return w.get("unembed", w["embedding"]) @ norm(x, w["final_norm"])


@pytest.mark.parametrize("tied", [True, False])
def test_every_array_of_a_file_lands_where_the_c_program_uses_it(tmp_path, tied):
    arrays = write(tmp_path / "model.bin", tied=tied)
    config, params = load_llama2c(tmp_path / "model.bin")
    assert (config.tied, config.vocab, config.kv_heads, config.max_length) == (tied, VOCAB, KV_HEADS, LENGTH)
    logits = build_model(config).logits(params, row_of([3, 1, 4]))
    np.testing.assert_allclose(logits[0, -1], logits_of_llama2c(arrays, [3, 1, 4]), atol=1e-4)
    fresh = jax.eval_shape(build_model(config).init, jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, fresh)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ([8, 6, 0, 2, 1, 5, 3], r"not a llama2.c checkpoint: header \[8, 6, 0, 2, 1, 5, 3\]"),
        ([8, 6, 2, 2, 1, 0, 3], "expected seven counts above 0"),
        ([8, 6, 2, 2, 1, 5, -3], "expected seven counts above 0"),
        ([8, 6, 2, 3, 1, 5, 3], "header has width 8, 3 heads, 1 key-value heads: they do not divide"),
        ([8, 6, 2, 2, 1, 5, 4], "asks for"),
        ([8, 7, 2, 2, 1, 5, 3], "cut short or of another version"),
        ([8, 6], "header "),
    ],
)
def test_a_header_that_cannot_be_true_is_refused_with_its_numbers(tmp_path, header, message):
    path = tmp_path / "model.bin"
    write(path, tied=True, header=header)
    if len(header) < 7:
        path.write_bytes(np.array(header, "<i4").tobytes())
    with pytest.raises(ValueError, match=message) as error:
        load_llama2c(path)
    assert str(path) in str(error.value)


def test_a_file_cut_short_says_how_long_it_should_be(tmp_path):
    path = tmp_path / "model.bin"
    write(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(ValueError, match=f"{len(whole) - 4} bytes, .* asks for {len(whole)}"):
        load_llama2c(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.bin"):
        load_llama2c(tmp_path / "nothing.bin")
