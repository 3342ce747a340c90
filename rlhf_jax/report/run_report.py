"""The page of a run, and of several runs side by side, from the files in their directories alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax.report.figures import (
    POLICIES,
    FigureTable,
    figure_tables,
    interval,
    seconds_table,
    shown,
    side_by_side,
    what_spread_means,
)
from rlhf_jax.report.html import (
    Badge,
    Block,
    Details,
    Figures,
    Plot,
    Reply,
    Samples,
    Section,
    Table,
    Text,
    Tone,
    report,
)
from rlhf_jax.report.plots import Points, calibration_plot, line_plot
from rlhf_jax.report.progress import duration
from rlhf_jax.report.runs import RunFiles

Runs = Mapping[str, RunFiles]
TONES: dict[str, Tone] = {"holds": "good", "does not hold": "bad"}

GAINS = {
    "best_of_n": "best of n",
    "preference": "preferences",
    "ilql": "ILQL",
    "ppo": "PPO",
}
MEASURES = {"gold": "gold reward", "positive_words": "word sentiment", "score": "score"}
HEADLINES = {
    "sft/held_out_prompts/exact": "exact greedy answers after SFT",
    "reward/accuracy": "reward model accuracy",
    "classify/accuracy": "accuracy of the classes",
    "classify/macro_f1": "macro F1",
} | {
    f"{policy}_minus_sft/{measure}": f"{worth} gained by {means}"
    for policy, means in GAINS.items()
    for measure, worth in MEASURES.items()
}


@dataclasses.dataclass(frozen=True)
class Curves:
    """One plot: lines by label, each a stage and a metric; `levels` are figures drawn as named horizontal lines."""

    title: str
    ylabel: str
    lines: Mapping[str, tuple[str, str]]
    levels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    xlabel: str = "update"


def _both(stage: str, metric: str) -> dict[str, tuple[str, str]]:
    return {"train": (stage, metric), "held out": (f"{stage}/held_out", metric)}


def _ppo(title: str, ylabel: str, metric: str) -> Curves:
    return Curves(title, ylabel, {metric: ("ppo", metric)}, xlabel="iteration")


def _best(title: str, metric: str, levels: Mapping[str, str]) -> Curves:
    return Curves(f"{title} of the best of n by score", "per reply", {metric: ("best_of_n", metric)}, levels, "n")


STAGES: dict[str, tuple[Curves, ...]] = {
    "Supervised fine-tuning": (Curves("Loss", "nats per token", _both("sft", "nll")),),
    "Reward model": (
        Curves(
            "Accuracy",
            "share of pairs",
            _both("reward", "accuracy"),
            {"Bayes ceiling": "reward/bayes_accuracy", "longer answer wins": "reward/longer_wins"},
        ),
        Curves("Loss", "nats per pair", _both("reward", "loss")),
    ),
    "Preferences": (
        Curves("Accuracy of the implicit reward", "share", _both("preference", "accuracy")),
        Curves("Margin", "nats", _both("preference", "margin")),
        Curves("Loss", "per pair, of KTO per reply", _both("preference", "loss")),
        Curves("Log-ratio of replies to other prompts", "nats", _both("preference", "baseline")),
    ),
    "Classifier": (
        Curves("Accuracy", "share of texts", _both("classify", "accuracy"), {"commonest class": "classify/commonest"}),
        Curves("Loss", "nats per text", _both("classify", "loss")),
    ),
    "Implicit Q-learning": (
        Curves("Error of Q", "reward squared", _both("ilql", "q_loss")),
        Curves("Expectile loss of V", "reward squared", _both("ilql", "value_loss")),
        Curves("V of what the replies show", "reward", _both("ilql", "v")),
        Curves("Conservative loss", "nats per token", _both("ilql", "cql_loss")),
    ),
    "PPO": (
        _ppo("Score", "per response", "score"),
        _ppo("Gold reward", "per response", "gold"),
        _ppo("KL to the reference", "nats per response", "kl_sequence"),
        Curves(
            "Entropy",
            "nats per token",
            {"of the rollout": ("ppo", "rollout_entropy"), "in the update": ("ppo", "entropy")},
            xlabel="iteration",
        ),
        _ppo("Length", "tokens per response", "length"),
        _ppo("KL coefficient", "", "kl_coef"),
        _ppo("Explained variance of the value", "share", "explained_variance"),
        _ppo("Clip fraction", "share of tokens", "clip_fraction"),
    ),
    "Best of n": (
        _best("Gold reward", "gold", {"SFT": "sft/gold", "PPO": "ppo/gold"}),
        _best("Score", "score", {"SFT": "sft/score", "PPO": "ppo/score"}),
    ),
}


def run_report(run: RunFiles) -> str:
    """The page of one run with all its seeds; what a run has no data for does not appear."""
    figures, runs = run.figures, {"": run}
    sections = [
        _what(run),
        _verdicts(run),
        Section("Curves", [Plot(line_plot(**plot)) for plot in run.plots]),
        _figures(run),
        *(Section(title, _stage(runs, title)) for title in STAGES),
        _samples(run),
        _about(run),
    ]
    seconds = sum(figure.mean for name, figure in figures.items() if name.startswith("seconds/"))
    counted = f"{len(run.seeds)} seed{'' if len(run.seeds) == 1 else 's'}"
    words = [f"scale {run.config.get('scale')}", counted, _devices(run.environment)]
    words += [f"{duration(seconds)} of training a seed"] if seconds else []
    subtitle = ", ".join(word for word in words if word)
    return report(str(run.config.get("name", run.directory.name)), subtitle, [s for s in sections if s.blocks])


def runs_report(runs: Sequence[RunFiles]) -> str:
    """One page that lays several runs side by side: a column of figures and a curve per run."""
    named = dict(zip(labels(runs), runs, strict=True))
    verdicts = [
        [label, v["signature"], v["statistic"], v["value"], interval(v["interval"]), _badge(v["verdict"])]
        for label, run in named.items()
        for v in run.verdicts
    ]
    columns = ["run", "claim", "statistic", "value", "95 % interval", "verdict"]
    table = side_by_side({label: run.figures for label, run in named.items()})
    seeds = ", ".join(f"{label}: {len(run.seeds)}" for label, run in named.items())
    caption = f"Seeds: {seeds}. ± is one standard error: over seeds, or over prompts where there is one seed."
    sections = [
        Section("Verdicts", [Table(columns, verdicts)] if verdicts else []),
        Section("Figures", [_table(table, caption)] if table.rows else []),
        Section("Curves", _plots(named)),
        *(Section(title, _stage(named, title)) for title in STAGES),
        Section("Configs", [*_differences(named), *(Details(label, run.config) for label, run in named.items())]),
    ]
    return report("Runs side by side", ", ".join(named), [s for s in sections if s.blocks])


def labels(runs: Sequence[RunFiles]) -> list[str]:
    """What the runs are called beside each other: the names of their directories, or whole paths where names clash."""
    names = [run.directory.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.directory) for run in runs]


def _differences(runs: Runs) -> list[Block]:
    """The fields of the configs that are not the same in all runs."""
    configs = [dict(_leaves(run.config)) for run in runs.values()]
    fields = dict.fromkeys(field for config in configs for field in config)
    rows = [[field, *(config.get(field, "–") for config in configs)] for field in fields]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    return [Table(["field", *runs], rows, "Where the configs differ")] if rows else []


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """(a.b, value as JSON) of every field of a nested config."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", json.dumps(value, ensure_ascii=False)


def _plots(runs: Runs) -> list[Block]:
    """The plots of studies, those of one title beside each other."""
    titles = dict.fromkeys(plot["title"] for run in runs.values() for plot in run.plots)
    return [
        Plot(line_plot(**{**plot, "title": f"{title}, {label}"}))
        for title in titles
        for label, run in runs.items()
        for plot in run.plots
        if plot["title"] == title
    ]


def _verdicts(run: RunFiles) -> Section:
    columns = ["claim", "statistic", "value", "95 % interval", "seeds", "verdict"]
    rows = [
        [v["signature"], v["statistic"], v["value"], interval(v["interval"]), v["seeds"], _badge(v["verdict"])]
        for v in run.verdicts
    ]
    return Section("Verdicts", [Table(columns, rows)] if rows else [])


def _badge(verdict: str) -> Badge:
    return Badge(verdict, TONES.get(verdict, "open"))


def _what(run: RunFiles) -> Section:
    """What the experiment is and what is expected of it, as its registry says."""
    parts = [run.about.get("description", ""), f"Paper: {run.about['paper']}" if "paper" in run.about else ""]
    text = "\n\n".join(part for part in parts if part)
    return Section("What this is", [Text(text)] if text else [])


def _figures(run: RunFiles) -> Section:
    figures = run.figures
    cards = {label: shown(figures, name) for name, label in HEADLINES.items() if name in figures}
    tables = [_table(table) for table in figure_tables(figures)]
    caption = [Text(what_spread_means(run.finished))] if tables else []
    return Section("Figures", [*([Figures(cards)] if cards else []), *caption, *tables])


def _table(table: FigureTable, caption: str = "") -> Table:
    return Table(table.columns, table.rows, caption)


def _stage(runs: Runs, title: str) -> list[Block]:
    """The plots of one stage: all lines of a single run together, several runs line by line."""
    drawn = _of_one_run if len(runs) == 1 else _of_several_runs
    blocks = [plot for curves in STAGES[title] for plot in drawn(runs, curves)]
    scored = any("classify/accuracy" in run.figures for run in runs.values())
    if title == ("Classifier" if scored else "Reward model"):
        blocks += [plot for label, run in runs.items() for plot in _calibration(run, label)]
    return blocks


def _of_one_run(runs: Runs, curves: Curves) -> list[Block]:
    (run,) = runs.values()
    figures = run.figures
    series = {line: run.curve(stage, metric) for line, (stage, metric) in curves.lines.items()}
    levels = {label: figures[name].mean for label, name in curves.levels.items() if name in figures}
    return _plot(curves.title, curves, series, levels)


def _of_several_runs(runs: Runs, curves: Curves) -> list[Block]:
    plots: list[Block] = []
    for line, (stage, metric) in curves.lines.items():
        series = {label: run.curve(stage, metric) for label, run in runs.items()}
        drawn = [label for label, points in series.items() if points is not None]
        title = curves.title if len(curves.lines) == 1 else f"{curves.title}, {line}"
        # A single line has no legend that would say whose it is.
        title = f"{title}, {drawn[0]}" if len(drawn) == 1 else title
        plots += _plot(title, curves, series, {})
    return plots


def _plot(title: str, curves: Curves, series: Mapping[str, Points | None], levels: Mapping[str, float]) -> list[Block]:
    present = {label: points for label, points in series.items() if points is not None}
    if not present:
        return []
    return [Plot(line_plot(present, title=title, xlabel=curves.xlabel, ylabel=curves.ylabel, hlines=levels))]


def _calibration(run: RunFiles, label: str) -> list[Block]:
    confidence, right = (
        np.array([value for seed in run.seeds for value in seed.calibration.get(name, [])], np.float64)
        for name in ("confidence", "right")
    )
    decided = np.isin(right, (0.0, 1.0))  # a tie between the scores is neither right nor wrong
    if not decided.any():
        return []
    bayes = run.figures.get("reward/bayes_accuracy")
    title = f"Calibration, {label}" if label else "Calibration on held-out data"
    ceiling = None if bayes is None else bayes.mean
    return [Plot(calibration_plot(confidence[decided], right[decided], title=title, ceiling=ceiling))]


def _samples(run: RunFiles) -> Section:
    """Those of the first seed that has any."""
    samples = next((seed.samples for seed in run.seeds if seed.samples), [])
    if not samples:
        return Section("Samples", [])
    present = [policy for policy in POLICIES if policy in samples[0]]
    if not present:  # of a classifier
        return Section("Samples", [Table(list(samples[0]), [list(sample.values()) for sample in samples])])
    rows = [(str(s["prompt"]), [_reply(s, policy) for policy in present]) for s in samples]
    return Section("Samples", [Samples(present, rows)])


def _reply(sample: Mapping[str, Any], policy: str) -> Reply:
    numbers = {
        name.removeprefix(f"{policy} "): value for name, value in sample.items() if name.startswith(f"{policy} ")
    }
    return Reply(str(sample[policy]), numbers)


def _about(run: RunFiles) -> Section:
    table = seconds_table(run.figures)
    details = [Details("Config", run.config)]
    details += [Details("Environment", run.environment)] if run.environment else []
    caption = "Where a run was resumed: of the last process alone."
    return Section("This run", [*([_table(table, caption)] if table.rows else []), *details])


def _devices(environment: Mapping[str, Any]) -> str:
    devices = environment.get("jax", {}).get("devices", {})
    return ", ".join(f"{count} x {kind}" for kind, count in devices.items())
