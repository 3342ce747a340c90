"""Look at data, prepare it, and take it out again.

    python -m rlhf_jax.data layouts
    python -m rlhf_jax.data read    alpaca:instructions/alpaca-en/*.json.gz
    python -m rlhf_jax.data show    SOURCE[=WEIGHT] ... --tokenizer PATH --template chatml
    python -m rlhf_jax.data card    SOURCE ... --clean all --report
    python -m rlhf_jax.data prepare SOURCE --name my_set --clean repair exact_duplicates --mask email phone
    python -m rlhf_jax.data export  SOURCE --form openai --out chat.jsonl
    python -m rlhf_jax.data generate SOURCE --url http://127.0.0.1:8000/v1 --model NAME --count 100 --out new.jsonl
    python -m rlhf_jax.data forget  --record ID --annotator NAME --runs runs

A source is a string such as alpaca:FILES, csv:FILE?as=ratings or tfds:NAME:SPLIT (docs/data.md).
"""

from __future__ import annotations

import argparse
import inspect
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_jax.config import Curation
from rlhf_jax.data.adapters import ADAPTERS, LAYOUTS
from rlhf_jax.data.adapters.stored import record_id
from rlhf_jax.data.card import card, markdown
from rlhf_jax.data.clean import RULES
from rlhf_jax.data.erasure.forget import forget
from rlhf_jax.data.erasure.forgotten import forgotten_path
from rlhf_jax.data.erasure.seen import checkpoints_that_saw
from rlhf_jax.data.generate import Bootstrap, generate
from rlhf_jax.data.mixtures import gather
from rlhf_jax.data.prepared.beam import prepare_with_beam
from rlhf_jax.data.prepared.exports import FORMS, export
from rlhf_jax.data.prepared.prepare import prepare
from rlhf_jax.data.privacy import KINDS
from rlhf_jax.data.readers import FORMATS
from rlhf_jax.data.schema import Prompt, provenance_of
from rlhf_jax.data.sources import find_data_root, load_source
from rlhf_jax.data.tokens.chat import find_template
from rlhf_jax.data.tokens.shown import learned, shown, sides
from rlhf_jax.data.tokens.texts import Texts
from rlhf_jax.data.tokens.tokenizer import find_tokenizer, load_tokenizer
from rlhf_jax.endpoint import Endpoint
from rlhf_jax.files import prepared_directory


def main(argv: list[str] | None = None) -> int:
    """Runs a command; what is wrong with what the user gave is said in one line, with the exit code 2."""
    options = _parser().parse_args(argv)
    try:
        options.command(options)
    except (ValueError, KeyError, OSError) as error:
        said = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"python -m rlhf_jax.data: error: {' '.join(str(said).split())}", file=sys.stderr)
        return 2
    return 0


def layouts_command(options: argparse.Namespace) -> None:
    """Every layout of rows that is known, with the fields that tell it, and every format of files."""
    for module in LAYOUTS:
        print(f"\n{inspect.cleandoc(module.__doc__ or '').splitlines()[0]}")
        for known in ADAPTERS.values():
            if known.parse.__module__ == module.__name__:
                print(f"  {known.name:18} {', '.join(known.fields)}")
    print(f"\nFormats: {', '.join(FORMATS)}")


def read_command(options: argparse.Namespace) -> None:
    """What a source gives: records by kind and licence, what was left out, and, where the source salvages, what is damaged."""
    loaded = load_source(options.source, find_data_root(options.data_root))
    kinds = Counter(type(record).__name__ for record in loaded.records)
    licences = Counter(provenance_of(record).licence for record in loaded.records)
    if options.ids:
        for record in loaded.records:
            print(f"{record_id(record)}  {provenance_of(record).annotator or '-'}  {provenance_of(record).place}")
        return
    print(f"{loaded.rows:,} rows, {len(loaded.records):,} records")
    for title, counted in (
        ("kinds", kinds),
        ("licences", licences),
        ("left out", Counter(r for _, r in loaded.rejected)),
    ):
        for name, count in counted.most_common():
            print(f"  {title}: {count:,} {name}")
    for error in loaded.damage:
        print(f"  damaged: {error}")


def show_command(options: argparse.Namespace) -> None:
    """Examples of a mixture as tokens, with what is learned marked."""
    from rich.console import Console

    root, console = find_data_root(options.data_root), Console(soft_wrap=True)
    path = Path(options.tokenizer)
    path = path if path.exists() else root / options.tokenizer
    tokenizer: Any = find_tokenizer(path) if path.is_dir() else load_tokenizer(path)
    texts = Texts.of(tokenizer, find_template(options.template, tokenizer), options.length, options.prompt_length)
    chance = random.Random(options.seed)
    sources = [_weighted(given) for given in options.sources]
    loaded = [(load_source(source, root).records, weight) for source, weight in sources]
    for _ in range(options.count):
        (records, _), (source, _) = chance.choices(list(zip(loaded, sources, strict=True)), [w for _, w in sources])[0]
        record = chance.choice(records)
        console.rule(f"{provenance_of(record).place or source} · {type(record).__name__}", style="blue")
        for example in texts.encode([record]):
            for what, side in sides(example):
                count = f"{side.size} tokens, {sum(learned(side))} learned"
                console.print(f"[blue]{what + ': ' if what else ''}{count}[/blue]")
                console.print(shown(side, texts.tokenizer))


def _weighted(given: str) -> tuple[str, float]:
    """A source and its weight, of SOURCE or SOURCE=WEIGHT; options of a source have an equals sign of their own."""
    source, equals, weight = given.rpartition("=")
    try:
        return (source, float(weight)) if equals and "?" not in source.rpartition(":")[2] else (given, 1.0)
    except ValueError:
        return given, 1.0


def card_command(options: argparse.Namespace) -> None:
    """The data card of a mixture: what is in it, and what cleaning and masking would do to it; with --report, examples of all they drop."""
    gathered = gather(options.sources, find_data_root(options.data_root), _curation(options))
    print(markdown(card(", ".join(options.sources), gathered)))
    if options.report:
        print(gathered.report.markdown())


def _curation(options: argparse.Namespace) -> Curation:
    rules = tuple(RULES) if options.clean == ["all"] else tuple(options.clean)
    return Curation(
        clean=rules, languages=tuple(options.languages), unseen=tuple(options.unseen), mask=tuple(options.mask)
    )


def prepare_command(options: argparse.Namespace) -> None:
    """Reads a source once and writes it as a TFDS data set, cleaned and masked as asked for; what was interrupted goes on."""
    curation, root = _curation(options), find_data_root(options.data_root)
    into = options.into or prepared_directory()
    if options.beam is None:
        made = prepare(options.source, options.name, root, into, curation, tell=_tell)
    else:
        made = prepare_with_beam(options.source, options.name, root, into, curation, options.beam)
    print(f"{made.records:,} records of {made.rows:,} rows in {made.folder}")
    for reason, count in made.left_out.items():
        print(f"  left out: {count:,} {reason}")
    for said in made.damage:
        print(f"  damaged: {said}")
    print(f"digest of the records: {made.digest}\nread it as {made.source}")


def _tell(stage: str, done: int) -> None:
    print(f"{stage} {done:,}", file=sys.stderr, flush=True)


def export_command(options: argparse.Namespace) -> None:
    """Writes a source in the form of another project, as JSON lines, or as Parquet where the file is called so."""
    if options.out.exists():
        raise ValueError(f"{options.out} is there already; choose another name")
    loaded = load_source(options.source, find_data_root(options.data_root))
    rows, left_out = export(loaded.records, options.form, options.out)
    print(f"{rows:,} rows in {options.out}")
    for kind, count in left_out.items():
        print(f"  left out: {count:,} of kind {kind}, for which the form {options.form} has no row")


def generate_command(options: argparse.Namespace) -> None:
    """Instructions that a language model behind an address writes from those of a source, kept where they are new (Self-Instruct)."""
    if options.out.exists():
        raise ValueError(f"{options.out} is there already; choose another name")
    loaded = load_source(options.source, find_data_root(options.data_root))
    prompts = [getattr(record, "prompt", record) for record in loaded.records]
    seeds = [prompt.turns[-1].text for prompt in prompts if isinstance(prompt, Prompt)]
    settings = Bootstrap(options.count, similarity=options.similarity, seed=options.seed)
    endpoint = Endpoint(options.url, options.model)
    source = f"self-instruct, by {options.model}, from {options.source}"
    made = generate(seeds, endpoint, settings, lambda kept, wanted: _tell(f"{kept:,} of", wanted), source)
    if made.records:
        export(made.records, "records", options.out)
    print(made.markdown())


def forget_command(options: argparse.Namespace) -> None:
    """Takes records out of prepared sets and out of all that is read from now on, and lists the checkpoints that have seen them."""
    if not options.record and not options.annotator:
        raise ValueError("say what to forget: --record ID or --annotator NAME, as `read --ids` prints them")
    sets = options.sets or prepared_directory()
    for folder, count in forget(options.record, options.annotator, sets).items():
        print(f"{count:,} records taken out of {folder}")
    print(f"left out from now on, by {forgotten_path()}")
    found = [each for runs in options.runs for each in checkpoints_that_saw(runs, options.record, options.annotator)]
    for checkpoint, why in found:
        print(f"{checkpoint}: {why}")
    if not found:
        print(f"no checkpoint below {', '.join(map(str, options.runs))} has seen them")


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m rlhf_jax.data", description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Callable) -> argparse.ArgumentParser:
        text = inspect.cleandoc(function.__doc__ or "")
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=function)
        where = "where data sets lie; default: $RLHF_JAX_DATA, ../shared/data"
        added.add_argument("--data-root", type=Path, metavar="DIR", help=where)
        return added

    command("layouts", layouts_command)
    read = command("read", read_command)
    show = command("show", show_command)
    show.add_argument("sources", nargs="+", metavar="SOURCE[=WEIGHT]")
    show.add_argument(
        "--tokenizer", required=True, metavar="PATH", help="a .model file or a folder, here or below the data root"
    )
    show.add_argument("--template", required=True, metavar="NAME", help="such as alpaca or chatml; tokenizer: its own")
    show.add_argument("--count", type=int, default=3, metavar="N", help="how many examples; default 3")
    show.add_argument(
        "--length", type=int, default=512, metavar="N", help="tokens of a window of a document; default 512"
    )
    show.add_argument(
        "--prompt-length", type=int, default=256, metavar="N", help="tokens of a prompt that is cut; default 256"
    )
    show.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice; default 0")
    described = command("card", card_command)
    described.add_argument("sources", nargs="+", metavar="SOURCE")
    described.add_argument("--report", action="store_true", help="examples of what was dropped and changed")
    prepared = command("prepare", prepare_command)
    for each in (described, prepared):
        rules = f"rules of cleaning, or all: {', '.join(RULES)}"
        each.add_argument("--clean", nargs="+", default=[], metavar="RULE", help=rules)
        each.add_argument("--languages", nargs="+", default=[], metavar="CODE", help="to keep, by the rule language")
        each.add_argument(
            "--unseen", nargs="+", default=[], metavar="SOURCE", help="to keep out, by the rule contaminated"
        )
        each.add_argument("--mask", nargs="+", default=[], metavar="KIND", help=f"personal data: {', '.join(KINDS)}")
    prepared.add_argument("--name", required=True, help="of the set: small letters, digits, underscores")
    prepared.add_argument("--into", type=Path, metavar="DIR", help="default: the cache, where tfds:NAME:train finds it")
    beam = (
        "by Apache Beam (extra `beam`), with these options of Beam's, such as runner=DirectRunner direct_num_workers=2"
    )
    prepared.add_argument("--beam", nargs="*", metavar="OPTION=VALUE", help=beam)
    out = command("export", export_command)
    out.add_argument("--form", required=True, choices=FORMS)
    out.add_argument("--out", required=True, type=Path, metavar="FILE", help="FILE.jsonl or FILE.parquet")
    made = command("generate", generate_command)
    made.add_argument("--url", required=True, help="of a server of OpenAI's protocol, such as http://127.0.0.1:8000/v1")
    made.add_argument("--model", required=True, metavar="NAME", help="as the server calls it")
    made.add_argument("--count", required=True, type=int, metavar="N", help="how many records")
    made.add_argument("--similarity", type=float, default=0.7, help="ROUGE-L above which one is not new; default 0.7")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice of what is shown; default 0")
    made.add_argument("--out", required=True, type=Path, metavar="FILE", help="FILE.jsonl, read as records:FILE.jsonl")
    forgotten = command("forget", forget_command)
    forgotten.add_argument("--record", action="append", default=[], metavar="ID", help="may be repeated")
    forgotten.add_argument("--annotator", action="append", default=[], metavar="NAME", help="may be repeated")
    forgotten.add_argument("--sets", type=Path, metavar="DIR", help="prepared sets; default: the cache")
    runs = "directories of runs to look for checkpoints in; default: runs"
    forgotten.add_argument("--runs", type=Path, nargs="+", default=[Path("runs")], metavar="DIR", help=runs)
    read.add_argument("--ids", action="store_true", help="print the id, the annotator and the place of every record")
    for each in (read, prepared, out, made):
        each.add_argument("source", metavar="SOURCE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
