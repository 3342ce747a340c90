"""Dialogues of several turns, of which every reply is to be imitated."""

from __future__ import annotations

from rlhf_jax.data.adapters.fields import filled, listing, turns
from rlhf_jax.data.adapters.registry import Unusable, adapter
from rlhf_jax.data.readers import Row
from rlhf_jax.data.schema import Conversation, Provenance, Turn


@adapter("messages", "messages")
def parse_messages(row: Row, provenance: Provenance) -> Conversation:
    """messages, each with role and content -> a conversation. Source: OpenAI's chat fine-tuning files."""
    return conversation(turns(listing(row, "messages", "an array of messages", provenance), provenance), provenance)


@adapter("sharegpt", "conversations")
def parse_sharegpt(row: Row, provenance: Provenance) -> Conversation:
    """conversations (messages, each with from and value), perhaps system -> a conversation. Source: the ShareGPT files of FastChat."""
    said = turns(listing(row, "conversations", "an array of messages", provenance), provenance)
    if row.get("system"):
        said = (Turn("system", str(row["system"])), *said)
    return conversation(said, provenance)


def conversation(said: tuple[Turn, ...], provenance: Provenance) -> Conversation:
    """Raises: Unusable for turns that do not alternate between user and assistant, from the one to the other."""
    spoken = said[1:] if said and said[0].role == "system" else said
    if not spoken or spoken[-1].role != "assistant":
        raise Unusable("the dialogue does not end with a reply of the assistant")
    if any(turn.role != ("user", "assistant")[place % 2] for place, turn in enumerate(spoken)):
        raise Unusable("the turns do not alternate between user and assistant")
    for turn in spoken:
        filled(turn.text, f"turn of the {turn.role}")
    return Conversation(said, provenance)
