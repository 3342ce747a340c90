"""Texts without a reply: documents to learn from, and prompts for a policy to answer."""

from __future__ import annotations

from rlhf_jax.data.adapters.fields import asked, filled, listing, optional_text, text
from rlhf_jax.data.adapters.registry import Unusable, adapter
from rlhf_jax.data.readers import Row
from rlhf_jax.data.schema import Document, Prompt, Provenance, user_prompt


@adapter("documents", "text")
def parse_document(row: Row, provenance: Provenance) -> Document:
    """text -> a document."""
    return Document(filled(text(row, "text", provenance), "text"), provenance)


@adapter("poems", "paragraphs", "title")
def parse_poem(row: Row, provenance: Provenance) -> Document:
    """title, author, paragraphs (lines) -> a document. Source: the files of chinese-poetry."""
    lines = listing(row, "paragraphs", "an array of lines", provenance)
    if not lines:
        raise Unusable("the poem has no lines")
    head = [text(row, "title", provenance), optional_text(row, "author", provenance)]
    return Document("\n".join([*filter(None, head), *(str(line) for line in lines)]), provenance)


@adapter("prompts", "prompt")
def parse_prompt(row: Row, provenance: Provenance) -> Prompt:
    """prompt (a text, or messages) -> a prompt."""
    prompt = asked(row, "prompt", provenance)
    filled(prompt.turns[-1].text, "prompt")
    return prompt


@adapter("lines", "text", format="text")
def parse_line(row: Row, provenance: Provenance) -> Prompt:
    """One prompt of one user turn per line of a text file."""
    return user_prompt(text(row, "text", provenance), provenance)


OPENING_WORDS = 6


@adapter("openings", "text", format="text")
def parse_opening(row: Row, provenance: Provenance) -> Prompt:
    """The first words of a paragraph, for a policy to go on with."""
    words = text(row, "text", provenance).split()
    if len(words) < 2 * OPENING_WORDS:
        raise Unusable(f"a paragraph of fewer than {2 * OPENING_WORDS} words")
    return user_prompt(" ".join(words[:OPENING_WORDS]), provenance)
