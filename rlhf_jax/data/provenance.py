"""Under which licences data may be used: as the manifest of a data root states them, and which an experiment allows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from rlhf_jax.data.readers import DataError

UNKNOWN_LICENCE = "unknown"
MANIFEST = "manifest.json"

SPDX = {
    "MIT": r"\bMIT\b",
    "Apache-2.0": r"\bApache[- ](?:License )?2\.0\b",
    "BSD-3-Clause": r"\bBSD(?:-3-Clause)?\b",
    "CC0-1.0": r"\bCC0\b",
    "CC-BY-3.0": r"\bCC[- ]BY[- ]3\.0\b",
    "CC-BY-4.0": r"\bCC[- ]BY[- ]4\.0\b",
    "CC-BY-SA-3.0": r"\bCC[- ]BY[- ]SA[- ]3\.0\b",
    "CC-BY-SA-4.0": r"\bCC[- ]BY[- ]SA[- ]4\.0\b",
    "CC-BY-NC-4.0": r"\bCC[- ]BY[- ]NC[- ]4\.0\b",
    "CC-BY-NC-SA-4.0": r"\bCC[- ]BY[- ]NC[- ]SA[- ]4\.0\b",
    "ODC-By-1.0": r"\bODC[- ]By\b",
    "CDLA-Sharing-1.0": r"\bCDLA[- ]Sharing\b",
    "CDLA-Permissive-2.0": r"\bCDLA[- ]Permissive\b",
    "public-domain": r"\bpublic domain\b",
}
"""Identifiers of spdx.org, and how texts write them."""
LIMITS = {
    "research-only": r"\bresearch[- ](?:use|only)\b",
    "proprietary": r"\bowned by\b|\bproprietary\b",
    UNKNOWN_LICENCE: r"\bno (?:\w+ )?licen[cs]e\b|\bnone stated\b|\bunknown\b",
}
"""What else a text says about the use of data, named as an allow-list would have to name it."""


def find_licences(data_root: Path) -> dict[str, str]:
    """Licence by file, as the manifest of the data root states it; nothing where there is no manifest."""
    path = data_root / MANIFEST
    if not path.is_file():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {entry["file"]: str(entry.get("licence") or UNKNOWN_LICENCE) for entry in entries}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"not readable ({type(error).__name__}: {error})"
        raise DataError(str(path), reason, "expected an array of objects with 'file' and 'licence'") from error


def licence_ids(stated: str) -> frozenset[str]:
    """Every licence that a text names, as SPDX has them, and the limits it adds; a text that names none stands for itself.

    All of them bind: "MIT (translation) over CC BY-NC 4.0 (Stanford Alpaca)" is {"MIT", "CC-BY-NC-4.0"}.
    """
    found = {name for name, pattern in {**SPDX, **LIMITS}.items() if re.search(pattern, stated, re.IGNORECASE)}
    return frozenset(found or {stated.strip() or UNKNOWN_LICENCE})


def check_licences(stated: Iterable[tuple[str, str]], allowed: Sequence[str]) -> None:
    """Whether the (source, licence text) pairs are all of allowed licences.

    Raises: ValueError that names each source with what its licence says and what of that is not allowed.
    """
    known = {name.lower() for name in allowed}
    refused = []
    for source, text in dict.fromkeys(stated):
        missing = sorted(name for name in licence_ids(text) if name.lower() not in known)
        if missing:
            refused.append(f"{source!r} is under {text!r}: {', '.join(missing)} is not allowed")
    if refused:
        raise ValueError(f"data.licences allows {', '.join(allowed)}; " + "; ".join(refused))
