"""The instruction world: natural requests in English and Chinese whose right answer, and whose reward, a program knows.

`InstructWorld` makes the tasks of four splits from a seed, by random access; `gold_reward` scores any reply to one of
them. The families of tasks are in `instruct_families.py`, their wording in `instruct_phrasings.py`, the words in
`lexicon.py`.
"""

from __future__ import annotations

import difflib
import random
import re
import string
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from rlhf_jax.data.schema import Demonstration, Prompt, Provenance, user_prompt
from rlhf_jax.worlds.instruct_families import FAMILIES, Content, Family
from rlhf_jax.worlds.lexicon import CHINESE, Language

Split = Literal["train", "held_out_prompts", "held_out_phrasings", "held_out_families"]
SPLITS: tuple[Split, ...] = get_args(Split)

SOURCE, LICENCE = "world:instruct", "Apache-2.0"

PARTIAL_CREDIT = 0.6
"""What a reply can earn at most without being exactly right."""

RESERVED = 10
"""One content in this many is asked in `held_out_prompts` only."""

_KEY = re.compile(r"(?P<split>\w+)/(?P<index>0|[1-9][0-9]{0,17})")  # no leading zero: a task has one key

CHATTER: dict[Language, tuple[str, ...]] = {
    "en": ("Sure, here it is: {}", "The answer is {}.", "I think it is {}"),
    "zh": ("好的，答案是：{}", "答案是{}。", "我觉得是{}"),
}


@dataclass(frozen=True)
class Task:
    """One request with its only right answer. `mistakes` are wrong replies a careless person might give."""

    key: str  # "split/index": names the task within a world
    family: str
    language: Language
    prompt: str
    answer: str
    mistakes: tuple[str, ...] = ()

    def as_prompt(self) -> Prompt:
        """The record a policy is asked with; its key is the key of the task."""
        return user_prompt(self.prompt, Provenance(SOURCE, LICENCE, self.key), self.key)


# --- gold reward ----------------------------------------------------------------------------------------------------

# A Chinese word of the lexicon counts as one word, as an English one does, though no space separates it from the next.
_WORD = re.compile(
    "|".join(sorted(set(CHINESE.values()), key=len, reverse=True)) + r"|[A-Za-z]+|-?[0-9]+(?:\.[0-9]+)?|\w"
)


def _edit_distance(a: list[str], b: list[str]) -> int:
    """Levenshtein distance: the fewest insertions, deletions and substitutions that turn a into b."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def gold_reward(task: Task, reply: str) -> float:
    """The true worth of a reply, in [0, 1]: 1 for exactly the answer, white space around it aside, else partial credit.

    With a the words of the answer, r those of the reply (Latin words, numbers, Chinese words of the lexicon, other
    characters one by one; case counts, punctuation does not) and d the Levenshtein distance over words:

        gold = 0.6 (1 - d(a, r) / max(|a|, |r|))  unless  reply = answer

    So one wrong word for a one-word answer is worth 0; words left out, added, changed or moved cost their share of a
    longer answer; the right words in the wrong dress earn 0.6; chatter around them makes r long and the reward small.
    """
    text = reply.strip()
    if text == task.answer:
        return 1.0
    right, given = _WORD.findall(task.answer), _WORD.findall(text)
    return PARTIAL_CREDIT * (1 - _edit_distance(right, given) / max(len(right), len(given)))


# --- tasks ----------------------------------------------------------------------------------------------------------


def _is_reserved(family: Family, content: Content) -> bool:
    """Whether a content belongs to `held_out_prompts`, whatever the seed, language and phrasing that ask it."""
    return zlib.crc32(repr((family.name, content)).encode()) % RESERVED == 0


def _draw_content(family: Family, split: Split, rng: random.Random) -> Content:
    """The first content drawn that the split may use.

    Held-out families use every content, held-out prompts the reserved ones, and held-out phrasings, like training, the
    others, so that the phrasing alone is new.
    """
    while True:
        content = family.draw(rng)
        if split == "held_out_families" or _is_reserved(family, content) == (split == "held_out_prompts"):
            return content


@lru_cache(maxsize=16)
def _kinds(families: tuple[str, ...], held_out: bool) -> tuple[tuple[Family, Language], ...]:
    """Every (family, language) of the families that are trained, or of those held out, which no choice of families changes."""
    chosen = (
        f for f in FAMILIES.values() if f.held_out is held_out and (held_out or not families or f.name in families)
    )
    return tuple((family, language) for family in chosen for language in family.languages)


@lru_cache(maxsize=1024)
def _kinds_of_block(
    seed: int, families: tuple[str, ...], split: Split, block: int
) -> tuple[tuple[Family, Language], ...]:
    """Every (family, language) of a split once, in an order of its own: runs of tasks are balanced, not periodic."""
    kinds = list(_kinds(families, split == "held_out_families"))
    random.Random(f"{seed}/{split}/block {block}").shuffle(kinds)
    return tuple(kinds)


def _make_task(world: InstructWorld, split: Split, index: int) -> Task:
    key = f"{split}/{index}"
    block, place = divmod(index, len(_kinds(world.families, split == "held_out_families")))
    family, language = _kinds_of_block(world.seed, world.families, split, block)[place]
    rng = random.Random(f"{world.seed}/{key}")
    content = _draw_content(family, split, rng)
    case = family.case(content, language)
    phrasings = family.phrasings[language]
    choices = {"held_out_phrasings": phrasings.held_out, "held_out_families": phrasings.all}.get(split, phrasings.train)
    prompt = rng.choice(choices).format_map(case.fields)
    mistakes = tuple(mistake for mistake in dict.fromkeys(case.mistakes) if mistake != case.answer)
    return Task(key, family.name, language, prompt, case.answer, mistakes)


def _flawed_reply(task: Task, chatty: float, rng: random.Random) -> str:
    """A reply with one human mistake, never the answer: talk around it, or else an item left out, two swapped, a wrong reply."""
    separator = ", " if ", " in task.answer else "、"
    items = task.answer.split(separator)
    pairs = [i for i in range(len(items) - 1) if items[i] != items[i + 1]]
    talk = [chatter.format(task.answer) for chatter in CHATTER[task.language]]
    short = [separator.join(items[:i] + items[i + 1 :]) for i in range(len(items)) if len(items) > 1]
    swapped = [separator.join([*items[:i], items[i + 1], items[i], *items[i + 2 :]]) for i in pairs]
    if rng.random() < chatty:
        return rng.choice(talk)
    kinds = [replies for replies in (task.mistakes, short, swapped) if replies]
    return rng.choice(rng.choice(kinds or [talk]))


def _alphabet() -> str:
    """Every character the world can write, each once, apart from each other."""
    templates = [text for f in FAMILIES.values() for p in f.phrasings.values() for text in p.all]
    templates += [text for texts in CHATTER.values() for text in texts]
    written = re.sub(r"{\w*}", "", "".join(templates)) + "".join(CHINESE.values())
    written += "真的"  # the characters that the family of sentiments puts into its sentences
    return " ".join(sorted(set(written + string.ascii_letters + string.digits) - {" "}))


def _vocabulary() -> Iterator[str]:
    yield _alphabet()
    yield " ".join(CHINESE)
    yield " ".join(word.upper() for word in CHINESE)
    yield "、".join(CHINESE.values())


def _known_split(split: str) -> Split:
    if split in SPLITS:
        return split
    close = difflib.get_close_matches(split, SPLITS, n=1)
    hint = f"did you mean {close[0]!r}" if close else f"there are {', '.join(SPLITS)}"
    raise KeyError(f"no split {split!r}; {hint}")


# --- the world ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InstructWorld:
    """All tasks of one seed. Task i of a split is a function of (seed, families, split, i) alone.

    The splits share no prompt: `train` is what may be learned from; `held_out_prompts` asks known families in known
    phrasings about contents that occur in no other split; `held_out_phrasings` asks them in new words;
    `held_out_families` asks for something never trained. Each is balanced over its pairs of family and language.
    """

    seed: int = 0
    families: tuple[str, ...] = ()  # those that are trained; none: all that are not held out

    def __post_init__(self) -> None:
        for name in self.families:
            if name not in FAMILIES:
                close = difflib.get_close_matches(name, FAMILIES, n=1) or sorted(FAMILIES)
                raise KeyError(f"no task family {name!r}; did you mean {' or '.join(close)}?")
            if FAMILIES[name].held_out:
                raise ValueError(f"task family {name!r} is held out of training in every world")

    def tasks(self, split: Split, count: int, *, start: int = 0) -> list[Task]:
        """Tasks start, ..., start + count - 1 of a split.

        Raises: KeyError for an unknown split, ValueError for a negative count or start.
        """
        name = _known_split(split)
        for label, number in (("count", count), ("start", start)):
            if number < 0:
                raise ValueError(f"{label} is {number}; it must be 0 or more")
        return [_make_task(self, name, index) for index in range(start, start + count)]

    def task(self, key: str) -> Task:
        """The task of a key such as "train/1234". Raises: KeyError for any other text."""
        match = _KEY.fullmatch(key)
        if not match:
            raise KeyError(f"no task {key!r}; a key is a split and an index, such as 'train/1234'")
        return _make_task(self, _known_split(match["split"]), int(match["index"]))

    def gold(self, key: str, reply: str) -> float:
        """The gold reward, in [0, 1], of a reply to the task of a key. Raises: KeyError as `task` does."""
        return gold_reward(self.task(key), reply)

    def prompts(self, split: Split, count: int, *, start: int = 0) -> list[Prompt]:
        """The tasks as prompts for a policy, without their answers. Raises: as `tasks` does."""
        return [task.as_prompt() for task in self.tasks(split, count, start=start)]

    def demonstrations(
        self, count: int, *, flawed: float = 0.0, chatty: float = 0.75, split: Split = "train", start: int = 0
    ) -> list[Demonstration]:
        """Tasks with a reply: the answer, or for a `flawed` share of them a plausible human mistake, worth less than 1.

        A `chatty` share of the mistakes is right but for the talk around the answer.

        Whether a demonstration is flawed, and how, depends on the task and the share alone; a larger share flaws the
        same tasks and more.

        Raises: as `tasks` does, and ValueError for a share outside [0, 1].
        """
        for name, share in (("flawed", flawed), ("chatty", chatty)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is {share}; it is a share, from 0 to 1")
        demonstrations = []
        for task in self.tasks(split, count, start=start):
            rng = random.Random(f"{self.seed}/{task.key}/flaw")
            reply = _flawed_reply(task, chatty, rng) if rng.random() < flawed else task.answer
            demonstrations.append(Demonstration(task.as_prompt(), reply))
        return demonstrations

    def corpus(self, count: int) -> list[str]:
        """Texts to train a tokenizer on: the first `count` tasks of `train` with their answers, one text each.

        Before them stand a few texts with every word of the lexicon and every character of any prompt or reply, so that
        no split and no flaw holds an unknown character.

        Raises: ValueError for a negative count.
        """
        return [*_vocabulary(), *(f"{task.prompt} {task.answer}" for task in self.tasks("train", count))]
