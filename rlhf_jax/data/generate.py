"""Instructions written by a language model from a few that people wrote, kept where they are new (Self-Instruct).

Source: Wang et al. 2022 (arXiv:2212.10560), section 2: eight instructions of the pool are shown, six of people and two that were generated,
and the model goes on with the list; what is too like one that is there (ROUGE-L above 0.7), too short, too long, or about what a text
cannot hold is left out; then the model writes an input and an output for each.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rlhf_jax.data.schema import Demonstration, Provenance, user_prompt

Write = Callable[[Sequence[str]], Sequence[str | None]]
"""Replies of a language model to prompts; None where it gave none."""

NUMBERED = re.compile(r"^[ \t]*(?:task[ \t]*)?(\d{1,3})[.:)．、：]", re.IGNORECASE | re.MULTILINE)
# What a text alone cannot hold or show, as in the paper's own filter.
UNSUITABLE = re.compile(
    r"\b(?:images?|graphs?|pictures?|photos?|files?|maps?|draw|plot|go to|video|audio|music|flowcharts?|diagrams?)\b"
    r"|图片|图像|照片|视频|音频|音乐|画一|绘制|流程图|文件"
)
TOKEN = re.compile(r"[\u3400-\u9fff\u3040-\u30ff\uac00-\ud7af]|\w+")


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """How instructions are made of others."""

    count: int  # of new ones
    similarity: float = 0.7  # ROUGE-L F from which on an instruction is not new
    shown: tuple[int, int] = (6, 2)  # of the seeds, and of those generated
    at_once: int = 4  # prompts of one round
    rounds: int = 1000  # at most
    words: tuple[int, int] = (3, 150)  # of an instruction; a Chinese character counts as one
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("count", "at_once", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if not 0 < self.similarity <= 1:
            raise ValueError(f"similarity is {self.similarity}; expected a ROUGE-L above 0 and up to 1")


@dataclasses.dataclass(frozen=True)
class Generated:
    """What came of it."""

    records: tuple[Demonstration, ...]
    prompts: int  # that the model was asked, of both kinds
    proposed: int  # instructions that it wrote
    dropped: dict[str, int]  # of these, by reason
    novelty: tuple[float, ...]  # of each kept one, its greatest ROUGE-L with any instruction before it

    @property
    def yielded(self) -> float:
        """The share of proposed instructions that became records."""
        return len(self.records) / self.proposed if self.proposed else 0.0

    def markdown(self) -> str:
        """The report: yield, reasons, and how like the kept ones are to those before them."""
        lines = [
            f"{len(self.records):,} records of {self.proposed:,} proposed instructions ({self.yielded:.0%}), by {self.prompts:,} prompts.",
            "",
            "| left out | instructions |",
            "|---|---|",
            *(f"| {reason} | {count:,} |" for reason, count in sorted(self.dropped.items(), key=lambda item: -item[1])),
            "",
            "| greatest ROUGE-L with one before | kept |",
            "|---|---|",
        ]
        tenths = Counter(min(int(value * 10), 9) for value in self.novelty)
        lines += [f"| {tenth / 10:.1f} to {(tenth + 1) / 10:.1f} | {tenths[tenth]:,} |" for tenth in sorted(tenths)]
        return "\n".join(lines) + "\n"


def generate(
    seeds: Sequence[str],
    write: Write,
    settings: Bootstrap,
    tell: Callable[[int, int], None] = lambda kept, wanted: None,
    source: str = "self-instruct",
) -> Generated:
    """New instructions with their replies, in the spirit of the seeds. The same model, seeds and settings give the same.

    Raises: ValueError for too few seeds.
    """
    if len(seeds) < settings.shown[0]:
        raise ValueError(
            f"{len(seeds)} seed instructions; expected at least the {settings.shown[0]} that are shown at once"
        )
    chance, scorer = random.Random(settings.seed), _scorer()
    pool = [*dict.fromkeys(seeds)]
    new: list[str] = []
    records: list[Demonstration] = []
    novelty: list[float] = []
    dropped: Counter[str] = Counter()
    prompts = proposed = 0
    for number in range(settings.rounds):
        asked = [_invitation(chance, seeds, new, settings) for _ in range(settings.at_once)]
        candidates: list[tuple[str, float]] = []
        for said in write(asked):
            if said is None:
                dropped["no reply of the model"] += 1
                continue
            for instruction in read_list(said):
                proposed += 1
                reason, alike = _judged(instruction, [*pool, *(text for text, _ in candidates)], settings, scorer)
                if reason is None:
                    candidates.append((instruction, alike))
                else:
                    dropped[reason] += 1
        prompts += len(asked) + len(candidates)
        replies = write([_request(instruction) for instruction, _ in candidates]) if candidates else []
        for place, ((instruction, alike), reply) in enumerate(zip(candidates, replies, strict=True)):
            context, output = read_instance(reply or "")
            if not output:
                dropped["no output for it"] += 1
            elif len(records) < settings.count:
                where = Provenance(source, "generated", f"round {number}, {place}", "generated")
                text = f"{instruction}\n\n{context}" if context else instruction
                records.append(Demonstration(user_prompt(text, where), output))
                novelty.append(alike)
                new.append(instruction)
                pool.append(instruction)
            else:
                dropped["enough already"] += 1
        tell(len(records), settings.count)
        if len(records) == settings.count:
            break
    return Generated(tuple(records), prompts, proposed, dict(dropped), tuple(novelty))


def _invitation(chance: random.Random, seeds: Sequence[str], new: Sequence[str], settings: Bootstrap) -> str:
    """A list of instructions of the pool that the model is to go on with."""
    generated = chance.sample(new, min(settings.shown[1], len(new)))
    human = chance.sample(list(seeds), min(sum(settings.shown) - len(generated), len(seeds)))
    shown = [*human, *generated]
    chance.shuffle(shown)
    listed = "\n".join(f"{place}. {_one_line(text)}" for place, text in enumerate(shown, start=1))
    return (
        "Come up with a series of tasks, unlike each other and unlike those that are there, in the language of the list. "
        f"Go on with the list, one task to a line, up to number {2 * len(shown)}.\n\n{listed}\n{len(shown) + 1}."
    )


def _request(instruction: str) -> str:
    return (
        'Do the following task. If it needs an input that it does not have, make one up and write it behind "Input:"; '
        f'then write what the task asks for, and nothing else, behind "Output:".\n\nTask: {instruction}'
    )


def read_list(said: str) -> list[str]:
    """The instructions of a numbered list; a text without numbers begins with the one that the list was to go on with."""
    parts = NUMBERED.split(said)
    found = ([parts[0]] if parts[0].strip() else []) + parts[2::2]
    return [text for text in (_one_line(part) for part in found) if text]


def read_instance(said: str) -> tuple[str, str]:
    """(input, output) of "Input: ... Output: ..."; a text without either is the output."""
    match = re.search(r"^\s*(?:output|输出)\s*[:：]", said, re.IGNORECASE | re.MULTILINE)
    if match is None:
        return ("", "") if re.match(r"\s*(?:input|输入)\s*[:：]", said, re.IGNORECASE) else ("", said.strip())
    before = re.sub(r"\A\s*(?:input|输入)\s*[:：]", "", said[: match.start()], flags=re.IGNORECASE).strip()
    nothing = re.fullmatch(r"[<(\[]?(?:no ?input|none|n/a|无)[>)\]]?\.?", before, re.IGNORECASE)
    return "" if nothing else before, said[match.end() :].strip()


def _judged(instruction: str, pool: Sequence[str], settings: Bootstrap, scorer: Any) -> tuple[str | None, float]:
    """(why it is left out, None if it is not; its greatest ROUGE-L with one of the pool)."""
    words = len(TOKEN.findall(instruction))
    if words < settings.words[0]:
        return "too short", 0.0
    if words > settings.words[1]:
        return "too long", 0.0
    if UNSUITABLE.search(instruction.lower()):
        return "about what a text cannot hold", 0.0
    if not instruction[0].isalnum() and instruction[0] not in "\"'“‘《「":
        return "begins with a sign", 0.0
    alike = max((score for score in _likenesses(instruction, pool, scorer)), default=0.0)
    return (
        f"ROUGE-L above {settings.similarity:g} with one that is there" if alike > settings.similarity else None
    ), alike


def _likenesses(text: str, pool: Sequence[str], scorer: Any) -> Iterator[float]:
    """ROUGE-L F (Lin 2004) with each of the pool; characters of Chinese, Japanese and Korean count as words."""
    tokens = Counter(TOKEN.findall(text.lower()))
    best = 0.0
    for other in pool:
        others = Counter(TOKEN.findall(other.lower()))
        # No common subsequence is longer than the tokens in common: most pairs need no more than that.
        if 2 * (tokens & others).total() / max(tokens.total() + others.total(), 1) > best:
            score = scorer.score(other, text)["rougeL"].fmeasure
            best = max(best, score)
            yield score


class _Tokens:
    """What rouge-score asks of a tokenizer; its own finds nothing in Chinese."""

    def tokenize(self, text: str) -> list[str]:
        return TOKEN.findall(text.lower())


def _scorer() -> Any:
    try:
        from rouge_score import rouge_scorer
    except ImportError as error:
        raise ValueError(
            "telling new instructions needs the package rouge-score; pip install 'rlhf_jax[data]'"
        ) from error
    return rouge_scorer.RougeScorer(["rougeL"], tokenizer=_Tokens())


def _one_line(text: str) -> str:
    return " ".join(text.split())
