"""One tiny random model of every family, made by transformers, and how far ours is from it."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from builders import filled, left_padded, right_padded

from rlhf_jax.config import LoRA
from rlhf_jax.models import Model, build_model
from rlhf_jax.models.convert.load import Pretrained, load_pretrained
from rlhf_jax.models.convert.save import save_pretrained
from rlhf_jax.models.lora import adapted, merged, with_lora
from rlhf_jax.rollout.generate import generate
from rlhf_jax.rollout.sampling import greedy_tokens
from rlhf_jax.types import TokenBatch

VOCAB, LENGTH, NEW = 99, 96, 64
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": LENGTH,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
# A window of 5 with heads of 16: neither can be mistaken for the width or what follows from it.
WINDOWED = GROUPED | {"sliding_window": 5, "head_dim": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SPECIAL: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

PAIRED = {"vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "decoder_start_token_id": 0}

# Decoders, and encoder-decoders.
WRITERS: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": ("GPT2Config", {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": LENGTH}),
    "GPT-NeoX, Pythia": ("GPTNeoXConfig", SIZES),
    "OPT": (
        "OPTConfig",
        {name: value for name, value in SIZES.items() if name != "intermediate_size"}
        | {"word_embed_proj_dim": 32, "ffn_dim": 48},
    ),
    "Llama 2": ("LlamaConfig", GROUPED),
    "Llama 3": ("LlamaConfig", GROUPED | {"tie_word_embeddings": True, "rope_parameters": LLAMA3}),
    "Mistral": ("MistralConfig", WINDOWED),
    "Qwen2, Qwen2.5": ("Qwen2Config", GROUPED),
    "Qwen2 with a window": (
        "Qwen2Config",
        GROUPED | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "Qwen3": ("Qwen3Config", GROUPED | {"head_dim": 16}),
    "Gemma 2": ("Gemma2Config", WINDOWED | {"query_pre_attn_scalar": 24}),
    "Gemma 3": (
        "Gemma3TextConfig",
        WINDOWED
        | {
            "query_pre_attn_scalar": 24,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 10_000.0},
            },
        },
    ),
    # Few buckets of short distances: with those of the published sizes most would never be seen.
    "T5": (
        "T5Config",
        PAIRED
        | {
            "num_layers": 3,
            "num_decoder_layers": 2,
            "relative_attention_num_buckets": 12,
            "relative_attention_max_distance": 14,
        },
    ),
    "T5 v1.1, Flan-T5": (
        "T5Config",
        PAIRED | {"num_layers": 2, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
}


@dataclasses.dataclass(frozen=True)
class Pair:
    """A model of transformers, the folder it was saved to, and ours that was read from there."""

    theirs: Any
    folder: Path
    ours: Pretrained
    model: Model


@functools.cache
def scratch() -> Path:
    """A folder for this process's checkpoints."""
    return Path(tempfile.mkdtemp(prefix="families-"))


def random_model(config: Any, build: Any = transformers.AutoModelForCausalLM) -> Any:
    """A model whose weights are far from the initial ones: nothing is 0 or 1 for want of training."""
    torch.manual_seed(0)
    model = build.from_config(config).eval()
    if (
        getattr(config, "scale_decoder_outputs", True) is False
    ):  # T5 v1.1, whose output layer transformers ties until one is read
        model.lm_head.weight = torch.nn.Parameter(0.2 * torch.randn_like(model.shared.weight))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@functools.cache
def pair(name: str) -> Pair:
    """The tiny model of a family."""
    kind, settings = WRITERS[name]
    config = getattr(transformers, kind)(**settings, **SPECIAL)
    build = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    theirs = random_model(config, build)
    folder = scratch() / name
    theirs.save_pretrained(folder)
    ours = load_pretrained(folder)
    return Pair(theirs, folder, ours, build_model(ours.config))


def their_logits(model: Any, batch: TokenBatch) -> np.ndarray:
    """[B, T, V], of padded rows."""
    with torch.no_grad():
        return their_outputs(model, batch).numpy()


def their_outputs(model: Any, batch: TokenBatch) -> torch.Tensor:
    """Logits [B, T, V] of padded rows; of an encoder-decoder those behind a prompt, each in the column of the token before."""
    if model.config.is_encoder_decoder:
        return their_replies(model, batch)
    # OPT counts positions itself; the rest are told, as their own `generate` tells them.
    counted = model.config.model_type == "opt"
    positions = {} if counted else {"position_ids": tensor(batch.positions)}
    return model(tensor(batch.tokens), attention_mask=tensor(np.asarray(batch.segments) != 0), **positions).logits


def their_replies(model: Any, batch: TokenBatch) -> torch.Tensor:
    """Logits of an encoder-decoder that is given each row's prompt and reply apart."""
    out = torch.zeros((*batch.tokens.shape, model.config.vocab_size))
    for row, (tokens, real, reply) in enumerate(zip(batch.tokens, batch.segments, batch.loss_mask, strict=True)):
        columns = np.flatnonzero(np.asarray(real))
        count = int(np.sum(np.asarray(reply)))
        prompt, written = np.asarray(tokens)[columns[:-count]], np.asarray(tokens)[columns[-count:]]
        read = torch.cat([torch.tensor([model.config.decoder_start_token_id]), tensor(written)])
        logits = model(input_ids=tensor(prompt)[None], decoder_input_ids=read[None]).logits[0]
        out[row, torch.tensor(columns[-count - 1 :])] = logits
    return out


def seen(name: str, batch: TokenBatch) -> np.ndarray:
    """[B, T], where there are logits to compare."""
    return np.asarray(pair(name).model.decoded(batch).segments) != 0


def tensor(x: Any) -> torch.Tensor:
    """A torch tensor of whole numbers."""
    return torch.tensor(np.asarray(x).astype(np.int64))


@functools.cache
def our_logits(name: str) -> Any:
    """Ours, compiled."""
    return jax.jit(pair(name).model.logits)


LENGTHS = [12, 20, 7, 16]


def batches() -> dict[str, TokenBatch]:
    """Rows without padding, with it on the right, and on the left. No pad ids among them, of whose embedding torch learns nothing."""
    made = {
        "whole": right_padded([20, 20], 20, prompt=12, vocab=VOCAB),
        "right": right_padded(LENGTHS, 20, prompt=5, vocab=VOCAB),
        "left": left_padded(LENGTHS, 20, prompt=5, vocab=VOCAB),
    }
    return {name: dataclasses.replace(batch, tokens=3 + batch.tokens % (VOCAB - 3)) for name, batch in made.items()}


def logits_difference(name: str) -> float:
    """The largest difference of a logit, over whole, right-padded and left-padded rows."""
    gaps = []
    for batch in batches().values():
        ours = np.asarray(our_logits(name)(pair(name).ours.params, batch))
        gaps.append(np.abs(ours - their_logits(pair(name).theirs, batch))[seen(name, batch)].max())
    return float(max(gaps))


def packed_difference(name: str) -> float:
    """The largest difference of a log-prob of ours between two texts in one row and in rows of their own."""
    apart = right_padded([9, 11], 20, prompt=4, vocab=VOCAB)
    tokens = np.asarray(apart.tokens)
    together = TokenBatch(
        jnp.asarray(np.concatenate([tokens[:1, :9], tokens[1:, :11]], axis=1)),
        jnp.asarray([[*range(9), *range(11)]], jnp.int32),
        jnp.asarray([[1] * 9 + [2] * 11], jnp.int32),
        jnp.concatenate([apart.loss_mask[:1, :9], apart.loss_mask[1:, :11]], axis=1),
    )
    logprobs = jax.jit(pair(name).model.logprobs)
    rows, row = (np.asarray(logprobs(pair(name).ours.params, batch, 1.0)) for batch in (apart, together))
    return float(np.abs(np.concatenate([rows[0, :9], rows[1, :11]]) - row[0]).max())


def different_tokens(name: str) -> int:
    """Of 64 tokens written greedily to each of three left-padded prompts, how many differ."""
    prompts = left_padded([3, 8, 5], 8, vocab=VOCAB)
    run = partial(generate, model=pair(name).model, new_tokens=NEW, choose=greedy_tokens)
    keys = jax.random.split(jax.random.key(0), 3)
    ours = np.asarray(jax.jit(run)(pair(name).ours.params, prompts, keys, 1.0).batch.tokens)[:, 8:]
    with torch.no_grad():
        theirs = pair(name).theirs.generate(
            tensor(prompts.tokens),
            attention_mask=tensor(np.asarray(prompts.segments) != 0),
            do_sample=False,
            min_new_tokens=NEW,
            max_new_tokens=NEW,
            eos_token_id=None,
        )
    return int((theirs.numpy()[:, -NEW:] != ours).sum())


def gradient_error(name: str) -> float:
    """|ours - theirs| / |theirs| of the gradient of a mean NLL, the worst parameter's.

    A parameter whose gradient is 0 but for rounding (the bias of a key) is held against the hundredth part of the mean one.
    """
    batch = batches()["right"]
    learned = np.asarray(batch.loss_mask)

    def loss(params):
        logprobs = pair(name).model.logprobs(params, batch, 1.0)
        return -jnp.sum(jnp.where(learned, logprobs, 0.0)) / learned.sum()

    ours = jax.jit(jax.grad(loss))(pair(name).ours.params)
    theirs = their_gradient(pair(name), batch, learned)
    return worst_error(ours, theirs)


def worst_error(ours: Any, theirs: Any) -> float:
    """|ours - theirs| / |theirs| of two gradients, the worst parameter's."""
    norms = {path: (float(np.linalg.norm(a - b)), float(np.linalg.norm(b))) for path, a, b in leaves_of(ours, theirs)}
    floor = 0.01 * float(np.mean([norm for _, norm in norms.values()]))
    return max(gap / max(norm, floor) for gap, norm in norms.values())


def their_gradient(both: Pair, batch: TokenBatch, learned: np.ndarray) -> Any:
    """Their gradient of a mean NLL, in our layout."""
    model = both.theirs
    model.zero_grad()
    logprobs = torch.log_softmax(their_outputs(model, batch)[:, :-1], dim=-1)
    picked = torch.gather(logprobs, 2, tensor(batch.tokens)[:, 1:, None])[:, :, 0]
    mask = torch.tensor(learned[:, 1:])
    (-picked[mask].sum() / float(learned.sum())).backward()
    return gradient_in_our_layout(both)


def gradient_in_our_layout(both: Pair) -> Any:
    """The gradients that their parameters hold: written as the weights of a checkpoint, and read as one."""
    model = both.theirs
    kept = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    folder = both.folder.with_name(both.folder.name + " gradient")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
        model.save_pretrained(folder)
        for key, parameter in model.named_parameters():
            parameter.copy_(kept[key])
    return load_pretrained(folder).params


def leaves_of(one: Any, other: Any) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(path, leaf, leaf) of two trees of one structure."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    return [
        (jax.tree_util.keystr(path), np.asarray(x, np.float64), np.asarray(y, np.float64))
        for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True)
    ]


@functools.cache
def exported(name: str) -> Path:
    """The tiny model, read and written by us."""
    folder = scratch() / f"{name} exported"
    ours = pair(name).ours
    save_pretrained(folder, ours.config, ours.params, family=ours.family)
    return folder


def export_difference(name: str) -> float:
    """The largest difference of a logit between their model and the one that transformers reads from our export."""
    again = type(pair(name).theirs).from_pretrained(exported(name)).eval()
    batch = batches()["right"]
    gap = their_logits(again, batch) - their_logits(pair(name).theirs, batch)
    return float(np.abs(gap)[seen(name, batch)].max())


def adapted_difference(name: str) -> float:
    """The largest difference of a logit between a model with adapters and what transformers reads of it merged."""
    lora, both = LoRA(rank=3, alpha=6.0), pair(name)
    fresh = adapted(both.ours.params, lora, jax.random.key(0))
    noise = iter(jax.random.split(jax.random.key(1), 100))
    moved = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(noise), x.shape), fresh["lora"])
    params = {**fresh, "lora": moved}
    folder = scratch() / f"{name} merged"
    save_pretrained(folder, both.ours.config, merged(params, lora), family=both.ours.family)
    batch = batches()["right"]
    real = seen(name, batch)
    ours = np.asarray(jax.jit(with_lora(both.model, lora).logits)(params, batch))
    theirs = their_logits(type(both.theirs).from_pretrained(folder).eval(), batch)
    assert np.abs(theirs - their_logits(both.theirs, batch))[real].max() > 0.01, "the adapters do nothing"
    return float(np.abs(ours - theirs)[real].max())


def score_difference(name: str) -> float:
    """The largest difference of a reward model's score from that of the classifier that transformers reads.

    Theirs have no bias, but for those of encoder-decoders.
    """
    both = pair(name)
    config = dataclasses.replace(both.ours.config, head="scalar")
    model = build_model(config)
    heads = filled(model.init, 0)
    params = {part: both.ours.params.get(part, tree) for part, tree in heads.items()}
    params["score"] = {"kernel": jnp.linspace(-1.0, 1.0, config.width), "bias": jnp.float32(0.5)}
    offset = 0.0 if "score/bias" in both.ours.family.tensors(config) else 0.5
    folder = scratch() / f"{name} reward"
    save_pretrained(folder, config, params, family=both.ours.family, ids=SPECIAL)
    again = load_pretrained(folder)
    assert again.config == config
    jax.tree.map(np.testing.assert_array_equal, again.params, params)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    batch = batches()["right"]
    mask = np.asarray(batch.segments) != 0
    tokens = np.where(mask, np.asarray(batch.tokens), SPECIAL["pad_token_id"])
    tokens[np.arange(len(tokens)), np.array(LENGTHS) - 1] = SPECIAL["eos_token_id"]  # where T5's classifier looks
    batch = dataclasses.replace(batch, tokens=jnp.asarray(tokens))
    with torch.no_grad():
        scores = theirs(tensor(tokens), attention_mask=tensor(mask)).logits[:, 0].numpy()
    return float(np.abs(np.asarray(model.scores(params, batch)) - offset - scores).max())
