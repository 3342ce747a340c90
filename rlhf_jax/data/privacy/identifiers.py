"""Rules for identifiers that prove themselves: check digits, registries, or a form that nothing else has.

Each rule gives (start, end) of what it takes in a text of `half_width`, in time proportional to its length: repetitions are bounded, or
begin only where a lookbehind says that the run of their characters begins. None takes an angle bracket, which placeholders have.
"""

from __future__ import annotations

import datetime
import ipaddress
import itertools
import re
from collections.abc import Callable, Iterator

# Digits, capitals, small letters and the signs of numbers and addresses, which Unicode repeats as wide as Chinese characters.
WIDE = [*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B), *map(ord, "＠．－＋")]
HALF_WIDTH = {code: code - 0xFEE0 for code in WIDE} | {0x3000: " ", 0xA0: " "}

# Not inside a word or a longer number. Only digits and Latin letters count as such: Chinese characters stand against numbers.
BEGIN, END = r"(?<![0-9A-Za-z])(?<![0-9][-.])", r"(?![0-9A-Za-z])(?![-.][0-9])"
NINE_DIGITS = re.compile(r"[0-9](?:[ -]?[0-9]){8}")  # quickly seen, and missing in nearly all texts


def half_width(text: str) -> str:
    """The text with full-width characters of numbers and addresses as their ASCII counterparts, each in its place."""
    return text if text.isascii() else text.translate(HALF_WIDTH)


PLACEHOLDER = re.compile(r"(?:<|\A)[A-Z_]+>")


def in_front(text: str, start: int, characters: int) -> str:
    """As many characters before `start`; <PHONE> in place of a number is an end, and says nothing about the number behind it."""
    return PLACEHOLDER.sub("。", text[max(0, start - characters) : start])


# Any scheme, as databases have passwords too; the characters of RFC 3986.
URL = re.compile(r"(?<![A-Za-z+.-])(?:[A-Za-z][A-Za-z0-9+.-]{0,20}://|www\.)[!#-;=?-Z\[\]_a-z~]+")
LOGIN = re.compile(r"://[^/?#:@]*:[^/?#]+@[^/?#@]")
SECRET = re.compile(
    r"[?&#;][A-Za-z0-9_.-]{0,40}?"
    r"(?:token|api[_-]?key|access[_-]?key(?:[_-]?id)?|secret(?:[_-]?key)?|password|passwd|pwd|sig(?:nature)?)=[^&#]",
    re.IGNORECASE,
)


def url_credentials(text: str) -> Iterator[tuple[int, int]]:
    """URLs with user:password@ or a secret among their parameters: all of the URL, as its host says what the secret opens."""
    for match in URL.finditer(text) if "://" in text or "www." in text else ():
        url = match[0].rstrip(".,;:!?'*)]")  # of the sentence around it
        if LOGIN.search(url) or SECRET.search(url):
            yield match.start(), match.start() + len(url)


LOCAL = r"A-Za-z0-9._%+'-"
EMAIL = re.compile(
    rf"(?<![{LOCAL}])[{LOCAL}]{{1,64}}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{{0,61}}[A-Za-z0-9])?\.)+"
    r"(?:xn--[A-Za-z0-9-]{1,59}|[A-Za-z]{2,63})(?![A-Za-z0-9])"
)


def emails(text: str) -> Iterator[tuple[int, int]]:
    """ASCII addresses of a domain with a dot; git@host is where a repository lies."""
    for match in EMAIL.finditer(text) if "@" in text else ():
        local = match[0].partition("@")[0].lstrip("._%+'-")  # a quotation mark, a dash of a list
        if local not in ("", "git"):
            yield match.start() + match[0].index("@") - len(local), match.end()


# Registry of SWIFT: the characters of an IBAN, by country.
IBAN_LENGTHS = {
    country: int(length)
    for country, length in re.findall(
        "([A-Z]{2})([0-9]{2})",
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 ES24 "
        "FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 "
        "LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 "
        "RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30",
    )
}
IBAN = re.compile(r"(?<![0-9A-Za-z])([A-Za-z]{2})[0-9]{2}(?=[ -]?[0-9A-Za-z])")


def ibans(text: str) -> Iterator[tuple[int, int]]:
    """In one piece or in fours, of the length of their country, with the check digits of ISO 7064 mod 97-10."""
    for match in IBAN.finditer(text):
        length, start = IBAN_LENGTHS.get(match[1].upper(), 0), match.start()
        separator = text[start + 4] if text[start + 4] in " -" else ""
        end = start + length + len(separator) * ((length - 1) // 4)
        blocks = text[start:end].split(separator) if separator else [text[start:end]]
        number = "".join(blocks)
        whole = len(number) == length and re.fullmatch("[0-9A-Za-z]+", number) and all(len(b) == 4 for b in blocks[:-1])
        if whole and not re.match("[0-9A-Za-z]", text[end : end + 1]):
            moved = number[4:] + number[:4]
            if int("".join(str(int(character, 36)) for character in moved)) % 97 == 1:
                yield start, end


CHINESE_ID = re.compile(rf"{BEGIN}([0-9]{{6}})( ?)((?:18|19|20)[0-9]{{6}})\2([0-9]{{3}}[0-9Xx]){END}")
PROVINCES = {
    *range(11, 16),
    *range(21, 24),
    *range(31, 38),
    *range(41, 47),
    *range(50, 55),
    *range(61, 66),
    71,
    81,
    82,
    83,
    91,
}


def chinese_ids(text: str) -> Iterator[tuple[int, int]]:
    """18 characters (GB 11643-1999): a province, a date of birth that exists, and the check character of ISO 7064 mod 11-2."""
    for match in CHINESE_ID.finditer(text) if NINE_DIGITS.search(text) else ():
        place, _, birth, order = match.groups()
        try:
            datetime.date(int(birth[:4]), int(birth[4:6]), int(birth[6:]))
        except ValueError:
            continue
        values = [10 if character in "Xx" else int(character) for character in place + birth + order]
        checked = sum(value * 2 ** (17 - i) for i, value in enumerate(values)) % 11 == 1
        if checked and int(place[:2]) in PROVINCES:
            yield match.span()


# In one piece, or in the groups that are printed on cards. A lookahead, as a number in front of a card may look like its first group.
CARDS = tuple(
    re.compile(rf"{BEGIN}(?=({shape}){END})")
    for shape in (
        r"[0-9]{12,19}",
        r"[0-9]{4}([ -])[0-9]{4}\2[0-9]{4}\2[0-9]{4}\2[0-9]{3}",
        r"[0-9]{4}([ -])[0-9]{4}\2[0-9]{4}\2[0-9]{4}",
        r"[0-9]{4}([ -])[0-9]{6}\2[0-9]{4,5}",
        r"[0-9]{6}[ -][0-9]{13}",
    )
)
# First and last prefix, shortest and longest number.
ISSUERS = (
    *(("4", "4", length, length) for length in (13, 16, 19)),  # Visa
    *(("51", "55", 16, 16), ("2221", "2720", 16, 16)),  # Mastercard
    *(("34", "34", 15, 15), ("37", "37", 15, 15)),  # American Express
    *(("300", "305", 14, 19), ("3095", "3095", 14, 19), ("36", "36", 14, 19), ("38", "39", 14, 19)),  # Diners Club
    *(("6011", "6011", 16, 19), ("644", "649", 16, 19), ("65", "65", 16, 19)),  # Discover
    *(("3528", "3589", 16, 19), ("2131", "2131", 15, 15), ("1800", "1800", 15, 15)),  # JCB
    *(("62", "62", 16, 19), ("81", "81", 16, 19)),  # UnionPay
    *(("50", "50", 12, 19), ("56", "58", 12, 19), ("639", "639", 12, 19), ("6304", "6304", 12, 19)),  # Maestro
    *(("6759", "6759", 12, 19), ("6761", "6763", 12, 19)),
    *(("2200", "2204", 16, 19), ("60", "60", 16, 16)),  # Mir, RuPay
)
CARD_WORDS = re.compile(r"card|visa|maestro|credit|debit|(?<![a-z])cc(?![a-z])|卡", re.IGNORECASE)


def cards(text: str) -> Iterator[tuple[int, int]]:
    """Numbers of an issuer and its length whose Luhn sum (ISO/IEC 7812-1) is a multiple of ten.

    Of 12 or 13 digits, which are the result of a calculation more often than a card, only those shortly behind a word for one.
    """
    shapes = CARDS if NINE_DIGITS.search(text) else ()
    for match in itertools.chain.from_iterable(shape.finditer(text) for shape in shapes):
        start, digits = match.start(1), re.sub("[ -]", "", match[1])
        known = any(a <= digits[: len(a)] <= b and low <= len(digits) <= high for a, b, low, high in ISSUERS)
        values = [int(digit) for digit in reversed(digits)]
        luhn = sum(values[::2]) + sum(sum(divmod(2 * value, 10)) for value in values[1::2])
        if known and luhn % 10 == 0 and (len(digits) > 13 or CARD_WORDS.search(in_front(text, start, 40))):
            yield match.span(1)


# Areas 000, 666 and from 900 on, group 00 and serial 0000 are never given out.
SSN = re.compile(rf"{BEGIN}(?!000|666|9)[0-9]{{3}}([- ]?)(?!00)[0-9]{{2}}\1(?!0000)[0-9]{{4}}{END}")
SSN_WORDS = re.compile(r"(?:(?<![A-Za-z])SSN|social security|社会安全|社会保障)[^0-9。]{0,24}\Z", re.IGNORECASE)


def ssns(text: str) -> Iterator[tuple[int, int]]:
    """Nine digits with hyphens; with spaces or in one piece only where the text says what they are."""
    for match in SSN.finditer(text) if NINE_DIGITS.search(text) else ():
        if match[1] == "-" or SSN_WORDS.search(in_front(text, match.start(), 44)):
            yield match.span()


DOTTED, COLONS = re.compile(r"[0-9]\.[0-9]+\.[0-9]"), re.compile(r":[0-9A-Fa-f]*:")
IPV4 = re.compile(r"(?<![0-9A-Za-z._])(?<![A-Za-z][-/])(?<!==)[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![0-9A-Za-z])(?!\.[0-9])")
# Addresses in use begin with four hexadecimal digits (2000::/3, fc00::/7, fe80::/10); x[1::2] and hours do not.
IPV6 = re.compile(
    r"(?<![0-9A-Za-z:.])[0-9A-Fa-f]{4}:(?:[0-9A-Fa-f:]{0,37}[0-9A-Fa-f]|[0-9A-Fa-f:]{0,37}::|:)"
    r"(?![0-9A-Za-z])(?!\.[0-9])"
)
NUMBERED = re.compile(
    r"(?:(?<![a-z])(?:versions?|ver|v|releases?|build|sections?|sec|chapters?|clauses?|figures?|fig|tables?|steps?|appendix"
    r"|articles?|paragraphs?|rules?)\.?|§|版本号?|版|第|章节?|节|图|表|条款)\s?(?:is|to|是|为)?[\s:：=\"'(]{0,4}\Z",
    re.IGNORECASE,
)
LINE_BEGIN = re.compile(r"(?:\A|\n)[ \t#*]*\Z")


def ips(text: str) -> Iterator[tuple[int, int]]:
    """Addresses that a machine of somebody's can have, in private networks too; no loopback, multicast, network mask or 0.x.

    Four numbers with dots are none behind a word such as "version" or "section", before 节, in Name/1.2.3.4, name-1.2.3.4 or ==1.2.3.4,
    nor at the beginning of a line, all of them between 1 and 30, in front of what may be the title of a section. An IPv6 address that is
    shortened with :: lies in a block that is in use.
    """
    rules = [rule for rule, part in ((IPV4, DOTTED), (IPV6, COLONS)) if part.search(text)]
    for match in itertools.chain.from_iterable(rule.finditer(text) for rule in rules):
        start, end = match.span()
        try:
            address = ipaddress.ip_address(match[0])
        except ValueError:
            continue
        nobody = address.is_loopback or address.is_multicast or address.is_unspecified
        if address.version == 4:
            numbers, before = address.packed, in_front(text, start, 24)
            title = LINE_BEGIN.search(before) and re.match(r"[ \t]+\S", text[end : end + 24])
            numbered = NUMBERED.search(before) or re.match(r" ?[节章版]", text[end : end + 2])
            section = numbered or (title and min(numbers) >= 1 and max(numbers) <= 30)
            nobody = nobody or address.is_reserved or numbers[0] == 0 or section
        elif "::" in match[0]:
            nobody = nobody or address.is_reserved
        if not nobody:
            yield start, end


RULES: dict[str, Callable[[str], Iterator[tuple[int, int]]]] = {
    "url_credentials": url_credentials,
    "email": emails,
    "iban": ibans,
    "chinese_id": chinese_ids,
    "card": cards,
    "ssn": ssns,
    "ip": ips,
}
"""In the order in which they win where two overlap: what has more proof, or holds the other, comes first."""
