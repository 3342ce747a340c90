"""Instructions with the reply to imitate."""

from __future__ import annotations

import re

from rlhf_jax.data.adapters.fields import (
    asked,
    checked,
    field,
    filled,
    listing,
    optional_text,
    prompt_of,
    replied,
    text,
)
from rlhf_jax.data.adapters.registry import Rejected, Unusable, adapter
from rlhf_jax.data.readers import DataError, Row
from rlhf_jax.data.schema import Demonstration, Prompt, Provenance, Ranking, Record, Turn, user_prompt


@adapter("alpaca", "instruction", "output")
def parse_alpaca(row: Row, provenance: Provenance) -> Demonstration | Ranking:
    """instruction, input, output -> a prompt (the input, if any, after a blank line) and its reply; an array of outputs is a ranking.

    There may also be a `system` text, and `history`: pairs of what was asked and replied before. Source: Taori et al. 2023, Stanford
    Alpaca; arrays, system and history as in the files of LLaMA-Factory (Zheng et al. 2024, arXiv:2403.13372), replies best first.
    """
    prompt = instructed(row, provenance)
    if isinstance(row.get("output"), list):
        replies = [filled(checked(reply, "output", provenance), "reply") for reply in row["output"]]
        return ranking(prompt, replies, range(len(replies)))
    return Demonstration(prompt, filled(text(row, "output", provenance), "output"))


@adapter("instructions", "instruction")
def parse_instruction(row: Row, provenance: Provenance) -> Prompt:
    """instruction, input, without any output -> a prompt."""
    return instructed(row, provenance)


@adapter("seed_tasks", "instruction", "instances")
def parse_seed_task(row: Row, provenance: Provenance) -> list[Record | Rejected]:
    """instruction, instances (each with input and output) -> one demonstration for each instance.

    Source: Wang et al. 2022, Self-Instruct (arXiv:2212.10560), the seed tasks.
    """
    found: list[Record | Rejected] = []
    for instance in listing(row, "instances", "an array of objects", provenance):
        if not isinstance(instance, dict):
            raise DataError(provenance.place, "an instance is no object", "expected 'input' and 'output'")
        prompt = instructed({**row, "input": instance.get("input")}, provenance)
        reply = text(instance, "output", provenance)
        found.append(
            Demonstration(prompt, reply) if reply.strip() else Rejected(provenance.place, "the output is empty")
        )
    return found


@adapter("completions", "prompt", "completion")
def parse_completion(row: Row, provenance: Provenance) -> Demonstration:
    """prompt, completion (texts, or messages) -> a prompt and its reply.

    Source: the prompt-completion format of TRL (huggingface.co/docs/trl/dataset_formats) and of OpenAI's first fine-tuning files.
    """
    prompt = asked(row, "prompt", provenance)
    return Demonstration(prompt, filled(replied(row, "completion", provenance), "completion"))


@adapter("flan", "inputs", "targets")
def parse_flan(row: Row, provenance: Provenance) -> Demonstration:
    """inputs, targets -> a prompt whose template is written out already, and its reply.

    Source: Longpre et al. 2023, the Flan Collection (arXiv:2301.13688).
    """
    prompt = user_prompt(text(row, "inputs", provenance), provenance)
    return Demonstration(prompt, filled(text(row, "targets", provenance), "target"))


@adapter("cot", "question", "answer", "rationale", columns=("question", "answer", "rationale"))
def parse_chain_of_thought(row: Row, provenance: Provenance) -> Demonstration:
    """question, answer, rationale -> the question, and the rationale with "So the answer is ..." behind it.

    The files have no header, and write a newline as \\n. Source: Chung et al. 2022 (arXiv:2210.11416), the chain-of-thought tasks.
    """
    question, answer, rationale = (
        filled(text(row, name, provenance).replace("\\n", "\n"), name) for name in ("question", "answer", "rationale")
    )
    return Demonstration(user_prompt(question, provenance), f"{rationale}\nSo the answer is {answer}.")


@adapter("questions", "question", "answer")
def parse_question(row: Row, provenance: Provenance) -> Demonstration:
    """question, answer (a text or a number) -> a prompt and its reply."""
    question = filled(text(row, "question", provenance), "question")
    return Demonstration(user_prompt(question, provenance), filled(_answer(row, "answer", provenance), "answer"))


@adapter("problems", "input", "target")
def parse_problem(row: Row, provenance: Provenance) -> Demonstration:
    """input, target (a text or a number) -> a problem and its answer, as in MAWPS (Koncel-Kedziorski et al. 2016)."""
    problem = filled(text(row, "input", provenance), "input")
    return Demonstration(user_prompt(problem, provenance), filled(_answer(row, "target", provenance), "target"))


LANGUAGES = {
    **{"en": "English", "zh": "Chinese", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian"},
    **{"pt": "Portuguese", "ru": "Russian", "ja": "Japanese", "ko": "Korean", "ar": "Arabic", "hi": "Hindi"},
}


@adapter("translations", "translation")
def parse_translation(row: Row, provenance: Provenance) -> list[Record | Rejected]:
    """translation: the same text by the codes of its languages -> "Translate to Chinese:" and so on, from each language to each other.

    Source: the files of WMT on the Hugging Face hub, {"translation": {"en": ..., "zh": ...}}.
    """
    texts = field(row, "translation", dict, "an object of texts by language", provenance)
    if len(texts) < 2:
        raise DataError(provenance.place, f"field 'translation' has {len(texts)} languages", "expected two or more")
    said = {code: text(texts, code, provenance) for code in texts}
    if not all(one.strip() for one in said.values()):
        raise Unusable("a side of the translation is empty")
    if len(set(said.values())) < len(said):
        raise Unusable("two sides of the translation are the same text")
    return [
        Demonstration(
            user_prompt(f"Translate to {LANGUAGES.get(there, there)}:\n\n{said[here]}", provenance), said[there]
        )
        for here in said
        for there in said
        if here != there
    ]


FINAL = re.compile(r"####\s*(\S.*?)\s*$")
CALCULATION = re.compile(r"<<[^<>]*>>")


@adapter("gsm8k", "question", "answer")
def parse_gsm8k(row: Row, provenance: Provenance) -> Demonstration:
    """question, answer (worked, its last line "#### NUMBER") -> a prompt and the worked answer, without the calculator's <<...>>.

    Source: Cobbe et al. 2021 (arXiv:2110.14168). Raises: DataError for an answer without its last line.
    """
    question, answer = (text(row, name, provenance) for name in ("question", "answer"))
    if final_answer(answer) is None:
        raise DataError(provenance.place, "field 'answer' has no line '#### NUMBER'", "expected one at its end")
    return Demonstration(user_prompt(question, provenance), CALCULATION.sub("", answer))


def final_answer(worked: str) -> str | None:
    """What stands behind "####" at the end of a worked answer, thousands without commas; None where nothing does."""
    match = FINAL.search(worked)
    return None if match is None else match[1].replace(",", "")


@adapter("tldr", "subreddit", "title")
def parse_tldr(row: Row, provenance: Provenance) -> Demonstration:
    """subreddit, title, post, summary -> the post with its title before it, and the summary.

    Source: the filtered TL;DR of Stiennon et al. 2020 (arXiv:2009.01325), appendix A; files that call post and summary instruction and
    gold_response are read too.
    """
    subreddit, title = (text(row, name, provenance) for name in ("subreddit", "title"))
    post, summary = (
        text(row, first if first in row or other not in row else other, provenance)
        for first, other in (("post", "instruction"), ("summary", "gold_response"))
    )
    if not post.strip() or not summary.strip():
        raise Unusable("the post or its summary is empty")
    return Demonstration(post_prompt(subreddit, title, post, provenance), summary.strip())


def post_prompt(subreddit: str, title: str, post: str, provenance: Provenance) -> Prompt:
    """A post of a forum: where it stands and what it is called as a system turn, so that a cut leaves them whole."""
    before = (Turn("system", f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}"), Turn("user", post.strip()))
    return prompt_of(before, provenance)


def instructed(row: Row, provenance: Provenance) -> Prompt:
    """The prompt of an instruction: its `input` after a blank line, what was said before (`history`, pairs) and `system` in front."""
    instruction, context = text(row, "instruction", provenance), optional_text(row, "input", provenance)
    said = f"{instruction}\n\n{context}" if context else instruction
    before: list[Turn] = []
    if system := optional_text(row, "system", provenance):
        before.append(Turn("system", system))
    if row.get("history"):
        for pair in listing(row, "history", "an array of pairs of texts", provenance):
            if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(said, str) for said in pair):
                reason = "field 'history' has an element that is no pair of texts"
                raise DataError(provenance.place, reason, "expected [what was asked, what was replied]")
            before += [Turn("user", pair[0]), Turn("assistant", pair[1])]
    if not before:
        return user_prompt(filled(said, "instruction"), provenance)
    return prompt_of((*before, Turn("user", filled(said, "instruction"))), provenance)


def ranking(prompt: Prompt, replies: list[str], places) -> Ranking:
    """Raises: Unusable for fewer than two replies that differ, or where all stand in one place."""
    if len(set(replies)) < 2:
        raise Unusable("fewer than two replies that differ")
    if len(set(places)) < 2:
        raise Unusable("all replies stand in one place")
    return Ranking(prompt, tuple(replies), tuple(places))


def _answer(row: Row, name: str, provenance: Provenance) -> str:
    value = field(row, name, (str, int, float), "a text or a number", provenance)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return checked(str(value), name, provenance)
