"""Policy gradients: an algorithm as a combination of parts, and the stage that runs it."""

from __future__ import annotations

import dataclasses
from typing import Literal

from rlhf_jax.checks import fraction, not_negative, one_of, positive, require
from rlhf_jax.config.data import Mixture
from rlhf_jax.config.stages import Optim

WHOLE = ("group_normalised", "best", "preferred")
"""Baselines that speak of responses, not of tokens."""

GROUPED = ("leave_one_out", "group_mean", *WHOLE)
"""Baselines that compare the responses to one prompt."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyGradient:
    """A policy-gradient algorithm as a combination of parts. The defaults are PPO.

    Where the parts come from: losses/advantages.py (baseline), losses/policy.py (objective, normaliser), losses/kl.py (KL).
    """

    samples: int = 1  # responses per prompt
    new_tokens: int  # per response
    temperature: float = 1.0
    # Advantages: rewards to go, or the sum of rewards on every token, minus a baseline. "value" is a critic with GAE.
    baseline: Literal[
        "value",
        "none",
        "moving_average",
        "batch_mean",
        "leave_one_out",
        "group_mean",
        "group_normalised",
        "best",  # fine-tuning on the best response to each prompt (RAFT)
        "preferred",  # DPO on the best and the worst one (online DPO)
    ] = "value"
    credit: Literal["token", "sequence"] = "token"
    # Of "preferred": the higher score always wins, or with the probability of Bradley and Terry.
    labels: Literal["higher", "bradley_terry"] = "higher"
    gamma: float = 1.0
    lam: float = 0.95  # of GAE
    decay: float = 0.9  # of the moving average
    # Where the score is earned: on the last token of a response, or one step behind it, whose value is of the state after eos.
    reward_at: Literal["eos", "eos_plus_1"] = "eos"
    whiten_rewards: bool = False
    whiten_advantages: bool = True
    # What the score adds to the rewards: over the deviation of all scores of the run so far (scaled), less their mean too (normalised);
    # and bounds on either side of it, and of the advantages. Zheng et al. 2023 (arXiv:2307.04964), section 5.3.1.
    score_unit: Literal["raw", "scaled", "normalised"] = "raw"
    score_clip: float | None = None
    advantage_clip: float | None = None
    # The objective of a token, and how tokens are averaged.
    objective: Literal["clip", "score", "truncated"] = "clip"
    ratio: Literal["token", "sequence"] = "token"
    clip: float = 0.2
    clip_high: float | None = None  # None: as clip
    dual_clip: float | None = None
    importance_cap: float = 2.0  # of the objective "truncated"
    normaliser: Literal["token", "sequence", "constant", "group"] = "token"  # constant: new_tokens
    entropy_coef: float = 0.0  # of the entropy of each token's distribution, which the loss then rewards
    # Log-probs of the policy that sampled, from reading the responses once more, which also tells the exact KL, or as they were sampled:
    # the same to rounding where all is computed in float32 (on accelerators if products are: jax_default_matmul_precision="highest"). Then
    # the KL is told, and its coefficient set, by k1 of the tokens.
    old_logprobs: Literal["scored", "sampled"] = "scored"
    epochs: int = 1
    # KL to the reference: k1 in the reward, or k2, k3 or exact in the loss; or in the preference, whose beta kl_coef then is.
    kl_in: Literal["reward", "loss", "preference"] = "reward"
    kl_estimator: Literal["k1", "k2", "k3", "exact"] = "k1"
    kl_coef: float = 0.05
    kl_target: float | None = None  # nats per sequence; None: the coefficient is fixed
    kl_horizon: float = 10_000.0  # episodes
    # Responses that do not end in time.
    missing_stop_score: float | None = None  # replaces the score of responses without a stop token
    overlong_filter: bool = False  # they teach the policy nothing
    overlong_cache: int | None = None  # tokens before new_tokens over which the score falls by 1

    def __post_init__(self):
        positive(self, "samples", "new_tokens", "temperature", "clip", "clip_high", "importance_cap", "epochs")
        positive(self, "kl_target", "kl_horizon", "overlong_cache", "score_clip", "advantage_clip")
        one_of(self, "score_unit", "baseline", "credit", "labels", "objective", "ratio", "normaliser", "kl_in")
        one_of(self, "kl_estimator", "reward_at", "old_logprobs")
        fraction(self, "gamma", "lam", "decay")
        not_negative(self, "kl_coef", "entropy_coef")
        require(self.kl_target is None or self.kl_coef > 0, "an adaptive kl_coef must start above 0")
        require(
            self.baseline not in GROUPED or self.samples > 1,
            f"baseline={self.baseline!r} compares the responses to one prompt: set samples to 2 or more",
        )
        require(
            self.credit == "token" or self.baseline != "value",
            "baseline='value' has a value for every token: leave credit='token'",
        )
        require(
            self.reward_at == "eos" or self.baseline == "value",
            f"reward_at='eos_plus_1' is about the value behind the last token, which baseline={self.baseline!r} does not have",
        )
        require(
            self.credit == "token" or self.gamma == 1,
            f"gamma={self.gamma} discounts tokens, but credit='sequence' gives all of them the same advantage",
        )
        require(
            self.baseline not in WHOLE or self.credit == "sequence",
            f"baseline={self.baseline!r} is about whole responses: set credit='sequence'",
        )
        require(
            (self.baseline == "preferred") == (self.kl_in == "preference"),
            "online DPO has its KL in the preference: set baseline='preferred' and kl_in='preference' together",
        )
        require(
            self.baseline != "preferred" or (self.objective, self.epochs) == ("score", 1),
            "baseline='preferred' is DPO's gradient at the policy that sampled: set objective='score' and epochs=1",
        )
        require(
            self.baseline != "preferred" or (self.kl_coef > 0 and self.kl_estimator == "k1"),
            "baseline='preferred' has kl_coef as DPO's beta and estimates no KL: set kl_coef above 0 and leave kl_estimator",
        )
        require(
            self.baseline == "preferred" or self.labels == "higher",
            f"labels={self.labels!r} is about pairs, and baseline={self.baseline!r} makes none: leave it at 'higher'",
        )
        require(
            self.baseline not in ("best", "preferred") or not self.whiten_advantages,
            f"baseline={self.baseline!r} has weights whose sign and size matter: set whiten_advantages=false",
        )
        require(
            self.dual_clip is None or self.dual_clip > 1,
            f"dual_clip={self.dual_clip} bounds ratios above 1; it must be above 1",
        )
        require(
            self.overlong_cache is None or self.overlong_cache <= self.new_tokens,
            f"overlong_cache={self.overlong_cache} exceeds new_tokens={self.new_tokens}",
        )
        require(
            self.kl_in != "reward" or self.kl_estimator == "k1",
            f"kl_estimator={self.kl_estimator!r} in the reward has another gradient than the KL's: its own dependence on the policy is "
            "lost there; only k1 has none. Set kl_in='loss', or kl_estimator='k1'",
        )
        require(
            self.kl_in != "loss" or self.kl_estimator != "k1",
            "kl_estimator='k1' in the loss teaches nothing: its gradient is 0 on average whatever the reference; take k2 or exact",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPO(PolicyGradient):
    """Policy gradients on prompts, PPO unless its parts say otherwise.

    Source: Ziegler et al. 2019; Stiennon et al. 2020; Ouyang et al. 2022.
    """

    optim: Optim  # rows: per minibatch; steps stay unset
    value_optim: Optim | None  # None: the value is a head on the policy, or there is none
    iterations: int
    prompts: int  # per iteration
    # What is dealt to the minibatches of each epoch: responses one by one, or prompts with all of theirs. A decoder then reads a prompt
    # once for all of them, as it does where one minibatch has all responses, if each microbatch on each device has whole groups.
    shuffle: Literal["responses", "prompts"] = "responses"
    slots: int | None = (
        None  # responses that are written at once, others when some of these have ended; None: all of an iteration
    )
    value_clip: float | None = 0.2
    value_coef: float = 0.1  # weight of the value loss where the value is a head on the policy
    value_init: Literal["reward", "policy"] = "reward"
    value_warmup: int = 0  # iterations before the first update of the policy, in which the value model learns alone
    # Text of the token that must end a response, Ziegler's truncation; eos alone is a missing stop.
    stop_token: str | None = None
    stop_after: int = 0  # tokens that must stand before it
    refills: int = 0  # further rollouts at most, to replace prompts whose responses all score alike (dynamic sampling)
    reward: Literal["model", "gold"] = "model"  # gold: the world's own scorer, a Python callable on text
    ptx_coef: float = 0.0  # weight of the mean NLL of a demonstration batch in the same gradient
    ptx_rows: int | None = None  # per minibatch
    ptx_data: Mixture | None = None  # None: the demonstrations of the SFT stage
    ema: float | None = None  # decay of the averaged policy that is evaluated and kept

    def __post_init__(self):
        super().__post_init__()
        positive(self, "iterations", "prompts", "slots", "value_clip", "ptx_rows")
        one_of(self, "shuffle", "value_init", "reward")
        fraction(self, "ema")
        require(
            self.baseline == "value" or self.value_optim is None,
            f"baseline={self.baseline!r} has no value model to train: set value_optim to none",
        )
        require(
            self.baseline != "value" or self.value_optim is not None or self.normaliser == "token",
            f"normaliser={self.normaliser!r}: a value head on the policy shares its mean over tokens; give the value a value_optim",
        )
        require(
            self.reward_at == "eos" or self.value_optim is not None,
            "reward_at='eos_plus_1': a value head on the policy shares its mean over tokens; give the value a value_optim",
        )
        not_negative(self, "value_coef", "ptx_coef", "stop_after", "refills", "value_warmup")
        require(
            not self.refills or self.baseline in GROUPED,
            f"refills={self.refills}: with baseline={self.baseline!r} responses that score alike teach as well; leave it at 0",
        )
        require(
            self.value_warmup == 0 or self.value_optim is not None,
            f"value_warmup={self.value_warmup}: only a value model of its own can learn alone; give the value a value_optim",
        )
        require(
            self.value_warmup < self.iterations,
            f"value_warmup={self.value_warmup} leaves the policy none of the iterations={self.iterations}",
        )
        episodes = self.prompts * self.samples
        require(
            episodes % self.optim.rows == 0,
            f"{self.prompts} prompts x {self.samples} samples do not split into minibatches of {self.optim.rows} rows",
        )
        groups = self.samples * self.optim.microbatches
        require(
            self.shuffle == "responses" or (self.samples > 1 and self.optim.rows % groups == 0),
            f"shuffle='prompts' keeps the {self.samples} responses to a prompt in one microbatch: set samples to 2 or more, and "
            f"optim.rows, here {self.optim.rows}, to a multiple of samples x optim.microbatches = {groups}",
        )
        require(
            self.baseline != "preferred" or self.minibatches == 1,
            f"baseline='preferred' takes one update from a rollout: set optim.rows to prompts x samples = {episodes}",
        )
        split = (self.optim.rows, self.optim.microbatches)
        for name, optim in (("optim", self.optim), ("value_optim", self.value_optim)):
            require(
                optim is None or (optim.steps, optim.rows, optim.microbatches) == (None, *split),
                f"ppo.{name}.steps follows from iterations x epochs x minibatches: leave it unset; and rows and microbatches must "
                f"be the same for policy and value, here {split[0]} and {split[1]}",
            )
        require(
            (self.ptx_coef > 0) == (self.ptx_rows is not None), "ptx_coef and ptx_rows go together: set both or neither"
        )
        require(
            self.ptx_rows is None or self.ptx_rows % self.optim.microbatches == 0,
            f"ptx_rows={self.ptx_rows} do not split into optim.microbatches={self.optim.microbatches}",
        )
        # These check the warm-up against the number of updates.
        _ = self.policy_optim
        if self.value_optim is not None:
            self.with_steps(self.value_optim)

    @property
    def minibatches(self) -> int:
        return self.prompts * self.samples // self.optim.rows

    @property
    def together(self) -> int:
        """How many rows, side by side in every microbatch, are known to answer one prompt: all responses to it, or 1."""
        whole = self.shuffle == "prompts" or self.minibatches == 1
        return self.samples if whole and self.optim.rows % (self.samples * self.optim.microbatches) == 0 else 1

    def with_steps(self, optim: Optim, *, skipped: int = 0) -> Optim:
        """The optimiser config with the number of updates of the whole run, but for those of the `skipped` iterations."""
        return dataclasses.replace(optim, steps=(self.iterations - skipped) * self.epochs * self.minibatches)

    @property
    def policy_optim(self) -> Optim:
        """The optimiser config of the policy with its number of updates."""
        return self.with_steps(self.optim, skipped=self.value_warmup)
