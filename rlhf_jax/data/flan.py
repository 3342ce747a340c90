"""Instruction formats of FLAN: one task in several wordings, with and without examples, and turned round.

A record says what is asked and replied; here it is put in one of several wordings of its kind of task, by itself or behind worked examples
of the same source, or inverted, so that the input is written from the output.

Source: Wei et al. 2021 (arXiv:2109.01652), section 2.1 (ten wordings to a task, some turned round); Longpre et al. 2023 (arXiv:2301.13688),
sections 3.2 to 3.4 (few-shot and zero-shot together, input inversion, chains of thought).
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from rlhf_jax.config import Flan
from rlhf_jax.data.adapters.stored import record_id, traced
from rlhf_jax.data.schema import Demonstration, Record, provenance_of, user_prompt


@dataclasses.dataclass(frozen=True)
class Wordings:
    """How a kind of task is put: the wordings of it, and of the same turned round; each has one {} for what is given."""

    asked: tuple[str, ...]
    inverted: tuple[str, ...] = ()


WORDINGS: dict[str, Wordings] = {
    "instruction": Wordings(
        (
            *("{}", "{}\n\nResponse:", "Task: {}", "Follow this instruction.\n\n{}", "Please do the following: {}"),
            *(
                "Instruction: {}\nResponse:",
                "Q: {}\nA:",
                "Here is a task.\n\n{}\n\nWrite the answer.",
                "User: {}\nAssistant:",
            ),
            "{}\n\nYour answer:",
        ),
        (
            "Write an instruction to which this is the response.\n\n{}",
            "What was asked, if this is the answer?\n\n{}",
            "Response: {}\nInstruction:",
        ),
    ),
    "question": Wordings(
        (
            *(
                "{}",
                "Question: {}\nAnswer:",
                "Answer the following question.\n{}",
                "Q: {}\nA:",
                "{}\nWhat is the answer?",
            ),
            *(
                "Here is a question: {}\nIts answer is:",
                "Please answer: {}",
                "Solve this problem.\n\n{}",
                "Problem: {}\nSolution:",
            ),
            "I would like to know: {}",
        ),
        (
            "Write a question whose answer is this.\n\n{}",
            "Answer: {}\nQuestion:",
            "This is the solution of a problem. What is the problem?\n\n{}",
        ),
    ),
    "reasoning": Wordings(
        (
            *(
                "{}\nLet's think step by step.",
                "Question: {}\nThink first, then answer.",
                "{}\nGive the reasons, then the answer.",
            ),
            *(
                "Q: {}\nA: Let's think.",
                "Answer the question below, step by step.\n\n{}",
                "{}\nWhat follows from what? Then answer.",
            ),
            *(
                "Reason about this question, and answer it at the end.\n{}",
                "Work this out in steps: {}",
                "{}\nExplain, then conclude.",
            ),
            "Chain of thought, then the answer.\n\n{}",
        ),
        (
            "Write the question to which this reasoning leads to the answer.\n\n{}",
            "Reasoning: {}\nQuestion:",
            "What was asked, if this is how somebody thought about it?\n\n{}",
        ),
    ),
}
"""Wordings by kind of task."""

KIND_OF = {"cot": "reasoning", "questions": "question", "gsm8k": "question", "problems": "question"}
"""Kind of task by the layout of a source; the others are instructions."""


def kind_of(source: str) -> str:
    """The kind of task of a source, by its string."""
    return KIND_OF.get(source.partition(":")[0], "instruction")


def in_formats(records: Sequence[Record], settings: Flan, seed: int) -> list[Record]:
    """The demonstrations of one turn in one of FLAN's formats each; other records stay as they are.

    Which one is a function of the record, the settings and the seed, whatever else is in the list; but the worked examples in front are
    other records of it.
    """
    fitting = [number for number, record in enumerate(records) if _fits(record)]
    found = list(records)
    for number in fitting:
        record = records[number]
        assert isinstance(record, Demonstration)
        chance = random.Random(f"{seed}/{record_id(record)}")
        inverted, shown = chance.random() < settings.inverted, chance.random() < settings.few_shot
        place = chance.randrange(1 << 30)
        texts = [_worded(record, settings, place, inverted=inverted)]
        if shown and len(fitting) > settings.shots:
            others = chance.sample(fitting, settings.shots + 1)
            examples = [records[other] for other in others if other != number][: settings.shots]
            texts = [*(_worded(one, settings, place, inverted=inverted) for one in examples), *texts]
        *before, (asked, reply) = texts
        prompt = "\n\n".join([*(f"{question}\n{answer}" for question, answer in before), asked])
        worded = Demonstration(user_prompt(prompt, provenance_of(record), record.prompt.key), reply)
        found[number] = traced(worded, record)
    return found


def _fits(record: Record) -> bool:
    return isinstance(record, Demonstration) and [turn.role for turn in record.prompt.turns] == ["user"]


def _worded(record: Record, settings: Flan, place: int, *, inverted: bool) -> tuple[str, str]:
    """(what is asked, what is replied) of a record in the wording of that place among those that are used."""
    assert isinstance(record, Demonstration)
    given, reply = record.prompt.turns[0].text, record.reply
    wordings = WORDINGS[kind_of(provenance_of(record).source)]
    if inverted:
        given, reply = reply, given
    forms = wordings.inverted if inverted else wordings.asked[: settings.wordings]
    before, after = forms[place % len(forms)].split("{}")
    return f"{before}{given}{after}", reply
