import time
from collections import Counter

import jax
import numpy as np
import pytest

from rlhf_jax.data.batching.batches import (
    Mixture,
    columns_for,
    evaluation_batches,
    label_batches,
    last_columns,
    packed_batches,
    pad_labels,
    pad_pairs,
    pad_prompts,
    pad_rewarded,
    preference_batches,
    prompt_batches,
    rewarded_batches,
    token_batches,
)
from rlhf_jax.data.batching.packing import pack
from rlhf_jax.data.batching.padding import Cut, pad_right
from rlhf_jax.data.batching.table import Chosen, Joined, TokenTable
from rlhf_jax.data.batching.unpaired import reply_batches
from rlhf_jax.data.tokens.encode import Encoded, EncodedLabel, EncodedPair, EncodedReward


def examples(count, start=10):
    """Example i starts with a bos and has i in its prompt, so that rows can be told apart."""
    return [Encoded((1, start + i), (2,) * (1 + i % 3), head=1) for i in range(count)]


def seen(batches, steps, turning=False):
    """Which examples the rows of these steps are; those of a mixture in its order, whose first place moves on by a row a step."""
    rows = [batches[step].tokens[:, 1] for step in steps]
    return np.concatenate([np.roll(names, turning * step) for step, names in zip(steps, rows, strict=True)]).tolist()


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
    names = seen(batches, range(20), turning=True)
    big, small = [name for name in names if name < 500], [name for name in names if name >= 500]
    assert len(small) == len(names) // 4
    assert sorted(big[:40]) == list(range(100, 140))
    for epoch in range(16):
        assert sorted(small[5 * epoch : 5 * epoch + 5]) == list(range(500, 505))


def test_shares_are_exact_over_a_hundred_thousand_draws():
    parts, weights = (
        [examples(count, start=start) for count, start in ((700, 0), (20, 10_000), (3000, 20_000))],
        (5.0, 1.0, 3.5),
    )
    mixture = Mixture(tuple(zip(parts, weights, strict=True)))
    batches = token_batches(mixture, rows=500, length=6, pad=0, seed=0)
    rows = np.concatenate([batches.rows(step) for step in range(200)])
    for low, high, weight in zip((0, 700, 720), (700, 720, 3720), weights, strict=True):
        drawn = ((rows >= low) & (rows < high)).mean()
        assert abs(drawn - weight / sum(weights)) < 1e-4
        counts = np.bincount(rows[(rows >= low) & (rows < high)], minlength=high)[low:high]
        assert counts.max() - counts.min() <= 1  # each part goes through its epochs evenly


MIXED = Mixture(((examples(40, start=100), 4.0), (examples(7, start=500), 1.0)))
PAIRS = [EncodedPair(Encoded((1, i), (2,) * (1 + i % 7)), Encoded((1, i), (3,))) for i in range(10, 60)]
STREAMS = {
    "sft": lambda: token_batches(MIXED, rows=20, length=6, pad=0, seed=2),
    "packed": lambda: packed_batches(MIXED, rows=20, length=12, pad=0, seed=2, longest=6),
    "packed, best fit": lambda: packed_batches(MIXED, rows=20, length=12, pad=0, seed=2, longest=6, how="best_fit"),
    "buckets": lambda: token_batches(MIXED, rows=20, length=6, pad=0, seed=2, buckets=(3, 4)),
    "preferences": lambda: preference_batches(PAIRS, rows=20, length=10, pad=0, seed=2, buckets=(5,)),
    "prompts": lambda: prompt_batches(MIXED, rows=20, length=6, pad=0, seed=2),
    "replies": lambda: reply_batches(Mixture(((PAIRS, 1.0),)), rows=20, length=10, pad=0, seed=2),
}


@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
def test_any_number_of_processes_makes_the_same_stream_and_goes_on_where_others_stopped(make):
    alone = make()
    for steps, count in (
        (range(0, 7), 2),
        (range(7, 16), 4),
        (range(16, 21), 1),
        (range(21, 25), 5),
        (range(25, 30), 20),
    ):
        processes = [make() for _ in range(count)]  # a restart: nothing is kept but the step
        for step in steps:
            # Of a torus, a process may hold rows that do not stand side by side.
            dealt = np.random.default_rng(step).permutation(20).reshape(count, -1)
            parts = [batches.part(step, places) for batches, places in zip(processes, dealt, strict=True)]
            jax.tree.map(np.testing.assert_array_equal, in_order(parts, dealt), alone[step])


def in_order(parts, dealt):
    """Parts of a batch, whose rows were dealt so, as the batch."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[np.argsort(dealt.ravel())], *parts)


def test_no_process_sees_one_part_alone():
    # Slicing a mixture of 4 to 1 over five processes by places gives one of them nothing but the second part.
    batches = token_batches(MIXED, rows=5, length=6, pad=0, seed=0)
    shares = [np.mean([batches.rows(step, np.array([place])) >= 40 for step in range(100)]) for place in range(5)]
    np.testing.assert_allclose(shares, 0.2, atol=0.011)


def test_batches_of_a_bucket_are_as_long_as_it_and_keep_the_shares():
    batches = STREAMS["buckets"]()
    lengths, rows = Counter(), []
    for step in range(300):
        batch = batches[step]
        lengths[batch.tokens.shape[1]] += 1
        sizes = (batch.segments != 0).sum(1)
        assert sizes.max() <= batch.tokens.shape[1]
        assert sizes.min() > {3: 0, 4: 3, 6: 4}[batch.tokens.shape[1]]
        np.testing.assert_array_equal(
            batch.tokens[:, 1] % 100, np.where(batches.rows(step) < 40, batches.rows(step), batches.rows(step) - 40)
        )
        rows.append(batches.rows(step))
    rows = np.concatenate(rows)
    assert set(lengths) == {3, 4, 6}
    np.testing.assert_allclose((rows >= 40).mean(), 0.2, atol=0.005)
    assert sorted(set(rows.tolist())) == list(range(47))
    short = token_batches(examples(9), rows=4, length=6, pad=0, seed=0, buckets=(5, 9))[0]
    assert short.tokens.shape == (4, 5)  # no example is longer, and no bucket than the length


def test_best_fit_leaves_less_room_than_first_fit():
    rng = np.random.default_rng(0)
    sizes = rng.integers(3, 300, 2000).tolist()
    rows = {how: len(pack(sizes, 512, how)) for how in ("first_fit", "best_fit")}
    least = -(-sum(sizes) // 512)
    assert rows["best_fit"] <= least + 1
    assert rows["first_fit"] > rows["best_fit"]
    assert pack([9, 600, 511], 512, "best_fit") == [[1], [2], [0]]


def test_a_table_gives_back_the_examples_it_was_made_of():
    given = [Encoded((1, 70_000), (3, 4, 5), head=1, shortened=True, given=((1, 2),)), Encoded((9,)), *examples(3)]
    table = TokenTable(given)
    assert list(table) == given
    assert table[-1] == given[-1]
    assert table[1:3] == given[1:3]
    assert table.sizes.tolist() == [example.size for example in given]
    assert list(Joined([table, given])) == given * 2
    assert list(Chosen(given, np.array([3, 0]))) == [given[3], given[0]]
    assert len(TokenTable([])) == 0


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


@pytest.mark.parametrize(("lengths", "columns"), [((2, 3, 9), 3), ((3, 9), 3), ((2, 9), 9), ((9,), 9), ((1, 2), 2)])
def test_prompts_go_into_the_least_columns_that_hold_all_of_them(lengths, columns):
    assert columns_for([Encoded((1,) * size, (2,) * 20, head=1) for size in (1, 3, 2)], lengths) == columns


def test_the_last_columns_of_prompts_are_what_is_not_padding():
    longer, exact = (pad_prompts(examples(4), length, 0).prompts for length in (9, 2))
    jax.tree.map(np.testing.assert_array_equal, last_columns(longer, 2), exact)


def test_of_so_many_steps_each_length_has_a_first():
    batches = STREAMS["buckets"]()
    firsts = batches.firsts(50)
    lengths = [batches[step].tokens.shape[1] for step in firsts]
    assert len(set(lengths)) == len(lengths) == batches.lengths == 3
    for first, length in zip(firsts, lengths, strict=True):
        assert length not in {batches[step].tokens.shape[1] for step in range(first)}
    assert batches.firsts(1) == [0] == STREAMS["prompts"]().firsts(9)


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
