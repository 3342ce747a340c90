"""`python tests/models_table.py`: measures every family against transformers, and writes docs/models.md.

The figures are those that tests/parity/test_families.py holds to their bounds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import jax

PAGE = Path(__file__).resolve().parents[1] / "docs" / "models.md"
MARK = "<!-- below: written by tests/models_table.py -->"


def columns() -> dict[str, Callable[[str], float]]:
    """What is measured of a decoder, by the heading of its column."""
    import families

    return {
        "logits": families.logits_difference,
        "packed": families.packed_difference,
        "64 greedy tokens that differ": families.different_tokens,
        "gradient": families.gradient_error,
        "out and in transformers": families.export_difference,
        "adapters, merged": families.adapted_difference,
        "reward model": families.score_difference,
    }


def encoder_columns() -> dict[str, Callable[[str], float]]:
    """What is measured of an encoder."""
    import encoders

    return {
        "logits or scores": encoders.outputs_difference,
        "packed": encoders.packed_difference_of,
        "gradient": encoders.encoder_gradient_error,
        "out and in transformers": encoders.encoder_export_difference,
    }


def roles() -> list[str]:
    """What each family can be: its config is asked, not a list."""
    from encoders import ENCODERS, encoder_pair
    from families import WRITERS, pair

    lines = [
        "| family | policy and reference | reward model | value model | classifier | adapters |",
        "|---|---|---|---|---|---|",
    ]
    kinds = {name: pair(name) for name in WRITERS} | {name: encoder_pair(name) for name in ENCODERS}
    for name, both in kinds.items():
        config = both.ours.config
        can = (
            config.causal,
            config.causal or config.scalar_head,
            config.causal,
            not config.causal,
            True,
        )
        lines.append(f"| {name} | {' | '.join('yes' if yes else '' for yes in can)} |")
    return lines


def table(rows: Iterable[str], measured: dict[str, Callable[[str], float]]) -> list[str]:
    """The lines of a table, a row a family."""
    lines = [f"| family | {' | '.join(measured)} |", f"|---|{'---|' * len(measured)}"]
    for name in rows:
        values = [measure(name) for measure in measured.values()]
        cells = [str(value) if isinstance(value, int) else f"{value:.1e}" for value in values]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        print(lines[-1], file=sys.stderr)
    return lines


def main() -> int:
    jax.config.update("jax_platforms", "cpu")
    import torch
    import transformers
    from encoders import ENCODERS
    from families import WRITERS

    versions = f"jax {jax.__version__}, torch {torch.__version__}, transformers {transformers.__version__}"
    head, _, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    lines = [head + MARK, "", f"`python tests/models_table.py`, {versions}:", "", *table(WRITERS, columns())]
    lines += ["", "Encoders, by head:", "", *table(ENCODERS, encoder_columns())]
    lines += ["", "What each can be here:", "", *roles()]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
