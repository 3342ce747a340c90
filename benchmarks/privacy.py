"""How much personal data is found in labelled texts, what is found in instructions, and how fast.

python -m benchmarks.privacy [--data-root DIR]

A table for the 1,500 synthetic texts of Presidio with the default regions, one with the countries that its people are from, and the hits in
Alpaca with examples, to be read: no label says which are right. Then texts per second, with and without the test for seven digits that
spares most texts the phone matcher.

Missed in Presidio's texts: cards whose prefix no issuer has (any 35 for JCB, which has 3528 to 3589; 0604); phones in one piece, or in two
with a space between, that no word such as "call" announces (5403926876, 781 1704), and one that no region has; with the default regions,
national forms of other countries. Found and not labelled: a driver's licence, and a house number behind a zip code, that are valid phone
numbers. Labels of other types (PERSON, STREET_ADDRESS, DATE_TIME, ...) are out of scope; DOMAIN_NAME is a URL without credentials.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path

from rlhf_jax.data.privacy import KINDS, evaluate, find, mask, phones
from rlhf_jax.data.privacy.presidio import PRESIDIO_REGIONS, read_presidio
from rlhf_jax.data.schema import Demonstration
from rlhf_jax.data.sources import find_data_root, load_source

ALPACA = "alpaca:instructions/alpaca-en/*.json.gz"
EXAMPLES, AROUND = 6, 30  # of each kind; characters before and behind


def print_scores(path: Path, regions: Sequence[str]) -> None:
    scores = evaluate(read_presidio(path), regions=regions)
    print(f"\nPresidio, regions {' '.join(regions)}\n")
    print("| kind | labelled | found | precision | recall | same boundaries |\n|---|---|---|---|---|---|")
    for kind, score in scores.items():
        if score.labelled or score.found:
            counts = f"{score.labelled} | {score.found} | {score.precision:.3f} | {score.recall:.3f}"
            print(f"| {kind} | {counts} | {score.exact} of {score.right} |")


def print_hits(texts: Sequence[str]) -> None:
    hits = [(text, span) for text in texts for span in find(text)]
    print(f"\nAlpaca, {len(texts):,} texts\n")
    for kind in KINDS:
        ours = [(text, span) for text, span in hits if span.kind == kind]
        print(f"{kind}: {len(ours)}")
        for text, span in random.Random(0).sample(ours, min(EXAMPLES, len(ours))):
            before, behind = text[max(0, span.start - AROUND) : span.start], text[span.end : span.end + AROUND]
            print("    " + f"{before}[{text[span.start : span.end]}]{behind}".replace("\n", "⏎"))


def texts_per_second(texts: Sequence[str]) -> float:
    start = time.perf_counter()
    for text in texts:
        mask(text)
    return len(texts) / (time.perf_counter() - start)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.privacy", description=__doc__)
    parser.add_argument(
        "--data-root", type=Path, help="the folder of data sets; default: RLHF_JAX_DATA, ../shared/data"
    )
    root = find_data_root(parser.parse_args(argv).data_root)
    for regions in (phones.REGIONS, PRESIDIO_REGIONS):
        print_scores(root / "safety" / "presidio" / "synth_dataset_v2.json.gz", regions)
    records = [record for record in load_source(ALPACA, root).records if isinstance(record, Demonstration)]
    texts = ["\n".join([*(turn.text for turn in record.prompt.turns), record.reply]) for record in records]
    print_hits(texts)
    print(f"\nmasked: {texts_per_second(texts):,.0f} texts/s")
    phones.SEVEN_DIGITS = re.compile("")  # lets every text pass
    print(f"without the test for seven digits: {texts_per_second(texts):,.0f} texts/s")


if __name__ == "__main__":
    main()
