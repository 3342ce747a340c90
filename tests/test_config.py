from __future__ import annotations

import copy
import dataclasses
import json
import re

import pytest

from rlhf_jax.config import (
    ILQL,
    PPO,
    SFT,
    Classify,
    Evaluation,
    Experiment,
    MeshConfig,
    Mixture,
    ModelConfig,
    Optim,
    Preference,
    Reward,
    RopeScaling,
    Sampling,
    Text,
    World,
)
from rlhf_jax.overrides import apply_overrides, difference, from_dict, to_dict, unknown_name

SCALING = RopeScaling("llama3", 8.0)
MODEL = ModelConfig(vocab=64, width=16, layers=2, heads=4, kv_heads=2, mlp=32, max_length=32)
WORLD = Mixture((("world:instruct", 1.0),))
OPTIM = Optim(lr=1e-3, rows=16)
BASE = Experiment(
    name="base",
    scale="cpu",
    policy=MODEL,
    text=Text(tokenizer="train:64", template="plain", length=24, prompt_length=16),
    evaluation=Evaluation(prompts=32, rows=16, new_tokens=8),
    world=World(demonstrations=64, prompts=64),
    sft=SFT(data=WORLD, optim=Optim(lr=1e-3, rows=16, steps=10)),
    reward=Reward(data=None, pairs=32, optim=Optim(lr=1e-3, rows=16, steps=10)),
    ppo=PPO(optim=OPTIM, value_optim=OPTIM, iterations=3, prompts=16, samples=2, new_tokens=8, epochs=2),
)
LEARNED = dataclasses.replace(MODEL, position="learned")
PREFERENCE = Preference(data=None, pairs=32, optim=Optim(lr=1e-3, rows=16, steps=10))
CLASSIFY = Classify(data=WORLD, optim=Optim(lr=1e-3, rows=16, steps=10), labels=("a", "b"))
OFFLINE = ILQL(data=None, replies=32, optim=Optim(lr=1e-3, rows=16, steps=10))
RELATIVE = dataclasses.replace(
    BASE.ppo,
    value_optim=None,
    baseline="group_mean",
    credit="sequence",
    objective="score",
    whiten_advantages=False,
    epochs=1,
)


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (MODEL, {"width": 0}, "ModelConfig.width is 0"),
        (MODEL, {"kv_heads": 3}, "heads=4 is not a multiple of kv_heads=3"),
        (MODEL, {"width": 18}, "width=18 does not divide into heads=4"),
        (MODEL, {"head_dim": 5}, "head_dim=5 times rope_share=1.0 is 5, which is odd"),
        (MODEL, {"head_dim": -2}, "ModelConfig.head_dim is -2"),
        (MODEL, {"position": "rotary"}, "ModelConfig.position is 'rotary'; it must be 'rope' or 'learned'"),
        (MODEL, {"rope_share": 0.4}, "rope_share=0.4 is 1, which is odd"),
        (MODEL, {"parallel": True, "norm_at": "around"}, "norm_at='around': parallel layers have their norms before"),
        (MODEL, {"window": 4, "full_layers": (2,)}, r"full_layers=\(2,\) must be numbers of the layers, 0 to 1"),
        (MODEL, {"full_layers": (0,)}, "full_layers needs a window"),
        (MODEL, {"local_rope_base": 10.0}, "local_rope_base needs a window"),
        (MODEL, {"logit_softcap": 0.0}, "logit_softcap is 0.0; it must be above 0"),
        (SCALING, {"factor": 0.0}, "RopeScaling.factor is 0.0; it must be above 0"),
        (SCALING, {"low_turns": 4.0}, "high_turns=4.0 must be above low_turns=4.0"),
        (SCALING, {"kind": "yarn"}, "it must be 'linear' or 'llama3'"),
        (MODEL, {"norm": "rmsnorm"}, "it must be 'rms' or 'rms\\+1' or 'layer'"),
        (MODEL, {"activation": "silu"}, "it must be 'swiglu' or 'geglu' or 'gelu' or 'gelu_exact' or 'relu'"),
        (MODEL, {"head": "classes", "classes": 3}, "head='classes' is for encoders, and causal is True"),
        (MODEL, {"head": "none"}, "head='none' is for encoders, and causal is True"),
        (MODEL, {"causal": False, "head": "lm+scalar"}, r"head='lm\+scalar' is for decoders, and causal is False"),
        (MODEL, {"causal": False, "head": "classes"}, "classes=None with head='classes'"),
        (MODEL, {"classes": 3}, "classes=3 with head='lm'"),
        (MODEL, {"causal": False, "head": "classes", "classes": 0}, "ModelConfig.classes is 0; it must be above 0"),
        (MODEL, {"causal": False, "window": 4}, "a window is of decoders"),
        (MODEL, {"token_types": -1}, "ModelConfig.token_types is -1"),
        (MODEL, {"head": "value"}, r"'lm' or 'scalar' or 'lm\+scalar'"),
        (MODEL, {"dtype": "float16"}, "'float32' or 'bfloat16'"),
        (OPTIM, {"lr": 0.0}, "Optim.lr is 0.0; it must be above 0"),
        (OPTIM, {"lr": float("nan")}, "Optim.lr is nan"),
        (OPTIM, {"microbatches": 3}, "16 rows do not split into 3 microbatches"),
        (OPTIM, {"steps": 5, "warmup": 6}, "warmup=6 is longer than steps=5"),
        (OPTIM, {"schedule": "cosin"}, "'constant' or 'linear' or 'cosine'"),
        (OPTIM, {"b2": 1.5}, r"Optim.b2 is 1.5; it must lie in \[0, 1\]"),
        (OPTIM, {"max_grad_norm": 0.0}, "Optim.max_grad_norm is 0.0"),
        (MeshConfig(), {"tensor": 0}, "MeshConfig.tensor is 0"),
        (BASE.text, {"prompt_length": 24}, "prompt_length=24 leaves no room for a reply in length=24"),
        (WORLD, {"sources": ()}, "at least one source"),
        (WORLD, {"sources": (("a", 0.0),)}, "weight 0.0 of source 'a'"),
        (BASE.world, {"annotator_flip": 2.0}, "World.annotator_flip is 2.0"),
        (BASE.reward, {"data": WORLD}, "set exactly one"),
        (BASE.reward, {"pairs": None}, "set exactly one"),
        (BASE.reward, {"init": "reward"}, "'policy' or 'random'"),
        (BASE.reward, {"scores": "unit"}, "'raw' or 'centred' or 'normalised'"),
        (BASE.reward, {"pairs": None, "data": Mixture(WORLD.sources, 0.0), "scores": "centred"}, r"a share above 0"),
        (
            BASE,
            {"ppo": None, "reward": dataclasses.replace(BASE.reward, scores="normalised")},
            "PPO's samples; set ppo",
        ),
        (BASE.ppo, {"prompts": 9}, "9 prompts x 2 samples do not split into minibatches of 16 rows"),
        (BASE.ppo, {"optim": Optim(lr=1.0, rows=16, steps=3)}, "leave it unset"),
        (BASE.ppo, {"value_optim": Optim(lr=1.0, rows=32)}, "ppo.value_optim.* rows and microbatches must be the same"),
        (BASE.ppo, {"value_optim": Optim(lr=1.0, rows=16, microbatches=2)}, "policy and value, here 16 and 1"),
        (BASE.ppo, {"ptx_coef": 1.0}, "set both or neither"),
        (BASE.ppo, {"ptx_rows": 8}, "set both or neither"),
        (
            BASE.ppo,
            {"ptx_coef": 1.0, "ptx_rows": 3, "value_optim": None, "optim": Optim(lr=1.0, rows=16, microbatches=2)},
            "ptx_rows=3 do not split into optim.microbatches=2",
        ),
        (BASE.ppo, {"kl_target": 6.0, "kl_coef": 0.0}, "must start above 0"),
        (BASE.ppo, {"temperature": 0.0}, "PPO.temperature is 0.0"),
        (BASE.ppo, {"lam": 1.01}, "PPO.lam is 1.01"),
        (BASE.ppo, {"baseline": "leave_one_out", "value_optim": None, "samples": 1}, "set samples to 2 or more"),
        (BASE.ppo, {"baseline": "none"}, "no value model to train: set value_optim to none"),
        (BASE.ppo, {"credit": "sequence"}, "leave credit='token'"),
        (BASE.ppo, {"baseline": "none", "value_optim": None, "credit": "sequence", "gamma": 0.9}, "the same advantage"),
        (BASE.ppo, {"baseline": "group_normalised", "value_optim": None}, "set credit='sequence'"),
        (
            BASE.ppo,
            {"reward_at": "eos_plus_1", "value_optim": None},
            "reward_at='eos_plus_1': a value head on the policy",
        ),
        (
            BASE.ppo,
            {"reward_at": "eos_plus_1", "baseline": "none", "value_optim": None},
            "baseline='none' does not have",
        ),
        (BASE.ppo, {"reward_at": "pad"}, "'eos' or 'eos_plus_1'"),
        (BASE.ppo, {"normaliser": "sequence", "value_optim": None}, "give the value a value_optim"),
        (BASE.ppo, {"dual_clip": 1.0}, "it must be above 1"),
        (BASE.ppo, {"overlong_cache": 99}, "overlong_cache=99 exceeds new_tokens"),
        (BASE.ppo, {"kl_in": "loss"}, "its gradient is 0 on average"),
        (BASE.ppo, {"kl_estimator": "k3"}, "another gradient than the KL's"),
        (BASE.ppo, {"value_init": "zero"}, "'reward' or 'policy'"),
        (BASE.ppo, {"value_warmup": -1}, "value_warmup is -1"),
        (BASE.ppo, {"value_warmup": 1, "value_optim": None}, "only a value model of its own can learn alone"),
        (BASE.ppo, {"value_warmup": 3}, "leaves the policy none of the iterations=3"),
        (BASE.ppo, {"score_unit": "unit"}, "'raw' or 'scaled' or 'normalised'"),
        (BASE.ppo, {"score_clip": 0.0}, "PPO.score_clip is 0.0"),
        (BASE.ppo, {"entropy_coef": -0.1}, "PPO.entropy_coef is -0.1"),
        (OPTIM, {"adam": "tf2"}, "'torch' or 'tf1'"),
        (BASE.ppo, {"old_logprobs": "read"}, "'scored' or 'sampled'"),
        (
            BASE,
            {
                "policy": dataclasses.replace(MODEL, dtype="bfloat16"),
                "ppo": dataclasses.replace(BASE.ppo, old_logprobs="sampled"),
            },
            "ppo.old_logprobs='sampled' with policy.dtype='bfloat16'",
        ),
        (
            BASE,
            {"mesh": MeshConfig(fsdp=2), "evaluation": dataclasses.replace(BASE.evaluation, slots=3)},
            "evaluation.slots=3 does not split over mesh",
        ),
        (BASE.evaluation, {"stop": ("\n", "")}, "has an empty text"),
        (BASE.evaluation, {"stop": "END"}, "must be a tuple of texts"),
        (BASE.evaluation, {"stop": ("x", "\n"), "begin": "A:\n"}, r"begin='A:\\n' has \['\\n'\] in it"),
        (Sampling(), {"repetition_penalty": float("inf")}, "repetition_penalty=inf must be finite"),
        (MODEL, {"remat": "all"}, "'none' or 'products' or 'layers'"),
        (BASE, {"policy": dataclasses.replace(MODEL, causal=False)}, "policy.causal=False: an encoder writes no text"),
        (BASE, {"classify": CLASSIFY}, "classes are told by an encoder; set policy to one"),
        (
            BASE,
            {"classify": CLASSIFY, "policy": dataclasses.replace(MODEL, causal=False), "ppo": None},
            "classify and sft and reward: an encoder writes no text; set all but one to none",
        ),
        (CLASSIFY, {"labels": ("a",)}, "name two classes or more"),
        (CLASSIFY, {"labels": ("a", "b", "a")}, "names a class twice"),
        (CLASSIFY, {"eval_every": 0}, "Classify.eval_every is 0"),
        (
            BASE,
            {"reward_model": dataclasses.replace(MODEL, causal=False)},
            "reward.init='policy': a reward model of kind 'encoder' has no layers in common with a policy of kind 'decoder'",
        ),
        (
            BASE,
            {
                "reward_model": dataclasses.replace(MODEL, causal=False),
                "reward": dataclasses.replace(BASE.reward, init="random"),
            },
            "ppo.value_init='reward': a reward model that is an encoder has no values per token",
        ),
        (OPTIM, {"kind": "adam2"}, "'adam' or 'adafactor'"),
        (OPTIM, {"kind": "adafactor", "b2": 0.999}, "b2=0.999 is of Adam, and kind is 'adafactor'"),
        (OPTIM, {"kind": "adafactor", "moments": "bfloat16"}, "moments='bfloat16' is of Adam"),
        (BASE, {"mesh": MeshConfig(tensor=8)}, "policy.heads=4 is not a multiple of mesh.tensor=8"),
        (MeshConfig(data=4), {"slices": 3}, "data=4 does not split over slices=3"),
        (BASE, {"mesh": MeshConfig(context=5)}, "text.length=24 does not split over mesh.context=5 devices"),
        (
            BASE,
            {"mesh": MeshConfig(context=2), "text": dataclasses.replace(BASE.text, buckets=(9,))},
            "text.buckets=9 does not split over mesh.context=2",
        ),
        (
            BASE,
            {"mesh": MeshConfig(context=2), "sft": SFT(data=WORLD, optim=BASE.sft.optim, pack_length=33)},
            "sft.pack_length=33 does not split",
        ),
        (
            BASE,
            {"mesh": MeshConfig(context=2), "ppo": dataclasses.replace(BASE.ppo, new_tokens=7)},
            r"text.prompt_length \+ ppo.new_tokens=23 does not split",
        ),
        (BASE, {"mesh": MeshConfig(data=3)}, "does not split over mesh data x fsdp = 3 devices"),
        (BASE, {"sft": SFT(data=WORLD, optim=OPTIM)}, "sft.optim.steps is not set"),
        (BASE, {"reward": None}, "PPO needs a reward stage"),
        (BASE, {"preference": PREFERENCE}, "ppo and preference each go on from the policy of SFT"),
        (BASE, {"ilql": OFFLINE}, "ppo and ilql each go on from the policy of SFT"),
        (BASE.evaluation, {"best_of": 1}, "best_of=1 leaves nothing to pick"),
        (
            BASE,
            {"reward": None, "ppo": None, "evaluation": dataclasses.replace(BASE.evaluation, best_of=4)},
            "evaluation.best_of needs a reward stage",
        ),
        (OFFLINE, {"replies": None}, "an ilql stage has either data, or a number of replies"),
        (OFFLINE, {"data": WORLD}, "set exactly one"),
        (OFFLINE, {"tau": 1.0}, "tau=1.0 must lie between 0 and 1"),
        (OFFLINE, {"polyak": 0.0}, "polyak=0 would leave the slow copies"),
        (OFFLINE, {"gamma": 1.1}, "ILQL.gamma is 1.1"),
        (PREFERENCE, {"pairs": None}, "a preference stage has either data, or a number of pairs"),
        (PREFERENCE, {"objective": "dpp"}, "'dpo' or 'cdpo' or 'ipo'"),
        (PREFERENCE, {"beta": 0.0}, "Preference.beta is 0.0"),
        (BASE.ppo, {"refills": 2}, "with baseline='value' responses that score alike teach as well"),
        (BASE.ppo, {"baseline": "best", "value_optim": None}, "baseline='best' is about whole responses"),
        (RELATIVE, {"baseline": "preferred"}, "online DPO has its KL in the preference"),
        (RELATIVE, {"kl_in": "preference"}, "online DPO has its KL in the preference"),
        (
            RELATIVE,
            {"baseline": "preferred", "kl_in": "preference", "epochs": 2},
            "DPO's gradient at the policy that sampled",
        ),
        (RELATIVE, {"baseline": "preferred", "kl_in": "preference", "kl_coef": 0.0}, "set kl_coef above 0"),
        (RELATIVE, {"baseline": "preferred", "kl_in": "preference", "kl_estimator": "k2"}, "leave kl_estimator"),
        (RELATIVE, {"labels": "bradley_terry"}, "baseline='group_mean' makes none"),
        (RELATIVE, {"baseline": "best", "whiten_advantages": True}, "weights whose sign and size matter"),
        (RELATIVE, {"baseline": "preferred", "kl_in": "preference"}, "takes one update from a rollout"),
        (BASE, {"world": None}, "samples from a world but sets none"),
        (BASE, {"policy": dataclasses.replace(LEARNED, max_length=20)}, "24 tokens .* policy.max_length=20"),
        (
            BASE,
            {"policy": LEARNED, "evaluation": Evaluation(prompts=32, rows=16, new_tokens=17)},
            "sequences of 33 tokens .* policy.max_length=32",
        ),
        (BASE, {"reward_model": dataclasses.replace(LEARNED, max_length=23)}, "reward_model.max_length=23"),
        (BASE, {"reward_model": dataclasses.replace(MODEL, vocab=65)}, "reward_model.vocab=65 is not policy.vocab=64"),
    ],
)
def test_a_config_that_cannot_work_is_refused_with_its_numbers(config, change, message):
    # Not through the constructor, where the type checker of the tests would be the first to object.
    changed = copy.copy(config)
    for name, value in change.items():
        object.__setattr__(changed, name, value)
    with pytest.raises(ValueError, match=message):
        changed.__post_init__()


def test_a_config_is_checked_when_it_is_made():
    with pytest.raises(ValueError, match=r"Optim.lr is -1.0"):
        Optim(lr=-1.0, rows=16)


def test_microbatches_and_samples_count_when_rows_are_split_over_devices():
    four = Optim(lr=1e-3, rows=16, steps=10, microbatches=4)
    with pytest.raises(ValueError, match=r"sft.optim.rows / microbatches=4 .* 8 devices"):
        dataclasses.replace(BASE, sft=SFT(data=WORLD, optim=four), mesh=MeshConfig(data=4, fsdp=2))


def test_rope_reads_on_past_max_length():
    dataclasses.replace(BASE, policy=dataclasses.replace(MODEL, max_length=8))


def test_zero_is_a_setting_and_none_means_unset():
    assert dataclasses.replace(BASE.ppo, kl_coef=0.0).kl_coef == 0.0
    assert dataclasses.replace(BASE.ppo, missing_stop_score=0.0).missing_stop_score == 0.0
    assert dataclasses.replace(OPTIM, max_grad_norm=None).max_grad_norm is None


def test_configs_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        BASE.seed = 1


def test_what_follows_from_a_config():
    assert MODEL.head_size == 4
    assert dataclasses.replace(MODEL, head_dim=6).head_size == 6
    for head, language, scalar in (("lm", True, False), ("scalar", False, True), ("lm+scalar", True, True)):
        config = dataclasses.replace(MODEL, head=head)
        assert (config.lm_head, config.scalar_head) == (language, scalar)
    assert BASE.ppo.minibatches == 2
    assert BASE.ppo.with_steps(OPTIM).total == BASE.ppo.policy_optim.total == 3 * 2 * 2
    assert dataclasses.replace(BASE.ppo, value_warmup=1).policy_optim.total == 2 * 2 * 2
    assert BASE.reward_shape == dataclasses.replace(MODEL, head="scalar")
    assert (MeshConfig(2, 3, 5, 7).devices, MeshConfig(2, 3, 5, 7).row_shards) == (210, 6)


def test_the_number_of_updates_must_be_said_before_it_is_used():
    with pytest.raises(ValueError, match=r"optim.steps is not set"):
        _ = OPTIM.total


def test_a_config_survives_json():
    assert from_dict(Experiment, json.loads(json.dumps(to_dict(BASE)))) == BASE


@pytest.mark.parametrize(
    ("assignment", "read", "value"),
    [
        ("sft.optim.lr=1e-5", lambda e: e.sft.optim.lr, 1e-5),
        ("ppo.kl_coef=0", lambda e: e.ppo.kl_coef, 0.0),
        ("ppo.kl_target=6", lambda e: e.ppo.kl_target, 6.0),
        ("ppo.value_clip=none", lambda e: e.ppo.value_clip, None),
        ("ppo.whiten_rewards=True", lambda e: e.ppo.whiten_rewards, True),
        ("ppo.stop_token=.", lambda e: e.ppo.stop_token, "."),
        ('ppo.stop_token="\\n "', lambda e: e.ppo.stop_token, "\n "),
        ('ppo.stop_token="', lambda e: e.ppo.stop_token, '"'),
        ('evaluation.stop=["\\n", " and"]', lambda e: e.evaluation.stop, ("\n", " and")),
        (" policy.norm = layer ", lambda e: e.policy.norm, "layer"),
        ("seed=7", lambda e: e.seed, 7),
        ('sft.data.sources=[["a:x", 1], ["b:y", 2.5]]', lambda e: e.sft.data.sources, (("a:x", 1.0), ("b:y", 2.5))),
        ("mesh.fsdp=2", lambda e: e.mesh, MeshConfig(fsdp=2)),
    ],
)
def test_an_override_sets_one_field_with_its_type(assignment, read, value):
    changed = apply_overrides(BASE, [assignment])
    assert read(changed) == value
    assert type(read(changed)) is type(value)
    assert len(difference(to_dict(BASE), to_dict(changed))) == 1


def test_overrides_are_validated_together():
    changed = apply_overrides(BASE, ["ppo.optim.rows=8", "ppo.value_optim.rows=8"])
    assert changed.ppo.optim.rows == changed.ppo.value_optim.rows == 8
    with pytest.raises(ValueError, match="rows and microbatches must be the same"):
        apply_overrides(BASE, ["ppo.optim.rows=8"])


@pytest.mark.parametrize(
    ("assignment", "error", "message"),
    [
        ("sft.optim.lrr=1", KeyError, "no field 'sft.optim.lrr'; did you mean lr"),
        ("ppoo.kl_coef=1", KeyError, "did you mean ppo"),
        ("zzz=1", KeyError, "there are .*policy"),
        ("seed.x=1", KeyError, "'seed' has no fields of its own"),
        ("=1", KeyError, "no field ''"),
        ("seed", ValueError, "'seed' is not of the form a.b=c"),
        ("seed=1.5", ValueError, "seed is 1.5; expected a whole number"),
        ("seed=none", ValueError, "seed=none: expected a whole number"),
        ("sft.optim.lr=fast", ValueError, "sft.optim.lr=fast: expected a number"),
        ("sft.optim.lr=true", ValueError, "sft.optim.lr=true: expected a number"),
        ("ppo.whiten_rewards=1", ValueError, "ppo.whiten_rewards is 1; expected true or false"),
        ("policy.norm=l2", ValueError, "policy.norm is 'l2'; expected 'rms' or 'rms\\+1' or 'layer'"),
        ("sft.optim.lr=-1", ValueError, "Optim.lr is -1.0; it must be above 0"),
        ("reward.data.held_out=0.1", ValueError, "this experiment has no 'data'"),
        ("sft.data.held_out=1", ValueError, r"held_out=1\.0 leaves nothing to train on"),
        ("sft.data.sources=[1]", ValueError, re.escape("sft.data.sources[0] is 1")),
    ],
)
def test_a_wrong_override_names_the_field_and_what_would_be_right(assignment, error, message):
    with pytest.raises(error, match=message):
        apply_overrides(BASE, [assignment])


def test_a_number_may_begin_with_its_point():
    assert apply_overrides(BASE, ["ppo.lam=.9"]).ppo.lam == 0.9


def test_a_saved_config_with_unknown_or_missing_fields_is_refused():
    tree = to_dict(BASE)
    with pytest.raises(KeyError, match=r"no field policy.widht; did you mean width"):
        from_dict(Experiment, {**tree, "policy": {**tree["policy"], "widht": 3}})
    with pytest.raises(ValueError, match=r"not set: policy.width"):
        from_dict(Experiment, {**tree, "policy": {k: v for k, v in tree["policy"].items() if k != "width"}})
    with pytest.raises(ValueError, match="policy is 3"):
        from_dict(Experiment, {**tree, "policy": 3})


def test_the_difference_of_two_configs_is_their_differing_leaves():
    other = dataclasses.replace(BASE, seed=2, ppo=dataclasses.replace(BASE.ppo, value_clip=None))
    assert sorted(difference(to_dict(BASE), to_dict(other))) == ["ppo.value_clip: 0.2 -> null", "seed: 0 -> 2"]
    assert difference({"a": 1}, {"b": 2}) == ["a: 1 -> null", "b: null -> 2"]
    assert difference({"a": {"b": 1}}, {"a": None}) == ['a: {"b": 1} -> null']


def test_unknown_names_list_the_closest_or_all():
    assert unknown_name("colour 'gren'", "gren", ["green", "blue"]) == "no colour 'gren'; did you mean green?"
    assert unknown_name("colour 'x'", "x", ["green", "blue"]) == "no colour 'x'; there are blue, green"
