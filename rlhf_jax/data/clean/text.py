"""Rules that change texts: characters that were decoded wrongly, and characters that nobody sees."""

from __future__ import annotations

import re
import unicodedata

from rlhf_jax.data.clean.registry import changes, needed

# ftfy's own defaults turn Chinese punctuation and curly quotes into ASCII, and entities of HTML into markup. What remains here
# undoes wrong decoding, and takes whole terminal escapes out, of which `normalise` would leave "[31m". Code that writes them as
# \033 or \x1b has no such character, and stays. Line breaks, control characters and the normal form are left to `normalise`.
FTFY = {
    "unescape_html": False,
    "remove_terminal_escapes": True,
    "fix_encoding": True,
    "fix_c1_controls": True,
    "fix_latin_ligatures": False,
    "fix_character_width": False,
    "uncurl_quotes": False,
    "fix_line_breaks": False,
    "fix_surrogates": False,
    "remove_control_chars": False,
    "normalization": None,
    "explain": False,
}


# JSON reads "\frac" as a form feed and "rac" where its backslash was not doubled, and so for the other letters here.
LATEX = {
    re.compile("\f(?=rac\\b|orall|lat)"): r"\f",
    re.compile("\b(?=eta\\b|egin|inom|oldsymbol|ar\\b)"): r"\b",
    re.compile("\v(?=ec\\b|ert\\b|dots|arepsilon|arphi)"): r"\v",
    re.compile("\a(?=lpha|ngle|pprox)"): r"\a",
    re.compile("\t(?=heta|imes\\b|ext\\{|frac)"): r"\t",
}


@changes
def repair(text: str) -> str:
    """Undoes wrong decoding ("cafÃ©" by ftfy, LaTeX whose "\\f" became a form feed); punctuation, quotes and HTML entities stay."""
    for eaten, command in LATEX.items():
        text = eaten.sub(lambda _, command=command: command, text)
    if text.isascii() and "\x1b" not in text:
        return text
    ftfy = needed("ftfy", "repair")
    return ftfy.fix_text(text, ftfy.TextFixerConfig(**FTFY))


LINE_BREAK = re.compile("\r\n?|[\v\f\x85\u2028\u2029]")
INVISIBLE = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u180e\u200b\u2060-\u2064\ufeff\ufff9-\ufffb]")
JOINER = re.compile("[\u200c\u200d]")
DIRECTION = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")
RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
BLANK = re.compile("[\u00a0\u2007\u202f]")
UNUSUAL = re.compile("[^\n\t -~]")


@changes
def normalise(text: str) -> str:
    """Makes line breaks "\\n", no-break spaces plain, drops characters without any sight, and composes accents (NFC, never NFKC)."""
    if not UNUSUAL.search(text):
        return text
    text = BLANK.sub(" ", INVISIBLE.sub("", LINE_BREAK.sub("\n", text)))
    if not RIGHT_TO_LEFT.search(text):
        text = DIRECTION.sub("", text)
    # Joiners make one emoji of several, and shape letters in Persian and in the scripts of India; elsewhere they are litter.
    text = JOINER.sub(lambda match: match[0] if _joins(text, match.start()) else "", text)
    return unicodedata.normalize("NFC", text)


def _joins(text: str, at: int) -> bool:
    before, after = text[at - 1 : at], text[at + 1 : at + 2]
    if not before or not after:
        return False
    if unicodedata.category(before) in ("So", "Sk", "Mn") and unicodedata.category(after) == "So":
        return True
    return all("\u0600" <= letter <= "\u109f" or "\u1780" <= letter <= "\u17ff" for letter in (before, after))
