"""What the rules of cleaning are told."""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

LANGUAGES = (
    "ar", "bg", "bn", "ca", "cs", "da", "de", "el", "en", "es", "et", "fa", "fi", "fr", "he", "hi", "hr", "hu", "id", "it", "ja", "ko",
    "lt", "lv", "nl", "no", "pl", "pt", "ro", "ru", "sk", "sl", "sr", "sv", "ta", "te", "th", "tr", "uk", "ur", "vi", "zh",
)  # fmt: skip
"""What a text can be told to be. Of its 97 languages py3langid otherwise takes English code and lists for Luxembourgish or Latin."""
Evaluation: TypeAlias = tuple[tuple[str, tuple[str, ...]], ...]
"""(name, texts) of each set that training must not see."""


@dataclasses.dataclass(frozen=True)
class CleanOptions:
    """What the rules are told. Rules whose option is not given do nothing: `language`, `length`, `contaminated`.

    Raises: ValueError for a value that no rule can use.
    """

    languages: tuple[str, ...] = ()  # the only ones to keep, as ISO 639-1 codes
    language_letters: int = (
        40  # a text of fewer letters is of unknown language, and kept; Chinese characters count twice
    )
    prompt_characters: tuple[int, int] | None = None  # (fewest, most) of a whole prompt
    reply_characters: tuple[int, int] | None = None  # (fewest, most) of each reply, or of a text without a prompt
    similarity: float = 0.9  # from this Jaccard similarity on, of prompts and of replies, records are near duplicates
    seed: int = 1  # of the permutations of MinHash
    evaluation: Evaluation = ()
    examples: int = 3  # of each rule, in the report

    def __post_init__(self):
        for code in self.languages:
            if code not in LANGUAGES:
                raise ValueError(
                    f"languages: {code!r} is none that can be told; expected some of {', '.join(LANGUAGES)}"
                )
        for name in ("prompt_characters", "reply_characters"):
            limits = getattr(self, name)
            if limits is not None and not 0 <= limits[0] <= limits[1]:
                raise ValueError(f"{name} is {limits}; expected (fewest, most) with 0 <= fewest <= most")
        if not 0.0 < self.similarity <= 1.0:
            raise ValueError(f"similarity is {self.similarity}; expected a Jaccard similarity above 0 and up to 1")
        for name in ("language_letters", "examples", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        names = [name for name, _ in self.evaluation]
        if len(set(names)) < len(names):
            raise ValueError(f"evaluation names a set twice: {', '.join(names)}")


UNTOLD = CleanOptions()
