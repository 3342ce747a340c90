"""Cleaning of records: rules that repair or drop, each of which can be left out, and a report of all that they did.

`clean(records, rules, options) -> Cleaned(records, report)`. The rules are those of RULES, in its order; docs/cleaning.md has what they
do to the data sets that lie here.
"""

from __future__ import annotations

from rlhf_jax.data.clean.options import LANGUAGES, CleanOptions
from rlhf_jax.data.clean.pipeline import DEFAULT, STEPS, Cleaned, clean
from rlhf_jax.data.clean.registry import RULES, Dropped, Noted, Rule, changes, drops, rule
from rlhf_jax.data.clean.report import Example, Report, RuleReport

__all__ = [
    "DEFAULT",
    "LANGUAGES",
    "RULES",
    "STEPS",
    "CleanOptions",
    "Cleaned",
    "Dropped",
    "Example",
    "Noted",
    "Report",
    "Rule",
    "RuleReport",
    "changes",
    "clean",
    "drops",
    "rule",
]
