"""The rule about replies that stop in the middle."""

from __future__ import annotations

import re

from rlhf_jax.data.clean.options import CleanOptions
from rlhf_jax.data.clean.registry import Dropped, drops
from rlhf_jax.data.clean.replies import any_of, asked, imitated
from rlhf_jax.data.schema import Record

LONG = 200  # characters, of which a Chinese one counts as two: below, fragments that were asked for end anyhow
LINE = 40
EXCERPT = 80
FENCE = re.compile(r"^\s{0,3}(```+|~~~+)", re.MULTILINE)
DANGLING = re.compile(
    any_of(
        r"\b(?:and|or|but|the|an|of|to|with|for|from|by|because|which|that|as|if|than|into|such as|including|is|are|was|were|can|will|its)",
        r"[,、，]",
        "(?:以及|并且|而且|但是|因为|所以|如果|例如|包括|或者?|和|与|及)",
    )
    + r"\s*$",
    re.IGNORECASE,
)
# Text of which "20." was a stop sequence, being the number of the next task, ends in half a year.
MONTH = "(?:january|february|march|april|may|june|july|august|september|october|november|december)"
HALF_YEAR = re.compile(
    any_of(
        rf"\b(?:in|since|until|by|of|from|to|during|before|after|early|late|between|and)\s(?:{MONTH}\s)?",
        rf"\b{MONTH}\s\d{{1,2}}(?:st|nd|rd|th)?,\s",
    )
    + r"(?:19|20)$",
    re.IGNORECASE,
)
SENTENCE_END = re.compile(r"[.!?。！？…][\"'”’」』）)\]]*(?:\s|$|(?=[\u4e00-\u9fff]))")
NOT_PROSE = re.compile(
    any_of(
        r"^\s*(?:[-*•·>#|+]|\(?\d+\s*[.)、．:]|[A-Za-z][.)]|[\w ]{1,30}[:：])",  # items of lists, headings, tables, lines of a dialogue
        r"https?://|www\.|[{};=<>\\@#]|\d\s*$",
        "[\U0001f000-\U0001faff\u2600-\u27bf]",  # emoji end a sentence too
    )
)


@drops
def truncated(record: Record, options: CleanOptions) -> Dropped | None:
    """Drops a last reply that stops in the middle: in a block of code, in half a year ("in 20"), or in prose after a comma or "and"."""
    replies = imitated(record)
    if not replies:
        return None
    reply = replies[-1].rstrip()  # of those before it, the next turn may have asked for more
    last = reply.rpartition("\n")[2]
    if len(FENCE.findall(reply)) % 2:
        return None if SENTENCE_END.search(last) else Dropped("ends inside a block of code", reply[-EXCERPT:])
    if HALF_YEAR.search(last) and len(reply) >= 40 and not re.search(r"\b(?:19|20)\b", asked(record)):
        return Dropped("ends in half a year", reply[-EXCERPT:])
    # Many whole replies end without a full stop, a list, a poem, a signature, or careless prose; few with a comma.
    # The last line is long as well, since letters end in "Sincerely,".
    long = _width(reply) >= LONG and _width(last) >= LINE
    if long and DANGLING.search(last) and not NOT_PROSE.search(last) and SENTENCE_END.search(reply):
        return Dropped("ends after a comma or a word that wants another", reply[-EXCERPT:])
    return None


def _width(text: str) -> int:
    return len(text) + len(re.findall(r"[\u4e00-\u9fff]", text))
