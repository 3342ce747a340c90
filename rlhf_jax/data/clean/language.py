"""Which language a text is in, where it is long enough to tell."""

from __future__ import annotations

import functools
import re
from typing import Any

from rlhf_jax.data.clean.options import LANGUAGES
from rlhf_jax.data.clean.registry import needed

UNKNOWN = "unknown"
NOT_TEXT = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|<[^<>\n]{1,200}>|&\w+;|https?://\S+|\S+@\S+", re.DOTALL)
HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
KANA = re.compile(r"[\u3041-\u30ff]")
HANGUL = re.compile(r"[\uac00-\ud7af\u1100-\u11ff]")
LETTER = re.compile(r"[^\W\d_]")
WORD = re.compile(r"[^\W\d_]{2,}")
CODE_SIGN = re.compile(r"[{}\[\]()<>=;_+*/\\|#$&^~]|^\s*(?:import|def|class|return|SELECT|FROM)\b", re.MULTILINE)
CERTAIN = 0.8  # least probability to believe


def language_of(text: str, letters: int = 40) -> str:
    """The ISO 639-1 code of the language of a text, or "unknown" for one of fewer letters than that, of code, or of several languages.

    East Asian scripts tell their languages themselves, and one of their letters counts as two; py3langid tells the others.
    """
    text = NOT_TEXT.sub(" ", text)
    han, kana, hangul = (len(script.findall(text)) for script in (HAN, KANA, HANGUL))
    others = len(LETTER.findall(text)) - han - kana - hangul
    asian = 2 * (han + kana + hangul)
    if asian + others < letters:
        return UNKNOWN
    if asian > others:  # English terms stand in Chinese texts; a word of five letters is about two characters
        if hangul > han + kana:
            return "ko"
        return "ja" if kana * 5 > han + kana else "zh"
    if asian * 4 > others or len(CODE_SIGN.findall(text)) * 12 > others:
        return UNKNOWN
    code, probability = _identifier().classify(" ".join(WORD.findall(text)))
    return code if probability >= CERTAIN else UNKNOWN


@functools.cache
def _identifier() -> Any:
    langid = needed("py3langid", "language").langid
    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    identifier.set_languages(LANGUAGES)
    return identifier
