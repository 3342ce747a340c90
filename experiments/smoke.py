"""The loops at their smallest: seconds each, to see that an installation works."""

from __future__ import annotations

import dataclasses

from experiments.registry import register
from rlhf_jax.config import (
    ILQL,
    PPO,
    SFT,
    Evaluation,
    Experiment,
    LoRA,
    MeshConfig,
    Mixture,
    ModelConfig,
    Optim,
    Preference,
    Reward,
    Sampling,
    Text,
    World,
)

COST = {"cpu": "20 s on 2 cores"}
EVALUATION = Evaluation(prompts=32, rows=32, new_tokens=8, samples_shown=4)


def _smoke(name: str, *, annotator_flip: float = 0.0, evaluation: Evaluation = EVALUATION, **stages) -> Experiment:
    return Experiment(
        name=name,
        scale="cpu",
        policy=ModelConfig(vocab=896, width=32, layers=2, heads=4, kv_heads=2, mlp=64, max_length=96),
        text=Text(tokenizer="train:896", template="plain", length=64, prompt_length=48),
        evaluation=evaluation,
        world=World(demonstrations=512, prompts=128, flawed=0.2, annotator_flip=annotator_flip),
        checkpoint_every=10,
        **stages,
    )


def _sft(steps: int) -> SFT:
    optim = Optim(lr=3e-3, steps=steps, rows=32, microbatches=2, warmup=2)
    return SFT(data=Mixture((("world:instruct", 1.0),)), optim=optim)


def _reward(steps: int) -> Reward:
    return Reward(data=None, pairs=128, temperature=0.7, scores="centred", optim=Optim(lr=1e-3, steps=steps, rows=16))


@register(
    "smoke/sft",
    paper="-",
    claim="the SFT loop runs: the loss falls",
    costs=COST,
)
def smoke_sft(scale: str) -> Experiment:
    """SFT of a tiny decoder on the instruction world. Expect the held-out loss to fall; the answers are nonsense."""
    return _smoke("smoke/sft", sft=_sft(30))


@register(
    "smoke/reward",
    paper="-",
    claim="the reward loop runs on comparisons sampled from the policy",
    costs=COST,
)
def smoke_reward(scale: str) -> Experiment:
    """A tiny reward model on comparisons of an untrained policy's samples, a tenth mislabelled. Expect an accuracy near one half."""
    return _smoke("smoke/reward", annotator_flip=0.1, reward=_reward(20))


@register(
    "smoke/encoder_reward",
    paper="-",
    claim="the loops of reward models and PPO run with an encoder as the reward model",
    costs={"cpu": "45 s on 2 cores"},
)
def smoke_encoder_reward(scale: str) -> Experiment:
    """SFT of a tiny decoder, a tiny BERT on comparisons of its samples, and PPO against that. Expect an accuracy near one half."""
    encoder = ModelConfig(
        vocab=896,
        width=32,
        layers=2,
        heads=4,
        kv_heads=4,
        mlp=64,
        max_length=96,
        norm="layer",
        norm_at="after",
        causal=False,
        embedding_norm=True,
        token_types=2,
        position="learned",
        activation="gelu_exact",
        bias=True,
    )
    return _smoke(
        "smoke/encoder_reward",
        sft=_sft(30),
        reward_model=encoder,
        reward=dataclasses.replace(_reward(40), init="random"),
        ppo=PPO(optim=Optim(lr=1e-3, rows=16), value_optim=None, iterations=2, prompts=16, new_tokens=8),
    )


@register(
    "smoke/encoder_decoder",
    paper="Raffel et al. 2020",
    claim="the loops run with an encoder-decoder as the policy, its reward model and its value model",
    costs={"cpu": "60 s on 2 cores"},
)
def smoke_encoder_decoder(scale: str) -> Experiment:
    """SFT of a tiny T5, a reward and a value model that start from it, and PPO. Expect the losses to fall; the answers are nonsense."""
    policy = ModelConfig(
        vocab=896,
        width=32,
        encoder_layers=2,
        layers=2,
        heads=4,
        kv_heads=4,
        mlp=64,
        max_length=96,
        norm_eps=1e-6,
        position="relative",
        query_scale=1.0,
        activation="relu",
        output_scale=32**-0.5,
    )
    optim = Optim(lr=1e-3, rows=16)
    ppo = PPO(optim=optim, value_optim=optim, value_init="reward", iterations=2, prompts=16, new_tokens=8)
    made = _smoke("smoke/encoder_decoder", sft=_sft(30), reward=_reward(20), ppo=ppo)
    return dataclasses.replace(made, policy=policy)


@register(
    "smoke/preference",
    paper="Rafailov et al. 2023",
    claim="the preference loop runs: DPO on comparisons sampled from the fine-tuned policy",
    costs=COST,
)
def smoke_preference(scale: str) -> Experiment:
    """SFT of a tiny decoder, then DPO on its own samples. Expect an accuracy of the implicit reward above one half in training.

    Batches are of 32 tokens where their texts are no longer, else of 64.
    """
    optim = Optim(lr=1e-3, steps=20, rows=16, microbatches=2)
    made = _smoke("smoke/preference", sft=_sft(30), preference=Preference(data=None, pairs=128, optim=optim))
    return dataclasses.replace(made, text=dataclasses.replace(made.text, buckets=(32,)))


@register(
    "smoke/lora",
    paper="Hu et al. 2021",
    claim="SFT and DPO run with low-rank adapters, which are all that is trained, and are merged after each stage",
    costs=COST,
)
def smoke_lora(scale: str) -> Experiment:
    """As smoke/preference, with adapters of rank 4. A random base has little to adapt: expect the losses to fall less."""
    optim = Optim(lr=1e-2, steps=20, rows=16, microbatches=2)
    return _smoke(
        "smoke/lora",
        lora=LoRA(rank=4, alpha=8.0),
        sft=_sft(30),
        preference=Preference(data=None, pairs=128, optim=optim),
    )


@register(
    "smoke/optimiser_state",
    paper="Shazeer & Stern 2018",
    claim="SFT runs with Adam's moments in bfloat16, and a reward model with Adafactor's factored ones",
    costs=COST,
)
def smoke_optimiser_state(scale: str) -> Experiment:
    """Half of Adam's memory, and next to none of it; layers without a loop, which keep their products alone for the backward pass, and
    logits, which are kept for it.

    Expect losses to fall as in smoke/sft and smoke/reward.
    """
    sft, reward = _sft(30), _reward(20)
    experiment = _smoke(
        "smoke/optimiser_state",
        sft=dataclasses.replace(sft, optim=dataclasses.replace(sft.optim, moments="bfloat16")),
        reward=dataclasses.replace(reward, optim=Optim(lr=1e-2, steps=20, rows=16, kind="adafactor")),
    )
    policy = dataclasses.replace(experiment.policy, unroll=True, remat="products", logit_chunk=None)
    return dataclasses.replace(experiment, policy=policy)


@register(
    "smoke/ilql",
    paper="Snell et al. 2022",
    claim="the loop of offline values runs: ILQL on replies sampled from the fine-tuned policy and scored by the world",
    costs=COST,
)
def smoke_ilql(scale: str) -> Experiment:
    """SFT of a tiny decoder, then critics of its own samples that guide it. Expect the error of Q to fall; the answers are nonsense."""
    optim = Optim(lr=1e-3, steps=20, rows=16, microbatches=2)
    return _smoke("smoke/ilql", sft=_sft(30), ilql=ILQL(data=None, replies=128, polyak=0.1, optim=optim))


@register(
    "smoke/kto",
    paper="Ethayarajh et al. 2024",
    claim="the preference loop runs KTO: single replies, desirable or not, from the same comparisons",
    costs=COST,
)
def smoke_kto(scale: str) -> Experiment:
    """SFT of a tiny decoder, then KTO on its own samples one by one. Expect an accuracy above one half in training.

    Compared on replies that begin with a word they are given, end before a line does, and repeat themselves less than they would. Keys and
    values wait in bfloat16 for the tokens to come.
    """
    optim = Optim(lr=1e-3, steps=20, rows=32, microbatches=2)
    preference = Preference(data=None, pairs=128, objective="kto", optim=optim)
    sampling = Sampling(repetition_penalty=1.2)
    evaluation = dataclasses.replace(EVALUATION, sampling=sampling, begin="The", stop=("\n", " and "))
    made = _smoke("smoke/kto", evaluation=evaluation, sft=_sft(30), preference=preference)
    return dataclasses.replace(made, policy=dataclasses.replace(made.policy, cache_dtype="bfloat16"))


@register(
    "smoke/ppo",
    paper="-",
    claim="the PPO loop runs, with a value head on the policy, adaptive KL, whitened rewards, a missing-stop score, Adam of TF 1",
    costs=COST,
)
def smoke_ppo(scale: str) -> Experiment:
    """A few iterations of PPO on a tiny policy, rewarded by the world's own scorer. It exercises the options, and learns little."""
    return _smoke(
        "smoke/ppo",
        ppo=PPO(
            optim=Optim(lr=1e-3, rows=16, schedule="linear", eps=1e-5, adam="tf1"),
            value_optim=None,
            iterations=4,
            prompts=16,
            samples=2,
            new_tokens=8,
            epochs=2,
            temperature=0.7,
            kl_coef=0.1,
            kl_target=1.0,
            kl_horizon=1000.0,
            value_clip=None,
            whiten_rewards=True,
            missing_stop_score=-1.0,
            reward="gold",
        ),
    )


@register(
    "smoke/dapo",
    paper="Yu et al. 2025",
    claim="the same loop runs DAPO: group advantages, a wider clip upwards, means over tokens, long responses penalised, dynamic sampling",
    costs=COST,
)
def smoke_dapo(scale: str) -> Experiment:
    """A few iterations of DAPO on a tiny policy, with a dual clip. Prompts whose replies score alike are replaced.

    Evaluated at temperature 1 and top-p 0.7, as there (section 4.1). Batches of prompts have 20, 24 or 48 columns.
    """
    made = _smoke(
        "smoke/dapo",
        evaluation=dataclasses.replace(EVALUATION, sampling=Sampling(top_p=0.7), slots=16),
        sft=_sft(30),
        ppo=PPO(
            optim=Optim(lr=1e-3, rows=16, schedule="constant"),
            shuffle="prompts",
            value_optim=None,
            iterations=4,
            prompts=8,
            samples=4,
            slots=16,
            new_tokens=8,
            epochs=2,
            baseline="group_normalised",
            credit="sequence",
            whiten_advantages=False,
            clip_high=0.28,
            dual_clip=3.0,
            kl_coef=0.0,
            overlong_filter=True,
            overlong_cache=4,
            refills=2,
            old_logprobs="sampled",
            reward="gold",
        ),
    )
    return dataclasses.replace(made, text=dataclasses.replace(made.text, prompt_buckets=(20, 24)))


@register(
    "smoke/ppo_max",
    paper="Zheng et al. 2023",
    claim="the PPO loop runs with the parts of PPO-max: running unit of scores, bounds, entropy bonus, value model trained first",
    costs=COST,
)
def smoke_ppo_max(scale: str) -> Experiment:
    """A few iterations of PPO with what "Secrets of RLHF" (arXiv:2307.04964, section 5.4) adds to it. It learns little.

    Scores are normalised by the moments of all so far and bounded at 0.8 deviations, advantages at 0.5; the value model learns alone for
    one iteration; demonstrations are mixed in. The score one step behind the response is of Huang et al. 2024. The numbers are there to
    exercise the options, not the papers'.
    """
    optim = Optim(lr=1e-3, rows=16)
    return _smoke(
        "smoke/ppo_max",
        sft=_sft(10),
        ppo=PPO(
            optim=optim,
            value_optim=optim,
            value_init="policy",
            value_warmup=1,
            reward_at="eos_plus_1",
            iterations=4,
            prompts=32,
            new_tokens=8,
            score_unit="normalised",
            score_clip=0.8,
            advantage_clip=0.5,
            entropy_coef=0.01,
            ptx_coef=0.1,
            ptx_rows=16,
            reward="gold",
        ),
    )


@register(
    "smoke/mesh",
    paper="-",
    claim="SFT, reward model and PPO run sharded over 2 x 2 x 2 devices",
    costs={"cpu": "40 s on 2 cores"},
)
def smoke_mesh(scale: str) -> Experiment:
    """All stages on 8 devices (virtual ones on a CPU): rows over data and fsdp, weights over fsdp and tensor, heads over tensor.

    Models that nothing trains wait in the memory of the host. On TPUs data would be two slices.
    """
    optim = Optim(lr=1e-3, rows=16)
    ppo = PPO(optim=optim, value_optim=optim, value_init="policy", iterations=2, prompts=16, new_tokens=8)
    mesh = MeshConfig(data=2, fsdp=2, tensor=2, slices=2)
    return _smoke("smoke/mesh", sft=_sft(10), reward=_reward(10), ppo=ppo, mesh=mesh, waiting="host")


@register(
    "smoke/context",
    paper="-",
    claim="SFT on packed rows, reward model and PPO run with every text on two devices",
    costs={"cpu": "60 s on 2 cores"},
)
def smoke_context(scale: str) -> Experiment:
    """All stages on 8 devices (virtual ones on a CPU), of which two share a text, and the parameters with two of fsdp."""
    optim = Optim(lr=1e-3, rows=16)
    ppo = PPO(optim=optim, value_optim=optim, value_init="policy", iterations=2, prompts=16, new_tokens=8)
    sft = dataclasses.replace(_sft(10), pack_length=128)
    mesh = MeshConfig(fsdp=2, tensor=2, context=2)
    return _smoke("smoke/context", sft=sft, reward=_reward(10), ppo=ppo, mesh=mesh)
