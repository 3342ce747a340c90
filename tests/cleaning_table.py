"""`python tests/cleaning_table.py`: cleans data sets of the shared data, and writes docs/cleaning.md: what each rule did, and how well."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from rlhf_jax.data.clean import DEFAULT, RULES, Cleaned, CleanOptions, clean
from rlhf_jax.data.clean.language import language_of
from rlhf_jax.data.schema import Demonstration, Record, provenance_of, texts_of
from rlhf_jax.data.sources import find_data_root, load_source

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cleaning.md"
MARK = "<!-- below: written by tests/cleaning_table.py -->"
OPTIONS = CleanOptions(examples=2)

SOURCES = {
    "Alpaca, English": "alpaca:instructions/alpaca-en/*.json.gz",
    "Alpaca, Chinese": "alpaca:instructions/alpaca-zh/*.json.gz?damaged=salvage",
    "code.json": "alpaca:instructions/zh-supplement/code.json.gz",
    "IMDB": "imdb:rl/imdb/*.tar.gz",
    "identity.json": "alpaca:instructions/llamafactory/identity.json",
    "ShareGPT, Chinese": "sharegpt:instructions/medicalgpt/*.jsonl.gz",
    "Chain of thought": "cot:instructions/flan-cot/*.tsv.gz",
    "MAWPS": "problems:rl/mawps/*.jsonl.gz",
}
TRANSLATED = SOURCES["Alpaca, Chinese"]
DUPLICATED = (SOURCES["code.json"], TRANSLATED, SOURCES["MAWPS"])
GROUPED = "documents:cleaning/data-juicer/*.jsonl"
USER_TASKS = "seed_tasks:instructions/self-instruct/user_oriented_instructions.jsonl"
LEAKS = (  # trained on, tested on
    ("pandalm:preferences/pandalm/*.json.gz?damaged=salvage", USER_TASKS),
    ("tulu_eval:preferences/tulu1-human-eval/*.xlsx", USER_TASKS),
    ("gsm8k:rl/gsm8k/train.jsonl.gz", "gsm8k:rl/gsm8k/test-first-1056.jsonl.gz"),
)


def records_of(spec: str, root: Path) -> tuple[Record, ...]:
    return load_source(spec, root).records


def rules_table(cleaned: dict[str, Cleaned]) -> str:
    lines = [f"| rule | {' | '.join(cleaned)} |", "|---" * (1 + len(cleaned)) + "|"]
    lines.append("| records | " + " | ".join(f"{each.report.records:,}" for each in cleaned.values()) + " |")
    for name in DEFAULT:
        cells = []
        for each in cleaned.values():
            found = each.report.of(name)
            cells.append(
                f"{found.changed:,} changed" if found.changed else f"{found.dropped:,}" if found.dropped else ""
            )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append("| **kept** | " + " | ".join(f"{each.report.kept:,}" for each in cleaned.values()) + " |")
    return "\n".join(lines)


def reply_languages(records: Sequence[Record]) -> dict[str, Counter[str]]:
    """For each file, how many replies are in which language."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        if isinstance(record, Demonstration):
            file = provenance_of(record).place.partition(":")[0].rpartition("/")[2]
            found[file][language_of(record.reply)] += 1
    return found


def languages_table(records: Sequence[Record]) -> str:
    lines = ["| file | zh | en | others | unknown | English, of those known |", "|---" * 6 + "|"]
    for file, counts in reply_languages(records).items():
        known = counts.total() - counts["unknown"]
        others = known - counts["zh"] - counts["en"]
        shown = " | ".join(f"{count:,}" for count in (counts["zh"], counts["en"], others, counts["unknown"]))
        lines.append(f"| {file} | {shown} | {counts['en'] / known:.1%} |")
    return "\n".join(lines)


def dropped(records: Sequence[Record], rule: str, **options: object) -> set[int]:
    """The numbers of the records that one rule drops when it runs alone."""
    everything = CleanOptions(examples=len(records), **options)  # pyright: ignore[reportArgumentType]
    return {example.number for example in clean(records, [rule], everything).report.of(rule).examples}


def recall_table(root: Path) -> str:
    lines = [
        "| source | exact duplicates | of them found by near_duplicates alone | near_duplicates alone |",
        "|---" * 4 + "|",
    ]
    for spec in DUPLICATED:
        records = records_of(spec, root)
        exact, near = (dropped(records, rule) for rule in ("exact_duplicates", "near_duplicates"))
        lines.append(f"| `{spec}` | {len(exact):,} | {len(exact & near) / len(exact):.1%} | {len(near):,} |")
    return "\n".join(lines)


def groups(root: Path, similarity: float = OPTIONS.similarity) -> list[tuple[int, ...]]:
    """The texts of the deduplication demo that go together, by their numbers from 0."""
    records = records_of(GROUPED, root)
    found = {number: [number] for number in range(len(records))}
    report = clean(records, ["near_duplicates"], CleanOptions(examples=len(records), similarity=similarity)).report
    for example in report.of("near_duplicates").examples:
        kept = next(
            n for n, record in enumerate(records) if f"{provenance_of(record).place} (record {n})" == example.kept
        )
        found[kept].append(example.number)
    return [tuple(group) for group in found.values() if len(group) > 1]


def leaked(trained: str, tested: str, root: Path) -> tuple[int, int, int]:
    """(records trained on, those that the rule drops, prompts tested on)."""
    prompts = tuple(dict.fromkeys(texts_of(record)[0].text for record in records_of(tested, root)))
    records = records_of(trained, root)
    return len(records), len(dropped(records, "contaminated", evaluation=((tested, prompts),))), len(prompts)


def leaks_table(root: Path) -> str:
    lines = ["| to train on | to test on | records | prompts | dropped |", "|---" * 5 + "|"]
    for trained, tested in LEAKS:
        records, gone, prompts = leaked(trained, tested, root)
        lines.append(f"| `{trained}` | `{tested}` | {records:,} | {prompts:,} | {gone:,} |")
    return "\n".join(lines)


def page(root: Path) -> str:
    """docs/cleaning.md with the figures as they are now."""
    prose, mark, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    cleaned = {name: clean(records_of(spec, root), options=OPTIONS) for name, spec in SOURCES.items()}
    told = "; ".join(", ".join(map(str, group)) for group in groups(root))
    parts = [
        "## The rules",
        "\n".join(["| rule | what it does |", "|---|---|", *(f"| {name} | {RULES[name].about} |" for name in DEFAULT)]),
        "## What they did\n\nDropped, unless it says changed; all defaults, so without languages, lengths and evaluation texts.",
        rules_table(cleaned),
        "## Languages of the replies of Chinese Alpaca",
        languages_table(records_of(TRANSLATED, root)),
        "## Near duplicates",
        recall_table(root),
        f"Groups among the 14 texts of `{GROUPED}`, numbered from 0: {told}.",
        "## Contamination",
        leaks_table(root),
        *(
            f"## Report: {name}\n\n`{SOURCES[name]}`\n\n{each.report.markdown().rstrip()}"
            for name, each in cleaned.items()
        ),
    ]
    return f"{prose}{mark}\n\n" + "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(find_data_root()), encoding="utf-8")
