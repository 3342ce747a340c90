"""Frozen configs that validate themselves: what an experiment is made of.

A config says what to do, never how; the functions that use it take plain arguments. Unset is `None`, so that 0.0 stays a setting.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from rlhf_jax.checks import fraction, not_negative, one_of, positive, require


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices stand along each axis; their product must be the number of devices used."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        positive(self, "data", "fsdp", "tensor")

    @property
    def devices(self) -> int:
        return self.data * self.fsdp * self.tensor

    @property
    def row_shards(self) -> int:
        """Over how many devices the rows of a batch are split."""
        return self.data * self.fsdp


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder: Llama-like by default, GPT-2-like with `norm="layer", position="learned", activation="gelu", bias=True`."""

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    max_length: int
    head_dim: int | None = None  # None: width / heads
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    position: Literal["rope", "learned"] = "rope"
    rope_base: float = 10_000.0
    activation: Literal["swiglu", "gelu"] = "swiglu"
    bias: bool = False
    tied: bool = True
    head: Literal["lm", "scalar", "lm+scalar"] = "lm"
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; parameters and softmax stay float32
    remat: bool = False  # recompute each layer in the backward pass
    logit_chunk: int = 128  # columns of the output layer alive at once

    def __post_init__(self):
        positive(self, "vocab", "width", "layers", "heads", "kv_heads", "mlp", "max_length", "logit_chunk", "norm_eps")
        positive(self, "head_dim", "rope_base")
        one_of(self, "norm", "position", "activation", "head", "dtype")
        require(
            self.heads % self.kv_heads == 0,
            f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}; each key-value head serves heads / kv_heads",
        )
        if self.head_dim is None:
            require(
                self.width % self.heads == 0,
                f"width={self.width} does not divide into heads={self.heads}; set head_dim",
            )
        if self.position == "rope":
            require(self.head_size % 2 == 0, f"head_dim={self.head_size} is odd; rotary positions turn pairs")

    @property
    def head_size(self) -> int:
        return self.width // self.heads if self.head_dim is None else self.head_dim

    @property
    def scalar_head(self) -> bool:
        return "scalar" in self.head

    @property
    def lm_head(self) -> bool:
        return "lm" in self.head


@dataclasses.dataclass(frozen=True)
class Optim:
    """AdamW with a learning-rate schedule. `steps` are optimiser updates, `rows` the batch over all devices."""

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
    weight_decay: float = 0.0  # on matrices only
    max_grad_norm: float | None = 1.0  # None: no clipping

    def __post_init__(self):
        positive(self, "lr", "steps", "rows", "microbatches", "eps", "max_grad_norm")
        one_of(self, "schedule")
        fraction(self, "final_lr", "b1", "b2")
        not_negative(self, "warmup", "weight_decay")
        require(
            self.rows % self.microbatches == 0, f"{self.rows} rows do not split into {self.microbatches} microbatches"
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

    tokenizer: str  # "train:VOCAB" trains one on the world's corpus; else a path below the data root
    template: str
    length: int  # prompt + reply, tokens
    prompt_length: int  # longer prompts lose their start

    def __post_init__(self):
        positive(self, "length", "prompt_length")
        kind, colon, size = self.tokenizer.partition(":")
        require(
            not colon or kind != "train" or (size.isdecimal() and int(size) > 0),
            f"text.tokenizer={self.tokenizer!r} must be train:VOCAB with a number of pieces, or a path below the data root",
        )
        require(
            self.prompt_length < self.length,
            f"prompt_length={self.prompt_length} leaves no room for a reply in length={self.length}",
        )


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Sources and their weights, and the share of prompts held out of training. A source is `ADAPTER:GLOB` or `world:instruct`."""

    sources: tuple[tuple[str, float], ...]
    held_out: float = 0.05

    def __post_init__(self):
        require(bool(self.sources), "a mixture needs at least one source")
        for name, weight in self.sources:
            require(weight > 0, f"weight {weight} of source {name!r} must be above 0")
        fraction(self, "held_out")
        require(self.held_out < 1, f"held_out={self.held_out} leaves nothing to train on; it must be below 1")


@dataclasses.dataclass(frozen=True)
class SFT:
    """Supervised fine-tuning on demonstrations, loss on the reply."""

    data: Mixture
    optim: Optim
    pack_length: int | None = None  # rows of so many tokens hold several examples; None: one example to a row
    eval_every: int | None = None

    def __post_init__(self):
        positive(self, "pack_length", "eval_every")


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
class PPO:
    """PPO with KL to the reference in the reward. Source: Ziegler et al. 2019; Stiennon et al. 2020; Ouyang et al. 2022."""

    optim: Optim  # rows: per minibatch; steps stay unset
    value_optim: Optim | None  # None: the value is a head on the policy
    iterations: int
    prompts: int  # per iteration
    new_tokens: int
    samples: int = 1  # per prompt
    epochs: int = 1
    temperature: float = 1.0
    kl_coef: float = 0.05
    kl_target: float | None = None  # nats per sequence; None: the coefficient is fixed
    kl_horizon: float = 10_000.0  # episodes
    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    value_clip: float | None = 0.2
    value_coef: float = 0.1  # weight of the value loss where the value is a head on the policy
    value_init: Literal["reward", "policy"] = "reward"
    whiten_rewards: bool = False
    whiten_advantages: bool = True
    stop_token: str | None = (
        None  # text of the token that must end a response, Ziegler's truncation; eos alone is a missing stop
    )
    stop_after: int = 0  # tokens that must stand before it
    missing_stop_score: float | None = None  # replaces the score of responses without a stop token
    reward: Literal["model", "gold"] = "model"  # gold: the world's own scorer, a Python callable on text
    ptx_coef: float = 0.0  # weight of the mean NLL of a demonstration batch in the same gradient
    ptx_rows: int | None = None  # per minibatch
    ptx_data: Mixture | None = None  # None: the demonstrations of the SFT stage
    ema: float | None = None  # decay of the averaged policy that is evaluated and kept

    def __post_init__(self):
        positive(self, "iterations", "prompts", "new_tokens", "samples", "epochs", "temperature", "kl_target")
        positive(self, "kl_horizon", "clip", "value_clip", "ptx_rows")
        one_of(self, "value_init", "reward")
        fraction(self, "gamma", "lam", "ema")
        not_negative(self, "kl_coef", "value_coef", "ptx_coef", "stop_after")
        episodes = self.prompts * self.samples
        require(
            episodes % self.optim.rows == 0,
            f"{self.prompts} prompts x {self.samples} samples do not split into minibatches of {self.optim.rows} rows",
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
        for optim in (self.optim, self.value_optim):
            if optim is not None:
                self.with_steps(optim)  # checks the warm-up against the number of updates
        require(self.kl_target is None or self.kl_coef > 0, "an adaptive kl_coef must start above 0")

    @property
    def minibatches(self) -> int:
        return self.prompts * self.samples // self.optim.rows

    def with_steps(self, optim: Optim) -> Optim:
        """The optimiser config with the number of updates of the whole run."""
        return dataclasses.replace(optim, steps=self.iterations * self.epochs * self.minibatches)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What the policies are compared on: greedy and sampled replies to held-out prompts."""

    prompts: int
    rows: int
    new_tokens: int
    samples_shown: int = 24
    positive_words: bool = False  # count the sentiment words of English replies

    def __post_init__(self):
        positive(self, "prompts", "rows", "new_tokens", "samples_shown")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One run: which model, which text, which stages. Complete in itself; made by a registered function."""

    name: str
    scale: Literal["cpu", "gpu", "tpu"]
    policy: ModelConfig
    text: Text
    evaluation: Evaluation
    world: World | None = None
    checkpoint: str | None = None  # a pretrained model below the data root that the policy starts from
    sft: SFT | None = None
    reward: Reward | None = None
    reward_model: ModelConfig | None = None  # None: the policy's shape with a scalar head
    ppo: PPO | None = None
    prompts: Mixture | None = None  # what PPO asks; None: the world's prompts
    mesh: MeshConfig = MeshConfig()
    seed: int = 0
    checkpoint_every: int = 100  # updates (PPO: iterations) between two checkpoints

    def __post_init__(self):
        positive(self, "checkpoint_every")
        require(
            self.policy.heads % self.mesh.tensor == 0,
            f"policy.heads={self.policy.heads} is not a multiple of mesh.tensor={self.mesh.tensor}",
        )
        for name, model in (("policy", self.policy), ("reward_model", self.reward_shape)):
            require(
                self._longest <= model.max_length or model.position == "rope",
                f"sequences of {self._longest} tokens (text.length, or text.prompt_length + new_tokens) exceed "
                f"{name}.max_length={model.max_length}",
            )
            require(
                model.vocab == self.policy.vocab,
                f"{name}.vocab={model.vocab} is not policy.vocab={self.policy.vocab}; both read the same tokens",
            )
        for name, rows in self._row_counts():
            require(
                rows % self.mesh.row_shards == 0,
                f"{name}={rows} does not split over mesh data x fsdp = {self.mesh.row_shards} devices",
            )
        require(
            self.policy.head == "lm", f"policy.head={self.policy.head!r}: the stages add the heads they need; leave it"
        )
        require(self.ppo is None or self.ppo.reward == "gold" or self.reward is not None, "PPO needs a reward stage")
        require(
            self.ppo is None or not self.ppo.ptx_coef or self.ppo.ptx_data is not None or self.sft is not None,
            "ppo.ptx_coef needs demonstrations: set ppo.ptx_data, or an SFT stage",
        )
        sampled = self.reward is not None and self.reward.data is None
        require(
            not sampled or self.world is None or self.world.prompts > self.evaluation.prompts,
            "world.prompts must exceed evaluation.prompts: the last of them are held out of the sampled comparisons",
        )
        normalised = self.reward is not None and self.reward.scores == "normalised"
        require(self.ppo is not None or not normalised, "reward.scores='normalised' is over PPO's samples; set ppo")
        by_gold = sampled or (self.ppo is not None and self.ppo.reward == "gold")
        require(self.prompts is None or not by_gold, "the world scores its own prompts only; leave prompts unset")
        needs_world = any((
            self.reward is not None and self.reward.data is None,
            self.ppo is not None and (self.prompts is None or self.ppo.reward == "gold"),
        ))  # fmt: skip
        require(self.world is not None or not needs_world, f"{self.name} samples from a world but sets none")

        pack = self.sft.pack_length if self.sft is not None else None
        require(
            pack is None or pack >= self.text.length,
            f"sft.pack_length={pack} is shorter than text.length={self.text.length}; a row holds at least one example",
        )

    @property
    def _longest(self) -> int:
        """Tokens of the longest sequence that a model may read."""
        new_tokens = max(self.evaluation.new_tokens, 0 if self.ppo is None else self.ppo.new_tokens)
        return max(self.text.length, self.text.prompt_length + new_tokens)

    def _row_counts(self):
        for name, stage in (("sft", self.sft), ("reward", self.reward), ("ppo", self.ppo)):
            if stage is not None:
                optim = stage.optim
                require(name == "ppo" or optim.steps is not None, f"{name}.optim.steps is not set")
                yield f"{name}.optim.rows / microbatches", optim.rows // optim.microbatches
        if self.ppo is not None:
            yield "ppo.prompts x samples", self.ppo.prompts * self.ppo.samples
            if self.ppo.ptx_rows is not None:
                yield "ppo.ptx_rows / microbatches", self.ppo.ptx_rows // self.ppo.optim.microbatches
        yield "evaluation.rows", self.evaluation.rows

    @property
    def reward_shape(self) -> ModelConfig:
        """The reward model's config: its own, or the policy's with a scalar head."""
        shape = self.policy if self.reward_model is None else self.reward_model
        return dataclasses.replace(shape, head="scalar")
