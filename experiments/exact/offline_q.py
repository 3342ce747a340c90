"""Learning from a fixed set of texts in the exact world: cloning, cloning of the best ones, implicit and one-step Q-learning."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.exact.pairs import draw_strings, texts_of
from experiments.exact.setting import Setting, open_setting, over_seeds, seed_keys
from rlhf_jax.config.study import OfflineStudy
from rlhf_jax.eval import exact
from rlhf_jax.losses.q_learning import earned_at_the_end, ilql_loss, polyak, q_learning_loss
from rlhf_jax.losses.sft import sft_loss
from rlhf_jax.models import build_model
from rlhf_jax.models.critics import build_critics
from rlhf_jax.models.output import shift_right, token_stats
from rlhf_jax.models.params import carry_over
from rlhf_jax.report.progress import progress
from rlhf_jax.report.study import Curve, StudyResult
from rlhf_jax.rollout.guided import guided
from rlhf_jax.train import init_state, make_step
from rlhf_jax.train.critics import make_critic_step, start_critics
from rlhf_jax.types import OfflineBatch, Params, RewardedBatch

Figures = dict[str, jax.Array]
Q_LEARNERS = ("q", "q_all")
"""One-step Q-learning on the texts, and on strings whose every token is drawn evenly, so that all of them occur."""
CERTAIN = 1e4
"""A logit beside which the others, 0, have no probability in float32."""


def run(study: OfflineStudy, seeds: int) -> StudyResult:
    """Every way to learn from the same texts, over the fraction kept, tau and the beta of decoding; all seeds in one program each."""
    setting = open_setting(study)
    kept = (1.0, *study.fractions)
    fractions, taus, betas = (jnp.asarray(values, jnp.float32) for values in (kept, study.taus, study.decode_betas))
    keys = jax.vmap(partial(jax.random.split, num=5))(seed_keys(study, seeds))
    init, draw, clone, learn, one_step = jnp.moveaxis(keys, 1, 0)

    def cloned(key, reference, texts):
        params = jax.vmap(partial(train_clone, setting, study, key, reference, texts))(fractions)
        logp = jax.vmap(setting.logprobs)(params)
        first = jax.tree.map(lambda x: x[0], params)
        return first, jax.vmap(partial(measures, setting), in_axes=(0, None))(logp, logp[0])

    def decoded(clone, critics):
        logp = jax.vmap(partial(decoded_logprobs, setting, study, clone, critics))(betas)
        return jax.vmap(partial(measures, setting), in_axes=(0, None))(logp, setting.logprobs(clone))

    # A prompt and the prompt with its own word again are one state to the policy, and no Q is right for both; by its place each differs.
    placed = dataclasses.replace(setting, policy=build_model(dataclasses.replace(study.policy, position="learned")))

    def greedy(key, clone, texts):
        logp = setting.logprobs(clone)
        draws = (lambda k: draw_rows(study, texts, k, texts.shape[1]), partial(draw_evenly, setting, study))
        reached = [greedy_measures(placed, study, train_q(placed, study, key, draw), logp) for draw in draws]
        return dict(zip(Q_LEARNERS, reached, strict=True))

    with progress(5, study.name) as bar:
        references = over_seeds(setting.reference)(init)
        texts = over_seeds(partial(sample_texts, setting, study))(draw, references)
        truth = over_seeds(partial(values_of_texts, setting, study, taus=taus))(texts)
        jax.block_until_ready(truth)
        bar.advance("texts")
        clones, of_clones = over_seeds(cloned)(clone, references, texts)
        jax.block_until_ready(of_clones)
        bar.advance("clones")
        train = partial(train_critics, setting, study)
        critics = over_seeds(lambda *seed: jax.vmap(partial(train, *seed))(taus))(learn, references, texts)
        start = over_seeds(jax.vmap(partial(start_value, setting, study)))(critics)
        jax.block_until_ready(start)
        bar.advance("critics")
        of_decoded = over_seeds(jax.vmap(decoded, in_axes=(None, 0)))(clones, critics)
        jax.block_until_ready(of_decoded)
        bar.advance("decoding")
        of_q = over_seeds(greedy)(one_step, clones, texts)
        jax.block_until_ready(of_q)
        bar.advance("one-step Q-learning")

    names = ("bc", *(f"bc_best{part:g}" for part in study.fractions))
    figures = {f"texts/{name}": values for name, values in truth.items() if name != "value"}
    figures |= {f"{label}/{name}": values[:, n] for name, values in of_clones.items() for n, label in enumerate(names)}
    for n, tau in enumerate(study.taus):
        figures |= {f"ilql_t{tau:g}/value": start[:, n], f"ilql_t{tau:g}/true_value": truth["value"][:, n]}
        for m, beta in enumerate(study.decode_betas):
            figures |= {f"ilql_t{tau:g}_b{beta:g}/{name}": values[:, n, m] for name, values in of_decoded.items()}
    figures |= {f"{label}/{name}": values for label, reached in of_q.items() for name, values in reached.items()}
    figures["world/highest_value"] = np.full(seeds, np.mean(np.max(discounted(setting, study), axis=1)))
    return StudyResult(figures, plots(study, figures, names))


def plots(study: OfflineStudy, figures: Mapping[str, jax.Array], clones: Sequence[str]) -> list[Curve]:
    """E[r] over the beta of decoding beside the clones, V of the start over tau beside the enumerated one, and what one-step Q-learning
    expects at the start beside what its greedy policy earns.
    """
    runs = [f"ilql_t{tau:g}" for tau in study.taus]

    def over(figure: str, labels: Sequence[str]) -> np.ndarray:
        return np.stack([figures[f"{label}/{figure}"] for label in labels], axis=1)

    rewards = {
        run: (study.decode_betas, over("reward", [f"{run}_b{beta:g}" for beta in study.decode_betas])) for run in runs
    }
    values = {"learned": (study.taus, over("value", runs)), "enumerated": (study.taus, over("true_value", runs))}
    levels = {label: float(np.mean(figures[f"{label}/reward"])) for label in clones}
    levels |= {"best of the texts": float(np.mean(figures["texts/best"]))}
    highest = {"highest of the texts": float(np.mean(figures["texts/highest_value"]))}
    highest_of_all = {"highest of all strings": float(np.mean(figures["world/highest_value"]))}
    learners = {
        name: (np.arange(len(Q_LEARNERS)), over(figure, Q_LEARNERS))
        for name, figure in (("expected", "value"), ("earned", "true_value"))
    }
    return [
        Curve("Reward of ILQL over the beta of decoding", "beta", "E[r]", rewards, levels),
        Curve("V of the start over tau", "tau", "V", values, highest),
        Curve(
            "Q-learning: value of the start",
            "0 the texts, 1 all that can be written",
            "V",
            learners,
            highest | highest_of_all,
        ),
    ]


def behaviour(setting: Setting, study: OfflineStudy, logref: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log-probabilities of two tilts of the reference, [prompts, strings] each: one writes the words of most worth in the first half of a
    string and those of least worth in the second, the other does the reverse, so that each is good at what the other is bad at.
    """
    world = setting.world
    responses = setting.batch.tokens[:, world.prompt_length :].reshape(*logref.shape, world.length)
    worth = jax.vmap(lambda values, tokens: values[tokens])(jnp.asarray(world.word_values, jnp.float32), responses)
    half = jnp.where(jnp.arange(world.length) < world.length // 2, 1.0, -1.0)
    tilt = study.skill * (worth @ half)  # EOS and what follows it are worth 0
    return jax.nn.log_softmax(logref + tilt, axis=1), jax.nn.log_softmax(logref - tilt, axis=1)


def sample_texts(setting: Setting, study: OfflineStudy, key: jax.Array, reference: Params) -> jax.Array:
    """Numbers of the strings drawn for each prompt, the best ones first, [prompts, texts of each]."""
    prompts = study.world.prompts
    each = study.texts // prompts
    first = round(study.mixture * each)
    parts = [
        draw_strings(k, logp, jnp.repeat(jnp.arange(prompts), count)).reshape(prompts, count)
        for k, logp, count in zip(
            jax.random.split(key),
            behaviour(setting, study, setting.logprobs(reference)),
            (first, each - first),
            strict=True,
        )
    ]
    strings = jnp.concatenate(parts, axis=1)
    rewards = jnp.take_along_axis(setting.gold, strings, axis=1)
    return jnp.take_along_axis(strings, jnp.argsort(rewards, axis=1, descending=True), axis=1)


def values_of_texts(setting: Setting, study: OfflineStudy, texts: jax.Array, *, taus: jax.Array) -> Figures:
    """Of the texts: mean and `best` reward of a prompt, the start's `value` at each tau by enumeration, and the highest value of a text."""
    world, gold, worth = setting.world, setting.gold, discounted(setting, study)
    count = jax.vmap(lambda row: jnp.bincount(row, length=gold.shape[1]))(texts).astype(jnp.float32)
    backup = partial(exact.implicit_values, count, worth, words=world.words, length=world.length)
    return {
        "reward": jnp.mean(jnp.take_along_axis(gold, texts, axis=1)),
        "best": jnp.mean(jnp.take_along_axis(gold, texts[:, :1], axis=1)),
        "value": jax.vmap(lambda tau: jnp.mean(backup(tau)))(taus),
        "highest_value": jnp.mean(jnp.max(jnp.where(count > 0, worth, -jnp.inf), axis=1)),
    }


def discounted(setting: Setting, study: OfflineStudy) -> jax.Array:
    """gamma^(tokens - 1) r of every string: what it is worth before its first token, [prompts, strings]."""
    written = jnp.sum(setting.batch.loss_mask, axis=1).reshape(setting.gold.shape)
    return setting.gold * study.gamma ** (written - 1)


def draw_rows(
    study: OfflineStudy, texts: jax.Array, key: jax.Array, kept: jax.Array | int
) -> tuple[jax.Array, jax.Array]:
    """(prompt, string) of one batch from the first `kept` texts of every prompt."""
    where, which = jax.random.split(key)
    prompt = jax.random.randint(where, (study.rows,), 0, texts.shape[0])
    return prompt, texts[prompt, jax.random.randint(which, (study.rows,), 0, kept)]


def draw_evenly(setting: Setting, study: OfflineStudy, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(prompt, string) of one batch, each token of a string equally likely whatever stands before it."""
    where, which = jax.random.split(key)
    prompt = jax.random.randint(where, (study.rows,), 0, study.world.prompts)
    written = jnp.sum(setting.batch.loss_mask, axis=1).reshape(setting.gold.shape)
    return prompt, draw_strings(which, -written * jnp.log(float(study.world.vocab)), prompt)


def train_clone(
    setting: Setting, study: OfflineStudy, key: jax.Array, reference: Params, texts: jax.Array, fraction: jax.Array
) -> Params:
    """The reference fine-tuned on the best fraction of each prompt's texts."""
    tx = optax.adam(optax.cosine_decay_schedule(study.lr, study.steps))
    step = make_step(partial(sft_loss, logprobs=setting.policy.logprobs), tx)
    kept = jnp.round(fraction * texts.shape[1]).astype(jnp.int32)

    def advance(state, key):
        return step(state, texts_of(setting, *draw_rows(study, texts, key, kept)))[0], None

    return jax.lax.scan(advance, init_state(reference, tx), jax.random.split(key, study.steps))[0].params


def train_critics(
    setting: Setting, study: OfflineStudy, key: jax.Array, reference: Params, texts: jax.Array, tau: jax.Array
) -> Params:
    """What ILQL decodes with: critics of the texts, their trunk started from the reference's."""
    critics = build_critics(study.policy)
    init, order = jax.random.split(key)
    params = critics.init(init)
    params |= {"trunk": carry_over(reference, params["trunk"])}
    tx = optax.adam(optax.cosine_decay_schedule(study.lr, study.steps))
    loss = partial(ilql_loss, critics=critics.values, gamma=study.gamma, tau=tau, cql_coef=study.cql_coef)
    step = make_critic_step(loss, critics.values, tx, rate=study.polyak)

    def advance(state, key):
        drawn = draw_rows(study, texts, key, texts.shape[1])
        return step(state, RewardedBatch(texts_of(setting, *drawn), setting.gold[drawn]))[0], None

    return jax.lax.scan(advance, start_critics(params, tx), jax.random.split(order, study.steps))[0].slow


def train_q(
    setting: Setting, study: OfflineStudy, key: jax.Array, draw: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
) -> Params:
    """Q after one-step Q-learning on the strings that are drawn, its targets from a slow copy."""
    policy = setting.policy
    init, order = jax.random.split(key)
    params = policy.init(init)
    tx = optax.adam(optax.cosine_decay_schedule(study.lr, study.steps))
    step = make_step(partial(q_learning_loss, token_logits=policy.token_logits, gamma=study.gamma), tx)

    def advance(carry, key):
        state, slow = carry
        prompt, strings = draw(key)
        text = texts_of(setting, prompt, strings)
        best = jnp.max(shift_right(policy.logits(slow, text)), axis=-1)
        state, _ = step(state, OfflineBatch(text, earned_at_the_end(text, setting.gold[prompt, strings]), best))
        return (state, polyak(slow, state.params, rate=study.polyak)), None

    (state, _), _ = jax.lax.scan(advance, (init_state(params, tx), params), jax.random.split(order, study.steps))
    return state.params


def greedy_measures(setting: Setting, study: OfflineStudy, q: Params, clone: jax.Array) -> Figures:
    """Measures of the policy that always takes the token of highest Q, the `value` that Q expects at the start, and the `true_value`."""
    policy, world = setting.policy, setting.world

    def logprobs(params, batch, temperature):
        best = CERTAIN * jax.nn.one_hot(jnp.argmax(policy.logits(params, batch), axis=-1), world.vocab)
        return token_stats(lambda x: x, best, batch, temperature, chunk=batch.tokens.shape[1]).logprobs

    logp = exact.string_logprobs(q, setting.batch, logprobs=logprobs, prompts=study.world.prompts)
    start = jnp.max(shift_right(policy.logits(q, setting.batch)), axis=-1).reshape(*setting.gold.shape, -1)
    return measures(setting, logp, clone) | {
        "value": jnp.mean(start[:, 0, world.prompt_length]),
        "true_value": exact.expected(logp, discounted(setting, study)),
    }


def start_value(setting: Setting, study: OfflineStudy, critics: Params) -> jax.Array:
    """V before the first token of a string, mean over prompts."""
    values = build_critics(study.policy).values(critics, setting.batch).v.reshape(*setting.gold.shape, -1)
    return jnp.mean(values[:, 0, setting.world.prompt_length])


def decoded_logprobs(
    setting: Setting, study: OfflineStudy, clone: Params, critics: Params, beta: jax.Array
) -> jax.Array:
    """log-probabilities of all strings under the clone that the critics guide, [prompts, strings]."""
    model = guided(setting.policy, build_critics(study.policy))
    params = {"policy": clone, "critics": critics, "beta": beta}
    return exact.string_logprobs(params, setting.batch, logprobs=model.logprobs, prompts=study.world.prompts)


def measures(setting: Setting, logp: jax.Array, clone: jax.Array) -> Figures:
    """Of one policy, exact: E[r], KL to the clone of all texts and entropy in nats per string, and the probability of all strings."""
    return {
        "reward": exact.expected(logp, setting.gold),
        "kl": exact.kl(logp, clone),
        "entropy": exact.entropy(logp),
        "total_probability": jnp.mean(exact.total(logp)),
    }
