"""How many empty runtimes wait: enough that a start hardly ever finds none, within the memory for them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.errors import InvalidInput
from tessera.policy.pool import registry
from tessera.policy.pool.base import PoolDemand
from tessera.policy.pool.constant import ConstantPool
from tessera.policy.pool.poisson import MOST_RUNTIMES, MOST_WITHOUT, PoissonPool, more_than

MIB = 1 << 20


def demand(flavour: str = "ort", takes_per_s: float = 0.0, create_s: float = 0.05, mib: int = 30) -> PoolDemand:
    return PoolDemand(flavour, takes_per_s, create_s, mib * MIB)


@pytest.mark.parametrize(
    ("takes_per_s", "create_s", "wanted"),
    [(0.0, 3.0, 1), (0.1, 0.05, 1), (1.0, 0.05, 1), (5.0, 0.05, 2), (0.1, 3.0, 2), (1.0, 3.0, 8), (1000.0, 3.0, MOST_RUNTIMES)],
)
def test_as_many_as_arrive_while_one_is_made(takes_per_s: float, create_s: float, wanted: int) -> None:
    assert PoissonPool(1 << 40).sizes([demand(takes_per_s=takes_per_s, create_s=create_s)], 1) == {"ort": wanted}


def test_no_demand_asks_for_the_least_number_alone() -> None:
    assert PoissonPool().sizes([demand("ort"), demand("aten")], 0) == {"ort": 0, "aten": 0}
    assert PoissonPool(0).sizes([demand(takes_per_s=10.0)], 2) == {"ort": 2}, "the least number is not bounded by memory"


def test_memory_goes_where_a_byte_saves_most_waiting() -> None:
    busy = [demand("aten", 1.0, 3.0, mib=200), demand("ort", 1.0, 1.0, mib=30)]
    assert PoissonPool(1 << 40).sizes(busy, 1) == {"aten": 8, "ort": 4}
    assert PoissonPool(330 * MIB).sizes(busy, 1) == {"aten": 1, "ort": 4}


@given(
    st.lists(
        st.builds(PoolDemand, st.text("abc", min_size=1, max_size=2), st.floats(0, 1e4), st.floats(0, 100), st.integers(1, 1 << 30)),
        unique_by=lambda found: found.flavour,
        max_size=4,
    ),
    st.integers(0, 3),
    st.integers(0, 1 << 34),
)
def test_within_memory_at_least_the_least_and_whatever_the_order(demands: list[PoolDemand], least: int, memory_bytes: int) -> None:
    sizes = PoissonPool(memory_bytes).sizes(demands, least)
    assert PoissonPool(memory_bytes).sizes(demands[::-1], least) == sizes
    taken = sum(sizes[found.flavour] * found.runtime_bytes for found in demands)
    assert taken <= max(memory_bytes, sum(least * found.runtime_bytes for found in demands))
    for found in demands:
        size, mean = sizes[found.flavour], found.takes_per_s * found.create_s
        assert least <= size <= max(least, MOST_RUNTIMES)
        if size > least:
            assert more_than(size - 1, mean) > MOST_WITHOUT, "no more than it takes"


def test_the_tail_of_the_distribution() -> None:
    assert more_than(0, 2.0) == pytest.approx(1 - math.exp(-2.0))
    assert more_than(2, 2.0) == pytest.approx(1 - math.exp(-2.0) * 5)
    assert more_than(5, 0.0) == 0.0
    assert more_than(10, 5000.0) == 1.0


def test_policies_by_name() -> None:
    assert registry.make("constant", 0).sizes([demand(takes_per_s=100.0)], 1) == {"ort": 1}
    assert isinstance(registry.make("poisson", 7), PoissonPool)
    assert ConstantPool().name == "constant"
    with pytest.raises(InvalidInput, match="pool policy 'none': one of constant, poisson"):
        registry.make("none", 0)
