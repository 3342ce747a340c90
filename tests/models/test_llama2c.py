from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import lively

from rlhf_jax.config import ModelConfig
from rlhf_jax.data.tokens.tokenizer import SentencePieceTokenizer
from rlhf_jax.models import build_model
from rlhf_jax.models.convert.llama2c import FREE, WRITTEN, load_llama2c, save_llama2c
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


def order(
    width: int, mlp: int, layers: int, heads: int, kv_heads: int, vocab: int, length: int
) -> dict[str, tuple[int, ...]]:
    """The arrays of a file with a tied output layer, by its header."""
    size = width // heads
    return {
        "embedding": (vocab, width),
        "attention_norm": (layers, width),
        "q": (layers, width, width),
        "k": (layers, kv_heads * size, width),
        "v": (layers, kv_heads * size, width),
        "o": (layers, width, width),
        "mlp_norm": (layers, width),
        "w1": (layers, mlp, width),
        "w2": (layers, width, mlp),
        "w3": (layers, mlp, width),
        "final_norm": (width,),
        "rotary": (2, length, size // 2),
    }


ORDER = order(WIDTH, MLP, LAYERS, HEADS, KV_HEADS, VOCAB, LENGTH)


def arrays_of(path: Path) -> tuple[dict[str, np.ndarray], int]:
    """The arrays of a file, and how many heads its header gives it."""
    header = np.fromfile(path, "<i4", count=7).tolist()
    flat, arrays = np.fromfile(path, "<f4", offset=28), {}
    for name, shape in order(*header).items():
        arrays[name], flat = flat[: np.prod(shape)].reshape(shape), flat[np.prod(shape) :]
    assert flat.size == 0
    return arrays, header[3]


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


def logits_of_llama2c(w: dict[str, np.ndarray], tokens: list[int], heads: int = HEADS) -> np.ndarray:
    """The forward pass as run.c does it, rotary pairs adjacent, key-value heads shared by neighbours; [T, V]."""
    w = {name: x.astype(np.float64) for name, x in w.items()}
    layers, width, _ = w["q"].shape
    size = width // heads
    shared = heads * size // w["k"].shape[1]  # heads that read one key-value head

    def norm(x, weight):
        return x / np.sqrt((x**2).mean() + 1e-5) * weight

    def turn(x, position):
        for i in range(0, len(x), 2):
            angle = position * 10000.0 ** (-(i % size) / size)
            cos, sin = np.cos(angle), np.sin(angle)
            x[i], x[i + 1] = x[i] * cos - x[i + 1] * sin, x[i] * sin + x[i + 1] * cos
        return x

    cache, logits = [[] for _ in range(layers)], []
    for position, token in enumerate(tokens):
        x = w["embedding"][token]
        for n in range(layers):
            h = norm(x, w["attention_norm"][n])
            q = turn(w["q"][n] @ h, position).reshape(heads, size)
            key, value = turn(w["k"][n] @ h, position), w["v"][n] @ h
            cache[n].append((key.reshape(-1, size), value.reshape(-1, size)))
            read = []
            for head, query in enumerate(q):
                seen = [(keys[head // shared], values[head // shared]) for keys, values in cache[n]]
                scores = np.array([np.exp(query @ key / np.sqrt(size)) for key, _ in seen])
                read.append(sum(s * value for s, (_, value) in zip(scores / scores.sum(), seen, strict=True)))
            x = x + w["o"][n] @ np.concatenate(read)
            h = norm(x, w["mlp_norm"][n])
            gate = w["w1"][n] @ h
            x = x + w["w2"][n] @ (gate / (1 + np.exp(-gate)) * (w["w3"][n] @ h))
        logits.append(w.get("unembed", w["embedding"]) @ norm(x, w["final_norm"]))
    return np.stack(logits)


@pytest.mark.parametrize("tied", [True, False])
def test_every_array_of_a_file_lands_where_the_c_program_uses_it(tmp_path, tied):
    arrays = write(tmp_path / "model.bin", tied=tied)
    config, params = load_llama2c(tmp_path / "model.bin")
    assert (config.tied, config.vocab, config.kv_heads, config.max_length) == (tied, VOCAB, KV_HEADS, LENGTH)
    logits = build_model(config).logits(params, row_of([3, 1, 4]))
    np.testing.assert_allclose(logits[0], logits_of_llama2c(arrays, [3, 1, 4]), atol=1e-4)
    fresh = jax.eval_shape(build_model(config).init, jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, fresh)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ([8, 6, 0, 2, 1, 5, 3], r"not a llama2.c checkpoint: header \[8, 6, 0, 2, 1, 5, 3\]"),
        ([8, 6, 2, 2, 1, 0, 3], "expected seven counts above 0"),
        ([8, 6, 2, 2, 1, 5, -3], "expected seven counts above 0"),
        ([8, 6, 2, 3, 1, 5, 3], "header has width 8, 3 heads, 1 key-value heads: they do not divide"),
        ([6, 6, 2, 2, 1, 5, 3], "header has width 6, 2 heads, 1 key-value heads: they do not divide"),
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


# --- writing -------------------------------------------------------------------------------------------------------

SMALL = ModelConfig(vocab=VOCAB, width=WIDTH, layers=LAYERS, heads=HEADS, kv_heads=KV_HEADS, mlp=MLP, max_length=LENGTH)
SHAPES = {
    "tied, grouped": SMALL,
    "untied, grouped": dataclasses.replace(SMALL, tied=False),
    "tied, a key-value head each": dataclasses.replace(SMALL, kv_heads=HEADS),
    "odd sizes": ModelConfig(vocab=7, width=18, layers=1, heads=3, kv_heads=1, mlp=5, max_length=1, tied=False),
    "many heads": ModelConfig(vocab=11, width=24, layers=3, heads=6, kv_heads=3, mlp=13, max_length=9),
}


def outside_of_the_tables(content: bytes, config: ModelConfig) -> bytes:
    """A file without its cosines and sines, which readers skip."""
    tables = 4 * config.max_length * config.head_size
    end = len(content) - (0 if config.tied else 4 * config.vocab * config.width)
    return content[: end - tables] + content[end:]


def assert_same_trees(found, expected) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("tied", [True, False])
def test_a_file_read_and_written_again_has_the_same_bytes(tmp_path, tied):
    write(tmp_path / "model.bin", tied=tied)
    config, params = load_llama2c(tmp_path / "model.bin")
    save_llama2c(tmp_path / "again.bin", config, params)
    before, after = ((tmp_path / name).read_bytes() for name in ("model.bin", "again.bin"))
    assert outside_of_the_tables(after, config) == outside_of_the_tables(before, config)
    # The tables are not read, so a second round writes the whole file the same.
    save_llama2c(tmp_path / "third.bin", *load_llama2c(tmp_path / "again.bin"))
    assert (tmp_path / "third.bin").read_bytes() == after
    assert {path.name for path in tmp_path.iterdir()} == {"model.bin", "again.bin", "third.bin"}


def test_the_story_model_read_and_written_again_has_the_same_bytes(data_root, tmp_path):
    path = data_root / "checkpoints" / "stories260K" / "stories260K.bin"
    config, params = load_llama2c(path)
    save_llama2c(tmp_path / "again.bin", config, params)
    before, after = path.read_bytes(), (tmp_path / "again.bin").read_bytes()
    assert outside_of_the_tables(after, config) == outside_of_the_tables(before, config)
    # The last bit of a cosine is the affair of the library that computed it.
    np.testing.assert_allclose(np.frombuffer(after[28:], "<f4"), np.frombuffer(before[28:], "<f4"), rtol=0, atol=3e-6)


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_our_own_parameters_written_and_read_are_the_same_bits(tmp_path, config):
    params = lively(config)
    save_llama2c(tmp_path / "model.bin", config, params)
    found, loaded = load_llama2c(tmp_path / "model.bin")
    assert found == config
    assert_same_trees(loaded, params)


def test_how_a_model_is_computed_is_not_written_and_a_head_size_that_follows_is_left_out(tmp_path):
    config = dataclasses.replace(SMALL, dtype="bfloat16", remat="layers", logit_chunk=4, head_dim=SIZE)
    save_llama2c(tmp_path / "model.bin", config, lively(config))
    assert load_llama2c(tmp_path / "model.bin")[0] == SMALL


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "scalar"}, r"with head='scalar' \(only 'lm'\)"),
        ({"head": "lm+scalar"}, r"head='lm\+scalar'"),
        ({"norm": "layer"}, "norm='layer'"),
        ({"causal": False}, r"causal=False \(only True\)"),
        ({"embedding_norm": True, "token_types": 2}, r"embedding_norm=True \(only False\), token_types=2 \(only 0\)"),
        ({"causal": False, "head": "classes", "classes": 3}, "causal=False .*, head='classes' .*, classes=3"),
        ({"norm_eps": 1e-6}, r"norm_eps=1e-06 \(only 1e-05\)"),
        ({"position": "learned"}, "position='learned'"),
        ({"rope_base": 500.0}, r"rope_base=500\.0 \(only 10000\.0\)"),
        ({"activation": "gelu", "bias": True}, r"with activation='gelu' \(only 'swiglu'\), bias=True \(only False\)"),
        ({"head_dim": 6}, r"head_dim=6 \(only width / heads\)"),
        ({"width": 9, "head_dim": 4}, r"head_dim=4 \(only width / heads\)"),
    ],
)
def test_what_the_format_cannot_express_is_refused_by_field_and_nothing_is_written(tmp_path, changes, message):
    config = dataclasses.replace(SMALL, **changes)
    with pytest.raises(ValueError, match=message):
        save_llama2c(tmp_path / "model.bin", config, lively(config))
    assert list(tmp_path.iterdir()) == []


def test_every_field_of_a_config_is_written_free_or_held_to_one_value():
    # A field that is new is refused wherever it is set; this says where to decide whether the format knows it.
    held = {"head_dim", "head", "norm", "norm_at", "norm_eps", "parallel", "activation", "bias", "qkv_bias"}
    held |= {"position", "rope_base", "rope_share", "rope_scaling", "local_rope_base", "window", "full_layers"}
    held |= {"query_scale", "qk_norm", "attention_softcap", "logit_softcap", "embedding_scale"}
    held |= {"causal", "embedding_norm", "token_types", "classes"}
    held |= {"encoder_layers", "start", "relative_buckets", "relative_distance", "output_scale"}
    assert {field.name for field in dataclasses.fields(ModelConfig)} == held | {*WRITTEN, *FREE}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.update(score={"bias": jnp.zeros(())}), r"params\['score'\]\['bias'\] is float32\[\]; .* has None"),
        (lambda p: p.pop("final_norm"), r"params\['final_norm'\]\['scale'\] is None; .* has float32\[8\]"),
        (lambda p: p.update(tokens={"embedding": jnp.zeros((4, 8))}), r"is float32\[4, 8\]; .* has float32\[5, 8\]"),
        (lambda p: p.update(final_norm={"scale": jnp.zeros(8, jnp.bfloat16)}), "is bfloat16"),
    ],
)
def test_parameters_of_another_model_are_refused_by_name(tmp_path, change, message):
    params = dict(lively(SMALL))
    change(params)
    with pytest.raises(ValueError, match=message):
        save_llama2c(tmp_path / "model.bin", SMALL, params)


def test_logits_of_the_story_model_are_those_of_the_c_program(data_root):
    """float64 on their side, so that what is left is our rounding alone."""
    folder = data_root / "checkpoints" / "stories260K"
    config, params = load_llama2c(folder / "stories260K.bin")
    tokens = [1, *SentencePieceTokenizer(folder / "tok512.model").encode(STORY)]
    ours = np.asarray(build_model(config).logits(params, row_of(tokens)))[0]
    arrays, heads = arrays_of(folder / "stories260K.bin")
    theirs = logits_of_llama2c(arrays, tokens, heads)
    gap = float(np.abs(ours - theirs).max())
    assert gap <= 1e-4, f"{gap} over {len(tokens)} positions"
    assert np.abs(theirs).max() > 5


def logits_of_transformers(config: ModelConfig, params, tokens: list[int]) -> np.ndarray:
    """transformers' Llama with these weights, [T, V]. It turns the halves of a head, as we do."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    c = config
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=c.vocab,
            hidden_size=c.width,
            intermediate_size=c.mlp,
            num_hidden_layers=c.layers,
            num_attention_heads=c.heads,
            num_key_value_heads=c.kv_heads,
            max_position_embeddings=max(c.max_length, len(tokens)),
            rms_norm_eps=1e-5,
            rope_theta=10_000.0,
            tie_word_embeddings=c.tied,
            attention_bias=False,
        )
    ).eval()
    p = jax.tree.map(np.asarray, params)
    weights = {"model.embed_tokens.weight": p["tokens"]["embedding"], "model.norm.weight": p["final_norm"]["scale"]}
    weights["lm_head.weight"] = p["tokens"]["embedding"] if c.tied else p["unembed"]["kernel"].T
    for n in range(c.layers):
        layer, name = jax.tree.map(lambda x, n=n: x[n], p["layers"]), f"model.layers.{n}"
        for ours, theirs in (("attention_norm", "input_layernorm"), ("mlp_norm", "post_attention_layernorm")):
            weights[f"{name}.{theirs}.weight"] = layer[ours]["scale"]
        for part in "qkv":
            weights[f"{name}.self_attn.{part}_proj.weight"] = layer["attention"][part]["kernel"].reshape(c.width, -1).T
        weights[f"{name}.self_attn.o_proj.weight"] = layer["attention"]["o"]["kernel"].reshape(-1, c.width).T
        for part in ("gate", "up", "down"):
            weights[f"{name}.mlp.{part}_proj.weight"] = layer["mlp"][part]["kernel"].T
    model.load_state_dict({name: torch.tensor(np.ascontiguousarray(x)) for name, x in weights.items()})
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_logits_of_a_written_file_are_those_of_transformers_with_the_same_weights(tmp_path, config):
    params = lively(config)
    save_llama2c(tmp_path / "model.bin", config, params)
    tokens = np.random.default_rng(3).integers(0, config.vocab, 12).tolist()
    ours = build_model(config).logits(load_llama2c(tmp_path / "model.bin")[1], row_of(tokens))[0]
    np.testing.assert_allclose(ours, logits_of_transformers(config, params, tokens), atol=1e-4)


def test_logits_of_the_story_model_are_those_of_transformers_with_the_same_weights(data_root):
    folder = data_root / "checkpoints" / "stories260K"
    config, params = load_llama2c(folder / "stories260K.bin")
    tokens = [1, *SentencePieceTokenizer(folder / "tok512.model").encode(STORY)]
    ours = build_model(config).logits(params, row_of(tokens))[0]
    theirs = logits_of_transformers(config, params, tokens)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert np.abs(theirs).max() > 5
