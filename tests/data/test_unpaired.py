"""Single replies with labels: where they come from, and whose replies stand behind other prompts."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf_jax.data.batching.batches import Mixture, evaluation_batches
from rlhf_jax.data.batching.unpaired import draw_others, pad_replies, reply_batches
from rlhf_jax.data.tokens.encode import Encoded, EncodedLabel, EncodedPair

PAD, LENGTH = 0, 6


def pairs(count, start=10):
    """Pair i has i in its prompt and in the replies, so that each shows where it came from; 2 begins a chosen one, 3 a rejected one."""
    names = range(start, start + count)
    return [
        EncodedPair(Encoded((1, i), (2, i), head=1), Encoded((1, i), (3, i, 4), head=1), weight=i / 100) for i in names
    ]


def whole(examples):
    return Mixture(((examples, 1.0),))


def batches(examples, rows=8, seed=0):
    return reply_batches(whole(examples), rows, LENGTH, PAD, seed)


def test_of_a_pair_the_chosen_reply_is_desirable_and_the_rejected_one_is_not():
    found = batches(pairs(4))[0].labels  # 8 rows: one epoch
    order = np.lexsort((found.text.tokens[:, 2], found.text.tokens[:, 1]))
    expected = [[1, i, *reply] for i in range(10, 14) for reply in ((2, i, PAD, PAD), (3, i, 4, PAD))]
    np.testing.assert_array_equal(found.text.tokens[order], expected)
    np.testing.assert_array_equal(found.label, found.text.tokens[:, 2] == 2)
    np.testing.assert_allclose(found.weight, found.text.tokens[:, 1] / 100, rtol=1e-6)
    np.testing.assert_array_equal(found.text.loss_mask.sum(1), np.where(found.label == 1, 2, 3))


def test_behind_each_prompt_stands_a_reply_of_the_batch_to_another_prompt():
    given = batches(pairs(12))
    for batch in (given[step] for step in range(20)):
        own, other = batch.labels.text.tokens, batch.mismatched.tokens
        np.testing.assert_array_equal(other[:, :2], own[:, :2])
        assert (other[:, 3] != own[:, 1]).all()
        written = {tuple(row[2:]) for row in own}
        assert {tuple(row[2:]) for row in other} <= written
        np.testing.assert_array_equal(batch.mismatched.loss_mask.sum(1), np.where(other[:, 2] == 2, 2, 3))


def test_every_other_reply_is_drawn_equally_often():
    prompts = np.array([0, 1, 1, 2, 0, 2, 2])
    noise = np.random.default_rng(0)
    found = np.stack([draw_others(prompts, prompts, noise) for _ in range(20_000)])
    for row, prompt in enumerate(prompts):
        others = np.flatnonzero(prompts != prompt)
        share = np.bincount(found[:, row], minlength=len(prompts)) / len(found)
        np.testing.assert_allclose(share, np.isin(np.arange(len(prompts)), others) / len(others), atol=0.015)


def test_a_batch_of_one_prompt_takes_replies_from_all_the_others():
    many = pairs(1) * 40 + pairs(2, start=20)
    alone = [
        batch
        for batch in (batches(many, rows=2)[step] for step in range(20))
        if np.ptp(batch.labels.text.tokens[:, 1]) == 0
    ]
    assert len(alone) > 10
    seen = np.concatenate([batch.mismatched.tokens for batch in alone])
    assert (seen[:, 3] != seen[:, 1]).all() and set(seen[seen[:, 1] == 10][:, 3]) == {20, 21}


def test_a_step_is_the_same_after_a_restart_and_other_steps_and_seeds_draw_others():
    first, again, other = (batches(pairs(12), seed=seed) for seed in (3, 3, 4))
    for step in (7, 0, 3):
        np.testing.assert_array_equal(again[step].mismatched.tokens, first[step].mismatched.tokens)
    for tokens in (first[1].mismatched.tokens, other[0].mismatched.tokens):
        assert not np.array_equal(tokens, first[0].mismatched.tokens)
    once = batches(pairs(4), seed=3)  # every step holds the same replies
    drawn = {tuple(sorted(map(tuple, once[step].mismatched.tokens))) for step in range(4)}
    assert len(drawn) == 4


def test_prompts_of_a_pair_are_cut_alike_and_count_as_one_however_they_are_cut():
    long = [
        EncodedPair(Encoded((1, 7, i, 5, 5), (2,), head=1), Encoded((1, 7, i, 5, 5), (3,) * n, head=1))
        for i, n in ((10, 2), (10, 4), (20, 2))
    ]
    found = pad_replies(long, LENGTH, PAD, seed=0)
    np.testing.assert_array_equal(found.labels.text.loss_mask.argmax(1), [4, 4, 2, 2, 4, 4])
    # Of the first prompt, cut in two ways, no reply stands behind the other way of it: 20's are the only ones left.
    replies = [tuple(row[mask]) for row, mask in zip(found.mismatched.tokens, found.mismatched.loss_mask, strict=True)]
    assert set(replies[:4]) <= {(2,), (3, 3)}
    with pytest.raises(ValueError, match="all 4 labelled replies are to one prompt"):
        pad_replies(long[:2], LENGTH, PAD, seed=0)


def test_labelled_replies_need_no_partner_and_keep_their_shares():
    replies = [EncodedLabel(Encoded((1, i), (2 + i % 2, i), head=1), i % 2) for i in range(10, 20)]
    batch = batches(replies, rows=10)[0]
    np.testing.assert_array_equal(batch.labels.label, batch.labels.text.tokens[:, 1] % 2)
    assert sorted(batch.labels.text.tokens[:, 1]) == list(range(10, 20))
    assert (batch.mismatched.tokens[:, 3] != batch.labels.text.tokens[:, 1]).all()
    mixture = Mixture(((pairs(6), 1.0), (pairs(2, start=50), 3.0)))
    rows = np.concatenate([reply_batches(mixture, 8, LENGTH, PAD, 0)[n].labels.text.tokens[:, 1] for n in range(4)])
    assert (rows >= 50).sum() == 24


def test_replies_to_one_prompt_alone_are_refused():
    with pytest.raises(ValueError, match=r"all 6 labelled replies are to one prompt; .* two or more"):
        batches(pairs(1) * 3)


def test_evaluation_sees_every_reply_once_and_fills_up_without_weight():
    data = pad_replies(pairs(3), LENGTH, PAD, seed=0)
    first, last = evaluation_batches(data, 4)
    np.testing.assert_allclose(
        np.concatenate([first.labels.weight, last.labels.weight]), [0.1, 0.1, 0.11, 0.11, 0.12, 0.12, 0, 0]
    )
    assert first.mismatched.tokens.shape == last.mismatched.tokens.shape == (4, LENGTH)
    np.testing.assert_array_equal(last.mismatched.tokens[:2], data.mismatched.tokens[4:])
