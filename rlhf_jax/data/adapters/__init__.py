"""What the rows of each known layout mean: one small function per layout, from row to records, registered by `@adapter`.

A row that breaks its layout (a missing field, a wrong type) is a `DataError`, since the file is not what it was said to
be. A row that is well formed but of no use (two identical replies) is `Rejected` with its reason, and counted by
whoever loads it.
"""

from __future__ import annotations

from rlhf_jax.data.adapters import comparisons, dialogues, instructions, judgements, label_studio, labels, stored, texts
from rlhf_jax.data.adapters.registry import (
    ADAPTERS,
    Adapter,
    Rejected,
    Unusable,
    adapter,
    get_adapter,
    recognise,
)

LAYOUTS = (instructions, dialogues, comparisons, judgements, label_studio, labels, texts, stored)
"""The modules of adapters."""

__all__ = ["ADAPTERS", "LAYOUTS", "Adapter", "Rejected", "Unusable", "adapter", "get_adapter", "recognise"]
