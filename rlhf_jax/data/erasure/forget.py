"""The right to erasure: records taken out of prepared sets, kept out of everything that is read later, and looked for in checkpoints."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from rlhf_jax.data.erasure.forgotten import Forgotten, forgotten_path, read_forgotten
from rlhf_jax.data.prepared.sets import ABOUT, rewrite
from rlhf_jax.data.sources import load_source
from rlhf_jax.files import write_atomic

ID = re.compile("[0-9a-f]{16}")


def forget(ids: Sequence[str], annotators: Sequence[str], sets: Path) -> dict[Path, int]:
    """How many records were taken out of each prepared set below `sets`; from now on they are left out wherever they are read.

    The list is written first: what is killed in between has not kept a record in use, and asking again goes on.
    Raises: ValueError for what is no id of a record.
    """
    for name in ids:
        if not ID.fullmatch(name):
            raise ValueError(
                f"{name!r} is no id of a record; expected 16 hexadecimal digits, as `read --ids` prints them"
            )
    before = read_forgotten()
    now = Forgotten(before.ids | set(ids), before.annotators | set(annotators))
    write_atomic(
        forgotten_path(), json.dumps({"ids": sorted(now.ids), "annotators": sorted(now.annotators)}, indent=1) + "\n"
    )
    taken: dict[Path, int] = {}
    for about in sorted(sets.glob(f"*/*/{ABOUT}")):
        folder = about.parent
        loaded = load_source(f"tfds:{folder}:train", sets)  # which leaves out what is on the list
        if loaded.rejected:
            rewrite(folder, loaded.records)
            taken[folder] = len(loaded.rejected)
    return taken
