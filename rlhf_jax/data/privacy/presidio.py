"""Presidio's labelled texts (microsoft/presidio-research), on which finding personal data is measured."""

from __future__ import annotations

from pathlib import Path

from rlhf_jax.data.privacy import Span
from rlhf_jax.data.readers import DataError
from rlhf_jax.data.readers.json_arrays import read_json

PRESIDIO = {
    "EMAIL_ADDRESS": "email",
    "PHONE_NUMBER": "phone",
    "CREDIT_CARD": "card",
    "IBAN_CODE": "iban",
    "IP_ADDRESS": "ip",
    "US_SSN": "ssn",
}
"""Its kinds that are ours. DOMAIN_NAME is a URL without credentials; the others have no form that a rule could know."""

PRESIDIO_REGIONS = tuple(
    "US CN CA GB AU NZ AT BE BR CH CY CZ DE DK EE ES FI FR GL HU IS IT NL NO PL PT SE SI TN UY ZA".split()  # noqa: SIM905
)
"""Its people are invented by fakenamegenerator.com, which knows these countries; China is there as it is one of `phones.REGIONS`."""


def read_presidio(path: Path) -> list[tuple[str, tuple[Span, ...]]]:
    """(text, labels) of the synthetic texts that Presidio is measured on, from its JSON; labels of other kinds are left out.

    Raises: DataError for another form.
    """
    labelled: list[tuple[str, tuple[Span, ...]]] = []
    for place, row in read_json(path):
        try:
            ours = [span for span in row["spans"] if span["entity_type"] in PRESIDIO]
            spans = [Span(PRESIDIO[s["entity_type"]], s["start_position"], s["end_position"]) for s in ours]
            labelled.append((row["full_text"], tuple(spans)))
        except (KeyError, TypeError) as error:
            reason = f"not a text of Presidio with its labels ({type(error).__name__}: {error})"
            raise DataError(place, reason, "expected 'full_text' and 'spans' of type and position") from error
    return labelled
