"""Ensembles of reward models under exact best-of-n: gold reward over KL, by single members, by their mean, WCO and UWO.

All rewards are counted per prompt from the reference's mean, in its standard deviations: neither a comparison nor best-of-n sets a string
beside one of another prompt, so that the zero of a prompt's scores is arbitrary.

Source: Coste et al. 2023 (arXiv:2310.02743).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.exact.pairs import Pairs, better_wins, comparisons, sample_pairs
from experiments.exact.setting import Setting, open_setting, over_seeds, seed_keys
from rlhf_jax.config.study import EnsembleStudy
from rlhf_jax.eval import exact
from rlhf_jax.eval.best_of_n import over_optimisation_fit
from rlhf_jax.losses.ensemble import mean_score, standardised, uncertainty_weighted, worst_case
from rlhf_jax.losses.reward import accuracy_of, comparison_loss, weighted_mean
from rlhf_jax.report.progress import progress
from rlhf_jax.report.study import Curve, StudyResult
from rlhf_jax.train import init_state, make_step
from rlhf_jax.types import Params

COMBINED = ("mean", "wco", "uwo")


def run(study: EnsembleStudy, seeds: int) -> StudyResult:
    """Best-of-n by single members and by the ensemble, from clean and from noisy labels of the same pairs; all seeds in one program."""
    setting = open_setting(study)
    init, keys = jnp.swapaxes(jax.vmap(jax.random.split)(seed_keys(study, seeds)), 0, 1)
    figures: dict[str, np.ndarray] = {}
    plots = []
    with progress(3, study.name) as bar:
        references = over_seeds(setting.reference)(init)
        bar.advance("reference")
        explore = over_seeds(partial(explore_labels, setting, study))
        for kind, flip in (("clean", 0.0), ("noisy", study.flip)):
            found = jax.tree.map(np.asarray, explore(keys, references, jnp.full(seeds, flip)))
            figures |= {f"{kind}_{name}": values for name, values in figures_of(study, found).items()}
            plots += [plot(study, found, what, f"{kind} labels") for what in ("gold", "proxy")]
            bar.advance(f"{kind} labels")
    return StudyResult(figures, plots)


def explore_labels(
    setting: Setting, study: EnsembleStudy, key: jax.Array, reference: Params, flip: jax.Array
) -> dict[str, jax.Array]:
    """`gold`, `proxy` and `kl` of the best of n by each scorer, [scorers, counts], and its pairwise `accuracy` [scorers].

    Scorers are the members, then their mean, WCO and UWO. Accuracy is on pairs of the reference's samples that were not trained on and
    differ in gold reward; `best` is the gold reward of each prompt's best string, a mean over prompts.
    """
    logref = setting.logprobs(reference)
    gold = in_units_of(logref, setting.gold)
    draw, held_out, train = jax.random.split(key, 3)
    pairs = sample_pairs(logref, setting.gold, draw, study.pairs, partial(better_wins, flip=flip))
    members = jax.vmap(partial(train_member, setting, study, pairs))(jax.random.split(train, study.members))
    # One member after the other: all strings behind all prompts are many rows.
    scores = jax.lax.map(lambda params: setting.value.scores(params, setting.batch).reshape(gold.shape), members)
    scores = jax.vmap(partial(in_units_of, logref))(scores)
    combined = [mean_score(scores), worst_case(scores), uncertainty_weighted(scores, coef=study.uwo_coef)]
    scorers = jnp.concatenate([scores, jnp.stack(combined)])
    test = sample_pairs(logref, setting.gold, held_out, study.held_out, partial(better_wins, flip=0.0))
    differ = (gold[test.prompt, test.chosen] > gold[test.prompt, test.rejected]).astype(jnp.float32)
    counts = jnp.asarray(study.counts, jnp.float32)

    def measure(score):
        def best_of(n):
            logp = exact.best_of_n(logref, score, n)
            return {
                "gold": exact.expected(logp, gold),
                "proxy": exact.expected(logp, score),
                "kl": exact.kl(logp, logref),
            }

        right = accuracy_of(score[test.prompt, test.chosen], score[test.prompt, test.rejected])
        return jax.vmap(best_of)(counts) | {"accuracy": weighted_mean(right, differ)}

    return jax.lax.map(measure, scorers) | {"best": jnp.mean(jnp.max(gold, axis=1))}


def in_units_of(logref: jax.Array, values: jax.Array) -> jax.Array:
    """Values [prompts, strings] with mean 0 and variance 1 under the reference, for each prompt."""
    return standardised(values, *exact.moments(logref, values))


def train_member(setting: Setting, study: EnsembleStudy, pairs: Pairs, key: jax.Array) -> Params:
    """A reward model after training on the pairs: members differ in their initial parameters and in the order of the data."""
    init, order = jax.random.split(key)
    tx = optax.adam(optax.cosine_decay_schedule(study.lr, study.steps))
    step = make_step(partial(comparison_loss, scores=setting.value.scores), tx)

    def advance(state, key):
        rows = jax.random.randint(key, (study.rows,), 0, study.pairs)
        state, metrics = step(state, comparisons(setting, jax.tree.map(lambda x: x[rows], pairs)))
        return state, metrics["loss"]

    state, _ = jax.lax.scan(advance, init_state(setting.value.init(init), tx), jax.random.split(order, study.steps))
    return state.params


def figures_of(study: EnsembleStudy, found: dict[str, Any]) -> dict[str, np.ndarray]:
    """Figures by name, one value per seed: those of single members are means over the members.

    `peak` and `end` are gold rewards at the best and at the largest n, `peak_kl` and `end_kl` nats; `a`, `b` and `r2` are those of
    R = d (a - b d). `proxy_fall` is the largest fall of any scorer's own reward from one n to the next: 0 but for rounding.
    """
    gold, kl = found["gold"], found["kl"]
    at_peak = np.argmax(gold, axis=-1, keepdims=True)
    a, b, r2 = np.vectorize(over_optimisation_fit, signature="(n),(n)->(),(),()")(kl, gold)
    measured = {
        "peak": np.max(gold, axis=-1),
        "peak_kl": np.take_along_axis(kl, at_peak, axis=-1)[..., 0],
        "end": gold[..., -1],
        "end_kl": kl[..., -1],
        "a": a,
        "b": b,
        "r2": r2,
        "accuracy": found["accuracy"],
    }  # [seeds, scorers]
    figures = {
        f"{name}/{figure}": values
        for figure, each in measured.items()
        for name, values in by_scorer(study, each).items()
    }
    return figures | {"proxy_fall": np.max(-np.diff(found["proxy"], axis=-1), axis=(1, 2))}


def by_scorer(study: EnsembleStudy, values: np.ndarray) -> dict[str, np.ndarray]:
    """Values [seeds, scorers, ...] by name: the mean of the single members, then what the ensemble makes of them."""
    combined = {name: values[:, study.members + n] for n, name in enumerate(COMBINED)}
    return {"single": values[:, : study.members].mean(axis=1), **combined}


def plot(study: EnsembleStudy, found: dict[str, Any], what: str, labels: str) -> Curve:
    """Gold or proxy reward over the KL of the same n, which is a mean over seeds."""
    kl, reward = by_scorer(study, found["kl"]), by_scorer(study, found[what])
    series = {name: (kl[name].mean(axis=0), reward[name]) for name in reward}
    level = {"best strings": float(found["best"].mean())} if what == "gold" else {}
    title = f"{what.capitalize()} reward of the best of n, {labels}"
    return Curve(title, "KL to the reference, nats per string", "standard deviations of the reference", series, level)
