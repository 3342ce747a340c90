"""`python tests/data_table.py`: reads every source of the shared data, and writes docs/data.md: each row is a record, or has its reason."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rlhf_jax.data.sources import Loaded, find_data_root, find_files, load_source, parse_source

PAGE = Path(__file__).resolve().parents[1] / "docs" / "data.md"
MARK = "<!-- below: written by tests/data_table.py -->"
ABOUT = ("dataset_info.json", "features.json")  # of TFDS

SIDES = ",".join(
    f"{code}=instructions/alpaca-{code}/alpaca_data{marked}-12345-15323.json.gz"
    for code, marked in (("en", ""), ("zh", "_zh"))
)
SOURCES = {
    "Instructions": (
        "alpaca:instructions/alpaca-en/*.json.gz",
        "alpaca:instructions/alpaca-zh/*.json.gz?damaged=salvage",
        "seed_tasks:instructions/belle/zh_seed_tasks.json",
        "cot:instructions/flan-cot/*.tsv.gz",
        "alpaca:instructions/llamafactory/*",
        "sharegpt:instructions/medicalgpt/*.jsonl.gz",
        "instructions:instructions/natural-instructions/*.json.gz",
        "alpaca:instructions/oasst-zh/*.json.gz",
        "alpaca:instructions/rasbt/*.json",
        "alpaca:instructions/self-instruct/predictions/*.jsonl.gz?fields=output:response",
        "seed_tasks:instructions/self-instruct/*.jsonl",
        "completions:instructions/t0/*.jsonl.gz",
        f"parallel:{SIDES}?field=instruction",
        f"parallel:{SIDES}?field=output",
        "alpaca:instructions/zh-supplement/*",
    ),
    "Preferences": (
        "alpaca_eval:preferences/alpaca-eval-judges/*/*/*.json.gz",
        "dove:preferences/dove/*/*.jsonl",
        "hh:preferences/hh-rlhf/*/*.jsonl.gz",
        "labelstudio:preferences/label-studio/pairwise/ls_output_data.json",
        "labelstudio:preferences/label-studio/multi-turn-chat/*.json",
        "labelstudio:preferences/label-studio/exports/ls_final_[pc]*[rt].json",
        "labelstudio:preferences/label-studio/exports/ls_sdk_export.json",
        "sharegpt_pairs:preferences/llamafactory/dpo_en_demo.json.gz",
        "unpaired_messages:preferences/llamafactory/kto_en_demo.json.gz",
        "llmbar:preferences/llmbar-processed/*/dataset.json*",
        "pandalm:preferences/pandalm/*.json.gz?damaged=salvage",
        "alpaca_pairs:preferences/rasbt/*.json.gz",
        "choices:preferences/sparse-feedback/**/feedback_rankings_*.csv",
        "tulu_eval:preferences/tulu1-human-eval/*.xlsx",
    ),
    "Rankings": (
        "alpaca:preferences/oasst-zh/*.json.gz",
        "labelstudio:preferences/label-studio/exports/ls_final_rank.json",
        "labelstudio:preferences/label-studio/exports/ls_final_bucket.json",
    ),
    "Ratings": (
        "ratings:preferences/sparse-feedback/**/feedback_ratings_*.csv",
        "labelstudio:preferences/label-studio/exports/ls_final_rate.json",
    ),
    "Prompts for reinforcement learning": (
        "questions:rl/cmath/*.jsonl",
        "graded_solutions:rl/gsm8k/example_model_solutions-*.jsonl.gz",
        "gsm8k:rl/gsm8k/t*.jsonl.gz",
        "imdb:rl/imdb/*.tar.gz",
        "problems:rl/mawps/*.jsonl.gz",
        "imdb:rl/movie-reviews/*.zip",
        "sst2:rl/sst2/*.tsv.gz",
        "tldr:rl/tldr/*.json.gz",
        "prompts:preferences/tulu1-human-eval/*.jsonl.gz",
        "prompts:preferences/label-studio/pairwise/ls_input_data.json",
    ),
    "Text": (
        "text:text/botchan/*.txt",
        "documents:text/c4-minimal/c4/en/3.0.1/c4-*.array_record-*",
        "documents:text/c4-minimal/c4/en/3.0.1/*.tfrecord-*",
        "documents:text/c4-minimal/hf/c4/*.parquet",
        "poems:text/tang-poems/*",
        "text:text/tinyshakespeare/*.txt.gz?unit=paragraph",
        "text:text/tinystories/*.txt.gz?unit=paragraph",
        "text:text/wiki-en/*.txt.gz",
        "text:text/wikitext-2/*.txt.gz",
        "text:text/zh-classics/*.txt.gz",
    ),
}


def kinds(loaded: Loaded) -> str:
    counted = Counter(type(record).__name__ for record in loaded.records)
    return ", ".join(f"{count:,} {name}" for name, count in counted.items())


def left_out(loaded: Loaded) -> str:
    reasons = Counter(reason for _, reason in loaded.rejected)
    told = [f"{count:,}: {reason}" for reason, count in reasons.most_common()]
    broken = Counter(error.reason for error in loaded.damage)
    return "; ".join(told + [f"{count:,} damaged: {reason}" for reason, count in broken.most_common()]) or "none"


def table(root: Path) -> str:
    lines = ["| source | rows read | records | left out |", "|---|---|---|---|"]
    for group, specs in SOURCES.items():
        lines.append(f"| **{group}** | | | |")
        for spec in specs:
            loaded = load_source(spec, root)
            lines.append(f"| `{spec}` | {loaded.rows:,} | {kinds(loaded)} | {left_out(loaded)} |")
    return "\n".join(lines) + "\n"


def uncovered(root: Path) -> list[str]:
    """Files of these groups that no source above reads, other than those that hold no records of their own."""
    covered = {path for specs in SOURCES.values() for spec in specs for path in find_files(parse_source(spec), root)}
    groups = ("instructions", "preferences", "rl", "text")
    files = (path for group in groups for path in sorted((root / group).rglob("*")) if path.is_file())
    return [path.relative_to(root).as_posix() for path in files if path not in covered and path.name not in ABOUT]


def page(root: Path) -> str:
    """docs/data.md with the table as it is now."""
    prose, mark, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    return f"{prose}{mark}\n\n{table(root)}"


if __name__ == "__main__":
    PAGE.write_text(page(find_data_root()), encoding="utf-8")
