"""How a run turns records into tokens: its tokenizer, its template, and the encoder of each kind of record."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from rlhf_jax.data.schema import (
    Classified,
    Comparison,
    Conversation,
    Demonstration,
    Document,
    Labelled,
    LabelledReply,
    Prompt,
    Rated,
    Record,
)
from rlhf_jax.data.tokens.encode import (
    encode_classified,
    encode_comparison,
    encode_conversation,
    encode_demonstration,
    encode_document,
    encode_labelled,
    encode_labelled_reply,
    encode_prompt,
    encode_rated,
)
from rlhf_jax.data.tokens.templates import Template
from rlhf_jax.data.tokens.tokenizer import Tokenizer, ending_with


@dataclasses.dataclass(frozen=True)
class Texts:
    """How this run turns records into tokens."""

    tokenizer: Tokenizer
    template: Template
    length: int
    prompt_length: int
    labels: tuple[str, ...] = ()  # of classes

    @classmethod
    def of(cls, tokenizer: Tokenizer, template: Template, *settings: Any) -> Texts:
        """The same with what ends a turn of a chat as the tokenizer's eos.

        It is what the model learns to write there, and what sampling waits for.
        """
        return cls(ending_with(tokenizer, template.end), template, *settings)

    def encode(self, records: Sequence[Record]) -> list[Any]:
        """Records as encoded examples: one of each, but of documents and conversations as many as these need."""
        encoders: dict[type, Callable] = {
            Prompt: encode_prompt,
            Demonstration: encode_demonstration,
            Comparison: encode_comparison,
            Rated: encode_rated,
            LabelledReply: encode_labelled_reply,
        }

        def encoded(record: Record) -> list[Any]:
            if isinstance(record, Conversation):
                return encode_conversation(record, self.tokenizer, self.template, self.prompt_length)
            if isinstance(record, Document):
                return encode_document(record, self.tokenizer, self.length)
            if isinstance(record, Labelled):
                return [encode_labelled(record, self.tokenizer)]
            if isinstance(record, Classified):
                return [encode_classified(record, self.tokenizer, self.labels)]
            return [encoders[type(record)](record, self.tokenizer, self.template, self.prompt_length)]

        return [example for record in records for example in encoded(record)]
