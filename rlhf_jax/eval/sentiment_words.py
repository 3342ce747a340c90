"""A word-list measure of sentiment, independent of any trained model."""

from __future__ import annotations

import re

POSITIVE = frozenset(
    """
    amazing beautiful best better brave bright cheer cheered cheerful clever comfortable cozy delicious delight
    delighted easy enjoy enjoyed excellent excited exciting fantastic favorite friend friendly friends fun funny
    gentle giggle giggled glad good grateful great happily happy helpful hug hugged joy joyful kind kindly kindness
    laugh laughed laughing love loved lovely loves lucky magical nice peaceful perfect play played playing pleased
    pretty proud proudly safe share shared shiny smile smiled smiling special strong sunny surprise sweet thank
    thanked thankful treasure warm welcome well win wonderful wow yummy
    """.split()  # noqa: SIM905
)
NEGATIVE = frozenset(
    """
    afraid alone angry annoyed bad badly bored boring broke broken bully careless cold cried cruel cry crying danger
    dangerous dark dead die died dirty disappointed fail failed fear fell fight fought frightened frown frowned
    furious greedy grumpy hate hated horrible hurt ill jealous lie lied lonely lose lost mad mean mess messy
    miserable mistake nasty naughty nervous pain poor regret rude ruined sad sadly sadness scared scary scream
    screamed selfish shout shouted sick sorrow sorry stole struggle stuck stupid tears terrible tired trouble ugly
    unhappy unkind upset weak worried worry worse worst wrong yelled
    """.split()  # noqa: SIM905
)

_WORD = re.compile(r"[a-z']+")


def sentiment_balance(text: str) -> float:
    """(positive - negative words) per 100 words of English text; 0 for a text without words."""
    words = _WORD.findall(text.lower())
    if not words:
        return 0.0
    return 100.0 * sum((word in POSITIVE) - (word in NEGATIVE) for word in words) / len(words)
