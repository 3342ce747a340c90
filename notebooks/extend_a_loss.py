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
# # Extend a loss
#
# A loss is a function `(params, batch) -> (mean, Aux)`. Nothing is registered and nothing is subclassed: write yours in five lines, hand it
# to `make_step`, and it trains with microbatches and on any mesh like the ones that ship. Here: a *focal* SFT loss, which cares less about
# tokens that the policy already gets right, on the instruction world.

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

from rlhf_jax.compiled import compile_step
from rlhf_jax.config import MeshConfig, ModelConfig, Optim
from rlhf_jax.data.batching.batches import packed_batches
from rlhf_jax.data.tokens.encode import encode_demonstration
from rlhf_jax.data.tokens.templates import get_template
from rlhf_jax.data.tokens.tokenizer import train_sentencepiece
from rlhf_jax.losses.sft import sft_loss
from rlhf_jax.masking import mask_weight, masked_mean
from rlhf_jax.mesh import make_mesh
from rlhf_jax.models import build_model
from rlhf_jax.train import init_state, make_step
from rlhf_jax.train.optimizer import make_optimizer
from rlhf_jax.types import Aux
from rlhf_jax.worlds.instruct import InstructWorld

# %% [markdown]
# ## Text
# The world makes demonstrations from a seed; prompt and reply are tokenised once each and joined, and only the reply is learned.

# %%
world = InstructWorld(seed=0)
tokenizer = train_sentencepiece(world.corpus(2000), vocab_size=896)
demonstrations = world.demonstrations(4000)
examples = [encode_demonstration(d, tokenizer, get_template("plain")) for d in demonstrations]
batches = packed_batches(examples, rows=8, length=64, pad=tokenizer.pad, seed=0, longest=64)
print(demonstrations[0].prompt.turns[0].text, "->", demonstrations[0].reply)

# %% [markdown]
# ## A policy
# A model is a record of pure functions. `logprobs(params, batch, temperature)[:, t]` is the log-probability of the token at t: all losses
# start from it.

# %%
config = ModelConfig(
    vocab=tokenizer.vocab_size, width=64, layers=2, heads=4, kv_heads=4, mlp=192, max_length=128, tied=False
)
model = build_model(config)
params = model.init(jax.random.key(0))

# %% [markdown]
# ## Your loss
# Five lines: $L = -\operatorname{mean}_t\,(1 - p_t)^{\gamma} \log p_t$ over the tokens to learn (Lin et al. 2017, arXiv:1708.02002, eq. 4).
# `Aux.weight` says what the mean runs over, so that microbatches and devices add up rightly.


# %%
def focal_loss(params, batch, *, gamma=2.0):
    logp = model.logprobs(params, batch, 1.0)
    loss = -masked_mean((1 - jnp.exp(logp)) ** gamma * logp, batch.loss_mask)
    nll = -masked_mean(logp, batch.loss_mask)
    return loss, Aux(weight=mask_weight(batch.loss_mask), metrics={"nll": nll, "focal": loss})


# %% [markdown]
# ## Watch it train
# The same update, compiled once, for the loss that ships and for yours.


# %%
def train(loss, steps=150):
    tx = make_optimizer(Optim(lr=3e-3, steps=steps, rows=8, warmup=10))
    step = compile_step(make_step(loss, tx, microbatches=2), make_mesh(MeshConfig()))
    state, curve = init_state(params, tx), []
    for number in range(steps):
        state, metrics = step(state, batches[number])
        curve.append(metrics["nll"])
    return state, [float(nll) for nll in curve]


_, plain = train(partial(sft_loss, logprobs=model.logprobs))
_, focal = train(focal_loss)

figure, axes = plt.subplots(figsize=(6, 3))
axes.plot(plain, label="sft_loss")
axes.plot(focal, label="focal_loss")
axes.set(xlabel="update", ylabel="nats per reply token")
axes.legend()

# %% [markdown]
# Both learn. The last line is what a test would say.

# %%
assert focal[-1] < 0.6 * focal[0] and plain[-1] < 0.6 * plain[0]
