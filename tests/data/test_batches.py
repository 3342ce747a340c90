import time
from collections import Counter

import numpy as np
import pytest

from rlhf_jax.data.batches import (
    Mixture,
    evaluation_batches,
    label_batches,
    pad_labels,
    pad_pairs,
    pad_prompts,
    pad_rewarded,
    preference_batches,
    prompt_batches,
    rewarded_batches,
    token_batches,
)
from rlhf_jax.data.encode import Encoded, EncodedLabel, EncodedPair, EncodedReward
from rlhf_jax.data.padding import Cut, pad_right


def examples(count, start=10):
    """Example i starts with a bos and has i in its prompt, so that rows can be told apart."""
    return [Encoded((1, start + i), (2,) * (1 + i % 3), head=1) for i in range(count)]


def seen(batches, steps):
    """Which examples the rows of these steps are."""
    return np.concatenate([batches[step].tokens[:, 1] for step in steps]).tolist()


def test_every_epoch_holds_every_example_once_in_an_order_of_its_own():
    batches = token_batches(examples(20), rows=5, length=6, pad=0, seed=0)
    epochs = [seen(batches, range(4 * epoch, 4 * epoch + 4)) for epoch in range(5)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(10, 30))
    assert len({tuple(epoch) for epoch in epochs}) == 5
    assert epochs[0] != sorted(epochs[0])


def test_a_step_is_the_same_after_a_restart_and_in_any_order_of_asking():
    first = token_batches(examples(37), rows=8, length=6, pad=0, seed=3)
    again = token_batches(examples(37), rows=8, length=6, pad=0, seed=3)
    expected = {step: first[step] for step in range(30)}
    for step in (29, 0, 17, 5, 17):
        for name in ("tokens", "positions", "segments", "loss_mask"):
            np.testing.assert_array_equal(getattr(again[step], name), getattr(expected[step], name))
    other = token_batches(examples(37), rows=8, length=6, pad=0, seed=4)
    assert seen(other, range(5)) != seen(first, range(5))


def test_rewards_stay_with_their_replies_and_rows_that_only_fill_teach_nothing():
    given = [EncodedReward(example, 0.5 * place) for place, example in enumerate(examples(5))]
    batch = rewarded_batches(given, rows=5, length=6, pad=0, seed=1)[0]
    np.testing.assert_array_equal(batch.reward, 0.5 * (batch.text.tokens[:, 1] - 10))
    assert batch.reward.dtype == np.float32
    first, last = evaluation_batches(pad_rewarded(given, 6, 0), rows=3)
    assert first.text.loss_mask.any(axis=1).all()
    np.testing.assert_array_equal(last.text.loss_mask.any(axis=1), [True, True, False])


def test_rows_keep_their_own_masks():
    given = examples(10)
    batch = token_batches(given, rows=10, length=6, pad=0, seed=0)[0]
    for row, name in enumerate(batch.tokens[:, 1]):
        np.testing.assert_array_equal(batch.loss_mask[row], pad_right([given[name - 10]], 6, 0).loss_mask[0])


def test_more_rows_than_examples_go_into_the_next_epochs():
    batch = token_batches(examples(3), rows=7, length=6, pad=0, seed=0)[0]
    counts = Counter(batch.tokens[:, 1].tolist())
    assert sorted(counts) == [10, 11, 12]
    assert sorted(counts.values()) == [2, 2, 3]


def test_a_mixture_has_the_shares_asked_for_and_each_part_its_own_epochs():
    mixture = Mixture(((examples(40, start=100), 3.0), (examples(5, start=500), 1.0)))
    batches = token_batches(mixture, rows=16, length=6, pad=0, seed=0)
    names = seen(batches, range(20))
    big, small = [name for name in names if name < 500], [name for name in names if name >= 500]
    assert len(small) == len(names) // 4
    assert sorted(big[:40]) == list(range(100, 140))
    for epoch in range(16):
        assert sorted(small[5 * epoch : 5 * epoch + 5]) == list(range(500, 505))


def test_parts_of_one_size_are_shuffled_apart():
    mixture = Mixture(((examples(30, start=100), 1.0), (examples(30, start=200), 1.0)))
    names = seen(token_batches(mixture, rows=60, length=6, pad=0, seed=0), [0])
    assert [name - 100 for name in names if name < 200] != [name - 200 for name in names if name >= 200]


def test_mixtures_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="no parts"):
        Mixture(())
    for part in (([], 1.0), (examples(1), 0.0), (examples(1), float("nan"))):
        with pytest.raises(ValueError, match="part 0 of the mixture"):
            Mixture((part,))


def test_pairs_stay_together_with_their_margin_and_weight():
    pairs = [
        EncodedPair(Encoded((1, i), (2, 2), head=1), Encoded((1, i), (3,), head=1), margin=float(i), weight=i / 100)
        for i in range(10, 20)
    ]
    batches = preference_batches(pairs, rows=4, length=5, pad=0, seed=0)
    for batch in (batches[step] for step in range(6)):
        np.testing.assert_array_equal(batch.chosen.tokens[:, :2], batch.rejected.tokens[:, :2])
        np.testing.assert_array_equal(batch.margin, batch.chosen.tokens[:, 1])
        np.testing.assert_allclose(batch.weight, batch.chosen.tokens[:, 1] / 100, rtol=1e-6)
        assert (batch.chosen.tokens[:, 2] == 2).all()
        assert (batch.rejected.tokens[:, 2] == 3).all()
        assert batch.margin.dtype == batch.weight.dtype == np.float32


def test_labels_stay_with_their_texts():
    texts = [EncodedLabel(Encoded((1,), (i, 2), head=1), i % 2) for i in range(10, 20)]
    batches = label_batches(texts, rows=4, length=5, pad=0, seed=0)
    for batch in (batches[step] for step in range(6)):
        np.testing.assert_array_equal(batch.label, batch.text.tokens[:, 1] % 2)
        np.testing.assert_array_equal(batch.weight, np.ones(4))


def test_prompts_carry_their_place_in_the_data_set_for_the_keys_of_sampling():
    batches = prompt_batches(examples(10), rows=4, length=5, pad=0, seed=0)
    for batch in (batches[step] for step in range(6)):
        np.testing.assert_array_equal(batch.index, batch.prompts.tokens[:, -1] - 10)
        assert batch.index.dtype == np.int32
        assert not batch.prompts.loss_mask.any()


def test_examples_that_were_cut_are_counted_by_the_batches():
    assert token_batches(examples(9), rows=4, length=3, pad=0, seed=0).cut == Cut(examples=9, prompts=6, replies=3)
    # Replies are no part of a prompt batch, so they are not too long for it.
    assert prompt_batches(examples(9), rows=4, length=3, pad=0, seed=0).cut == Cut(examples=9, prompts=0, replies=0)


@pytest.mark.parametrize(("count", "rows", "steps"), [(7, 3, 3), (6, 3, 2), (1, 4, 1)])
def test_evaluation_sees_every_row_once_in_order_and_fills_up_without_weight(count, rows, steps):
    data = pad_right(examples(count), 6, pad=0)
    batches = list(evaluation_batches(data, rows))
    assert [len(batch.tokens) for batch in batches] == [rows] * steps
    counted = np.concatenate([batch.tokens[batch.loss_mask.any(1), 1] for batch in batches])
    np.testing.assert_array_equal(counted, np.arange(10, 10 + count))
    assert sum(batch.loss_mask.sum() for batch in batches) == data.loss_mask.sum()
    # A filler row is real text: attention over nothing would give nan, which no weight of 0 removes.
    assert all(batch.segments.any(1).all() for batch in batches)


def test_evaluation_fillers_of_pairs_labels_and_prompts_do_not_count():
    pairs = [EncodedPair(example, example, weight=0.5) for example in examples(3)]
    texts = [EncodedLabel(example, 1) for example in examples(3)]
    (_, last) = evaluation_batches(pad_pairs(pairs, 6, 0), 2)
    np.testing.assert_array_equal(last.weight, [0.5, 0.0])
    (_, last) = evaluation_batches(pad_labels(texts, 6, 0), 2)
    np.testing.assert_array_equal(last.weight, [1.0, 0.0])
    assert last.weight.dtype == np.float32
    (_, last) = evaluation_batches(pad_prompts(examples(3), 6, 0), 2)
    np.testing.assert_array_equal(last.index, [2, -1])
    assert last.index.dtype == np.int32


def test_numbers_that_make_no_batch_are_refused():
    for rows in (0, -1):
        with pytest.raises(ValueError, match="rows is"):
            token_batches(examples(3), rows=rows, length=4, pad=0, seed=0)
        with pytest.raises(ValueError, match="rows is"):
            next(evaluation_batches(pad_right(examples(3), 4, 0), rows))
    with pytest.raises(ValueError, match="seed is -1"):
        token_batches(examples(3), rows=1, length=4, pad=0, seed=-1)
    with pytest.raises(ValueError, match="no examples"):
        prompt_batches([], rows=1, length=4, pad=0, seed=0)
    with pytest.raises(IndexError, match="step is -1"):
        token_batches(examples(3), rows=1, length=4, pad=0, seed=0)[-1]


def test_a_late_step_costs_no_more_than_an_early_one():
    # Resuming must not replay the steps before.
    batches = token_batches(examples(1000), rows=8, length=6, pad=0, seed=0)
    batches[0]
    start = time.perf_counter()
    batches[100_000_000]
    assert time.perf_counter() - start < 5.0


def test_tiny_sets_are_no_slower_than_large_ones():
    # A shuffle that searches its elements in a fixed domain takes a third of a second for 64 rows of three examples.
    batches = token_batches(examples(3), rows=64, length=6, pad=0, seed=0)
    batches[0]
    start = time.perf_counter()
    for step in range(1, 21):
        batches[step]
    assert time.perf_counter() - start < 2.0
