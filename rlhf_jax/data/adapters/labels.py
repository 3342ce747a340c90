"""Texts with the class they are of."""

from __future__ import annotations

from pathlib import PurePosixPath

from rlhf_jax.data.adapters.fields import text
from rlhf_jax.data.adapters.registry import Unusable, adapter
from rlhf_jax.data.readers import DataError, Row
from rlhf_jax.data.schema import Classified, Labelled, Provenance


@adapter("sst2", "sentence", "label")
def parse_sst2(row: Row, provenance: Provenance) -> Labelled:
    """sentence, label (0 negative, 1 positive); the blank that the files have after each sentence is not part of it.

    Source: Socher et al. 2013, in the two classes of GLUE (Wang et al. 2018, arXiv:1804.07461).
    """
    sentence, label = text(row, "sentence", provenance).strip(), str(row.get("label"))
    if label not in ("0", "1"):
        raise DataError(provenance.place, f"field 'label' is {label!r}", "expected 0 or 1")
    return Labelled(sentence, int(label), provenance)


@adapter("imdb", "member", "text")
def parse_imdb(row: Row, provenance: Provenance) -> Labelled:
    """A review, one file of an archive, whose label is its folder: pos (1) or neg (0). The text keeps its "<br />".

    Source: Maas et al. 2011, Large Movie Review Dataset; Pang & Lee 2004, polarity data set v2.0, is laid out alike.
    """
    folder = PurePosixPath(text(row, "member", provenance)).parent.name
    if folder not in ("pos", "neg"):
        raise Unusable(f"in folder {folder!r}, not in pos or neg")
    return Labelled(text(row, "text", provenance), int(folder == "pos"), provenance)


@adapter("classified", "text", "label")
def parse_classified(row: Row, provenance: Provenance) -> Classified:
    """text, label: a text with the name of its class."""
    return Classified(text(row, "text", provenance), text(row, "label", provenance), provenance)


@adapter("cvalues", "prompt", "domain_en")
def parse_cvalues(row: Row, provenance: Provenance) -> Classified:
    """prompt, domain_en: a question in Chinese with the field of the expert who asked it.

    Source: Xu et al. 2023, CValues (arXiv:2307.09705), the prompts on responsibility.
    """
    return Classified(text(row, "prompt", provenance), text(row, "domain_en", provenance), provenance)
