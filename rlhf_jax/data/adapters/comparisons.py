"""Two replies to one prompt, and which one was preferred."""

from __future__ import annotations

import re
from collections import Counter

from rlhf_jax.data.adapters.fields import (
    ROLES,
    asked,
    field,
    listing,
    number,
    preferred,
    prompt_of,
    replied,
    text,
    turns,
)
from rlhf_jax.data.adapters.instructions import instructed, post_prompt
from rlhf_jax.data.adapters.registry import Unusable, adapter
from rlhf_jax.data.readers import DataError, Row
from rlhf_jax.data.schema import Comparison, Prompt, Provenance, Turn, user_prompt


@adapter("hh", "chosen", "rejected")
def parse_hh(row: Row, provenance: Provenance) -> Comparison:
    """chosen, rejected: two dialogues, as texts or messages, that should differ in their last assistant turn only.

    Source: Bai et al. 2022 (arXiv:2204.05862), the released comparisons.
    """
    chosen, rejected = (_dialogue(row, name, provenance) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise Unusable("both replies are identical")
    if chosen[:-1] != rejected[:-1]:
        raise Unusable("the dialogues differ before the last assistant turn")
    if chosen[-1].role != "assistant" or rejected[-1].role != "assistant" or len(chosen) < 2:
        raise Unusable("a dialogue does not end with a reply of the assistant")
    return Comparison(prompt_of(chosen[:-1], provenance), chosen[-1].text, rejected[-1].text)


def _dialogue(row: Row, name: str, provenance: Provenance) -> tuple[Turn, ...]:
    if isinstance(row.get(name), list):
        return turns(row[name], provenance)
    return parse_hh_dialogue(text(row, name, provenance), provenance)


def parse_hh_dialogue(said: str, provenance: Provenance) -> tuple[Turn, ...]:
    """The turns of "\\n\\nHuman: ...\\n\\nAssistant: ..."; only the one space after the colon is not part of a turn."""
    opening, *parts = re.split(r"\n\n(Human|Assistant): ?", said)
    if opening or not parts:
        reason = f"a dialogue starts with {said[:20]!r}"
        raise DataError(provenance.place, reason, "expected two newlines and 'Human:' before the first turn")
    return tuple(Turn(ROLES[who.lower()], what) for who, what in zip(parts[::2], parts[1::2], strict=True))


@adapter("pairs", "prompt", "chosen", "rejected")
def parse_pair(row: Row, provenance: Provenance) -> Comparison:
    """prompt, chosen, rejected: texts or messages; dialogues that begin with the prompt again are read as their last turn.

    Source: the preference format of TRL (huggingface.co/docs/trl/dataset_formats); the second form as in UltraFeedback's binarised files.
    """
    if all(isinstance(row.get(name), list) and len(row[name]) > 1 for name in ("chosen", "rejected")):
        return parse_hh(row, provenance)
    prompt = asked(row, "prompt", provenance)
    return preferred(prompt, replied(row, "chosen", provenance), replied(row, "rejected", provenance))


@adapter("sharegpt_pairs", "conversations", "chosen", "rejected")
def parse_sharegpt_pair(row: Row, provenance: Provenance) -> Comparison:
    """conversations (up to the reply), chosen, rejected (a message each). Source: the files for DPO of LLaMA-Factory."""
    before = turns(listing(row, "conversations", "an array of messages", provenance), provenance)
    prompt = prompt_of(before, provenance)
    return preferred(prompt, replied(row, "chosen", provenance), replied(row, "rejected", provenance))


@adapter("alpaca_pairs", "instruction", "chosen", "rejected")
def parse_alpaca_pair(row: Row, provenance: Provenance) -> Comparison:
    """instruction, input, chosen, rejected, as Alpaca has its instructions."""
    prompt = instructed(row, provenance)
    return preferred(prompt, text(row, "chosen", provenance), text(row, "rejected", provenance))


@adapter("dove", "i_chosen", "r_chosen", "i_reject", "r_reject")
def parse_joint(row: Row, provenance: Provenance) -> Comparison:
    """i_chosen, r_chosen, i_reject, r_reject: an instruction with its reply preferred over another; of use where both instructions are one.

    Source: Bansal et al. 2024, comparing bad apples to good oranges (arXiv:2404.00530).
    """
    prompt = asked(row, "i_chosen", provenance)
    if asked(row, "i_reject", provenance) != prompt:
        raise Unusable("the replies are to different prompts")
    return preferred(prompt, text(row, "r_chosen", provenance), text(row, "r_reject", provenance))


@adapter("tldr_comparisons", "info", "summaries", "choice")
def parse_tldr_comparison(row: Row, provenance: Provenance) -> Comparison:
    """info (subreddit, title, post), summaries (two, each with text), choice (0 or 1: which was preferred).

    Source: the released comparisons of Stiennon et al. 2020 (arXiv:2009.01325), appendix C.
    """
    info = field(row, "info", dict, "an object", provenance)
    summaries = field(row, "summaries", list, "an array of two summaries", provenance)
    choice = field(row, "choice", int, "0 or 1", provenance)
    if len(summaries) != 2 or not all(isinstance(summary, dict) for summary in summaries):
        raise DataError(provenance.place, "field 'summaries' is not two objects", "expected two, each with 'text'")
    if choice not in (0, 1):
        remedy = "expected 0 or 1, the summary that was preferred"
        raise DataError(provenance.place, f"field 'choice' is {choice}", remedy)
    if info.get("post") is None:
        raise Unusable("of an article, not of a post")
    subreddit, title, post = (text(info, name, provenance) for name in ("subreddit", "title", "post"))
    texts = [text(summary, "text", provenance).strip() for summary in summaries]
    return preferred(post_prompt(subreddit, title, post, provenance), texts[choice], texts[1 - choice])


@adapter("alpaca_eval", "instruction", "output_1", "output_2", "preference")
def parse_alpaca_eval(row: Row, provenance: Provenance) -> Comparison:
    """instruction, output_1, output_2, preference: 1 for the first, 2 for the second, 1.5 for a tie; between them a judge is less sure.

    The weight is |2 preference - 3|, 1 for a sure judge. Source: AlpacaEval (Li et al. 2023), its files of annotations.
    """
    if row.get("preference", 0) is None:
        raise Unusable("no verdict")
    verdict = number(row, "preference", provenance)
    if not 1 <= verdict <= 2:
        raise DataError(provenance.place, f"field 'preference' is {verdict}", "expected a number from 1 to 2")
    prompt = user_prompt(text(row, "instruction", provenance), provenance)
    names = ("output_1", "output_2")
    return _by_verdict(row, prompt, names, 3 - 2 * verdict, provenance, weight=abs(3 - 2 * verdict))


@adapter("llmbar", "input", "output_1", "output_2", "label")
def parse_llmbar(row: Row, provenance: Provenance) -> Comparison:
    """input, output_1, output_2, label (1 or 2: the better one). Source: Zeng et al. 2023, LLMBar (arXiv:2310.07641)."""
    label = number(row, "label", provenance)
    if label not in (1, 2):
        raise DataError(provenance.place, f"field 'label' is {label:g}", "expected 1 or 2, the better output")
    prompt = user_prompt(text(row, "input", provenance), provenance)
    return _by_verdict(row, prompt, ("output_1", "output_2"), 3 - 2 * label, provenance)


@adapter("pandalm", "instruction", "response1", "response2", "annotator1")
def parse_pandalm(row: Row, provenance: Provenance) -> Comparison:
    """instruction, input, response1, response2, annotator1, annotator2, ... (0 tie, 1 or 2: the better one) -> what most of them chose.

    The weight is the share of the annotators who chose it. Source: Wang et al. 2023, PandaLM (arXiv:2306.05087), the test set.
    """
    names = sorted(name for name in row if re.fullmatch(r"annotator\d+", name)) or ["annotator1"]
    votes = Counter(number(row, name, provenance) for name in names)
    if not set(votes) <= {0, 1, 2}:
        raise DataError(provenance.place, f"the annotators chose {sorted(votes)}", "expected 0, 1 or 2")
    most = max(votes.values())
    winners = [choice for choice, count in votes.items() if count == most]
    if winners == [0] or len(winners) > 1:
        raise Unusable("most annotators saw a tie" if winners == [0] else "the annotators do not agree")
    replies = ("response1", "response2")
    weight = most / len(names)
    return _by_verdict(row, instructed(row, provenance), replies, 3 - 2 * winners[0], provenance, weight=weight)


STEPS = {"a-is-better": 1.0, "a-is-slightly-better": 0.5, "tie": 0.0, "b-is-slightly-better": -0.5, "b-is-better": -1.0}


@adapter("tulu_eval", "prompt", "completion_a", "completion_b", "preference")
def parse_tulu(row: Row, provenance: Provenance) -> Comparison:
    """prompt, completion_a, completion_b, preference in five steps -> the better one, with a margin of 1, or 0.5 for slightly better.

    Source: Wang et al. 2023, Tulu (arXiv:2306.04751), the human evaluation.
    """
    said = text(row, "preference", provenance)
    if said not in STEPS:
        expected = ", ".join(STEPS)
        raise DataError(provenance.place, f"field 'preference' is {said!r}", f"expected one of {expected}")
    prompt, names = asked(row, "prompt", provenance), ("completion_a", "completion_b")
    return _by_verdict(row, prompt, names, STEPS[said], provenance, margin=abs(STEPS[said]))


@adapter(
    *("choices", "instruction", "answer_a", "answer_b", "choice"),
    columns=("instruction", "input", "answer_a", "answer_b", "choice"),
)
def parse_choice(row: Row, provenance: Provenance) -> Comparison:
    """instruction, input, answer_a, answer_b, choice: (a), (b) or equal.

    Source: Bansal et al. 2023, peering through preferences (arXiv:2308.15812), whose files have no header.
    """
    verdicts = {"a": 1.0, "b": -1.0, "equal": 0.0}
    said = text(row, "choice", provenance).strip().strip("()").lower()
    if said not in verdicts:
        raise DataError(provenance.place, f"field 'choice' is {row['choice']!r}", "expected (a), (b) or equal")
    return _by_verdict(row, instructed(row, provenance), ("answer_a", "answer_b"), verdicts[said], provenance)


def _by_verdict(
    row: Row,
    prompt: Prompt,
    names: tuple[str, str],
    verdict: float,
    provenance: Provenance,
    *,
    margin: float = 0.0,
    weight: float = 1.0,
) -> Comparison:
    """The comparison of two fields: above 0 the first is the better one. Raises: Unusable at 0, a tie."""
    first, second = (text(row, name, provenance) for name in names)
    if verdict == 0:
        raise Unusable("a tie")
    chosen, rejected = (first, second) if verdict > 0 else (second, first)
    return preferred(prompt, chosen, rejected, margin=margin, weight=weight)
