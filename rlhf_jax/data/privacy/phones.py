"""Phone numbers in a text, by the numbering plans of the package `phonenumbers`, and what only looks like one."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Sequence

from rlhf_jax.data.privacy.identifiers import in_front

REGIONS = ("US", "CN")
"""Countries whose numbers are known without a country code, unless others are asked for."""

# Seven digits with at most four separators between two: without them no number is there, and hardly any text has them.
SEVEN_DIGITS = re.compile(
    r"[0-9](?:[-x ./()\[\]~（）［］／\u00a0\u00ad\u200b\u2010-\u2015\u2060\u2212\u3000]{0,4}[0-9]){6}"
)

# Words that say a phone number follows, then no other digit and no end of a sentence but one dot, as in "Tel. no. 555-0100".
CONTEXT = re.compile(
    r"(?:(?<![a-z])(?:(?:tele)?phone|fax|call|dial|contact|mobile|cell|whatsapp|sms|hotline|reach (?:me|us|him|her|them)|tel(?![a-z]))"
    r"|电话|手机|联系|致电|拨打|热线|传真|座机|短信|来电)[^0-9.!?。！？;；]{0,24}\.?[^0-9.!?。！？;；]{0,4}\Z",
    re.IGNORECASE,
)
BOOK = re.compile(r"(?:ISBN|ISSN|DOI)[^0-9]{0,10}\Z", re.IGNORECASE)
CHINESE_MOBILE = re.compile(r"(?:(?:00)?86)?1[3-9][0-9]{9}")
AMERICAN = re.compile(r"(?:1[-. ])?(?:\([0-9]{3}\) ?|[0-9]{3}[-.])[0-9]{3}[-.][0-9]{4}(?: ?(?:x|ext\.?) ?[0-9]{1,6})?")

# A date, whatever follows; a date that ends with its year; a date in one piece; years from one to another; a version or an address; a
# decimal fraction; thousands. None is a phone number, whatever stands in front.
NUMERALS = re.compile(
    r"(?:1[0-9]|20)[0-9]{2}[-./ ](?:0?[1-9]|1[0-2])[-./ ](?:0?[1-9]|[12][0-9]|3[01])(?![0-9]).*"
    r"|(?:0?[1-9]|[12][0-9]|3[01])[-./ ](?:0?[1-9]|[12][0-9]|3[01])[-./ ](?:1[0-9]|20)[0-9]{2}"
    r"|(?:19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])"
    r"|(?:1[0-9]|20)[0-9]{2} ?[-\u2010-\u2015/~] ?(?:1[0-9]|20)[0-9]{2}"
    r"|[0-9]{1,3}(?:\.[0-9]{1,4}){3}"
    r"|[0-9]+\.[0-9]+"
    r"|[0-9]{1,3}(?:\.[0-9]{3})+"
)
# Inside: a plus or minus with spaces, a slash (but 030/123456), a bracket that closes and never opened.
ARITHMETIC = re.compile(r"\+\s|\s[-\u2010-\u2015\u2212]\s|(?<![0-9])[1-9][0-9]*/|\A[^(（]*[)）]")
OPERAND_BEFORE = re.compile(
    r"[0-9]\.\Z|(?:[=≈]|[0-9A-Za-z)][ \t]*[+*^×÷])[ \t]*[-–−]?[ \t]*\Z|[0-9)][ \t]+[-–−][ \t]+\Z"
)
OPERAND_AFTER = re.compile(
    r"\.[0-9]|[ \t]*(?:[=≈]|[+*^×÷][ \t]*[0-9A-Za-z(]|[-–−][ \t]+[0-9]|/[ \t]*[0-9]{1,4}(?![0-9]))"
)


def find_phones(text: str, regions: Sequence[str] = REGIONS) -> list[tuple[int, int]]:
    """(start, end) of phone numbers, longest first; those of more than one region may overlap.

    Numbers with a country code are found whatever the regions are; those without it where one of the regions has given them out. Digits in
    one piece, or in two with a space between, are arithmetic and addresses more often than phones: they count only behind a word such as
    "call" or 电话, with a trunk 0 in front of two pieces, or as a Chinese mobile number. Numbers that are merely of the right length, as
    invented ones are, count behind such a word, with a country code, or in the form (555) 555-0100.

    Raises: KeyError for an unknown region; ValueError where `phonenumbers` is not installed.
    """
    try:
        import phonenumbers
    except ImportError as error:
        raise ValueError(
            "finding phone numbers needs the package phonenumbers: pip install 'rlhf_jax[data]'"
        ) from error

    for region in regions:
        if region not in phonenumbers.SUPPORTED_REGIONS:
            close = difflib.get_close_matches(region.upper(), phonenumbers.SUPPORTED_REGIONS) or REGIONS
            raise KeyError(f"no region {region!r} with phone numbers; did you mean {' or '.join(close)}?")
    if not SEVEN_DIGITS.search(text):
        return []
    found = set[tuple[int, int]]()
    for leniency in (phonenumbers.Leniency.VALID, phonenumbers.Leniency.POSSIBLE):
        for region in regions or (None,):
            for match in phonenumbers.PhoneNumberMatcher(text, region, leniency, min_candidate_length=7):
                start, end = match.start, match.end
                if text[start] in "(（" and not re.search("[)）]", match.raw_string):
                    start += 1  # the bracket closes behind the number
                given_out = leniency == phonenumbers.Leniency.VALID
                if _is_phone(text, start, end, given_out=given_out, chinese="CN" in regions):
                    found.add((start, end))
    return sorted(found, key=lambda span: (span[0] - span[1], span))


def _is_phone(text: str, start: int, end: int, *, given_out: bool, chinese: bool) -> bool:
    """Whether text[start:end], a number of one of the regions by its digits or by their count alone, is written as phone numbers are."""
    number, before, after = text[start:end], in_front(text, start, 40), text[end : end + 10]
    groups = re.findall(r"\d+", number)
    digits = "".join(groups)
    if NUMERALS.fullmatch(number) or len(digits) < 2 * len(groups) - 1 or _is_row(groups):
        return False
    glued = re.search("[0-9]\\Z" if number[0] in "(（" else "[0-9A-Za-z]\\Z", before) or re.match("[0-9A-Za-z]", after)
    if glued or BOOK.search(before):
        return False
    if CONTEXT.search(before):
        return True
    if ARITHMETIC.search(number) or (number == "+" + digits and re.search(r"(?:[0-9][ \t]*|\))\Z", before)):
        return False
    if not given_out:
        return (number[0] == "+" and len(digits) >= 9) or AMERICAN.fullmatch(number) is not None
    if number == digits or (len(groups) == 2 and number[0] in "123456789"):
        counted = OPERAND_BEFORE.search(before) or OPERAND_AFTER.match(after)
        return chinese and CHINESE_MOBILE.fullmatch(digits) is not None and not counted
    return True


def _is_row(groups: Sequence[str]) -> bool:
    """72 73 74 75 76, or by other small steps."""
    steps = {int(after) - int(before) for before, after in itertools.pairwise(groups)}
    return len(groups) > 2 and len(steps) == 1 and 1 <= abs(steps.pop()) <= 10
