"""Tunix does the workloads: `python -m benchmarks.peers.tunix_side TASK` in the environment of tunix.txt."""

# pyright: reportMissingImports=false

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.sft import utils
from tunix.sft.dpo.dpo_trainer import DPOTrainer, DPOTrainingConfig
from tunix.sft.dpo.dpo_trainer import TrainingInput as Pairs
from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig
from tunix.sft.peft_trainer import TrainingInput as Rows

from benchmarks.peers import inputs
from benchmarks.peers.protocol import Gate, Unavailable, repeat, run_side
from benchmarks.peers.tunix_parts import VERSIONS, Numbers, Scores, adam, llama, parameters, turns
from benchmarks.peers.tunix_rl import grpo, ppo

NEVER = 1_000_000_000


def model_input(tokens: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Positions and attention as Tunix's examples make them, inside the compiled update."""
    return {
        "positions": utils.build_positions_from_mask(mask),
        "attention_mask": utils.make_causal_attn_mask(mask),
        "input_tokens": tokens,
    }


def sft(task: dict[str, Any], gate: Gate) -> None:
    tokens = inputs.tokens(task["model"]["vocab"], task["rows"], task["length"])
    _sft(task, gate, [Rows(input_tokens=tokens, input_mask=np.ones_like(tokens, bool))])


def sft_padded(task: dict[str, Any], gate: Gate) -> None:
    """Padded to one length: a program is compiled for every other one."""
    texts, rows = inputs.texts(task["model"]["vocab"], task["lengths"]), task["rows"]
    tokens, mask = np.zeros((len(texts), task["length"]), np.int32), np.zeros((len(texts), task["length"]), bool)
    for row, text in enumerate(texts):
        tokens[row, : len(text)], mask[row, : len(text)] = text, True
    parts = [slice(start, start + rows) for start in range(0, len(texts), rows)]
    _sft(task, gate, [Rows(input_tokens=tokens[part], input_mask=mask[part]) for part in parts])


def sft_packed(task: dict[str, Any], gate: Gate) -> None:
    raise Unavailable(f"PeftTrainer of Tunix {VERSIONS['google-tunix']} does not pack; sft_padded is the same texts")


def _sft(task: dict[str, Any], gate: Gate, batches: list[Rows]) -> None:
    trainer = PeftTrainer(llama(task), adam(task), TrainingConfig(eval_every_n_steps=NEVER))
    trainer.with_gen_model_input_fn(
        lambda rows: {"input_mask": rows.input_mask} | model_input(rows.input_tokens, rows.input_mask)
    )
    _train(trainer, gate, batches)


def _train(trainer: PeftTrainer, gate: Gate, batches: list[Any]) -> None:
    """One step of the workload is all batches once."""
    gate.describe(parameters(trainer.model), VERSIONS, len(batches))
    trainer.train(turns(gate, batches, trainer.model))


def _pairs(task: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    chosen, rejected = (inputs.tokens(task["model"]["vocab"], task["rows"], task["length"], seed) for seed in (0, 1))
    return chosen, rejected


def _comparison_loss(model: Scores, input_tokens, positions, attention_mask) -> jax.Array:
    """-log P(chosen beats rejected), the first half of the rows being the chosen ones."""
    scores = model(input_tokens, positions, None, attention_mask)[:, -1, 0]
    chosen, rejected = jnp.split(scores, 2)
    return -jax.nn.log_sigmoid(chosen - rejected).mean()


def reward(task: dict[str, Any], gate: Gate) -> None:
    """Tunix has no trainer of reward models: its PeftTrainer, with this loss."""
    trainer = PeftTrainer(llama(task, Scores), adam(task), TrainingConfig(eval_every_n_steps=NEVER))
    trainer.with_loss_fn(_comparison_loss)
    trainer.with_gen_model_input_fn(lambda rows: model_input(rows.input_tokens, rows.input_mask))
    tokens = np.concatenate(_pairs(task))
    _train(trainer, gate, [Rows(input_tokens=tokens, input_mask=np.ones_like(tokens, bool))])


def dpo(task: dict[str, Any], gate: Gate) -> None:
    """Prompts of one token, so that as many are learned as ours."""
    chosen, rejected = _pairs(task)
    trainer = DPOTrainer(llama(task), llama(task), adam(task), DPOTrainingConfig(eval_every_n_steps=NEVER, beta=0.1))
    batch = Pairs(
        prompt_ids=chosen[:, :1],
        prompt_mask=np.ones_like(chosen[:, :1]),
        chosen_ids=chosen[:, 1:],
        chosen_mask=np.ones_like(chosen[:, 1:]),
        rejected_ids=rejected[:, 1:],
        rejected_mask=np.ones_like(rejected[:, 1:]),
    )
    _train(trainer, gate, [batch])


def generation(task: dict[str, Any], gate: Gate) -> None:
    size, length, new = task["model"], task["prompt_length"], task["new_tokens"]
    model = llama(task)
    cache = CacheConfig(length + new, size["layers"], size["kv_heads"], size["width"] // size["heads"])
    sampler = Sampler(model, Numbers(size["vocab"]), cache)
    prompts = [inputs.words(ids) for ids in inputs.tokens(size["vocab"], task["prompts"], length).tolist()]
    seeds = itertools.count()

    def write() -> None:
        sampling = {"temperature": 1.0, "top_p": 1.0, "seed": next(seeds)}
        written = sampler(prompts, max_generation_steps=new, max_prompt_length=length, **sampling)
        if {len(row) for row in written.tokens} != {new}:
            raise ValueError("a response is shorter than it should be")

    gate.describe(parameters(model), VERSIONS)
    repeat(gate, write)


WORKLOADS = {run.__name__: run for run in (sft, sft_padded, sft_packed, reward, dpo, generation, grpo, ppo)}


def serve(task: dict[str, Any], gate: Gate) -> None:
    if task["workload"] not in WORKLOADS:
        raise Unavailable(f"the Tunix side has no workload {task['workload']}")
    WORKLOADS[task["workload"]](task, gate)


if __name__ == "__main__":
    run_side(serve)
