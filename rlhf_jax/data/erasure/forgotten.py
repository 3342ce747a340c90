"""The list of records that may not be used any more, which everything that reads records asks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from rlhf_jax.data.adapters.registry import Rejected
from rlhf_jax.data.adapters.stored import record_id
from rlhf_jax.data.schema import Record, provenance_of
from rlhf_jax.files import prepared_directory

LIST = "forgotten.json"


@dataclasses.dataclass(frozen=True)
class Forgotten:
    """What is not to be used any more: records by their ids (`record_id`), and all that some annotators said."""

    ids: frozenset[str] = frozenset()
    annotators: frozenset[str] = frozenset()

    def has(self, record: Record | Rejected) -> bool:
        """Whether this record is one of them; a row that was left out is none."""
        if isinstance(record, Rejected):
            return False
        if provenance_of(record).annotator in self.annotators:
            return True
        return bool(self.ids) and record_id(record) in self.ids


def forgotten_path() -> Path:
    """Where the list is: beside the prepared sets of the cache."""
    return prepared_directory() / LIST


def read_forgotten() -> Forgotten:
    """What was forgotten so far. Raises: ValueError for a list that is damaged."""
    path = forgotten_path()
    if not path.is_file():
        return Forgotten()
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return Forgotten(frozenset(kept["ids"]), frozenset(kept["annotators"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); expected an object with 'ids' and 'annotators'") from error
