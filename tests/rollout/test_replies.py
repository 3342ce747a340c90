from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import jax
import numpy as np
import pytest
from builders import LLAMA, built, lively, sampled

from rlhf_jax.compiled import Programs
from rlhf_jax.config import MeshConfig, Sampling
from rlhf_jax.data.tokens.encode import Encoded
from rlhf_jax.mesh import make_mesh
from rlhf_jax.rollout.generate import Ending
from rlhf_jax.rollout.replies import make_sampler, response_ids, response_texts

PROMPTS = [Encoded((7, 8 + n, 9, 10 + n)[: 2 + n % 3]) for n in range(5)]
ONE = MeshConfig()


class Letters:
    """One letter per token; pad is eos, which has no letter."""

    vocab_size = 32
    bos = None
    eos = 3
    specials: ClassVar[dict[str, int]] = {}
    pad = 3

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - ord("A") for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join("<eos>" if i == self.eos else chr(ord("A") + i) for i in ids)


def sampler(rows, *, mesh=ONE, new_tokens=6, lengths=(4,), **how):
    programs = Programs(make_mesh(mesh))
    return make_sampler(
        built(LLAMA), Letters(), programs, rows=rows, prompt_lengths=lengths, new_tokens=new_tokens, **how
    )


def test_response_ids_are_the_response_with_its_stop_token():
    rollout = sampled()
    tokens = np.asarray(rollout.batch.tokens)[:, 4:]
    lengths = np.asarray(rollout.batch.loss_mask).sum(axis=1)
    assert response_ids(rollout) == [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]


def test_texts_lose_the_eos_at_their_end_and_no_other_token():
    rollout = sampled()
    for text, ids in zip(response_texts(rollout, Letters()), response_ids(rollout), strict=True):
        assert text == Letters().decode(ids[:-1] if ids[-1] == 3 else ids)
    assert any(ids[-1] != 3 for ids in response_ids(rollout))


@pytest.mark.parametrize("greedy", [True, False])
def test_replies_do_not_depend_on_how_many_are_written_at_a_time(greedy):
    key = jax.random.key(1)
    few = sampler(2, greedy=greedy).replies(lively(LLAMA), PROMPTS, key)
    assert few == sampler(5, greedy=greedy).replies(lively(LLAMA), PROMPTS, key)
    assert len(few) == len(PROMPTS)


def test_prompts_in_batches_of_several_lengths_get_the_same_replies():
    prompts = [
        Encoded(prompt.prompt[:1], head=1) if n < 2 else prompt for n, prompt in enumerate([*PROMPTS[:1], *PROMPTS])
    ]
    bucketed, key = sampler(2, lengths=(1, 3, 4)), jax.random.key(1)
    assert bucketed.columns(prompts)[0] == 1 < max(bucketed.columns(prompts))
    found = [rollout.batch.tokens.shape for rollout, _ in bucketed.rollouts(lively(LLAMA), prompts, key)]
    assert found == [(2, columns + 6) for columns in bucketed.columns(prompts)]
    replies = sampler(2).replies(lively(LLAMA), prompts, key)
    assert bucketed.replies(lively(LLAMA), prompts, key) == replies


def test_replies_are_cut_behind_the_stop_token_where_an_ending_names_one():
    key = jax.random.key(1)
    whole = sampler(5).replies(lively(LLAMA), PROMPTS, key)
    letter = whole[0][2]
    cut = sampler(5, ending=Ending(eos=3, token=ord(letter) - ord("A"), after=2)).replies(lively(LLAMA), PROMPTS, key)
    ends = [text.find(letter, 2) for text in whole]
    assert cut == [text if end < 0 else text[: end + 1] for text, end in zip(whole, ends, strict=True)]
    assert cut[0] == whole[0][:3] != whole[0]


def test_replies_in_slots_are_those_written_all_at_once():
    key = jax.random.key(1)
    assert sampler(6, slots=2).replies(lively(LLAMA), PROMPTS, key) == sampler(6).replies(lively(LLAMA), PROMPTS, key)


def test_of_one_token_that_may_be_drawn_it_is_the_likeliest():
    key = jax.random.key(1)
    greedy = sampler(5, greedy=True).replies(lively(LLAMA), PROMPTS, key)
    assert sampler(5, sampling=Sampling(top_k=1)).replies(lively(LLAMA), PROMPTS, key) == greedy
    assert sampler(5).replies(lively(LLAMA), PROMPTS, key) != greedy


@pytest.mark.parametrize("greedy", [True, False])
def test_every_reply_begins_as_it_must(greedy):
    begin = Letters().encode("KF")
    led = sampler(5, greedy=greedy, begin=begin).replies(lively(LLAMA), PROMPTS, jax.random.key(1))
    assert all(text.startswith("KF") for text in led) and len(set(led)) > 1


def test_greedy_replies_repeat_less_by_the_penalty():
    key, how = jax.random.key(1), {"new_tokens": 24, "greedy": True}

    def repeated(texts):
        return sum(len(text) - len(set(text)) for text in texts)

    often = repeated(sampler(5, **how).replies(lively(LLAMA), PROMPTS, key))
    seldom = repeated(sampler(5, sampling=Sampling(repetition_penalty=2.0), **how).replies(lively(LLAMA), PROMPTS, key))
    assert seldom < often / 2


def test_rows_that_only_fill_are_marked():
    counts = [counts.tolist() for _, counts in sampler(2).rollouts(lively(LLAMA), PROMPTS, jax.random.key(1))]
    assert counts == [[True, True], [True, True], [True, False]]


def test_replies_on_eight_devices_are_those_on_one():
    key = jax.random.key(1)
    alone = sampler(4).replies(lively(LLAMA), PROMPTS, key)
    assert sampler(4, mesh=MeshConfig(2, 2, 2)).replies(lively(LLAMA), PROMPTS, key) == alone


def test_sample_number_and_key_change_sampled_replies_and_not_greedy_ones():
    sampled_ones, greedy = sampler(5), sampler(5, greedy=True)
    one = sampled_ones.replies(lively(LLAMA), PROMPTS, jax.random.key(1))
    assert one == sampled_ones.replies(lively(LLAMA), PROMPTS, jax.random.key(1), sample=0)
    assert one != sampled_ones.replies(lively(LLAMA), PROMPTS, jax.random.key(1), sample=1)
    assert one != sampled_ones.replies(lively(LLAMA), PROMPTS, jax.random.key(2))
    replies = greedy.replies(lively(LLAMA), PROMPTS, jax.random.key(1))
    assert replies == greedy.replies(lively(LLAMA), PROMPTS, jax.random.key(2), sample=1, temperature=0.5)


def test_the_temperature_reaches_the_rollout():
    rollout, _ = next(sampler(5).rollouts(lively(LLAMA), PROMPTS, jax.random.key(1), temperature=0.7))
    assert float(rollout.temperature) == pytest.approx(0.7)
    cold = sampler(5).replies(lively(LLAMA), PROMPTS, jax.random.key(1), temperature=1e-4)
    assert cold == sampler(5, greedy=True).replies(lively(LLAMA), PROMPTS, jax.random.key(1))
