"""Personal data in English and Chinese texts: where it stands, texts without it, and how much of it is found.

Looked for is what has a form: `identifiers.py` has the rules of those that prove themselves, `phones.py` those of phone numbers. Names,
street addresses and dates have none and stay. Kinds, in the order in which they win where two overlap: url_credentials (over the end of
user:password@host, which is an e-mail address by its form), email, iban, chinese_id, card, ssn, ip, phone.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Sequence
from operator import attrgetter

from rlhf_jax.data.privacy.identifiers import RULES, half_width
from rlhf_jax.data.privacy.phones import REGIONS, find_phones

KINDS = (*RULES, "phone")


@dataclasses.dataclass(frozen=True)
class Span:
    """text[start:end] is personal data of this kind, one of KINDS."""

    kind: str
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class Score:
    """Counts of spans of one kind: labelled, found, and how many of either the other side has."""

    labelled: int = 0
    found: int = 0
    right: int = 0  # found spans that overlap a labelled one
    recalled: int = 0  # labelled spans that overlap a found one
    exact: int = 0  # found spans with both boundaries of a labelled one

    @property
    def precision(self) -> float:
        """Fraction of the found that is right; nan where none was found."""
        return self.right / self.found if self.found else math.nan

    @property
    def recall(self) -> float:
        """Fraction of the labelled that was found; nan where none is labelled."""
        return self.recalled / self.labelled if self.labelled else math.nan


def find(text: str, kinds: Collection[str] = KINDS, regions: Sequence[str] = REGIONS) -> tuple[Span, ...]:
    """Personal data of these kinds, in order and without overlap.

    The kinds that are not asked for still win against later ones: phones alone are no digits of an identity number. `regions` are those of
    `find_phones`, which alone needs the package `phonenumbers`; it is not imported where "phone" is not asked for.

    Raises: KeyError for an unknown kind or region; ValueError where `phonenumbers` is needed and not installed.
    """
    for kind in kinds:
        if kind not in KINDS:
            close = difflib.get_close_matches(kind, KINDS) or KINDS
            raise KeyError(f"no kind {kind!r} of personal data; did you mean {' or '.join(close)}?")
    plain = half_width(text)
    candidates = [(kind, place) for kind, rule in RULES.items() for place in rule(plain)]
    if "phone" in kinds:
        candidates += [("phone", place) for place in find_phones(plain, regions)]
    found: list[Span] = []
    for kind, (start, end) in candidates:
        place = bisect_left(found, start, key=attrgetter("start"))
        if (place == 0 or found[place - 1].end <= start) and (place == len(found) or end <= found[place].start):
            insort(found, Span(kind, start, end), key=attrgetter("start"))
    return tuple(span for span in found if span.kind in kinds)


def mask(text: str, kinds: Collection[str] = KINDS, regions: Sequence[str] = REGIONS) -> tuple[str, tuple[Span, ...]]:
    """(text with a placeholder for every span, the spans, as they lie in `text`); to mask the result again changes nothing.

    The placeholder is the kind in capitals between angle brackets: <EMAIL>, <URL_CREDENTIALS>. What shows itself only when its neighbour is
    masked, as a number that a URL was written against, is masked too, so that there may be more spans than `find` gives. Raises: as `find`.
    """
    masked, spans = text, []
    while new := find(masked, kinds, regions):
        spans = sorted([*spans, *_before_masking(new, spans)], key=attrgetter("start"))
        pieces, end = [], 0
        for span in spans:
            pieces += [text[end : span.start], placeholder(span.kind)]
            end = span.end
        masked = "".join([*pieces, text[end:]])
    return masked, tuple(spans)


def placeholder(kind: str) -> str:
    """What stands in a masked text for data of this kind."""
    return f"<{kind.upper()}>"


def _before_masking(spans: Sequence[Span], masked: Sequence[Span]) -> list[Span]:
    """`spans` as they lay before those of `masked`, which lie so, became placeholders; both in order."""
    places: list[Span] = []
    passed, shift = 0, 0
    for span in spans:
        while passed < len(masked) and masked[passed].start <= span.start + shift:
            shift += masked[passed].end - masked[passed].start - len(placeholder(masked[passed].kind))
            passed += 1
        places.append(Span(span.kind, span.start + shift, span.end + shift))
    return places


def evaluate(
    labelled: Iterable[tuple[str, Sequence[Span]]], kinds: Collection[str] = KINDS, regions: Sequence[str] = REGIONS
) -> dict[str, Score]:
    """By kind, what `find` gives beside what a person labelled, over (text, labels) pairs.

    A found span is right where it overlaps a labelled one of its kind, whether or not it has its boundaries. Raises: as `find`.
    """
    scores = {kind: Score() for kind in KINDS if kind in kinds}
    for text, labels in labelled:
        spans = find(text, kinds, regions)
        for kind, score in scores.items():
            found, right = ([span for span in side if span.kind == kind] for side in (spans, labels))
            scores[kind] = Score(
                labelled=score.labelled + len(right),
                found=score.found + len(found),
                right=score.right + sum(any(_overlap(span, other) for other in right) for span in found),
                recalled=score.recalled + sum(any(_overlap(span, other) for other in found) for span in right),
                exact=score.exact + len({*found} & {*right}),
            )
    return scores


def _overlap(one: Span, other: Span) -> bool:
    return one.start < other.end and other.start < one.end
