"""Rules that do nothing unless they are told what to keep: languages and lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from rlhf_jax.data.clean.language import UNKNOWN, language_of
from rlhf_jax.data.clean.options import CleanOptions
from rlhf_jax.data.clean.registry import Dropped, Verdict, alone, rule
from rlhf_jax.data.schema import Record, texts_of


@partial(rule, keys=alone)
def language(records: Sequence[Record], options: CleanOptions) -> Iterator[Verdict]:
    """Drops a record with a text in a language that is not among `languages`; a text too short to tell, or code, counts for none."""
    for record in records:
        yield (_other_language(record, options) if options.languages else None) or record


def _other_language(record: Record, options: CleanOptions) -> Dropped | None:
    for _, text in texts_of(record):
        code = language_of(text, options.language_letters)
        if code != UNKNOWN and code not in options.languages:
            return Dropped(f"a text in {code}", text)
    return None


@partial(rule, keys=alone)
def length(records: Sequence[Record], options: CleanOptions) -> Iterator[Verdict]:
    """Drops a record whose prompt, or one of whose replies, has fewer or more characters than `prompt_characters`, `reply_characters`."""
    for record in records:
        yield _unfit(record, options) or record


def _unfit(record: Record, options: CleanOptions) -> Dropped | None:
    pieces = texts_of(record)
    prompt = "\n".join(text for part, text in pieces if part == "prompt")
    found = _outside("prompt", options.prompt_characters, [prompt] if prompt else [])
    return found or _outside("reply", options.reply_characters, [text for part, text in pieces if part != "prompt"])


def _outside(what: str, limits: tuple[int, int] | None, texts: list[str]) -> Dropped | None:
    if limits is None:
        return None
    fewest, most = limits
    for text in texts:
        if not fewest <= len(text) <= most:
            wrong = f"fewer than {fewest}" if len(text) < fewest else f"more than {most}"
            return Dropped(f"a {what} of {wrong} characters", text)
    return None
