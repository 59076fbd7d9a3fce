"""Which instance gets a request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.errors import InvalidInput
from tessera.policy.instance import registry
from tessera.policy.instance.base import completion_ms
from tessera.policy.instance.profiled import ProfiledLatency
from tessera.testing.builders import a_latency_row, a_profile


@dataclass(eq=False)
class FakeInstance:
    in_flight: int = 0
    max_batch: int = 4
    joins: bool = True
    latency: ProfiledLatency | None = None


def drawing(*numbers: float) -> Callable[[], float]:
    left = list(numbers)
    return lambda: left.pop(0)


def profiled(one_ms: float = 10.0, batch_of_four_ms: float = 22.0) -> ProfiledLatency:
    rows = (a_latency_row(1, 1, one_ms), a_latency_row(4, 1, batch_of_four_ms))
    found = ProfiledLatency.of(a_profile(rows=rows), 1)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("in_flight", "expected_ms"),
    [
        (0, 10.0),
        (1, 15.0),  # half of the batch that executes, then ours alone
        (4, 21.0),
        (5, 11.0 + 14.0),  # one waits: we join it
        (8, 11.0 + 22.0 + 10.0),  # a full batch waits in front of ours
        (11, 11.0 + 22.0 + 22.0),
    ],
)
def test_when_a_request_is_expected_to_be_answered(in_flight: int, expected_ms: float) -> None:
    assert completion_ms(FakeInstance(in_flight, latency=profiled())) == pytest.approx(expected_ms)


@pytest.mark.parametrize(
    ("in_flight", "items", "expected_ms"),
    [
        (0, 4, 22.0),
        (0, 9, 22.0),  # more than a batch is refused; what is known is a full one
        (1, 4, 5.0 + 22.0),
        (6, 2, 11.0 + 22.0),  # two wait: ours fill the batch
        (7, 2, 11.0 + 18.0 + 14.0),  # three wait: ours do not fit beside them
    ],
)
def test_a_request_of_several_items_takes_what_its_batch_takes(in_flight: int, items: int, expected_ms: float) -> None:
    assert completion_ms(FakeInstance(in_flight, latency=profiled()), items) == pytest.approx(expected_ms)


def test_an_instance_that_takes_one_item_at_a_time_is_not_asked_for_more() -> None:
    assert completion_ms(FakeInstance(0, max_batch=1, latency=profiled()), 1000) == 10.0


@pytest.mark.parametrize(
    ("in_flight", "items", "expected_ms"),
    [
        (0, 1, 10.0),
        (1, 1, 5.0 + 10.0),
        (4, 1, 5.0 + 3 * 10.0 + 10.0),  # one executes, three wait, then ours
        (9, 1, 5.0 + 8 * 10.0 + 10.0),
        (0, 4, 22.0),  # one request's own items are run together
        (2, 4, 5.0 + 10.0 + 22.0),
    ],
)
def test_where_requests_are_not_joined_they_are_run_one_after_another(in_flight: int, items: int, expected_ms: float) -> None:
    assert completion_ms(FakeInstance(in_flight, joins=False, latency=profiled()), items) == pytest.approx(expected_ms)


def test_nobody_knows_without_a_profile() -> None:
    assert completion_ms(FakeInstance(3)) is None
    assert ProfiledLatency.of(None, 1) is None
    assert ProfiledLatency.of(a_profile(rows=(a_latency_row(4, 1, 9.0),)), 1) is None


def test_threads_choose_the_row_and_one_batch_says_nothing_of_others() -> None:
    rows = (a_latency_row(1, 1, 40.0), a_latency_row(1, 2, 20.0), a_latency_row(1, 2, 3.0, concurrency=2))
    assert [ProfiledLatency.of(a_profile(rows=rows), threads).one_ms for threads in (1, 2, 4)] == [40.0, 20.0, 20.0]  # type: ignore[union-attr]
    alone = ProfiledLatency.of(a_profile(rows=rows), 2)
    assert alone is not None
    assert alone.at(3) == 60.0


def test_least_in_flight() -> None:
    one, two, three = FakeInstance(3), FakeInstance(1), FakeInstance(1)
    assert registry.make("least-in-flight", drawing()).pick([one, two, three]) is two


def test_bin_packing_fills_one_before_the_next() -> None:
    policy = registry.make("bin-packing", drawing())
    fleet = [FakeInstance(), FakeInstance(), FakeInstance()]
    for _ in range(13):
        policy.pick(fleet).in_flight += 1
    assert [instance.in_flight for instance in fleet] == [5, 4, 4]


def test_bin_packing_fills_nobody_where_requests_are_not_joined() -> None:
    policy = registry.make("bin-packing", drawing())
    fleet = [FakeInstance(joins=False), FakeInstance(joins=False)]
    for _ in range(4):
        policy.pick(fleet).in_flight += 1
    assert [instance.in_flight for instance in fleet] == [2, 2]


def test_two_choices_takes_the_one_that_answers_sooner() -> None:
    slow, fast = FakeInstance(0, latency=profiled(30.0, 90.0)), FakeInstance(1, latency=profiled(10.0))
    idle = FakeInstance(0, latency=profiled(10.0))
    make = registry.make
    assert make("two-choices", drawing(0, 0)).pick([slow, fast, idle]) is fast
    assert make("two-choices", drawing(0.7, 0.4)).pick([slow, fast, idle]) is idle, "the second draw goes round"
    assert make("two-choices", drawing()).pick([slow]) is slow
    unknown = FakeInstance(5)
    assert make("two-choices", drawing(0, 0)).pick([unknown, FakeInstance(6)]) is unknown


@given(st.sampled_from(sorted(registry.POLICIES)), st.lists(st.integers(0, 20), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_every_policy_picks_one_of_them(name: str, loads: list[int], random: object) -> None:
    fleet = [FakeInstance(load, latency=profiled()) for load in loads]
    assert registry.make(name, random.random).pick(fleet) in fleet  # type: ignore[attr-defined]


def test_registry_names_what_exists() -> None:
    with pytest.raises(InvalidInput, match="bin-packing, least-in-flight, two-choices"):
        registry.make("fancy", drawing())
