"""Replies in an order, with a rating, or with a thumb up or down."""

from __future__ import annotations

from rlhf_jax.data.adapters.dialogues import conversation
from rlhf_jax.data.adapters.fields import (
    asked,
    checked,
    field,
    filled,
    listing,
    number,
    prompt_of,
    replied,
    text,
    turns,
)
from rlhf_jax.data.adapters.instructions import instructed, ranking
from rlhf_jax.data.adapters.registry import Rejected, Unusable, adapter
from rlhf_jax.data.readers import DataError, Row
from rlhf_jax.data.schema import LabelledReply, Prompt, Provenance, Ranking, Rated, Record, user_prompt


@adapter("rankings", "prompt", "replies")
def parse_ranking(row: Row, provenance: Provenance) -> Ranking:
    """prompt, replies (an array of texts, best first), and perhaps places (an array of numbers, 0 for the best; equal ones are ties)."""
    replies = listing(row, "replies", "an array of texts", provenance)
    if not all(isinstance(reply, str) for reply in replies):
        raise DataError(provenance.place, "field 'replies' has an element that is no text", "expected texts")
    places = listing(row, "places", "an array of numbers", provenance) if "places" in row else list(range(len(replies)))
    if len(places) != len(replies) or not all(isinstance(place, int) for place in places):
        reason = f"field 'places' is {places}, for {len(replies)} replies"
        raise DataError(provenance.place, reason, "expected a whole number for each")
    texts = [filled(checked(reply, "replies", provenance), "reply") for reply in replies]
    return ranking(asked(row, "prompt", provenance), texts, places)


@adapter("stack_exchange", "question", "answers")
def parse_stack_exchange(row: Row, provenance: Provenance) -> Ranking:
    """question, answers (each with text, and pm_score or score) -> the answers by their scores; equal scores are ties.

    Source: Askell et al. 2021 (arXiv:2112.00861), section 4.1, as in the files of H4's stack-exchange-preferences.
    """
    answers = listing(row, "answers", "an array of answers", provenance)
    if not all(isinstance(answer, dict) for answer in answers):
        raise DataError(provenance.place, "an answer is no object", "expected 'text' and 'pm_score' or 'score'")
    scores = [number(answer, "pm_score" if "pm_score" in answer else "score", provenance) for answer in answers]
    better = sorted(set(scores), reverse=True)
    replies = [filled(text(answer, "text", provenance), "answer") for answer in answers]
    prompt = user_prompt(filled(text(row, "question", provenance), "question"), provenance)
    return ranking(prompt, replies, [better.index(score) for score in scores])


@adapter("ratings", "instruction", "output", "rating", columns=("instruction", "input", "output", "rating"))
def parse_rating(row: Row, provenance: Provenance) -> Rated:
    """instruction, input, output, rating (a number) -> a reply and what it was worth.

    Source: Bansal et al. 2023 (arXiv:2308.15812), ratings from 1 to 7, whose files have no header.
    """
    reply = filled(text(row, "output", provenance), "output")
    return Rated(instructed(row, provenance), reply, number(row, "rating", provenance))


@adapter("unpaired", "prompt", "completion", "label")
def parse_unpaired(row: Row, provenance: Provenance) -> LabelledReply:
    """prompt, completion (texts, or messages), label (true: desirable): single replies with a thumb up or down.

    Source: the unpaired preferences of TRL (huggingface.co/docs/trl/dataset_formats).
    """
    prompt, reply = asked(row, "prompt", provenance), replied(row, "completion", provenance)
    return _labelled(prompt, reply, field(row, "label", bool, "true or false", provenance))


@adapter("unpaired_messages", "messages", "label")
def parse_unpaired_messages(row: Row, provenance: Provenance) -> LabelledReply:
    """messages (each with role and content), label: a dialogue whose last turn, of the assistant, is desirable (true) or not.

    Source: the files for KTO of LLaMA-Factory (Zheng et al. 2024, arXiv:2403.13372).
    """
    said = turns(field(row, "messages", list, "an array of messages", provenance), provenance)
    desirable = field(row, "label", bool, "true or false", provenance)
    whole = conversation(said, provenance).turns
    return _labelled(prompt_of(whole[:-1], provenance), whole[-1].text, desirable)


@adapter("graded_solutions", "question", "ground_truth")
def parse_graded(row: Row, provenance: Provenance) -> list[Record | Rejected]:
    """question, and any fields that hold a solution and whether it is_correct -> one labelled reply for each of them.

    Source: Cobbe et al. 2021 (arXiv:2110.14168), the released solutions of models.
    """
    prompt = user_prompt(filled(text(row, "question", provenance), "question"), provenance)
    graded = [value for value in row.values() if isinstance(value, dict) and "solution" in value]
    if not graded:
        raise DataError(
            provenance.place, "no field holds a solution", "expected objects with 'solution' and 'is_correct'"
        )
    found: list[Record | Rejected] = []
    for value in graded:
        solution = text(value, "solution", provenance)
        right = field(value, "is_correct", bool, "true or false", provenance)
        empty = Rejected(provenance.place, "the solution is empty")
        found.append(LabelledReply(prompt, solution, right) if solution.strip() else empty)
    return found


def _labelled(prompt: Prompt, reply: str, desirable: bool) -> LabelledReply:
    if not reply.strip():
        raise Unusable("the reply is empty")
    return LabelledReply(prompt, reply, desirable)
