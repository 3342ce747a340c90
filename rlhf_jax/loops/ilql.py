"""Implicit language Q-learning from fixed replies: critics that start from the policy, and then guide it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import jax.numpy as jnp

from rlhf_jax.config import ILQL
from rlhf_jax.data.batching.batches import Mixture, pad_rewarded, rewarded_batches
from rlhf_jax.data.schema import Comparison, LabelledReply, Rated, Record
from rlhf_jax.data.tokens.encode import EncodedReward
from rlhf_jax.data.tokens.texts import Texts
from rlhf_jax.loops.ahead import Ahead
from rlhf_jax.loops.run import Advanced, Run, run_stage
from rlhf_jax.loops.sft import make_evaluation
from rlhf_jax.losses.q_learning import ilql_loss, with_targets
from rlhf_jax.models.critics import Critics, build_critics
from rlhf_jax.models.params import carry_over
from rlhf_jax.train.critics import CriticState, make_critic_step, start_critics
from rlhf_jax.train.optimizer import make_optimizer
from rlhf_jax.types import LossFn, Params


def rated_of(records: Iterable[Record]) -> list[Rated]:
    """Replies with rewards from comparisons and labelled replies: what was chosen or desirable is worth 1, the rest 0."""
    rated = []
    for record in records:
        if isinstance(record, Comparison):
            rated += [Rated(record.prompt, record.chosen, 1.0), Rated(record.prompt, record.rejected, 0.0)]
        elif isinstance(record, LabelledReply):
            rated.append(Rated(record.prompt, record.reply, float(record.desirable)))
    return rated


def make_ilql_step(critics: Critics, config: ILQL) -> tuple[LossFn, Callable]:
    """(loss on a batch with its targets, pure update of critics and their slow copies)."""
    loss = partial(ilql_loss, critics=critics.values, gamma=config.gamma, tau=config.tau, cql_coef=config.cql_coef)
    tx, pieces = make_optimizer(config.optim), config.optim.microbatches
    return loss, make_critic_step(loss, critics.values, tx, rate=config.polyak, microbatches=pieces)


def run_ilql(
    run: Run, policy_params: Params, texts: Texts, parts: Mixture[EncodedReward], held_out: Sequence[EncodedReward]
) -> tuple[Critics, Params]:
    """The critics after the experiment's ILQL stage, their trunk started from the policy's, and what decoding reads of them."""
    experiment, config = run.experiment, run.experiment.ilql
    assert config is not None, "called for experiments with an ILQL stage"
    length, pad = experiment.text.length, texts.tokenizer.pad
    batches = rewarded_batches(parts, config.optim.rows, length, pad, experiment.seed)
    run.note_batches("ilql", batches)
    critics = build_critics(experiment.policy)
    params = run.programs.maker(lambda: critics.init)(run.key("ilql"))
    params |= {"trunk": carry_over(policy_params, params["trunk"])}
    step = run.programs.step(lambda c: make_ilql_step(critics, c)[1], config)

    def advance(state: CriticState, number: int) -> Advanced:
        batch = run.batch(batches, number)
        state, metrics = step(state, batch)
        return Advanced(state, metrics, batch)

    measure = None
    if held_out:

        def on_targets(config: ILQL):
            loss, _ = make_ilql_step(critics, config)
            return lambda both, batch: loss(both[0], with_targets(both[1], batch, critics=critics.values))

        rows = experiment.evaluation.rows
        measure = make_evaluation(run, pad_rewarded(held_out, length, pad), rows, on_targets, config)

    def programs(ahead: Ahead, state: CriticState) -> None:
        ahead(step, state, run.batch(batches, 0))
        if measure is not None:
            measure.ask(ahead, (state.train.params, state.slow))

    state = run_stage(
        run,
        "ilql",
        fresh_critics(run, params, config),
        advance,
        config.optim.total,
        programs=programs,
        evaluate=None if measure is None else lambda state: measure((state.train.params, state.slow)),
        eval_every=config.eval_every,
        show=("q_loss", "value_loss", "v"),
    )
    return critics, state.slow


def fresh_critics(run: Run, params: Params, config: ILQL) -> CriticState:
    """The state before the first update, laid on the run's mesh."""
    return run.programs.maker(lambda optim: partial(start_critics, tx=make_optimizer(optim)), config.optim)(params)


def guidance(policy_params: Params, critics: Params, beta: float) -> Params:
    """Parameters of a guided policy; with beta = 0 it is the policy itself."""
    return {"policy": policy_params, "critics": critics, "beta": jnp.float32(beta)}
