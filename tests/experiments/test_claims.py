"""What the experiments claim, judged on figures made for the purpose: each claim must be able to fail."""

import numpy as np
import pytest

from experiments.exact.reward_entries import judge_ensembles
from experiments.execute import verdict
from experiments.instructgpt2022 import judge_ppo_ptx
from experiments.quickstart import judge_quickstart
from experiments.real import judge_stories
from experiments.registry import above

QUICKSTART = {
    "sft/held_out_prompts/exact": [0.9, 0.92, 0.94],
    "reward/below_bayes": [0.03, 0.04, 0.05],
    "ppo_minus_sft/gold": [0.1, 0.11, 0.12],
}
PTX = {
    "ppo/demonstration_nll": [0.52, 0.54, 0.53],
    "sft/held_out_nll_after": [0.5, 0.5, 0.5],
    "ppo_minus_sft/gold": [0.1, 0.11, 0.12],
}
STORIES = {
    "ppo_minus_sft/score": [1.0, 1.1, 1.2],
    "ppo_minus_sft/positive_words": [5.0, 5.5, 6.0],
    "ppo/kl": [6.0, 6.5, 7.0],
}
ENSEMBLES = {
    "clean_proxy_fall": [-0.001, -0.002, -0.001],
    "noisy_proxy_fall": [-0.001, 5e-5, -0.001],
    "noisy_single/peak": [1.2, 1.3, 1.2],
    "noisy_single/end": [0.1, 0.0, -0.1],
    "noisy_mean/end": [0.4, 0.3, 0.3],
    "noisy_wco/end": [0.5, 0.4, 0.4],
    "noisy_uwo/end": [0.4, 0.3, 0.31],
}


@pytest.mark.parametrize(("judge", "figures"), [
    (judge_quickstart, QUICKSTART), (judge_ppo_ptx, PTX), (judge_stories, STORIES), (judge_ensembles, ENSEMBLES),
])  # fmt: skip
def test_good_figures_hold_every_claim(judge, figures):
    claims = judge(figures)
    assert claims and all(claim.holds for claim in claims)


@pytest.mark.parametrize(("judge", "figures", "worse", "fails"), [
    (judge_quickstart, QUICKSTART, {"sft/held_out_prompts/exact": [0.3, 0.5, 0.4]}, "SFT answers new prompts exactly"),
    (judge_quickstart, QUICKSTART, {"reward/below_bayes": [0.04, 0.05, 0.07]}, "the reward model nears the ceiling"),
    (judge_quickstart, QUICKSTART, {"ppo_minus_sft/gold": [0.0, 0.2, 0.1]}, "PPO beats SFT"),
    (judge_ppo_ptx, PTX, {"ppo/demonstration_nll": [0.6, 0.54, 0.53]}, "PPO-ptx keeps the demonstrations"),
    (judge_ppo_ptx, PTX, {"ppo_minus_sft/gold": [-0.1, -0.11, -0.12]}, "PPO beats SFT"),
    (judge_stories, STORIES, {"ppo_minus_sft/score": [1.5, 0.5, 1.5]}, "happier by the reward model"),
    (judge_stories, STORIES, {"ppo_minus_sft/positive_words": [-5.0, -5.1, -5.2]}, "happier by the word list"),
    (judge_stories, STORIES, {"ppo/kl": [6.0, 12.0, 13.0]}, "near the pretrained model"),
    (judge_ensembles, ENSEMBLES, {"clean_proxy_fall": [0.0, 2e-4, 0.0]}, "the proxy reward never falls with n"),
    (judge_ensembles, ENSEMBLES, {"noisy_single/peak": [0.1, 0.02, 0.0]}, "noise makes single models fall from their peak"),
    (judge_ensembles, ENSEMBLES, {"noisy_single/end": [0.9, 0.0, -0.1]}, "the mean ends above its members"),
    (judge_ensembles, ENSEMBLES, {"noisy_wco/end": [0.5, 0.2, 0.4]}, "WCO ends at least as high as the mean"),
    (judge_ensembles, ENSEMBLES, {"noisy_uwo/end": [0.3, 0.2, 0.21]}, "UWO ends at least as high as the mean"),
])  # fmt: skip
def test_a_claim_fails_with_its_figure_alone(judge, figures, worse, fails):
    assert [claim.signature for claim in judge(figures | worse) if not claim.holds] == [fails]


@pytest.mark.parametrize(("value", "error", "said"), [
    (1.5, 0.2, "holds"), (1.5, 0.3, "inconclusive"), (0.5, 0.3, "inconclusive"), (0.5, 0.2, "does not hold"),
    (1.5, float("nan"), "inconclusive"),
])  # fmt: skip
def test_an_interval_around_the_bound_leaves_a_claim_open(value, error, said):
    found = verdict(above("more than one", "x > 1", value, error, 1.0), seeds=5)
    assert found["verdict"] == said
    if error == 0.2:
        np.testing.assert_allclose(found["interval"], [value - 0.392, value + 0.392])
