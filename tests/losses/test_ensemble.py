from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.losses.ensemble import mean_score, member_scores, stack, standardised, uncertainty_weighted, worst_case

pytestmark = pytest.mark.usefixtures("strict_dtypes")

THREE = jnp.array([[1.0], [2.0], [3.0]])


def test_combinations_by_hand():
    np.testing.assert_allclose(mean_score(THREE), [2.0])
    np.testing.assert_allclose(worst_case(THREE), [1.0])
    np.testing.assert_allclose(uncertainty_weighted(THREE, coef=0.5), [1.66667], atol=1e-5)
    np.testing.assert_allclose(uncertainty_weighted(THREE, coef=0.0), mean_score(THREE))


def test_standardised_members_have_their_own_unit():
    found = standardised(jnp.array([[10.0, 30.0], [1.0, 0.0]]), jnp.array([20.0, 0.5]), jnp.array([10.0, 0.5]))
    np.testing.assert_allclose(found, [[-1.0, 1.0], [1.0, -1.0]])


def test_stacked_members_score_as_they_do_alone():
    members = [{"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([0.5, -1.0])}]
    batch = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    found = member_scores(lambda params, x: x @ params["w"], stack(members), batch)
    np.testing.assert_allclose(found, [[1.0, 3.0], [-1.5, -2.5]])
