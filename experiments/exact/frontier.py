"""What is known in closed form: the frontier of reward and KL, the law of its start, and the KL of best-of-n."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.exact.setting import Setting, open_setting, over_seeds, seed_keys
from rlhf_jax.config.study import BestOfNStudy, FrontierStudy
from rlhf_jax.eval import exact
from rlhf_jax.eval.best_of_n import best_of_n_kl
from rlhf_jax.report.progress import progress
from rlhf_jax.report.study import Curve, StudyResult
from rlhf_jax.types import Params


def run_frontier(study: FrontierStudy, seeds: int) -> StudyResult:
    """The frontier of each seed's reference, and policies around it."""
    setting = open_setting(study)
    keys = seed_keys(study, seeds)
    with progress(1, study.name) as bar:
        found = over_seeds(partial(explore, setting, study))(keys)
        points = {name: np.asarray(values) for name, values in found.pop("points").items()}
        figures = jax.tree.map(np.asarray, found)
        bar.advance("frontier")
    # The optima of the first seed's reference; other seeds have frontiers of their own.
    curve = Curve(
        "The most reward at every KL",
        "KL to the reference, nats per string",
        "E[r]",
        {
            "frontier": (points["kl"][0], points["reward"][0]),
            "best of n by gold": (points["best_of_n_kl"][0], points["best_of_n_reward"][0]),
        },
    )
    start = Curve(
        "The start of the frontier",
        "sqrt(KL)",
        "E[r] gained",
        {
            "frontier": (np.sqrt(points["kl"][0]), points["reward"][0] - figures["reference_reward"][0]),
            "sqrt(2 Var r) sqrt(KL)": (np.sqrt(points["kl"][0]), figures["slope_of_law"][0] * np.sqrt(points["kl"][0])),
        },
    )
    return StudyResult(figures, [curve, start])


COUNTS = 2.0 ** np.arange(11)


def explore(setting: Setting, study: FrontierStudy, key: jax.Array) -> dict[str, Any]:
    """Figures of one reference, and under "points" its frontier."""
    init, noise = jax.random.split(key)
    reference = setting.reference(init)
    # The barrier keeps XLA from sorting the rewards, a constant, while it compiles.
    logref, gold = setting.logprobs(reference), jax.lax.optimization_barrier(setting.gold)
    betas = jnp.asarray(study.betas)
    kl, reward = exact.frontier(logref, gold, betas)

    def of_best(n):
        best = exact.best_of_n(logref, gold, n)
        return exact.kl(best, logref), exact.expected(best, gold)

    def of_neighbour(key):
        logp = setting.logprobs(neighbour(reference, key))
        gap = exact.optimum(logref, gold, study.beta)[1] - exact.objective(logp, logref, gold, study.beta)
        divergence = study.beta * exact.kl(logp, exact.optimum(logref, gold, study.beta)[0])
        return exact.kl(logp, logref), exact.expected(logp, gold), jnp.abs(gap - divergence)

    best_kl, best_reward = jax.lax.map(of_best, jnp.asarray(COUNTS, jnp.float32))
    near_kl, near_reward, broken = jax.lax.map(of_neighbour, jax.random.split(noise, study.policies))
    all_kl, all_reward = jnp.concatenate([kl, best_kl, near_kl]), jnp.concatenate([reward, best_reward, near_reward])
    above = all_reward - exact.most_reward_at(logref, gold, betas, all_kl)
    slopes = jnp.diff(reward) / jnp.diff(kl)
    start = reward[0] - exact.expected(logref, gold)
    # Over prompts, the gains of a common beta add up: the law of one prompt holds for the mean with the mean of the variances.
    law = jnp.sqrt(jnp.mean(jnp.square(exact.sqrt_kl_slope(logref, gold))))
    return {
        "identity/error": jnp.max(broken),
        "frontier/above": jnp.max(above),
        "frontier/steepening": jnp.max(jnp.diff(slopes)),
        "frontier/start_over_law": start / (law * jnp.sqrt(kl[0])),
        "best_of_n/below": jnp.max(exact.most_reward_at(logref, gold, betas, best_kl) - best_reward),
        "reference_reward": exact.expected(logref, gold),
        "slope_of_law": law,
        "points": {"kl": kl, "reward": reward, "best_of_n_kl": best_kl, "best_of_n_reward": best_reward},
    }


def neighbour(params: Params, key: jax.Array) -> Params:
    """The policy with every array moved by noise of a random size, up to half of the array's own."""
    leaves, tree = jax.tree.flatten(params)
    size = 0.5 * jax.random.uniform(key)
    keys = jax.random.split(jax.random.fold_in(key, 1), len(leaves))
    moved = [x + size * jnp.std(x) * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, moved)


def run_best_of_n(study: BestOfNStudy, seeds: int) -> StudyResult:
    """The exact KL of best-of-n over n, beside log n - (n - 1) / n: by the gold reward, and by one that breaks its ties."""
    setting = open_setting(study)
    counts = jnp.asarray(study.counts, jnp.float32)
    strings = setting.gold.shape[1]

    def explore_counts(key):
        logref, gold = setting.logprobs(setting.reference(key)), jax.lax.optimization_barrier(setting.gold)
        order = jnp.argsort(jnp.argsort(gold, axis=1), axis=1).astype(jnp.float32)  # equal rewards rank in list order
        best = jnp.max(gold, axis=1, keepdims=True)
        most = -jax.nn.logsumexp(jnp.where(gold == best, logref, -jnp.inf), axis=1)
        most_untied = -jnp.sum(jnp.where(order == strings - 1, logref, 0.0), axis=1)

        def of_n(scores):
            return jax.lax.map(lambda n: exact.kl_per_prompt(exact.best_of_n(logref, scores, n), logref), counts)

        return {"gold": (of_n(gold), most), "untied": (of_n(order), most_untied)}

    with progress(1, study.name) as bar:
        found = jax.tree.map(
            np.asarray, over_seeds(explore_counts)(seed_keys(study, seeds))
        )  # [seeds, n, X], [seeds, X]
        bar.advance("best of n")
    (gold, most), (untied, most_untied) = found["gold"], found["untied"]
    formula = np.array([best_of_n_kl(n) for n in study.counts])
    both, ends = np.stack([gold, untied]), np.stack([most, most_untied])
    figures = {f"n{n}/kl": gold[:, i].mean(axis=1) for i, n in enumerate(study.counts)}
    figures |= {
        "above_formula": (both - formula[:, None]).max(axis=(0, 2, 3)),
        "above_saturation": (both - ends[:, :, None]).max(axis=(0, 2, 3)),
        "ties_add": (gold - untied).max(axis=(1, 2)),
    }
    n = np.array(study.counts)
    series = {
        "by gold": (n, gold.mean(axis=2)),
        "ties broken": (n, untied.mean(axis=2)),
        "log n - (n - 1) / n": (n, formula),
    }
    plot = Curve(
        "KL of the best of n", "n", "nats per string", series, {"most, by gold": float(most.mean())}, logx=True
    )
    return StudyResult(figures, [plot])
