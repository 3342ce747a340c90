"""The command line of the experiments.

python -m experiments.run list
python -m experiments.run show quickstart --set ppo.kl_coef=0.1
python -m experiments.run run quickstart --seeds 3 --set ppo.kl_coef=0.1 --workdir runs/more-kl
python -m experiments.run sweep smoke/ppo --over ppo.kl_coef=0.05,0.1,0.2 --over seed=0..3
python -m experiments.run report runs/quickstart runs/more-kl --out comparison.html
python -m experiments.run export runs/quickstart --out policy
python -m experiments.run replay runs/quickstart --fault sft-12
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.registry import SCALES, Entry, entries, find
from rlhf_jax.config import Experiment
from rlhf_jax.loops.preemption import PREEMPTED, Preempted, noticing
from rlhf_jax.overrides import apply_overrides, to_dict
from rlhf_jax.processes import Elsewhere, count, joined

if TYPE_CHECKING:
    from rich.console import Console

    from rlhf_jax.report.runs import RunFiles

DEBUG = "RLHF_JAX_DEBUG"
FAILED, USER_ERROR = 1, 2  # beside PREEMPTED, 75, and INTERRUPTED, 130
OURS = tuple(str(Path(__file__).resolve().parents[1] / package) + os.sep for package in ("rlhf_jax", "experiments"))
STYLES = {"holds": "green", "does not hold": "red"}
EPILOG = (
    f"Mistakes of the caller end with code {USER_ERROR} and one line; {DEBUG}=1 shows the traceback as well. After SIGTERM a run finishes "
    f"its step, saves, and ends with {PREEMPTED}: the same command with --resume goes on."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, 2 for what the caller can mend, 75 after SIGTERM, 130 when interrupted. Mistakes of ours keep their traceback."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(arguments)
    options.arguments = arguments
    try:
        return options.command(options) or 0
    except KeyboardInterrupt:
        print(f"\ninterrupted{_how_to_resume(arguments)}", file=sys.stderr)
        from experiments.execute import INTERRUPTED

        return INTERRUPTED
    except Preempted as notice:
        print(f"\n{notice}{_how_to_resume(arguments)}", file=sys.stderr)
        return PREEMPTED
    except (ValueError, KeyError, OSError, Elsewhere) as error:
        if os.environ.get(DEBUG) == "1" or not is_user_error(error):
            raise
        print(f"error: {message_of(error)}", file=sys.stderr)
        return USER_ERROR


def is_user_error(error: Exception) -> bool:
    """Whether an error says what the caller did wrong: one of the file system, or one that our own code raises in words."""
    if isinstance(error, OSError):
        return True
    # A look-up that fails in our code is a mistake of ours: its only argument is the bare key.
    if isinstance(error, KeyError) and " " not in message_of(error):
        return False
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return place is not None and place.tb_frame.f_code.co_filename.startswith(OURS)


def message_of(error: Exception) -> str:
    """What an error says; a KeyError would put quotes around it."""
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


def list_command(options: argparse.Namespace) -> None:
    """A table of all experiments."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("name", no_wrap=True, style="cyan")
    for column in ("paper", "claim", "scale: cost"):
        table.add_column(column)
    for entry in entries().values():
        costs = "\n".join(f"{scale}: {cost}" for scale, cost in entry.costs.items())
        table.add_row(entry.name, entry.paper, entry.claim, costs)
    _console().print(table)


def show_command(options: argparse.Namespace) -> None:
    """What an experiment is, and its whole config."""
    entry = find(options.name)
    experiment = resolve(entry, options)
    print(f"{entry.name}, scale {experiment.scale}\n\n{_unindented(entry.doc)}\n")
    print(f"paper   {entry.paper}\nclaim   {entry.claim}")
    for scale, cost in entry.costs.items():
        print(f"cost    {scale}: {cost}")
    if entry.topology is not None:
        print(f"planned tpu: {entry.topology}")
    print(f"\n{json.dumps(to_dict(experiment), indent=2, ensure_ascii=False)}")


def run_command(options: argparse.Namespace) -> None:
    """Runs an experiment, and prints what came out."""
    entry = find(options.name)
    experiment = resolve(entry, options)
    directory = Path("runs") / entry.name if options.workdir is None else options.workdir

    from experiments.execute import Plan, execute, seeds_to_run

    resume = options.resume is not None
    seeds = seeds_to_run(directory, options.seeds, resume)
    if options.remesh and not resume:
        raise ValueError("--remesh lets a run go on on another mesh: it goes with --resume")
    with joined(), noticing() as notice:
        run = execute(Plan(entry, experiment, directory, seeds, resume, options.data_root, notice, options.remesh))
    if run is not None:
        print_outcome(run)


def sweep_command(options: argparse.Namespace) -> int:
    """Runs an experiment at every combination of some values, and prints their table."""
    from experiments.sweep.cells import ERROR, plan_sweep
    from experiments.sweep.command import CSV, run_part, run_sweep
    from rlhf_jax.report.runs import REPORT

    entry = find(options.name)
    directory = Path("runs") / f"{entry.name}-sweep" if options.workdir is None else options.workdir

    def resolved(settings: Sequence[str]) -> Experiment:
        return resolve(entry, argparse.Namespace(**vars(options) | {"set": [*options.set, *settings]}))

    with joined(), noticing() as notice:
        if count() > 1:
            raise ValueError(f"a sweep runs on one process, and {count()} were started; start its cells by `run`")
        sweep = plan_sweep(entry, options.over, resolved, directory, options.data_root, notice)
        if options.list:
            for number, cells in enumerate(sweep.groups):
                print(f"group {number}: {', '.join(cell.plan.directory.name for cell in cells)}")
            return 0
        if options.group is not None:
            return FAILED if run_part(sweep, options.group) else 0
        resume = options.resume is not None
        table, failed = run_sweep(sweep, resume=resume, again=options.arguments, show=options.show)
    print_table(table.columns, table.rows)
    print(f"table: {directory / CSV}\nreport: {directory / REPORT}")
    if failed:
        print(f"{failed} runs failed, and are tried again with --resume; what they said is in {ERROR} in their folders")
    return FAILED if failed else 0


def report_command(options: argparse.Namespace) -> None:
    """Writes the page of a run, or of several side by side."""
    from rlhf_jax.report.html import write_report
    from rlhf_jax.report.run_report import run_report, runs_report
    from rlhf_jax.report.runs import REPORT, read_run

    runs = [read_run(directory) for directory in options.directories]
    if len(runs) == 1:
        out, page = options.out or runs[0].directory / REPORT, run_report(runs[0])
    else:
        out, page = options.out or Path("comparison.html"), runs_report(runs)
    write_report(out, page)
    print(f"report: {out}")


def export_command(options: argparse.Namespace) -> None:
    """Writes a model that a run has trained, with its tokenizer."""
    from experiments.execute import start_jax
    from rlhf_jax.loops.export import export_model, read_experiment, seed_directory

    experiment = read_experiment(options.directory)
    directory = seed_directory(options.directory, options.seed)
    out = options.out or directory / options.model
    start_jax(experiment)
    how = {"model": options.model, "form": options.format, "dtype": options.dtype, "take": options.take}
    found = export_model(experiment, directory, out, options.data_root, **how)
    what = "reward model" if options.model == "reward" else options.model
    print(f"{out}: the {what} of {directory} after {found.step} of {found.steps} steps of {found.stage}, {found.form}")
    if options.model != "classifier":
        print(f"prompts were written by the template {experiment.text.template!r}")


def replay_command(options: argparse.Namespace) -> None:
    """Takes a step whose update was left out once more, and says where its first NaN comes from."""
    from experiments.execute import start_jax
    from rlhf_jax.loops.export import read_experiment, seed_directory, seed_of
    from rlhf_jax.loops.replay import TEXT, find_fault, replay

    experiment = read_experiment(options.directory)
    directory = seed_directory(options.directory, options.seed)
    folder = find_fault(directory, options.fault)
    start_jax(experiment)
    found = replay(dataclasses.replace(experiment, seed=seed_of(directory)), folder, options.data_root)
    start = "the beginning of the stage" if found.begun is None else f"the checkpoint of step {found.begun}"
    print(f"{found.stage} step {found.step}, from {start}")
    again = "was left out again" if found.skipped else "was NOT left out this time"
    alike = "digit for digit" if found.same_metrics else "NOT to the digit: other versions, or another machine?"
    print(f"the update {again}; its metrics are those of the first time, {alike}")
    if not found.same_batch:
        print(f"the batch is NOT the one that was kept in {folder}: the data have changed")
    print(f"the first NaN: {found.origin}" if found.origin else "no operation makes a NaN; look for infinities")
    print(f"the batch as text: {folder / TEXT}")


def golden_command(options: argparse.Namespace) -> None:
    """Rewrites the golden configs."""
    from experiments.golden import FOLDER, write_golden

    changed = write_golden()
    print("\n".join(f"{FOLDER.name}/{name}" for name in changed) or "nothing has changed")


def resolve(entry: Entry, options: argparse.Namespace) -> Experiment:
    """The experiment at the scale asked for, with the overrides. Without --scale: cpu, or what the experiment has."""
    scale = options.scale or ("cpu" if "cpu" in entry.costs else next(iter(entry.costs)))
    # The weights that a model starts from are the experiment's checkpoint, by either name.
    settings = [re.sub(r"^\s*model\.init\s*=", "checkpoint=", setting) for setting in options.set]
    experiment = apply_overrides(entry.experiment(scale), settings)
    named = {setting.partition("=")[0].strip() for setting in settings}
    if "checkpoint" not in named or getattr(experiment, "checkpoint", None) is None:
        return experiment
    from rlhf_jax.data.sources import find_data_root
    from rlhf_jax.loops.pretrained import with_checkpoint

    root = partial(find_data_root, getattr(options, "data_root", None))
    return with_checkpoint(experiment, root, overridden=named)


def print_outcome(run: RunFiles) -> None:
    """Figures, verdicts, and where the report is."""
    from rlhf_jax.report.figures import figure_tables, interval, number, what_spread_means
    from rlhf_jax.report.runs import REPORT

    console = _console()
    for table in figure_tables(run.figures):
        print_table(table.columns, table.rows, table.title)
    console.print(what_spread_means(run.finished), style="dim", markup=False)
    for v in run.verdicts:
        value = "" if v["value"] is None else f": {number(v['value'])}, 95 % interval {interval(v['interval'])}"
        console.print(f"{v['verdict']:<14}", style=STYLES.get(v["verdict"], "yellow"), end="")
        console.print(f"{v['signature']}; {v['statistic']}{value}", markup=False, highlight=False)
    print(f"report: {run.directory / REPORT}")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> None:
    """Rows of words under columns, the first of which names the row."""
    from rich.table import Table

    shown = Table(title=title, box=None, title_justify="left", title_style="bold", padding=(0, 2, 0, 0))
    shown.add_column(columns[0], no_wrap=True)
    for column in columns[1:]:
        shown.add_column(column, no_wrap=True, justify="right")
    for row in rows:
        shown.add_row(*map(str, row))
    _console().print(shown, "", markup=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m experiments.run", None, __doc__, EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=function)
        return added

    command("list", list_command, "every experiment: paper, claim, scales and cost")
    show = command("show", show_command, "one experiment: what it is, and its whole config")
    run = command("run", run_command, "run an experiment over its seeds, and judge its claims")
    sweep = command("sweep", sweep_command, "run an experiment at every combination of some values, over seeds")
    for each in (show, run, sweep):
        each.add_argument("name", metavar="NAME", help="a name from `list`")
        each.add_argument("--scale", choices=SCALES, help="default: cpu, where the experiment has it")
        each.add_argument(
            "--set", action="append", default=[], metavar="a.b=c", help="override a field; may be repeated"
        )
    run.add_argument(
        "--seeds", type=_count, metavar="N", help="how many; default 1, or with --resume as many as had begun"
    )
    sweep.add_argument(
        "--over",
        action="append",
        required=True,
        metavar="a.b=x,y,z",
        help="values of a field, or a.b=FIRST..LAST; repeated, every combination is run; seed=0..7 are the seeds of each",
    )
    sweep.add_argument("--show", nargs="+", default=[], metavar="FIGURE", help="in table and plots; default: headlines")
    sweep.add_argument("--list", action="store_true", help="say which cells share a process, and run nothing")
    sweep.add_argument("--group", type=int, metavar="K", help="run one of these groups alone, as a job of its own")
    for each, default in ((run, "runs/NAME"), (sweep, "runs/NAME-sweep")):
        each.add_argument("--workdir", type=Path, metavar="DIR", help=f"default: {default}")
        each.add_argument(
            "--resume",
            nargs="?",
            const="auto",
            choices=("auto",),
            help="go on from the newest checkpoints, or start where there are none; the same as `--resume auto`",
        )
    run.add_argument(
        "--remesh",
        action="store_true",
        help="with --resume: go on on another mesh than the run began on; the same to rounding, no longer to the bit",
    )
    report = command("report", report_command, "the page of a run directory, or of several side by side")
    report.add_argument("directories", nargs="+", type=Path, metavar="DIR")
    report.add_argument(
        "--out", type=Path, metavar="FILE", help="default: DIR/report.html; for several, comparison.html"
    )
    export = command(
        "export",
        export_command,
        "the policy or reward model of a run, in the folder layout of transformers or as a llama2.c file",
    )
    export.add_argument("directory", type=Path, metavar="DIR")
    export.add_argument("--seed", type=int, metavar="N", help="default: the first")
    export.add_argument(
        "--model", choices=("policy", "reward", "classifier"), default="policy", help="default: the policy"
    )
    export.add_argument("--format", choices=("transformers", "peft", "llama2.c"), default="transformers")
    export.add_argument(
        "--take",
        choices=("newest", "best"),
        default="newest",
        help="checkpoint: the last, or of the lowest held-out loss",
    )
    export.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights written")
    export.add_argument(
        "--out", type=Path, metavar="DIR", help="a new folder; default: policy (or reward) in the seed's"
    )
    again = command("replay", replay_command, "take a step once more whose update was left out as it was not finite")
    again.add_argument("directory", type=Path, metavar="DIR")
    again.add_argument("--seed", type=int, metavar="N", help="default: the first")
    again.add_argument("--fault", metavar="STAGE-STEP", help="a folder in the seed's faults/; default: the last")
    for each in (run, sweep, export, again):
        each.add_argument("--data-root", type=Path, metavar="DIR", help="where data sets lie; default: $RLHF_JAX_DATA")
    command("golden", golden_command, "rewrite experiments/golden/ after a change of a config that is meant")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _console() -> Console:
    from rich.console import Console

    # A file or a pipe has no width: lines stay whole there.
    return Console(width=None if sys.stdout.isatty() else 200, soft_wrap=False)


def _unindented(doc: str) -> str:
    return "\n".join(line.strip() for line in doc.splitlines())


def _how_to_resume(arguments: Sequence[str]) -> str:
    if arguments[:1] not in (["run"], ["sweep"]):
        return ""
    again = [*arguments, *([] if "--resume" in arguments else ["--resume"])]
    return f"; go on with: python -m experiments.run {shlex.join(again)}"


if __name__ == "__main__":
    sys.exit(main())
