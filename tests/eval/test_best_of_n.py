import itertools
import math

import numpy as np
import pytest

from rlhf_jax.eval.best_of_n import best_of_n_from_pool, best_of_n_kl, over_optimisation_fit


@pytest.mark.parametrize(("n", "kl"), [(1, 0), (4, 0.63629), (8, 1.2), (64, 3.2), (128, 3.9), (256, 4.5), (512, 5.2)])
def test_the_kl_of_the_best_of_n(n, kl):
    # Stiennon et al. 2020, table 10, to its one digit; n = 4 by hand.
    assert best_of_n_kl(n) == pytest.approx(kl, abs=5e-6 if n == 4 else 0.05)


def test_the_pool_of_four_by_hand():
    assert best_of_n_from_pool(np.array([0.1, 0.5, 0.3, 0.9]), np.array([1.0, 2.0, 0.0, -1.0]), 2) == pytest.approx(
        1 / 6
    )


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("tied", [False, True])
def test_the_pool_gives_the_mean_over_all_its_subsets(n, tied):
    noise = np.random.default_rng(n)
    scores, values = noise.normal(size=6), noise.normal(size=6)
    if tied:
        scores = np.array([0.0, 1.0, 1.0, 2.0, 2.0, 2.0])
    best = []
    for subset in itertools.combinations(range(6), n):
        chosen = np.array(subset)
        winners = chosen[scores[chosen] == scores[chosen].max()]
        best.append(values[winners].mean())
    if not tied:
        assert best_of_n_from_pool(scores, values, n) == pytest.approx(np.mean(best))
    # Equal scores share their weights over the pool: each winner of a group is as good as the next.
    shuffled = np.random.default_rng(0).permutation(6)
    assert best_of_n_from_pool(scores, values, n) == pytest.approx(
        best_of_n_from_pool(scores[shuffled], values[shuffled], n)
    )
    assert math.isclose(best_of_n_from_pool(scores, np.ones(6), n), 1.0)


def test_what_a_pool_cannot_give_is_refused():
    with pytest.raises(ValueError, match="n=0; the best of at least one"):
        best_of_n_kl(0)
    for n in (0, 4):
        with pytest.raises(ValueError, match=f"n={n}; a pool of 3 samples gives the best of 1 to 3"):
            best_of_n_from_pool(np.zeros(3), np.zeros(3), n)
    with pytest.raises(ValueError, match=r"scores have shape \(3,\) and values \(2,\)"):
        best_of_n_from_pool(np.zeros(3), np.zeros(2), 1)


def test_the_law_of_over_optimisation_is_found_again_and_what_it_leaves_is_counted():
    kl = np.linspace(0.0, 9.0, 10)
    d = np.sqrt(kl)
    np.testing.assert_allclose(over_optimisation_fit(kl, d * (1.8 - 0.45 * d)), (1.8, 0.45, 1.0), rtol=1e-6)
    a, b, share = over_optimisation_fit(kl, d * (1.8 - 0.45 * d) + np.where(np.arange(10) % 2, 0.2, -0.2))
    assert (a, b) != (1.8, 0.45) and 0.5 < share < 0.95
