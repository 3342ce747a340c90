"""Answers of people, as Label Studio exports them (JSON; one row is a task with its annotations).

Its server checks none of what it stores, so everything is checked here: results go by their type, each annotator counts once for a task
with the latest answer, and pages that were skipped or sent without an answer are left out, with the numbers of task and annotation.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

from rlhf_jax.data.adapters.fields import asked, field, listing, preferred, text
from rlhf_jax.data.adapters.instructions import ranking
from rlhf_jax.data.adapters.registry import Rejected, Unusable, adapter
from rlhf_jax.data.readers import DataError, Row
from rlhf_jax.data.schema import Prompt, Provenance, Rated, Record

PAIRS = (("response_a", "response_b"), ("answer1", "answer2"), ("answer_a", "answer_b"), ("output_1", "output_2"))
"""Names that tasks give to the reply on the left and to the one on the right."""
MARGINS = {"significantly better": 1.0, "better": 2 / 3, "slightly better": 1 / 3}
"""Steps of a preference, as Touvron et al. 2023 (arXiv:2307.09288), table 27, numbers the lower of their two scales."""
UNSORTED = "_"  # the bucket in which an item lies until somebody moves it


@adapter("labelstudio", "annotations", "data")
def parse_task(row: Row, provenance: Provenance) -> list[Record | Rejected]:
    """A task -> what its annotators said: a comparison (Pairwise), a ranking (Ranker, with or without buckets), or a rating (Rating).

    `data` has prompt or messages; response_a and response_b (or another of `PAIRS`), responses (each with id and body), or response.
    A choice among better, slightly better ... beside a comparison is its margin; of several ratings the mean counts.
    """
    data = field(row, "data", dict, "an object", provenance)
    latest: dict[Any, dict] = {}
    found: list[Record | Rejected] = []
    for annotation in listing(row, "annotations", "an array of annotations", provenance):
        if not isinstance(annotation, dict) or not isinstance(annotation.get("result"), list):
            raise DataError(provenance.place, "an annotation has no 'result'", "expected an array of results")
        place = f"{provenance.place} (task {row.get('id')}, annotation {annotation.get('id')})"
        if annotation.get("was_cancelled"):
            found.append(Rejected(place, "skipped by the annotator"))
            continue
        who = annotation.get("completed_by")
        before = latest.get(who)
        if before is not None and str(annotation.get("updated_at")) <= str(before["updated_at"]):
            found.append(Rejected(place, "the annotator answered again later"))
            continue
        if before is not None:
            found.append(Rejected(before["place"], "the annotator answered again later"))
        latest[who] = {**annotation, "place": place, "updated_at": annotation.get("updated_at")}
    for who, annotation in latest.items():
        here = dataclasses.replace(
            provenance, place=annotation["place"], method="human", annotator=None if who is None else pseudonym(who)
        )
        try:
            found.append(_answer(data, annotation["result"], here))
        except Unusable as reason:
            found.append(Rejected(here.place, str(reason)))
    return found


def pseudonym(annotator: Any) -> str:
    """A name for an annotator that is the same in every export and tells nobody who it is."""
    name = annotator.get("email") or annotator.get("id") if isinstance(annotator, dict) else annotator
    return "annotator-" + hashlib.sha256(f"labelstudio/{name}".encode()).hexdigest()[:10]


def _answer(data: Row, results: list[Any], provenance: Provenance) -> Record:
    for result in results:
        if not isinstance(result, dict) or not isinstance(result.get("value"), dict):
            raise DataError(provenance.place, "a result has no 'value'", "expected an object for each answer")
    by_type = {
        kind: [r["value"] for r in results if r.get("type") == kind] for kind in ("pairwise", "ranker", "rating")
    }
    if by_type["pairwise"]:
        return _comparison(data, by_type["pairwise"][0], results, provenance)
    if by_type["ranker"]:
        return _ranking(data, by_type["ranker"][0], provenance)
    if by_type["rating"]:
        stars = [value.get("rating") for value in by_type["rating"]]
        if not all(isinstance(star, int | float) for star in stars):
            raise DataError(provenance.place, f"a rating is {stars}", "expected numbers")
        reply = text(data, "response", provenance)
        return Rated(_prompt(data, provenance), reply, sum(map(float, stars)) / len(stars))
    raise Unusable("no answer" if not results else "no comparison, ranking or rating among the answers")


def _comparison(data: Row, value: Row, results: list[Row], provenance: Provenance) -> Record:
    names = next((pair for pair in PAIRS if set(pair) <= set(data)), None)
    if names is None:
        expected = " or ".join(" and ".join(pair) for pair in PAIRS)
        raise DataError(
            provenance.place, "the task has no two replies", f"expected {expected}; or map fields by ?fields="
        )
    selected = value.get("selected")
    if selected not in ("left", "right"):
        raise DataError(provenance.place, f"selected is {selected!r}", "expected left or right")
    left, right = (text(data, name, provenance) for name in names)
    chosen, rejected = (left, right) if selected == "left" else (right, left)
    said = [choice for r in results if r.get("type") == "choices" for choice in r["value"].get("choices", ())]
    margin = next((MARGINS[choice] for choice in said if choice in MARGINS), 0.0)
    return preferred(_prompt(data, provenance), chosen, rejected, margin=margin)


def _ranking(data: Row, value: Row, provenance: Provenance) -> Record:
    """By places, or by buckets in the order in which the page shows them; what lies in no bucket is left out."""
    items = {}
    for item in listing(data, "responses", "an array of replies with 'id'", provenance):
        body = next((item[name] for name in ("body", "text", "html") if isinstance(item, dict) and name in item), None)
        if not isinstance(body, str):
            raise DataError(provenance.place, "a reply of 'responses' has no 'body'", "expected id and body")
        items[item.get("id")] = body
    given = value.get("ranker")
    if isinstance(given, dict) and not (len(given) == 1 and UNSORTED not in given):
        groups = [ids for name, ids in given.items() if name != UNSORTED]
        order = [(key, place) for place, ids in enumerate(groups) for key in ids]
    else:
        ids = next(iter(given.values())) if isinstance(given, dict) else given
        if not isinstance(ids, list):
            raise DataError(provenance.place, f"a ranking is {given!r}", "expected ids, best first")
        order = [(key, place) for place, key in enumerate(ids)]
    unknown = [key for key, _ in order if key not in items]
    if unknown:
        raise DataError(provenance.place, f"ranks {unknown}", f"expected ids of {', '.join(map(str, items))}")
    if not order:
        raise Unusable("no reply was put into a bucket")
    return ranking(_prompt(data, provenance), [items[key] for key, _ in order], [place for _, place in order])


def _prompt(data: Row, provenance: Provenance) -> Prompt:
    return asked(data, "messages" if "messages" in data else "prompt", provenance)
