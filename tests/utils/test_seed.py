"""Randomness as a function."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llmtrain.utils.seed import Permutation, derive_seed, generator


@given(st.integers(1, 3000), st.integers(0, 2**62))
def test_a_permutation_hits_everything_once(size, seed):
    assert np.array_equal(np.sort(Permutation(size, seed)(np.arange(size))), np.arange(size))


@given(st.integers(1, 10**12), st.integers(0, 1000))
def test_one_place_of_a_huge_order_costs_nothing(size, place):
    place %= size
    alone = Permutation(size, "x").at(place)
    assert 0 <= alone < size
    assert alone == Permutation(size, "x")(np.array([place]))[0]


def test_orders_differ_between_keys_and_look_random():
    orders = [Permutation(1000, 7, "rows", epoch)(np.arange(1000)) for epoch in range(20)]
    assert len({order.tobytes() for order in orders}) == 20
    # Rank correlation of two random orders of 1,000 has standard deviation 0.032.
    correlations = [np.corrcoef(orders[i], orders[i + 1])[0, 1] for i in range(19)]
    assert np.abs(correlations).max() < 0.13
    # A random permutation has about one fixed point; 20 of them have 20 +- 4.5.
    assert sum((order == np.arange(1000)).sum() for order in orders) < 45


def test_seeds_do_not_depend_on_how_a_key_is_written_together():
    assert derive_seed(1, "ab", "c") != derive_seed(1, "a", "bc")
    assert derive_seed(1, 2) != derive_seed("1", 2)
    assert derive_seed(5, "init", "w") == derive_seed(5, "init", "w")
    assert 0 <= derive_seed("x") < 2**63
    assert generator(3, "a").integers(1 << 30) == generator(3, "a").integers(1 << 30)
