"""The exact world lists every string, once; its rewards and demonstrations are those written down here by hand."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.worlds.exact import EOS, ExactWorld

WORLD = ExactWorld()
TINY = ExactWorld(vocab=3, length=2, prompts=3)


@pytest.mark.parametrize(("vocab", "length", "count"), [(6, 5, 3906), (3, 2, 7), (4, 3, 40)])
def test_there_are_as_many_strings_as_there_should_be_each_once(vocab, length, count):
    strings = ExactWorld(vocab=vocab, length=length).strings
    assert len(strings) == len(set(strings)) == count


def test_the_strings_of_two_words_up_to_two_tokens():
    assert set(TINY.strings) == {(0,), (1, 0), (2, 0), (1, 1), (1, 2), (2, 1), (2, 2)}


def test_a_string_ends_with_its_only_eos_or_fills_its_length():
    for string in WORLD.strings:
        assert (string[-1] == EOS) != (len(string) == WORLD.length and EOS not in string)
        assert EOS not in string[:-1]


def test_prompts_differ_and_are_words():
    world = ExactWorld(vocab=3, length=1, prompts=5)
    prompts = [world.prompt(n) for n in range(world.prompts)]
    assert prompts == [(1, 1, 1), (1, 1, 2), (1, 2, 1), (1, 2, 2), (2, 1, 1)]
    assert [WORLD.prompt(n) for n in range(4)] == [(1,), (2,), (3,), (4,)]


def test_the_batch_is_every_string_behind_every_prompt_with_the_loss_on_the_string():
    batch = TINY.batch
    assert batch.tokens.shape == (3 * 7, 2 + 2)
    rows = itertools.product(range(3), TINY.strings)
    for tokens, positions, segments, mask, (prompt, string) in zip(
        batch.tokens, batch.positions, batch.segments, batch.loss_mask, rows, strict=True
    ):
        row = (*TINY.prompt(prompt), *string)
        padding = [0] * (4 - len(row))
        assert list(tokens) == [*row, *padding]
        assert list(positions) == [*range(len(row)), *padding]
        assert list(segments) == [1] * len(row) + padding
        assert list(mask) == [False] * 2 + [True] * len(string) + [False] * len(padding)


def test_gold_is_the_worth_of_distinct_words_less_the_repetitions():
    gold, worth = WORLD.gold, WORLD.word_values
    assert gold.shape == (4, 3906) and (worth[:, EOS] == 0).all()
    for string, reward in (
        ((EOS,), 0.0),
        ((2, EOS), worth[1, 2]),
        ((2, 3, EOS), worth[1, 2] + worth[1, 3]),
        ((2, 2, EOS), worth[1, 2] - 0.6),
        ((5, 5, 5, 1, 5), worth[1, 5] + worth[1, 1] - 3 * 0.6),
    ):
        assert gold[1, WORLD.strings.index(string)] == pytest.approx(reward, abs=1e-6)
    assert not np.array_equal(gold, ExactWorld(seed=1).gold)


def test_demonstrations_never_repeat_a_word_and_their_probabilities_are_those_by_hand():
    p = dict(zip(WORLD.strings, WORLD.demonstrations, strict=True))
    assert WORLD.demonstrations.sum(dtype=np.float64) == pytest.approx(1, abs=1e-6)
    assert p[EOS,] == pytest.approx(0.3)
    assert p[4, EOS] == pytest.approx(0.7 / 5 * 0.3)
    assert p[4, 2, EOS] == pytest.approx(0.7 / 5 * 0.7 / 4 * 0.3)
    assert p[4, 4, EOS] == p[1, 2, 3, 4, 1] == 0
    # Three tokens are left for two words: then there is nothing more to say.
    longer = ExactWorld(vocab=3, length=4)
    assert longer.demonstrations[longer.strings.index((2, 1, EOS))] == pytest.approx(0.7 / 2 * 0.7)
    assert longer.demonstrations.sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"vocab": 2}, "vocab=2; the exact world needs at least 3"),
        ({"length": 0}, "length=0; the exact world needs at least 1"),
        ({"prompts": 0}, "prompts=0; the exact world needs at least 1"),
        ({"stop": 1.0}, r"stop=1\.0; demonstrations end with a probability between 0 and 1"),
    ],
)
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        ExactWorld(**sizes)


@pytest.mark.parametrize("world", [WORLD, TINY, ExactWorld(vocab=4, length=3, prompts=5)])
def test_numbers_of_finds_every_string_in_the_list(world):
    batch, start, count = world.batch, world.prompt_length, len(world.strings)
    tokens, written = (np.asarray(x)[:, start:] for x in (batch.tokens, batch.loss_mask))
    numbers = world.numbers_of(jnp.asarray(tokens), jnp.asarray(written))
    np.testing.assert_array_equal(numbers, np.tile(np.arange(count), world.prompts))


def test_a_prompt_batch_is_the_prompts_alone():
    batch = TINY.prompt_batch(np.array([2, 0]))
    assert [tuple(row) for row in batch.tokens] == [TINY.prompt(2), TINY.prompt(0)]
    assert not batch.loss_mask.any()
    assert batch.segments.all()
