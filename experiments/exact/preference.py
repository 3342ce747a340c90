"""Learning from comparisons in the exact world: where each objective ends, over the price of KL and the number of pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.exact.pairs import Pairs, better_wins, comparisons, sample_pairs, texts_of
from experiments.exact.setting import Setting, open_setting, over_seeds, seed_keys
from rlhf_jax.config.study import PreferenceStudy
from rlhf_jax.eval import exact
from rlhf_jax.losses.preference import kto_loss, make_objective, preference_loss, reply_logprobs
from rlhf_jax.report.progress import progress
from rlhf_jax.report.study import Curve, StudyResult
from rlhf_jax.train import init_state, make_step
from rlhf_jax.types import LabelBatch, Params, ReferencedLabels, ReferencedPairs

PRICES = np.geomspace(30.0, 0.02, 80)
"""Of KL, at which the frontier is computed."""


def run(study: PreferenceStudy, seeds: int) -> StudyResult:
    """Every objective at every beta with all pairs, and DPO at the study's beta with fewer; all seeds in one program each."""
    setting = open_setting(study)
    most = study.pairs[-1]
    runs = {name: [(beta, most) for beta in study.betas] for name in study.objectives}
    if "dpo" in runs:
        runs["dpo"] += [(study.beta, count) for count in study.pairs if (study.beta, count) not in runs["dpo"]]
    init, keys = jnp.swapaxes(jax.vmap(jax.random.split)(seed_keys(study, seeds)), 0, 1)
    figures: dict[str, np.ndarray] = {}
    points = {}
    with progress(1 + len(runs), study.name) as bar:
        references = over_seeds(setting.reference)(init)
        edge = jax.tree.map(np.asarray, over_seeds(partial(frontier_of, setting))(references))
        bar.advance("reference")
        for name, sweep in runs.items():
            ends = train_all(setting, study, name, sweep, keys, references)
            for n, (beta, count) in enumerate(sweep):
                label = f"{name}_b{beta:g}" if count == most else f"{name}_b{beta:g}_n{count}"
                figures |= {f"{label}/{figure}": values[:, n] for figure, values in ends.items()}
            points[name] = (ends["kl"][0, : len(study.betas)], ends["reward"][0, : len(study.betas)])
            bar.advance(name)
    plots = [
        Curve(
            "Reward and KL of each objective over beta, first seed",
            "KL to the reference, nats per string",
            "E[r]",
            {"frontier": (edge["kl"][0], edge["reward"][0]), **points},
        )
    ]
    counts = [f"dpo_b{study.beta:g}" + ("" if n == most else f"_n{n}") for n in study.pairs]
    if all(f"{label}/gap" in figures for label in counts):
        gaps = np.stack([figures[f"{label}/gap"] for label in counts], axis=1)
        if len(study.pairs) > 1:
            figures["dpo/exponent"] = np.array([np.polyfit(np.log(study.pairs), np.log(gap), 1)[0] for gap in gaps])
        series = {"DPO": (np.array(study.pairs), gaps)}
        plots.append(Curve("DPO's gap over the number of pairs", "pairs", "J* - J", series, logx=True, logy=True))
    return StudyResult(figures, plots)


def run_determinism(study: PreferenceStudy, seeds: int) -> StudyResult:
    """Every objective at the study's beta with noisy labels and with labels that are always right; IPO beside its enumerated optimum."""
    setting = open_setting(study)
    init, keys = jnp.swapaxes(jax.vmap(jax.random.split)(seed_keys(study, seeds)), 0, 1)
    figures: dict[str, np.ndarray] = {}
    kinds = {"noisy": False, "always_right": True}
    with progress(1 + len(kinds) * len(study.objectives), study.name) as bar:
        references = over_seeds(setting.reference)(init)
        bar.advance("reference")
        for kind, deterministic in kinds.items():
            labelled = dataclasses.replace(study, deterministic=deterministic)
            expected = over_seeds(partial(ipo_optimum_of, setting, labelled))(references)
            figures |= {f"ipo_optimum_{kind}/{name}": np.asarray(values) for name, values in expected.items()}
            for name in study.objectives:
                ends = train_all(setting, labelled, name, [(study.beta, study.pairs[-1])], keys, references)
                figures |= {f"{name}_{kind}/{figure}": values[:, 0] for figure, values in ends.items()}
                bar.advance(f"{name}, labels {kind.replace('_', ' ')}")
    kl = {
        name: np.stack([figures[f"{name}_{kind}/kl"] for kind in kinds], axis=1)
        for name in (*study.objectives, "ipo_optimum")
    }
    series = {name: (np.arange(len(kinds)), values) for name, values in kl.items()}
    return StudyResult(figures, [Curve("KL by labels", "0 noisy, 1 always right", "nats per string", series)])


def ipo_optimum_of(setting: Setting, study: PreferenceStudy, reference: Params) -> dict[str, jax.Array]:
    """KL and reward of the policy that IPO's objective is after, by enumeration."""
    logref, gold = setting.logprobs(reference), setting.gold

    def prefers(a, b):
        return chance_to_win(study, a - b)

    best = exact.ipo_optimum(logref, exact.wins(logref, prefers, gold), study.beta)
    return {"kl": exact.kl(best, logref), "reward": exact.expected(best, gold)}


def train_all(
    setting: Setting,
    study: PreferenceStudy,
    name: str,
    sweep: Sequence[tuple[float, int]],
    keys: jax.Array,
    references: Params,
) -> dict[str, np.ndarray]:
    """Figures [seeds, sweep] of an objective at every (beta, number of pairs), as one program."""
    betas, counts = (jnp.asarray(values) for values in zip(*sweep, strict=True))

    def of_seed(key, reference):
        return jax.vmap(partial(train_on_pairs, setting, study, name, key, reference))(betas, counts)

    return jax.tree.map(np.asarray, over_seeds(of_seed)(keys, references))


def chance_to_win(study: PreferenceStudy, gap: jax.Array) -> jax.Array:
    """How probably the first of two strings is preferred, by how much more reward it has."""
    return better_wins(gap, flip=0.0) if study.deterministic else jax.nn.sigmoid(gap)


def frontier_of(setting: Setting, reference: Params) -> dict[str, jax.Array]:
    """The frontier of a reference."""
    kl, reward = exact.frontier(setting.logprobs(reference), setting.gold, jnp.asarray(PRICES, jnp.float32))
    return {"kl": kl, "reward": reward}


def train_on_pairs(
    setting: Setting,
    study: PreferenceStudy,
    name: str,
    key: jax.Array,
    reference: Params,
    beta: jax.Array,
    count: jax.Array,
) -> dict[str, jax.Array]:
    """Where an objective ends that sees the first `count` pairs: `gap` to J* at this beta, reward, KL, the change of the log-probabilities
    of chosen and rejected strings, and `above`, its reward over the most that there is at its KL.
    """
    logref, gold, logprobs = setting.logprobs(reference), setting.gold, setting.policy.logprobs
    draw, order = jax.random.split(key)
    pairs = sample_pairs(logref, gold, draw, study.pairs[-1], partial(chance_to_win, study))
    if name == "kto":
        loss = partial(kto_loss, logprobs=logprobs, beta=beta)
    else:
        loss = partial(preference_loss, logprobs=logprobs, objective=make_objective(name, beta))
    tx = optax.adam(optax.cosine_decay_schedule(study.lr, study.steps))
    step = make_step(loss, tx)

    def advance(state, key):
        places = jax.random.randint(key, (study.rows,), 0, count)
        rows = jax.tree.map(lambda x: x[places], pairs)
        batch = labels_of(setting, logref, rows, state.params) if name == "kto" else batch_of(setting, logref, rows)
        state, metrics = step(state, batch)
        return state, metrics["loss"]

    state, _ = jax.lax.scan(advance, init_state(reference, tx), jax.random.split(order, study.steps))
    logp = setting.logprobs(state.params)
    kl, reward = exact.kl(logp, logref), exact.expected(logp, gold)
    prices = jnp.asarray(PRICES, jnp.float32)
    moved = logp - logref
    return {
        "gap": exact.optimum(logref, gold, beta)[1] - exact.objective(logp, logref, gold, beta),
        "reward": reward,
        "kl": kl,
        "chosen": jnp.mean(moved[pairs.prompt, pairs.chosen]),
        "rejected": jnp.mean(moved[pairs.prompt, pairs.rejected]),
        "above": reward - exact.most_reward_at(logref, gold, prices, kl[None])[0],
    }


def batch_of(setting: Setting, logref: jax.Array, rows: Pairs) -> ReferencedPairs:
    """Pairs by number as texts, with the reference's log-probs."""
    chosen, rejected = logref[rows.prompt, rows.chosen], logref[rows.prompt, rows.rejected]
    return ReferencedPairs(comparisons(setting, rows), chosen, rejected)


def labels_of(setting: Setting, logref: jax.Array, rows: Pairs, params: Params) -> ReferencedLabels:
    """The same as single replies, the chosen ones desirable; the mismatched replies, for the baseline, are those of the row before."""
    prompt, strings = jnp.tile(rows.prompt, 2), jnp.concatenate([rows.chosen, rows.rejected])
    label = jnp.repeat(jnp.array([1.0, 0.0]), rows.prompt.shape[0])
    labels = LabelBatch(texts_of(setting, prompt, strings), label, jnp.ones_like(label))
    others = jnp.roll(strings, 1)
    now, _ = reply_logprobs(params, texts_of(setting, prompt, others), logprobs=setting.policy.logprobs)
    return ReferencedLabels(labels, logref[prompt, strings], jnp.mean(now - logref[prompt, others]))
