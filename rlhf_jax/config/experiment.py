"""One run, complete in itself."""

from __future__ import annotations

import dataclasses
from typing import Literal

from rlhf_jax.checks import not_negative, positive, require
from rlhf_jax.config.data import AS_IT_IS, Curation, Mixture, Text, World
from rlhf_jax.config.model import ONE_DEVICE, MeshConfig, ModelConfig
from rlhf_jax.config.ppo import PPO
from rlhf_jax.config.sampling import EVERYTHING, Sampling
from rlhf_jax.config.stages import ILQL, SFT, Classify, LoRA, Preference, Reward


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What the policies are compared on: greedy and sampled replies to held-out prompts."""

    prompts: int
    rows: int
    new_tokens: int
    samples_shown: int = 24
    positive_words: bool = False  # count the sentiment words of English replies
    best_of: int | None = None  # samples of the SFT policy to a prompt, of which the reward model picks one
    # Of sampled replies, along which KL, entropy and perplexity are those of whole distributions; the penalty of greedy ones too.
    sampling: Sampling = EVERYTHING
    slots: int | None = (
        None  # of `rows` replies so many are written at once, others when some of these have ended; None: all
    )
    begin: str = ""  # what every reply begins with
    # Texts before the first of which a reply ends. Its length, KL, entropy and the reward model's score are those of all that was written:
    # `begin`, and the text that ended it.
    stop: tuple[str, ...] = ()

    def __post_init__(self):
        positive(self, "prompts", "rows", "new_tokens", "samples_shown", "best_of", "slots")
        require(isinstance(self.stop, tuple), f"stop={self.stop!r} must be a tuple of texts")
        require(all(self.stop), f"stop={self.stop} has an empty text, which would end every reply before it begins")
        ends = [text for text in self.stop if text in self.begin]
        require(
            not ends, f"begin={self.begin!r} has {ends} in it, before which every reply would end; change begin or stop"
        )
        require(
            self.best_of is None or self.best_of > 1, f"best_of={self.best_of} leaves nothing to pick; set 2 or more"
        )


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One run: which model, which text, which stages. Complete in itself; made by a registered function."""

    name: str
    scale: Literal["cpu", "gpu", "tpu"]
    policy: ModelConfig
    text: Text
    evaluation: Evaluation
    data: Curation = AS_IT_IS
    world: World | None = None
    checkpoint: str | None = (
        None  # a pretrained model that the policy starts from: hf:ORG/NAME, or a path below the data root
    )
    lora: LoRA | None = (
        None  # adapters of the policy and of models that start from it, in every stage; None: all parameters are trained
    )
    sft: SFT | None = None
    reward: Reward | None = None
    preference: Preference | None = None
    ilql: ILQL | None = None
    classify: Classify | None = (
        None  # of an experiment that has no other stage; its "policy" is the classifier's encoder
    )
    reward_model: ModelConfig | None = None  # None: the policy's shape with a scalar head
    ppo: PPO | None = None
    prompts: Mixture | None = None  # what PPO asks; None: the world's prompts
    mesh: MeshConfig = ONE_DEVICE
    # The memory in which models lie that nothing trains: the reference, the reward model, and policies that are still to be evaluated.
    # From that of the hosts they come to the devices for each program that reads them, and leave again.
    waiting: Literal["device", "host"] = "device"
    seed: int = 0
    checkpoint_every: int = 100  # updates (PPO: iterations) between two checkpoints
    # Updates in a row (of PPO minibatches) that may be left out for a loss or gradient that is not finite; one more ends the run.
    max_skipped: int = 10

    def __post_init__(self):
        positive(self, "checkpoint_every")
        not_negative(self, "max_skipped")
        require(
            self.policy.heads % self.mesh.tensor == 0,
            f"policy.heads={self.policy.heads} is not a multiple of mesh.tensor={self.mesh.tensor}",
        )
        for name, model in (("policy", self.policy), ("reward_model", self.reward_shape)):
            require(
                self._longest <= model.max_length or model.position != "learned",
                f"sequences of {self._longest} tokens (text.length, or text.prompt_length + new_tokens) exceed "
                f"{name}.max_length={model.max_length}",
            )
            require(
                model.vocab == self.policy.vocab,
                f"{name}.vocab={model.vocab} is not policy.vocab={self.policy.vocab}; both read the same tokens",
            )
        self._check_kinds()
        for name, length in self._lengths():
            require(
                length % self.mesh.context == 0,
                f"{name}={length} does not split over mesh.context={self.mesh.context} devices",
            )
        for name, rows in self._row_counts():
            require(
                rows % self.mesh.row_shards == 0,
                f"{name}={rows} does not split over mesh data x fsdp = {self.mesh.row_shards} devices",
            )
        require(
            self.policy.head == "lm", f"policy.head={self.policy.head!r}: the stages add the heads they need; leave it"
        )
        require(
            self.text.tokenizer != "checkpoint" or self.checkpoint is not None,
            "text.tokenizer='checkpoint' is the one beside the checkpoint; set checkpoint",
        )
        require(
            self.lora is None or self.ilql is None, "the critics of ilql are trained whole: set lora or ilql to none"
        )
        require(self.ppo is None or self.ppo.reward == "gold" or self.reward is not None, "PPO needs a reward stage")
        require(
            self.reward_shape.kind == self.policy.kind or self.reward is None or self.reward.init != "policy",
            f"reward.init='policy': a reward model of kind {self.reward_shape.kind!r} has no layers in common with a policy of kind "
            f"{self.policy.kind!r}; set it to 'random'",
        )
        from_reward = self.ppo is not None and self.ppo.value_optim is not None and self.ppo.value_init == "reward"
        require(
            self.reward_shape.causal or self.reward is None or not from_reward,
            "ppo.value_init='reward': a reward model that is an encoder has no values per token; set it to 'policy'",
        )
        require(
            self.ppo is None
            or self.ppo.old_logprobs == "scored"
            or self.policy.dtype == self.policy.kept_dtype == "float32",
            f"ppo.old_logprobs='sampled' with policy.dtype={self.policy.dtype!r} and policy.cache_dtype={self.policy.cache_dtype!r}: "
            "sampler and update round differently there; set it to 'scored'",
        )
        require(
            self.evaluation.best_of is None or self.reward is not None,
            "evaluation.best_of needs a reward stage, whose model picks the best",
        )
        require(
            self.ppo is None or not self.ppo.ptx_coef or self.ppo.ptx_data is not None or self.sft is not None,
            "ppo.ptx_coef needs demonstrations: set ppo.ptx_data, or an SFT stage",
        )
        sampled = any(stage is not None and stage.data is None for stage in (self.reward, self.preference, self.ilql))
        require(
            not sampled or self.world is None or self.world.prompts > self.evaluation.prompts,
            "world.prompts must exceed evaluation.prompts: the last of them are held out of the sampled replies",
        )
        learning = [name for name in ("ppo", "preference", "ilql") if getattr(self, name) is not None]
        require(
            len(learning) < 2,
            f"{' and '.join(learning)} each go on from the policy of SFT; set all but one of them to none",
        )
        normalised = self.reward is not None and self.reward.scores == "normalised"
        require(self.ppo is not None or not normalised, "reward.scores='normalised' is over PPO's samples; set ppo")
        by_gold = sampled or (self.ppo is not None and self.ppo.reward == "gold")
        require(self.prompts is None or not by_gold, "the world scores its own prompts only; leave prompts unset")
        needs_world = any((
            sampled,
            self.ppo is not None and (self.prompts is None or self.ppo.reward == "gold"),
        ))  # fmt: skip
        require(self.world is not None or not needs_world, f"{self.name} samples from a world but sets none")

        pack = self.sft.pack_length if self.sft is not None else None
        require(
            pack is None or pack >= self.text.length,
            f"sft.pack_length={pack} is shorter than text.length={self.text.length}; a row holds at least one example",
        )

    def _check_kinds(self) -> None:
        if self.classify is None:
            require(
                self.policy.causal,
                "policy.causal=False: an encoder writes no text; it can be the reward_model of an experiment, or learn to classify",
            )
            return
        require(not self.policy.causal, "classify: classes are told by an encoder; set policy to one (causal=False)")
        others = [name for name in ("sft", "reward", "preference", "ilql", "ppo") if getattr(self, name) is not None]
        require(not others, f"classify and {' and '.join(others)}: an encoder writes no text; set all but one to none")

    @property
    def classifier_shape(self) -> ModelConfig | None:
        """The config of the classifier, where the experiment trains one."""
        if self.classify is None:
            return None
        return dataclasses.replace(self.policy, head="classes", classes=len(self.classify.labels))

    @property
    def _longest(self) -> int:
        """Tokens of the longest sequence that a model may read."""
        new_tokens = max(self.evaluation.new_tokens, 0 if self.ppo is None else self.ppo.new_tokens)
        return max(self.text.length, self.text.prompt_length + new_tokens)

    def _lengths(self):
        """(name, columns) of what updates read. Prompts alone may be of any length: what does not divide, every device has whole."""
        yield "text.length", self.text.length
        yield from (("text.buckets", bucket) for bucket in self.text.buckets)
        if self.sft is not None and self.sft.pack_length is not None:
            yield "sft.pack_length", self.sft.pack_length
        if self.ppo is not None:
            yield "text.prompt_length + ppo.new_tokens", self.text.prompt_length + self.ppo.new_tokens
            for bucket in self.text.prompt_buckets:
                yield f"text.prompt_buckets={bucket} + ppo.new_tokens", bucket + self.ppo.new_tokens

    def _row_counts(self):
        names = ("sft", "reward", "preference", "ilql", "classify", "ppo")
        stages = {name: getattr(self, name) for name in names}
        for name, stage in stages.items():
            if stage is not None:
                optim = stage.optim
                require(name == "ppo" or optim.steps is not None, f"{name}.optim.steps is not set")
                yield f"{name}.optim.rows / microbatches", optim.rows // optim.microbatches
        if self.ppo is not None:
            yield "ppo.prompts x samples", self.ppo.prompts * self.ppo.samples
            if self.ppo.slots is not None:
                yield "ppo.slots", self.ppo.slots
            if self.ppo.ptx_rows is not None:
                yield "ppo.ptx_rows / microbatches", self.ppo.ptx_rows // self.ppo.optim.microbatches
        yield "evaluation.rows", self.evaluation.rows
        if self.evaluation.slots is not None:
            yield "evaluation.slots", self.evaluation.slots

    def mixtures(self) -> list[Mixture]:
        """Every mixture that the experiment reads."""
        return [mixture for _, mixture in self.named_mixtures()]

    def named_mixtures(self) -> list[tuple[str, Mixture]]:
        """(what it is for, mixture) of every mixture that the experiment reads."""
        names = ("sft", "reward", "preference", "ilql", "classify", "ppo")
        found = {name: getattr(getattr(self, name), "data", None) for name in names}
        found |= {"ptx": getattr(self.ppo, "ptx_data", None), "prompts": self.prompts}
        return [(name, mixture) for name, mixture in found.items() if mixture is not None]

    @property
    def reward_shape(self) -> ModelConfig:
        """The reward model's config: its own, or the policy's with a scalar head."""
        shape = self.policy if self.reward_model is None else self.reward_model
        return dataclasses.replace(shape, head="scalar")
