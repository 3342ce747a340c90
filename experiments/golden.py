"""Every experiment at every scale as JSON in `golden/`, so that a change of a hyper-parameter shows up in review."""

from __future__ import annotations

import json
from pathlib import Path

from experiments.registry import entries
from rlhf_jax.files import write_atomic
from rlhf_jax.overrides import to_dict

FOLDER = Path(__file__).parent / "golden"


def golden_texts() -> dict[str, str]:
    """File name -> what it must hold, of all registered experiments and scales."""
    return {
        f"{name.replace('/', '-')}.{scale}.json": json.dumps(to_dict(entry.experiment(scale)), indent=1) + "\n"
        for name, entry in entries().items()
        for scale in entry.costs
    }


def write_golden(folder: Path = FOLDER) -> list[str]:
    """Brings the folder up to date; returns the names of the files that were written or removed."""
    texts = golden_texts()
    stale = [path for path in folder.glob("*.json") if path.name not in texts]
    for path in stale:
        path.unlink()
    changed = [name for name, text in texts.items() if _read(folder / name) != text]
    for name in changed:
        write_atomic(folder / name, texts[name])
    return sorted([*changed, *(path.name for path in stale)])


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None
