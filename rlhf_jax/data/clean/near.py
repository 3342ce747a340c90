"""The rule about records that are almost the same as another."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from rlhf_jax.data.clean.duplicates import judgement, parts
from rlhf_jax.data.clean.options import CleanOptions
from rlhf_jax.data.clean.registry import Dropped, Verdict, needed, rule
from rlhf_jax.data.clean.shingles import Tokens, is_unspaced, jaccard, shingles
from rlhf_jax.data.schema import Record

# A shingle of three words is the usual choice for texts of the length of a reply. A Chinese word has one and a half to two characters, so
# that five characters are about three words.
WORDS, LETTERS = 3, 5
PERMUTATIONS = 128
MISSED = 1e-3  # the chance to miss a pair that is just similar enough
NUMBER = re.compile(r"\d+")
CHUNK = 1 << 15  # shingles that are permuted at once


def _band_keys(records: Sequence[Record], options: CleanOptions) -> Iterator[tuple[bytes, ...]]:
    """The bands of the signature of each record, with what it says: what two must have in common to be compared."""
    tokens = Tokens()
    sets = [[_shingles(part, tokens) for part in parts(record)] for record in records]
    count, rows = bands(options.similarity)
    for record, signature in zip(records, _signatures(sets, _empty(options).permutations), strict=True):
        says = _says(record)
        told = (bytes([band]) + signature[band * rows : (band + 1) * rows].tobytes() + says for band in range(count))
        yield tuple(hashlib.sha256(each).digest()[:16] for each in told)


@partial(rule, keys=_band_keys)
def near_duplicates(records: Sequence[Record], options: CleanOptions) -> Iterator[Verdict]:
    """Drops a record whose prompt and replies are each nearly those of an earlier one that was kept; numbers must agree."""
    datasketch, empty = needed("datasketch", "near_duplicates"), _empty(options)
    tokens = Tokens()
    sets = [[_shingles(part, tokens) for part in parts(record)] for record in records]
    index = datasketch.MinHashLSH(num_perm=PERMUTATIONS, params=bands(options.similarity))
    said: dict[int, bytes] = {}
    for place, (record, signature) in enumerate(zip(records, _signatures(sets, empty.permutations), strict=True)):
        minhash = _minhash(datasketch, signature, empty)
        says = _says(record)
        for other in sorted(index.query(minhash)):
            if said[other] != says:
                continue
            alike = min(map(jaccard, sets[place], sets[other]))
            if alike >= options.similarity and _verified(record, records[other], tokens, options.similarity):
                text = next(part for part in reversed(parts(record)) if part)
                yield Dropped("nearly the same texts as an earlier record", f"{alike:.2f} alike: {text}", kept=other)
                break
        else:
            index.insert(place, minhash, check_duplication=False)
            said[place] = says
            yield record


def _empty(options: CleanOptions) -> Any:
    """The signature of nothing, which has the permutations."""
    datasketch: Any = needed("datasketch", "near_duplicates")
    return datasketch.MinHash(PERMUTATIONS, seed=options.seed, scheme="affine64")


def bands(similarity: float) -> tuple[int, int]:
    """(bands, rows of each) of the permutations: the most rows with which pairs of that similarity are missed at most MISSED of the time.

    A pair of similarity s has a band in common with probability 1 - (1 - s^rows)^bands (Leskovec, Rajaraman & Ullman, Mining of Massive
    Datasets, section 3.4.2). Candidates are verified, so that a false one costs a comparison, while a missed one is a duplicate that stays.
    """
    fitting = [
        rows for rows in range(1, PERMUTATIONS // 2 + 1) if (1 - similarity**rows) ** (PERMUTATIONS // rows) <= MISSED
    ]
    rows = max(fitting, default=1)
    return PERMUTATIONS // rows, rows


def _verified(record: Record, other: Record, tokens: Tokens, similarity: float) -> bool:
    """Whether two records with shingles in common are nearly the same indeed.

    What is said five times is not what is said once, though the sets are the same. And where a prompt is a long instruction with a
    short input in a line of its own, the input has to be alike by itself.
    """
    (prompt, *rest), (other_prompt, *other_rest) = parts(record), parts(other)
    lines, other_lines = ([line for line in text.split("\n") if line.strip()] for text in (prompt, other_prompt))
    if len(lines) != len(other_lines):
        lines, other_lines = [prompt], [other_prompt]
    for first, second in zip([*lines, *rest], [*other_lines, *other_rest], strict=True):
        shorter, longer = sorted(len(tokens.of(text)) for text in (first, second))
        if shorter < similarity * longer or jaccard(_shingles(first, tokens), _shingles(second, tokens)) < similarity:
            return False
    return True


def _shingles(text: str, tokens: Tokens) -> np.ndarray:
    return shingles(tokens.of(text), LETTERS if is_unspaced(text) else WORDS)


def _says(record: Record) -> bytes:
    """What near duplicates have in common to the letter: what is said of the texts, and the numbers in each part.

    "5 apples" and "6 apples" are two tasks, however long the rest is.
    """
    numbers = tuple(tuple(NUMBER.findall(part)) for part in parts(record))
    return repr((judgement(record), numbers)).encode("utf-8", "surrogatepass")


def _signatures(sets: Sequence[Sequence[np.ndarray]], permutations: Any) -> Iterator[np.ndarray]:
    """The least number of the shingles of each record under each permutation; the parts of a record count as sets apart.

    As datasketch does it, for many records at once. Where each part is alike to the extent s, the whole is too, so that no pair is missed
    by looking at the whole.
    """
    multiply, add = (np.asarray(numbers, np.uint64) for numbers in permutations)
    place = 0
    while place < len(sets):
        chunk, size = [], 0
        while place < len(sets) and (not chunk or size < CHUNK):
            tagged = [
                part * np.uint64(2 * number + 3) + np.uint64(number)
                for number, part in enumerate(sets[place])
                if len(part)
            ]
            chunk.append(np.concatenate(tagged) if tagged else np.zeros(1, np.uint64))
            size += len(chunk[-1])
            place += 1
        every = np.concatenate(chunk)
        starts = np.cumsum([0, *(len(part) for part in chunk[:-1])])
        least = np.stack(
            [np.minimum.reduceat(every * a + b, starts) for a, b in zip(multiply, add, strict=True)], axis=1
        )
        yield from least


def _minhash(datasketch: Any, signature: np.ndarray, empty: Any) -> Any:
    return datasketch.MinHash(
        seed=empty.seed, hashvalues=signature, permutations=empty.permutations, scheme=empty.scheme
    )
