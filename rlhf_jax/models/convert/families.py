"""The families of checkpoints that are read and written, in the order in which a shape is tried on them."""

from __future__ import annotations

from rlhf_jax.models.convert.bert import BERT, ROBERTA
from rlhf_jax.models.convert.gemma import GEMMA2, GEMMA3
from rlhf_jax.models.convert.gpt2 import GPT2
from rlhf_jax.models.convert.llama import LLAMA, MISTRAL, QWEN2, QWEN3
from rlhf_jax.models.convert.neox import NEOX
from rlhf_jax.models.convert.opt import OPT
from rlhf_jax.models.convert.t5 import T5

FAMILIES = (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3, GPT2, NEOX, OPT, BERT, ROBERTA, T5)
