"""Where text comes from and how it becomes tokens."""

from __future__ import annotations

import dataclasses

from rlhf_jax.checks import fraction, not_negative, positive, require


@dataclasses.dataclass(frozen=True)
class World:
    """The embedded instruction world: how many records are drawn from it, and how its annotator errs."""

    demonstrations: int
    prompts: int  # for sampling, by the comparisons and by PPO
    families: tuple[str, ...] = ()  # of tasks that are trained; none: all
    flawed: float = 0.0  # share of demonstrations with a mistake
    chatty: float = 0.75  # share of these that is right but for talk around the answer
    annotator_temperature: float = 0.25
    annotator_flip: float = 0.0

    def __post_init__(self):
        positive(self, "demonstrations", "prompts")
        fraction(self, "flawed", "chatty", "annotator_flip")
        not_negative(self, "annotator_temperature")


@dataclasses.dataclass(frozen=True)
class Text:
    """How text becomes tokens."""

    tokenizer: str  # "train:VOCAB": of the world's corpus; "checkpoint": beside it; else hf:ORG/NAME, or a path below the data root
    template: str
    length: int  # prompt + reply, tokens
    prompt_length: int  # longer prompts lose their start; documents of a template that says so, their end
    buckets: tuple[
        int, ...
    ] = ()  # shorter lengths that batches of demonstrations and pairs may have too, each a program of its own
    prompt_buckets: tuple[
        int, ...
    ] = ()  # shorter lengths of prompts that are to be answered: a batch has the least that holds all of its

    def __post_init__(self):
        positive(self, "length", "prompt_length")
        require(
            all(1 < bucket < self.length for bucket in self.buckets),
            f"text.buckets={self.buckets} must lie between 1 and length={self.length}",
        )
        require(
            all(0 < bucket < self.prompt_length for bucket in self.prompt_buckets),
            f"text.prompt_buckets={self.prompt_buckets} must lie between 0 and prompt_length={self.prompt_length}",
        )
        kind, colon, size = self.tokenizer.partition(":")
        require(
            not colon or kind != "train" or (size.isdecimal() and int(size) > 0),
            f"text.tokenizer={self.tokenizer!r} must be train:VOCAB with a number of pieces, checkpoint, hf:ORG/NAME, or a path below the "
            "data root",
        )
        require(
            self.prompt_length < self.length,
            f"prompt_length={self.prompt_length} leaves no room for a reply in length={self.length}",
        )

    @property
    def prompt_lengths(self) -> tuple[int, ...]:
        """How many columns the prompts of a batch may have that are to be answered, shortest first."""
        return (*sorted(set(self.prompt_buckets)), self.prompt_length)


@dataclasses.dataclass(frozen=True)
class Flan:
    """The formats of FLAN in which demonstrations are put (Wei et al. 2021; Longpre et al. 2023); the held-out ones are only worded."""

    wordings: int = 10  # of each kind of task that are used, from 1 to 10
    few_shot: float = 0.5  # share of the records behind worked examples
    shots: int = 2  # worked examples
    inverted: float = 0.3  # share of the records whose input is to be written from their output

    def __post_init__(self):
        positive(self, "shots")
        fraction(self, "few_shot", "inverted")
        require(1 <= self.wordings <= 10, f"wordings={self.wordings} must lie between 1 and 10")


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Sources (docs/data.md) and their weights, and the share of prompts held out of training; `world:instruct` is the experiment's world.

    Weights are shares of rows. With `cap` they are multiplied by a source's number of training examples, or by the cap where it has more:
    examples-proportional mixing (Raffel et al. 2020, section 3.5.2; Wei et al. 2021, arXiv:2109.01652, section 2.4, where K is 3,000).
    With `temperature` these numbers are taken to the power of 1 / temperature first: above 1 small sources count more.
    """

    sources: tuple[tuple[str, float], ...]
    held_out: float = 0.05
    cap: int | None = None
    temperature: float | None = None
    flan: Flan | None = None  # None: as the records have it

    def __post_init__(self):
        require(bool(self.sources), "a mixture needs at least one source")
        for name, weight in self.sources:
            require(weight > 0, f"weight {weight} of source {name!r} must be above 0")
        fraction(self, "held_out")
        positive(self, "cap", "temperature")
        require(self.held_out < 1, f"held_out={self.held_out} leaves nothing to train on; it must be below 1")


@dataclasses.dataclass(frozen=True)
class Curation:
    """What the records of every mixture go through before anything is split or trained; each field but the first names none by default."""

    licences: tuple[str, ...] | None = (
        None  # those allowed, as SPDX names them (data/provenance.py); None: any, and unknown ones
    )
    clean: tuple[str, ...] = ()  # rules of data/clean, such as exact_duplicates
    languages: tuple[str, ...] = ()  # to keep, by the rule `language`
    unseen: tuple[str, ...] = ()  # sources for evaluation, whose texts the rule `contaminated` keeps out
    mask: tuple[str, ...] = ()  # kinds of personal data that are masked (data/privacy)

    def __post_init__(self):
        for option, rule in (("languages", "language"), ("unseen", "contaminated")):
            require(
                not getattr(self, option) or rule in self.clean,
                f"data.{option} is set, but data.clean does not name {rule!r}, the rule that reads it",
            )


AS_IT_IS = Curation()
