"""Algorithms that learn from their own samples, by their exact distance to the optimum over the steps."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments.algorithms import algorithm
from experiments.exact.setting import Setting, open_setting, over_seeds, seed_keys
from experiments.exact.training import train_on_policy
from rlhf_jax.config.study import OnPolicyStudy
from rlhf_jax.eval import exact
from rlhf_jax.report.progress import progress
from rlhf_jax.report.study import Curve, StudyResult


def run(study: OnPolicyStudy, seeds: int) -> StudyResult:
    """Every algorithm from the same references, all seeds of it in one program."""
    setting = open_setting(study)
    configs = {name: algorithm(name, new_tokens=study.world.length, kl_coef=study.beta) for name in study.algorithms}
    for name, config in configs.items():
        if study.rows % config.samples:
            raise ValueError(f"rows={study.rows} do not split into the {config.samples} samples per prompt of {name}")
    keys = seed_keys(study, seeds)
    init, rollouts = jnp.swapaxes(jax.vmap(jax.random.split)(keys), 0, 1)
    curves = {}
    with progress(1 + len(configs), study.name) as bar:
        references = over_seeds(setting.reference)(init)
        figures = start_figures(setting, study.beta, references)
        bar.advance("reference")
        for name, config in configs.items():
            train = over_seeds(partial(train_on_policy, setting, study, config))
            lr = study.lr if config.epochs == 1 else study.reuse_lr
            sweep = (jnp.full(seeds, value, jnp.float32) for value in (study.beta, lr))
            curves[name] = jax.tree.map(np.asarray, train(rollouts, references, *sweep))
            bar.advance(f"{name} gap {np.median(curves[name]['gap'][:, -1]):.4f}")
    for name, curve in curves.items():
        figures |= {f"{name}/{figure}": curve[figure][:, -1] for figure in ("gap", "reward", "kl", "entropy")}
        # Whether it still approaches the optimum: positive where the gap grew over the last third of the run.
        figures[f"{name}/late_change"] = curve["gap"][:, -1] - curve["gap"][:, 2 * curve["gap"].shape[1] // 3]
        if study.every * 4 <= study.steps:
            figures[f"{name}/early_gap"] = curve["gap"][:, 0]
    steps = study.every * (1 + np.arange(study.steps // study.every))
    return StudyResult(figures, plots(curves, steps, figures))


def start_figures(setting: Setting, beta: float, references) -> dict[str, np.ndarray]:
    """Of each seed's reference: total probability (1 for log-probs that are right), E[r], J*, and where two optima lie.

    The second one is that of E[r] - beta KL(ref || pi), which k3 in the loss is after.
    """

    def of(params):
        logref = setting.logprobs(params)
        best, objective = exact.optimum(logref, setting.gold, beta)
        forward = exact.forward_kl_optimum(logref, setting.gold, beta)
        return {
            "reference/total_probability": jnp.mean(exact.total(logref)),
            "reference/reward": exact.expected(logref, setting.gold),
            "optimum/objective": objective,
            "optimum/reward": exact.expected(best, setting.gold),
            "optimum/kl": exact.kl(best, logref),
            "forward_kl_optimum/gap": objective - exact.objective(forward, logref, setting.gold, beta),
            "forward_kl_optimum/kl": exact.kl(forward, logref),
        }

    return jax.tree.map(np.asarray, over_seeds(of)(references))


def plots(curves: Mapping[str, Mapping[str, np.ndarray]], steps: np.ndarray, figures) -> list[Curve]:
    """Gap, reward, KL and clip fraction over the steps."""

    def over_steps(title: str, ylabel: str, figure: str, **how) -> Curve:
        series = {name: (steps, curve[figure]) for name, curve in curves.items()}
        return Curve(title, "step", ylabel, series, **how)

    optimum = {name: float(np.mean(figures[f"optimum/{name}"])) for name in ("reward", "kl")}
    return [
        over_steps("Distance to the optimum", "J* - J", "gap", logy=True),
        over_steps("Expected reward", "E[r]", "reward", hlines={"optimum": optimum["reward"]}),
        over_steps("KL to the reference", "nats per string", "kl", hlines={"optimum": optimum["kl"]}),
        over_steps("Clip fraction", "share of tokens", "clip_fraction"),
    ]
