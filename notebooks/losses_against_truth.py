# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Losses against the truth
#
# Whether an algorithm is right is hard to see on a language model, whose optimum nobody knows. Here the world is
# small enough to list every string, so that the optimum of RLHF can be written down, and the distance of DPO and of
# PPO to it is one number that needs no sampling.

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from experiments.algorithms import algorithm
from experiments.exact.pairs import comparisons, sample_pairs
from experiments.exact.setting import open_setting
from experiments.exact.training import train_on_policy
from rlhf_jax.config.study import ExactWorldConfig, OnPolicyStudy
from rlhf_jax.eval import exact
from rlhf_jax.losses.preference import dpo, preference_loss
from rlhf_jax.train import init_state, make_step
from rlhf_jax.types import ReferencedPairs

# %% [markdown]
# ## A world that can be listed
#
# Five words and an end-of-string token, strings of at most four tokens, two prompts: 781 strings behind each. The
# gold reward pays for distinct words and takes some back for repetitions. The reference policy $\pi_\text{ref}$ is an
# ordinary decoder, fine-tuned on strings whose words do not repeat.

# %%
beta = 0.5
study = OnPolicyStudy(
    name="notebook",
    algorithms=("ppo",),
    world=ExactWorldConfig(vocab=6, length=4, prompts=2),
    reference_steps=300,
    steps=100,
    every=5,
    beta=beta,
)
setting = open_setting(study)
reference = jax.jit(setting.reference)(jax.random.key(0))
logprobs = jax.jit(setting.logprobs)  # log pi of every string behind every prompt, [2, 781]
logref, reward = logprobs(reference), setting.gold
print("probability of all strings together:", exact.total(logref))

# %% [markdown]
# ## The optimum, by hand
#
# RLHF maximises $J(\pi) = E_\pi[r] - \beta\, \mathrm{KL}(\pi \| \pi_\text{ref})$. For one prompt, with a multiplier
# $\lambda$ for $\sum_y \pi(y) = 1$, the derivative by $\pi(y)$ must vanish:
#
# $$ r(y) - \beta \log \frac{\pi(y)}{\pi_\text{ref}(y)} - \beta - \lambda = 0
# \quad\Rightarrow\quad \pi^*(y) = \frac{\pi_\text{ref}(y)\, e^{r(y) / \beta}}{Z}, \qquad
# Z = \sum_y \pi_\text{ref}(y)\, e^{r(y) / \beta}. $$
#
# Put back into $J$, everything but $\log Z$ cancels: $J^* = \beta \log Z$. And since $r = \beta \log
# \frac{\pi^*}{\pi_\text{ref}} + \beta \log Z$, any other policy falls short by $J^* - J(\pi) = \beta\,
# \mathrm{KL}(\pi \| \pi^*)$.

# %%
unnormalised = np.exp(logref) * np.exp(reward / beta)
z = unnormalised.sum(axis=1, keepdims=True)
best = np.log(unnormalised / z)
j_best = beta * np.log(z).mean()

gap_of_reference = j_best - exact.objective(logref, logref, reward, beta)
print(
    f"J* = {j_best:.4f}; the reference falls short by {gap_of_reference:.4f}, beta KL says {beta * exact.kl(logref, best):.4f}"
)
np.testing.assert_allclose(best, exact.optimum(logref, reward, beta)[0], atol=1e-4)
np.testing.assert_allclose(gap_of_reference, beta * exact.kl(logref, best), atol=1e-4)

# %% [markdown]
# ## DPO
#
# The same equation read backwards: a policy $\pi$ is optimal for the reward $\beta \log \frac{\pi}{\pi_\text{ref}}$,
# up to a constant per prompt. DPO puts that into the Bradley-Terry likelihood of comparisons, where the constant
# cancels: $L = -\log \sigma\big(\beta (\log \frac{\pi(c)}{\pi_\text{ref}(c)} - \log
# \frac{\pi(r)}{\pi_\text{ref}(r)})\big)$. We draw pairs from the reference, label them with the gold reward, and
# train.


# %%
def train_dpo(pairs, lr=5e-4, steps=600, rows=256, every=20):
    loss = partial(preference_loss, logprobs=setting.policy.logprobs, objective=partial(dpo, beta=beta))
    tx = optax.adam(optax.cosine_decay_schedule(lr, steps))
    step = jax.jit(make_step(loss, tx))
    state, gaps = init_state(reference, tx), []
    for number in range(steps):
        if number % every == 0:
            gaps.append(j_best - exact.objective(logprobs(state.params), logref, reward, beta))
        drawn = jax.random.randint(jax.random.key(number), (rows,), 0, len(pairs.prompt))
        batch = jax.tree.map(lambda x, drawn=drawn: x[drawn], pairs)
        referenced = ReferencedPairs(
            comparisons(setting, batch), logref[batch.prompt, batch.chosen], logref[batch.prompt, batch.rejected]
        )
        state, _ = step(state, referenced)
    return logprobs(state.params), np.array(gaps)


pairs = sample_pairs(logref, reward, jax.random.key(1), 40_000, jax.nn.sigmoid)
few = jax.tree.map(lambda x: x[:300], pairs)
(of_dpo, dpo_gaps), (of_few, few_gaps) = train_dpo(pairs), train_dpo(few)

# %% [markdown]
# ## PPO
#
# PPO sees no pairs: it samples, asks for the reward, and climbs. A registered algorithm is a combination of parts; a
# whole run is one compiled program.

# %%
config = algorithm("ppo", new_tokens=study.world.length, kl_coef=beta)
run = jax.jit(partial(train_on_policy, setting, study, config))
ppo = run(jax.random.key(2), reference, jnp.float32(beta), jnp.float32(study.reuse_lr))

# %% [markdown]
# ## How far from the truth?
#
# Left: the gap $J^* - J$ along training. Right: reward over KL beside the frontier, the optima over all $\beta$; no
# policy can lie above it.

# %%
prices = jnp.geomspace(20.0, 0.1, 40)
edge_kl, edge_reward = exact.frontier(logref, reward, prices)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
for name, gaps in {"DPO, 40,000 pairs": dpo_gaps, "DPO, 300 pairs": few_gaps, "PPO": ppo["gap"]}.items():
    left.semilogy(np.linspace(0, 1, len(gaps)), gaps, label=name)
left.set(xlabel="share of training", ylabel="J* - J")
left.legend()
right.plot(edge_kl, edge_reward, color="black", label="frontier")
for name, logp in {"DPO, 40,000 pairs": of_dpo, "DPO, 300 pairs": of_few}.items():
    right.plot(exact.kl(logp, logref), exact.expected(logp, reward), "o", label=name)
right.plot(ppo["kl"], ppo["reward"], ".", label="PPO, along training")
right.set(xlabel="KL to the reference, nats", ylabel="E[r]")
right.legend()
figure.tight_layout()

# %% [markdown]
# DPO's own reward, $\beta \log \frac{\pi}{\pi_\text{ref}}$, has learned the gold one where the reference writes
# strings, up to a constant per prompt. With many pairs DPO ends nearly as near to the optimum as PPO; with few it moves away
# from it: it trusts comparisons of strings that it saw once.

# %%
implicit = beta * (of_dpo - logref)
likely = np.exp(logref) > 1e-3
correlation = [np.corrcoef(implicit[x][likely[x]], reward[x][likely[x]])[0, 1] for x in range(2)]
ends = {name: float(exact.kl(logp, best) * beta) for name, logp in {"DPO": of_dpo, "DPO, few pairs": of_few}.items()}
ends["PPO"] = float(ppo["gap"][-1])
print(f"correlation of implicit and gold reward: {correlation[0]:.3f}, {correlation[1]:.3f}")
print("gap to the optimum:", {name: round(gap, 4) for name, gap in ends.items()})

assert ends["PPO"] < 0.05 and ends["DPO"] < 0.1 and ends["DPO, few pairs"] > gap_of_reference
assert min(correlation) > 0.8
above = exact.expected(of_dpo, reward) - exact.most_reward_at(logref, reward, prices, exact.kl(of_dpo, logref)[None])[0]
assert above < 1e-3
