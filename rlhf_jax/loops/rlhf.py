"""PPO: rollout, how models read it, its scores, advantages over the whole batch, epochs of minibatches; each a compiled program."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import processes
from rlhf_jax.config import PPO
from rlhf_jax.data.batching.batches import Batches, columns_for, last_columns, prompt_batches
from rlhf_jax.data.tokens.encode import Encoded
from rlhf_jax.data.tokens.texts import Texts
from rlhf_jax.loops.adapters import trainee
from rlhf_jax.loops.ahead import Ahead
from rlhf_jax.loops.run import Advanced, Run, run_stage
from rlhf_jax.loops.sft import fresh_state
from rlhf_jax.losses.kl import adapt_kl_coef
from rlhf_jax.losses.policy import policy_loss
from rlhf_jax.losses.ppo import ppo_value_loss
from rlhf_jax.losses.sft import sft_loss
from rlhf_jax.models import Model
from rlhf_jax.processes import on_host
from rlhf_jax.rollout.generate import Ending, responses
from rlhf_jax.rollout.refill import Scored, refill, signal_share
from rlhf_jax.rollout.replies import response_texts
from rlhf_jax.rollout.sampling import row_keys
from rlhf_jax.rollout.score import judge_rollout, read_rollout, token_kl_to
from rlhf_jax.sharding import batch_shapes, place, place_batch
from rlhf_jax.train.optimizer import make_optimizer
from rlhf_jax.train.ppo import PPOState, Term, combined, if_finite, make_ppo_update, start_ppo
from rlhf_jax.types import Params, Rollout, TokenBatch

Scorer = Callable[[Rollout, np.ndarray], Any]
"""(rollout, prompt index of each row) -> scores [B]: a compiled reward model, or a Python function of the text."""

Watch = Callable[[Rollout, np.ndarray], Mapping[str, float]]
"""(rollout, prompt index of each row) -> metrics."""


@dataclasses.dataclass(frozen=True)
class ModelScorer:
    """A Scorer: a reward model, whose scores stay on the device."""

    program: Callable[..., Any]
    params: Params

    def __call__(self, rollout: Rollout, index: np.ndarray) -> Any:
        return self.program(self.params, rollout.batch)


def model_scorer(run: Run, model: Model, params: Params) -> ModelScorer:
    """The Scorer of a reward model."""
    programs = len(run.experiment.text.prompt_lengths)
    return ModelScorer(run.programs.function(lambda: model.scores, programs=programs, rows=True), params)


def rollout_scorer(run: Run, model: Model, params: Params, config: PPO) -> ModelScorer:
    """The Scorer of a reward model that reads a prompt once for all responses of a rollout."""

    def make(config: PPO):
        return model.in_groups(config.samples, config.new_tokens).scores

    programs = len(run.experiment.text.prompt_lengths)
    return ModelScorer(run.programs.function(make, config, programs=programs, rows=True), params)


class RewardError(RuntimeError):
    """A reward function that failed, and on which reply."""


def text_scorer(run: Run, texts: Texts, score: Callable[[int, str], float]) -> Scorer:
    """Scores of `score(prompt index, reply text)`, computed on the host; of several processes each scores some of the replies.

    Raises: ValueError naming the prompt where a score is not a finite number, RewardError where there is none.
    """

    def value_of(prompt: int, reply: str) -> float:
        try:
            value = float(score(prompt, texts.template.reply_text(reply)))
        except Exception as error:
            raise RewardError(
                f"the reward function failed on prompt {prompt} and reply {reply!r}: {error!r}"
            ) from error
        if not np.isfinite(value):
            raise ValueError(
                f"the reward of prompt {prompt} and reply {reply!r} is {value}; it must be a finite number"
            )
        return value

    def scorer(rollout: Rollout, index: np.ndarray):
        replies = response_texts(rollout, texts.tokenizer)

        def own_scores() -> np.ndarray:
            scores = np.zeros(len(replies), np.float32)
            for row in range(processes.number(), len(replies), processes.count()):
                scores[row] = value_of(int(index[row]), replies[row])
            return scores

        return place_batch(processes.added(processes.agreed(own_scores)), run.mesh)

    return scorer


def scores_of(scorer: Scorer, rollout: Rollout, index: np.ndarray) -> Any:
    """The scores [B] of a rollout's replies. Raises: ValueError where there are not as many as replies."""
    scores = scorer(rollout, index)
    if np.shape(scores) != np.shape(index):
        raise ValueError(
            f"the reward gave scores of shape {list(np.shape(scores))} to {len(index)} replies; it must give one to each"
        )
    return scores


def ending_of(texts: Texts, config: PPO | None) -> Ending:
    """How the replies of an experiment end, in its comparisons, in PPO and in its evaluation.

    Raises: ValueError where the text of `stop_token` is not one token.
    """
    tokenizer = texts.tokenizer
    if config is None or config.stop_token is None:
        return Ending(tokenizer.eos)
    ids = tokenizer.encode(config.stop_token)
    if len(ids) > 1 and not tokenizer.decode(
        ids[:1]
    ):  # the blank that some sentencepiece models put in front of a text
        ids = ids[1:]
    if len(ids) != 1:
        raise ValueError(f"ppo.stop_token={config.stop_token!r} is {len(ids)} tokens ({ids}); it must be one")
    return Ending(tokenizer.eos, ids[0], config.stop_after)


def reader_of(model: Model, config: PPO) -> Model:
    """The model as the update reads responses: what is compared with what the update says must come from the same arithmetic."""
    return model.in_groups(config.together, config.new_tokens)


def make_update(
    policy: Model, value: Model | None, config: PPO
) -> Callable[..., tuple[PPOState, dict[str, jax.Array]]]:
    """The pure update of one iteration, KL controller included."""
    learner, critic = (reader_of(model, config) for model in (policy, value or policy))
    objective = partial(policy_loss, token_stats=learner.token_stats, config=config, token_kl=token_kl_to(learner))
    value_loss = partial(ppo_value_loss, values=critic.values, clip=config.value_clip, reward_at=config.reward_at)
    ptx = None
    if config.ptx_coef:
        ptx = Term(partial(sft_loss, logprobs=policy.logprobs), config.ptx_coef)
    shared = value is None and config.baseline == "value"
    update = make_ppo_update(
        combined(objective, value_loss, config.value_coef) if shared else objective,
        make_optimizer(config.policy_optim),
        None if value is None else value_loss,
        None if config.value_optim is None else make_optimizer(config.with_steps(config.value_optim)),
        epochs=config.epochs,
        minibatch=config.optim.rows,
        microbatches=config.optim.microbatches,
        together=config.together,
        ptx=ptx,
        ema=config.ema,
        value_warmup=config.value_warmup,
    )

    def with_controller(
        state: PPOState, trajectory, kl: jax.Array, key: jax.Array, demonstrations=None, reference=None
    ):
        state, metrics = update(state, trajectory, key, demonstrations, reference)
        metrics["kl_coef"] = state.kl_coef
        kl_coef = state.kl_coef
        if config.kl_target is not None:
            episodes = config.prompts * config.samples
            adapted = adapt_kl_coef(kl_coef, kl, target=config.kl_target, horizon=config.kl_horizon, episodes=episodes)
            adapted = if_finite(adapted, kl_coef)
            # A policy that may not move yet has no KL, which says nothing about the coefficient.
            kl_coef = jnp.where(state.iteration < config.value_warmup, kl_coef, adapted)
        return dataclasses.replace(state, kl_coef=kl_coef, iteration=state.iteration + 1), metrics

    return with_controller


def init_ppo_state(run: Run, config: PPO, policy_params: Params, value_params: Params | None) -> PPOState:
    """The state before the first iteration."""
    value = None
    if config.value_optim is not None:
        assert value_params is not None
        value = fresh_state(run, value_params, config.with_steps(config.value_optim))
    policy = fresh_state(run, policy_params, config.policy_optim, ema=config.ema is not None)
    return place(start_ppo(policy, value, jnp.float32(config.kl_coef)), run.mesh)


def watched(watch: Watch, scored: Scored) -> Mapping[str, float]:
    """What `watch` sees, on the host."""
    return watch(scored.rollout, on_host(scored.index))


def run_ppo(
    run: Run,
    policy: Model,
    policy_params: Params,
    value: Model | None,
    value_params: Params | None,
    scorer: Scorer,
    texts: Texts,
    prompts: Sequence[Encoded],
    demonstrations: Batches[TokenBatch] | None,
    watch: Watch | None = None,
) -> Params:
    """The policy after PPO (averaged where the config says so), starting from and held to `policy_params`.

    `watch` looks at rollouts on the host, one iteration late, and adds metrics (a gold reward, say).
    """
    config, experiment = run.experiment.ppo, run.experiment
    assert config is not None, "called for experiments with a PPO stage"
    reference = policy_params
    begun = trainee(run, "ppo", policy, policy_params)
    policy, policy_params = begun.model, begun.params
    if value is not None:
        assert value_params is not None
        critic_begun = trainee(run, "value", value, value_params)
        value, value_params = critic_begun.model, critic_begun.params
    lengths = experiment.text.prompt_lengths
    batches = prompt_batches(prompts, config.prompts, lengths[-1], texts.tokenizer.pad, experiment.seed)
    for stream in (batches, demonstrations):
        if stream is not None:
            run.check_batches("ppo", stream)
    reader = reader_of(policy, config)
    critic = reader_of(value or policy, config).values if config.baseline == "value" else None
    ending, once = ending_of(texts, config), partial(run.programs.function, programs=len(lengths), rows=True)
    rollout_program = once(lambda: responses(policy, ending, config.new_tokens, slots=config.slots))
    read_program = once(lambda c: partial(read_rollout, policy=reader, values=critic, config=c), config)
    judge_program = once(lambda c: partial(judge_rollout, config=c), config)
    signal_program = once(lambda: partial(signal_share, samples=config.samples))
    refill_program = once(lambda: partial(refill, samples=config.samples))
    update = run.programs.step(partial(make_update, policy, value), config, programs=len(lengths))
    key = run.key("ppo")
    rollout_key, order_key = jax.random.split(key)
    samples = np.tile(np.arange(config.samples), config.prompts)

    def numbers_of(iteration: int) -> range:
        """The batches of prompts that an iteration may ask for."""
        return range(iteration * (config.refills + 1), (iteration + 1) * (config.refills + 1))

    def length_of(iteration: int) -> int:
        """How many columns those have, which may come to stand in one batch."""
        if len(lengths) == 1:
            return lengths[0]
        return columns_for((prompts[n] for number in numbers_of(iteration) for n in batches.rows(number)), lengths)

    def asked(number: int, length: int) -> tuple[tuple[Any, ...], np.ndarray]:
        """The number-th batch of prompts, in so many columns, with the key of each response, and the prompt index of each."""
        batch = batches[number]
        index = np.repeat(batch.index, config.samples)
        keys = row_keys(rollout_key, number, index, samples)
        return place_batch((last_columns(batch.prompts, length), keys), run.mesh), index

    def answered(params: Params, iteration: int) -> Iterator[tuple[Rollout, np.ndarray]]:
        """The responses to each batch of prompts of an iteration, all of one length, and the prompt index of each."""
        length = length_of(iteration)
        for number in numbers_of(iteration):
            given, index = asked(number, length)
            yield rollout_program(params, *given, np.float32(config.temperature)), index

    def scored_of(rollout: Rollout, index: np.ndarray) -> Scored:
        return Scored(rollout, scores_of(scorer, rollout, index), index)  # pyright: ignore[reportArgumentType]

    def draw_with_signal(params: Params, iteration: int) -> tuple[Scored, dict[str, float]]:
        """A batch whose prompts without a signal are replaced by others, and how many rollouts it took."""
        rollouts = answered(params, iteration)
        scored, drawn = scored_of(*next(rollouts)), 1
        share = found = float(signal_program(scored.scores))
        while found < 1 and drawn <= config.refills:
            further = scored_of(*next(rollouts))
            scored, drawn = refill_program(*place_batch((scored, further), run.mesh)), drawn + 1
            found = float(signal_program(scored.scores))
        return scored, {"rollouts": float(drawn), "signal_before_refills": share}

    def advance(state: PPOState, iteration: int) -> Advanced:
        params = state.policy.params
        read = partial(read_program, params, reference, params if state.value is None else state.value.params)
        if config.refills:
            scored, refilled = draw_with_signal(params, iteration)
            reading = read(scored.rollout)
        else:
            rollout, index = next(answered(params, iteration))
            reading = read(rollout)  # which the devices do while a reward in Python is computed
            scored, refilled = scored_of(rollout, index), {}
        trajectory, seen = judge_program(
            reading, scored.rollout, scored.scores, state.kl_coef, state.average, state.moments
        )
        state, metrics = update(
            state,
            trajectory,
            seen["kl_sequence"],
            jax.random.fold_in(order_key, iteration),
            ptx_batch(iteration),
            reference if config.kl_estimator == "exact" else None,
        )
        later = None if watch is None else partial(watched, watch, scored)
        return Advanced(state, {**seen, **metrics, **refilled}, trajectory, later)

    def programs(ahead: Ahead, state: PPOState) -> None:
        # Those of the first iterations; what is rarer is compiled when it comes.
        for length in sorted(set(map(length_of, range(min(config.iterations, 100))))):
            programs_of(ahead, state, length)

    def programs_of(ahead: Ahead, state: PPOState, length: int) -> None:
        (given, index), params = asked(0, length), state.policy.params
        rollout = ahead(rollout_program, params, *given, np.float32(config.temperature))
        value_params = params if state.value is None else state.value.params
        reading = ahead(read_program, params, reference, value_params, rollout)
        scores = batch_shapes(jax.ShapeDtypeStruct(index.shape, jnp.float32), run.mesh)
        if isinstance(scorer, ModelScorer):
            scores = ahead(scorer.program, scorer.params, rollout.batch)
        told = (state.kl_coef, state.average, state.moments)
        trajectory, seen = ahead(judge_program, reading, rollout, scores, *told)
        held_to = reference if config.kl_estimator == "exact" else None
        ahead(update, state, trajectory, seen["kl_sequence"], jax.random.fold_in(order_key, 0), ptx_batch(0), held_to)

    updates = config.epochs * config.minibatches

    def ptx_batch(iteration: int):
        if demonstrations is None:
            return None
        batch = demonstrations[iteration]
        rows = jax.tree.map(lambda x: x.reshape(updates, config.ptx_rows, *x.shape[1:]), batch)
        return place_batch(rows, run.mesh, axis=1)

    state = run_stage(
        run,
        "ppo",
        init_ppo_state(run, config, policy_params, value_params),
        advance,
        config.iterations,
        programs=programs,
        show=("score", "gold", "kl_sequence"),
    )
    return begun.whole(state.policy.params if state.policy.ema is None else state.policy.ema)
