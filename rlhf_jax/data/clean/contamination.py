"""The rule about records that hold what a model will be tested on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial

from rlhf_jax.data.clean.options import CleanOptions, Evaluation
from rlhf_jax.data.clean.registry import Dropped, Verdict, alone, rule
from rlhf_jax.data.clean.shingles import Tokens, is_unspaced, runs
from rlhf_jax.data.schema import Record, texts_of

# Thirteen words: Brown et al. 2020 (arXiv:2005.14165), appendix C. A Chinese word has one and a half to two characters, of which 21
# are about thirteen words.
WORDS, LETTERS = 13, 21
COMMON = 10  # texts of one set: a run that more of them have is what the set asks in every item, and tells of none


@partial(rule, keys=alone)
def contaminated(records: Sequence[Record], options: CleanOptions) -> Iterator[Verdict]:
    """Drops a record with a run of 13 words (21 characters of Chinese) of a text in `evaluation`, or whose prompt is a shorter one."""
    if not options.evaluation:
        yield from records
        return
    tokens = Tokens()
    known, short = _index(options.evaluation)
    for record in records:
        yield _leaked(record, tokens, known, short) or record


@lru_cache(maxsize=1)
def _index(evaluation: Evaluation) -> tuple[dict[int, dict[int, str]], dict[bytes, str]]:
    """What to look for: the runs of long texts by their width, and the short texts; made once where records come in pieces."""
    tokens = Tokens()
    return {width: _runs_of_sets(evaluation, tokens, width) for width in (WORDS, LETTERS)}, _short_texts(
        evaluation, tokens
    )


def _runs_of_sets(evaluation: Evaluation, tokens: Tokens, width: int) -> dict[int, str]:
    """The set that each run of so many tokens is of, for texts of the script that has runs of that width."""
    found: dict[int, str] = {}
    for name, texts in evaluation:
        counted: Counter[int] = Counter()
        for text in set(texts):
            if _width(text) == width:
                counted.update(set(runs(tokens.of(text), width).tolist()) if _long(text, tokens) else ())
        for number, count in counted.items():
            if count <= COMMON:
                found.setdefault(number, name)
    return found


def _short_texts(evaluation: Evaluation, tokens: Tokens) -> dict[bytes, str]:
    found: dict[bytes, str] = {}
    for name, texts in evaluation:
        for text in texts:
            numbers = tokens.of(text)
            if len(numbers) and not _long(text, tokens):
                found.setdefault(numbers.tobytes(), name)
    return found


def _leaked(
    record: Record, tokens: Tokens, known: dict[int, dict[int, str]], short: dict[bytes, str]
) -> Dropped | None:
    for part, text in texts_of(record):
        numbers = tokens.of(text)
        if part in ("prompt", "text") and (name := short.get(numbers.tobytes())) is not None:
            return Dropped(f"a text of {name}", text)
        for width, sets in known.items():
            if not sets or len(numbers) < width:
                continue
            for number in runs(numbers, width).tolist():
                if number in sets:
                    return Dropped(
                        f"a run of {width} {'words' if width == WORDS else 'characters'} of {sets[number]}", text
                    )
    return None


def _width(text: str) -> int:
    return LETTERS if is_unspaced(text) else WORDS


def _long(text: str, tokens: Tokens) -> bool:
    return len(tokens.of(text)) >= _width(text)
