"""Experiments that are not a pipeline of stages: small programs over all seeds at once."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from rlhf_jax.checks import fraction, not_negative, positive, require
from rlhf_jax.config.model import ONE_DEVICE, MeshConfig, ModelConfig
from rlhf_jax.config.stages import Objective


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """What every study has. Its seeds run together, in one compiled program."""

    name: str
    scale: Literal["cpu", "gpu", "tpu"] = "cpu"
    seed: int = 0

    @property
    def mesh(self) -> MeshConfig:
        """What a study needs at least: it has no mesh of its own, as its seeds are shared out to all devices there are."""
        return ONE_DEVICE


@dataclasses.dataclass(frozen=True)
class ExactWorldConfig:
    """The world whose strings are all listed (`worlds/exact.py`)."""

    vocab: int = 6  # words, and the end of a string
    length: int = 5  # tokens of a string, at most
    prompts: int = 4
    stop: float = 0.3
    repeat_penalty: float = 0.6
    seed: int = 0

    def __post_init__(self):
        positive(self, "vocab", "length", "prompts")
        fraction(self, "stop")
        not_negative(self, "repeat_penalty")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExactStudy(Study):
    """A study in the exact world: its policy, how the reference is fine-tuned, and the price of KL."""

    world: ExactWorldConfig = ExactWorldConfig()
    width: int = 32
    layers: int = 1
    heads: int = 2
    reference_steps: int = 600
    reference_rows: int = 256
    reference_lr: float = 3e-3  # of Adam, cosine to 0
    beta: float = 0.3  # nats^-1: reward given up for a nat of KL to the reference

    def __post_init__(self):
        positive(self, "width", "layers", "heads", "reference_steps", "reference_rows", "reference_lr", "beta")
        require(
            self.width % (2 * self.heads) == 0,
            f"width={self.width} does not divide into heads={self.heads} of even size",
        )

    @property
    def policy(self) -> ModelConfig:
        """The ordinary decoder, small."""
        return ModelConfig(
            vocab=self.world.vocab,
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            kv_heads=self.heads,
            mlp=3 * self.width,
            max_length=self.world.length + 8,
            tied=False,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnPolicyStudy(ExactStudy):
    """Algorithms that learn from their own samples, from one reference, for as many steps."""

    algorithms: tuple[str, ...]  # names in experiments/algorithms.py
    steps: int = 300  # rollouts
    rows: int = 256  # responses per rollout
    lr: float = 3e-3  # of Adam, constant
    reuse_lr: float = 1e-3  # of algorithms that learn from a rollout more than once
    value_lr: float = 3e-3
    every: int = 25  # steps between two exact measurements

    def __post_init__(self):
        super().__post_init__()
        positive(self, "steps", "rows", "lr", "reuse_lr", "value_lr", "every")
        require(bool(self.algorithms), "algorithms is empty; name at least one")
        require(self.steps % self.every == 0, f"every={self.every} does not divide steps={self.steps}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EstimatorStudy(ExactStudy):
    """Gradients from samples beside the enumerated ones, at a policy some way from the reference."""

    batches: int = 400
    parts: int = 8  # in which they are worked through; progress is shown after each
    rows: int = 256  # responses per batch
    samples: int = 4  # per prompt
    ascent_steps: int = 10  # of Adam on the exact objective, from the reference to that policy
    ascent_lr: float = 1e-3

    def __post_init__(self):
        super().__post_init__()
        positive(self, "batches", "parts", "rows", "samples", "ascent_steps", "ascent_lr")
        require(self.samples > 1, f"samples={self.samples}: leave-one-out needs 2 or more")
        require(self.batches % self.parts == 0, f"parts={self.parts} does not divide batches={self.batches}")
        groups = self.samples * self.world.prompts
        require(self.rows % groups == 0, f"rows={self.rows} do not split into samples x prompts = {groups}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrontierStudy(ExactStudy):
    """The most reward at every KL, and where policies that are not optimal lie beside it."""

    betas: tuple[float, ...]  # from high to low
    policies: int = 64  # of random parameters around the reference

    def __post_init__(self):
        super().__post_init__()
        positive(self, "policies")
        require(
            len(self.betas) > 2 and all(a > b > 0 for a, b in zip(self.betas, self.betas[1:], strict=False)),
            f"betas={self.betas} must be three or more prices above 0, from high to low",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestOfNStudy(ExactStudy):
    """Best-of-n by the gold reward: its KL beside the formula."""

    counts: tuple[int, ...]  # n

    def __post_init__(self):
        super().__post_init__()
        require(
            bool(self.counts) and min(self.counts) >= 1, f"counts={self.counts} must be numbers of samples, 1 or more"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceStudy(ExactStudy):
    """Objectives that learn from pairs of the reference's own samples, labelled on the gold reward."""

    objectives: tuple[str, ...]  # those of a preference stage
    betas: tuple[float, ...]  # of every objective, with all pairs; tau of IPO, the weight of the odds ratio of ORPO
    pairs: tuple[int, ...]  # from few to many, of DPO at the study's beta
    deterministic: bool = False  # the better reply always wins; else with the probability of Bradley and Terry
    steps: int = 1000
    rows: int = 64  # pairs per step
    lr: float = 1e-3  # of Adam, cosine to 0

    def __post_init__(self):
        super().__post_init__()
        positive(self, "steps", "rows", "lr")
        require(
            bool(self.objectives and self.betas and self.pairs), "objectives, betas and pairs need one entry or more"
        )
        known = get_args(Objective)
        for name in self.objectives:
            require(name in known, f"objectives: there is no {name!r}; they are {', '.join(known)}")
        require(all(beta > 0 for beta in self.betas), f"betas={self.betas} must be above 0")
        rising = all(a < b for a, b in zip(self.pairs, self.pairs[1:], strict=False))
        require(rising and self.pairs[0] > 0, f"pairs={self.pairs} must be numbers above 0 that rise")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnsembleStudy(ExactStudy):
    """Best-of-n by reward models of one ensemble, each alone and together, with clean and with noisy labels."""

    counts: tuple[float, ...]  # n of best-of-n, from 1 on
    members: int = 5
    pairs: int = 1600  # the same for all members
    held_out: int = 10_000  # pairs on which accuracy is measured
    flip: float = 0.25  # share of the noisy labels that name the worse string
    uwo_coef: float = 0.5  # of the variance over members, in units of the reference's deviation
    steps: int = 1000
    rows: int = 64  # pairs per step
    lr: float = 1e-3  # of Adam, cosine to 0

    def __post_init__(self):
        super().__post_init__()
        positive(self, "pairs", "held_out", "uwo_coef", "steps", "rows", "lr")
        require(self.members > 1, f"members={self.members}: an ensemble has 2 or more")
        require(
            0 < self.flip < 0.5, f"flip={self.flip}; noisy labels are wrong less than half of the time, and sometimes"
        )
        rising = all(a < b for a, b in zip(self.counts, self.counts[1:], strict=False))
        require(
            len(self.counts) > 2 and self.counts[0] == 1 and rising,
            f"counts={self.counts} must be three or more numbers of samples that rise from 1",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfflineStudy(ExactStudy):
    """Cloning, filtered cloning, ILQL and one-step Q-learning on the same texts, each with its true reward at its end, by two sub-optimal
    policies.
    """

    texts: int  # of all prompts together, as many of each
    fractions: tuple[float, ...]  # of each prompt's texts, the best ones, that filtered cloning sees
    taus: tuple[float, ...]  # expectiles of V, rising
    decode_betas: tuple[float, ...]  # weights of the advantage in decoding
    mixture: float = 0.5  # share of texts by the policy that starts well and ends badly; the other one does the reverse
    skill: float = 3.0  # of both, log-odds per unit of reward
    cql_coef: float = 0.1
    gamma: float = 0.99
    polyak: float = 0.02  # rate of the slow copies of Q
    steps: int = 2000
    rows: int = 64  # texts per step
    lr: float = 3e-3  # of Adam, cosine to 0

    def __post_init__(self):
        super().__post_init__()
        positive(self, "texts", "gamma", "polyak", "steps", "rows", "lr")
        fraction(self, "mixture", "gamma", "polyak")
        not_negative(self, "skill", "cql_coef")
        prompts = self.world.prompts
        require(self.texts % prompts == 0, f"texts={self.texts} do not split into prompts={prompts}")
        least = prompts / self.texts
        require(
            all(least <= part < 1 for part in self.fractions),
            f"fractions={self.fractions} must keep a text of each prompt or more ({least:g}), and not all (1)",
        )
        rising = all(a < b for a, b in zip(self.taus, self.taus[1:], strict=False))
        require(
            bool(self.taus) and rising and all(0 < tau < 1 for tau in self.taus),
            f"taus={self.taus} must be expectiles between 0 and 1 that rise",
        )
        require(
            bool(self.decode_betas) and min(self.decode_betas) >= 0,
            f"decode_betas={self.decode_betas} must be one weight or more, none below 0",
        )
