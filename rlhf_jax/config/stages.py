"""The stages of training before reinforcement learning, and the optimiser that all of them share."""

from __future__ import annotations

import dataclasses
from typing import Literal

from rlhf_jax.checks import fraction, not_negative, one_of, positive, require
from rlhf_jax.config.data import Mixture

ADAMS = ("b1", "b2", "eps", "adam", "moments")


@dataclasses.dataclass(frozen=True)
class Optim:
    """AdamW, or Adafactor, with a learning-rate schedule. `steps` are optimiser updates, `rows` the batch over all devices.

    With `kind="adafactor"` second moments are factored and there are no first ones; `lr` is a share of each parameter's size, and b1, b2,
    eps, adam and moments, which are Adam's, stay as they are here.
    """

    lr: float
    rows: int
    steps: int | None = None  # None: PPO, which derives it from iterations x epochs x minibatches
    microbatches: int = 1
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    final_lr: float = 0.0  # as a share of lr, reached after `steps`
    warmup: int = 0  # updates from lr / warmup to lr
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    adam: Literal["torch", "tf1"] = "torch"  # eps beside the corrected second moment, or the raw one
    kind: Literal["adam", "adafactor"] = "adam"
    moments: Literal["float32", "bfloat16"] = "float32"  # what both moments are kept in between updates
    weight_decay: float = 0.0  # on matrices only
    max_grad_norm: float | None = 1.0  # None: no clipping

    def __post_init__(self):
        positive(self, "lr", "steps", "rows", "microbatches", "eps", "max_grad_norm")
        one_of(self, "schedule", "adam", "kind", "moments")
        fraction(self, "final_lr", "b1", "b2")
        not_negative(self, "warmup", "weight_decay")
        require(
            self.rows % self.microbatches == 0, f"{self.rows} rows do not split into {self.microbatches} microbatches"
        )
        for field in dataclasses.fields(self):
            require(
                self.kind == "adam" or field.name not in ADAMS or getattr(self, field.name) == field.default,
                f"{field.name}={getattr(self, field.name)!r} is of Adam, and kind is {self.kind!r}; leave it",
            )
        require(
            self.steps is None or self.warmup <= self.steps, f"warmup={self.warmup} is longer than steps={self.steps}"
        )

    @property
    def total(self) -> int:
        """How many updates there are. Raises: ValueError where that is not said."""
        if self.steps is None:
            raise ValueError("optim.steps is not set; say how many updates there are")
        return self.steps


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Low-rank adapters (Hu et al. 2021), which are all that a stage then trains; at its end they are merged into the weights."""

    rank: int = 16
    alpha: float = 32.0  # the adapters' product counts alpha / rank times
    targets: tuple[str, ...] = ("attention/*", "mlp/*")  # patterns of kernels in a layer

    def __post_init__(self):
        positive(self, "rank", "alpha")
        require(bool(self.targets), "lora.targets is empty; name at least one pattern, such as attention/q")


@dataclasses.dataclass(frozen=True)
class SFT:
    """Supervised fine-tuning on demonstrations, loss on the reply."""

    data: Mixture
    optim: Optim
    pack_length: int | None = None  # rows of so many tokens hold several examples; None: one example to a row
    packing: Literal["first_fit", "best_fit"] = (
        "first_fit"  # best_fit: fuller rows, which hold long examples with short ones
    )
    eval_every: int | None = None

    def __post_init__(self):
        positive(self, "pack_length", "eval_every")
        one_of(self, "packing")


@dataclasses.dataclass(frozen=True)
class Reward:
    """A reward model: trained on comparisons (Bradley-Terry), or on binary labels (logistic)."""

    data: Mixture | None  # None: pairs are sampled from the policy and labelled by the world's annotator
    optim: Optim
    pairs: int | None = None  # how many comparisons are collected when they are sampled
    temperature: float = 1.0  # at which they are sampled
    init: Literal["policy", "random"] = "policy"
    # What a score of 0 means: whatever came out; the held-out texts' mean; or the mean of samples of the policy it starts from, with
    # their standard deviation as the unit (Ziegler et al. 2019), so that kl_coef and missing_stop_score mean the same in every run.
    scores: Literal["raw", "centred", "normalised"] = "raw"
    eval_every: int | None = None

    def __post_init__(self):
        positive(self, "pairs", "temperature", "eval_every")
        one_of(self, "init", "scores")
        require(
            self.scores != "centred" or self.data is None or self.data.held_out > 0,
            "reward.scores='centred' is the mean of held-out texts; give reward.data.held_out a share above 0",
        )
        require(
            (self.data is None) == (self.pairs is not None),
            "a reward stage has either data, or a number of pairs to sample from the policy; set exactly one",
        )


@dataclasses.dataclass(frozen=True)
class Classify:
    """Which class a text is of, learned by an encoder (cross-entropy)."""

    data: Mixture
    optim: Optim
    labels: tuple[str, ...]  # names of the classes, as the records have them
    eval_every: int | None = None

    def __post_init__(self):
        positive(self, "eval_every")
        require(len(self.labels) > 1, f"classify.labels={self.labels}: name two classes or more")
        require(len(set(self.labels)) == len(self.labels), f"classify.labels={self.labels} names a class twice")


@dataclasses.dataclass(frozen=True)
class ILQL:
    """Implicit language Q-learning (Snell et al. 2022): critics from replies with a reward each, which guide the policy they start from."""

    data: (
        Mixture | None
    )  # comparisons or labelled replies, worth 1 or 0; None: the policy's samples, scored by the world
    optim: Optim
    replies: int | None = None  # how many are sampled
    temperature: float = 1.0  # at which they are sampled
    gamma: float = 0.99
    tau: float = 0.7  # expectile of V: 0.5 is the mean of what the replies did, 1 the best of it
    cql_coef: float = 0.1
    polyak: float = 0.005  # rate at which the slow copies follow, of which the targets are and decoding reads
    beta: float = 4.0  # weight of the advantage in decoding
    eval_every: int | None = None

    def __post_init__(self):
        positive(self, "replies", "temperature", "eval_every")
        fraction(self, "gamma", "tau", "polyak")
        not_negative(self, "cql_coef", "beta")
        require(0 < self.tau < 1, f"tau={self.tau} must lie between 0 and 1")
        require(self.polyak > 0, "polyak=0 would leave the slow copies of Q where they start")
        require(
            (self.data is None) == (self.replies is not None),
            "an ilql stage has either data, or a number of replies to sample from the policy; set exactly one",
        )


Objective = Literal["dpo", "cdpo", "ipo", "simpo", "orpo", "slic", "kto"]
"""Names of losses/preference.py's objectives: on pairs, but for KTO, which takes replies one by one, each desirable or not."""


@dataclasses.dataclass(frozen=True)
class Preference:
    """Learning from comparisons without a reward model (Rafailov et al. 2023), held to the policy it starts from."""

    data: Mixture | None  # None: pairs are sampled from the policy and labelled by the world's annotator
    optim: Optim  # its rows are pairs, of KTO replies
    objective: Objective = "dpo"
    beta: float = 0.1  # of DPO; what it is to the others, losses/preference.py says
    pairs: int | None = None  # how many comparisons are collected when they are sampled
    temperature: float = 1.0  # at which they are sampled
    eval_every: int | None = None

    def __post_init__(self):
        positive(self, "beta", "pairs", "temperature", "eval_every")
        one_of(self, "objective")
        require(
            (self.data is None) == (self.pairs is not None),
            "a preference stage has either data, or a number of pairs to sample from the policy; set exactly one",
        )
