"""What reports teach about how long variants are left alone."""

from __future__ import annotations

from scheduler_builders import instance, key, node

from tessera.scheduler.core.observed import ObservedNode, ended
from tessera.scheduler.core.usage import FORGET_S, NO_DEMAND, SLOT_S, SLOTS, Usage, observe


def seen(at_s: float, served: int, idle_s: float, name: str = "i-1", node_id: str = "n1") -> ObservedNode:
    return node(node_id, [instance(name, node_id, served=served, idle_s=idle_s)], at_s=at_s)


def lengths(usage: Usage) -> tuple[int, ...]:
    return usage.gaps[key()].counts


def test_a_gap_lies_between_two_uses_by_the_agents_own_clock() -> None:
    usage = observe(Usage(), [seen(100.0, 1, 2.0)], 101.0)
    assert usage.variants[key()].last_used_s == 98.0
    assert lengths(usage) == ()
    usage = observe(usage, [seen(400.0, 3, 0.0)], 401.0)
    assert lengths(usage) == (0, 0, 0, 0, 0, 1), "302 s; two answers between two reports are one use"


def test_the_same_report_again_and_a_late_one_teach_nothing() -> None:
    usage = observe(Usage(), [seen(100.0, 1, 0.0)], 100.0)
    for at_s in range(101, 200):
        usage = observe(usage, [seen(float(at_s), 1, 0.0)], float(at_s))
    assert (usage.variants[key()].last_used_s, lengths(usage)) == (100.0, ())
    usage = observe(usage, [ended(seen(200.0, 1, 0.0), 1)], 200.0)
    assert lengths(usage) == ()


def test_gaps_outlive_the_instance_and_join_those_of_other_nodes() -> None:
    usage = observe(Usage(), [seen(100.0, 5, 0.0)], 100.0)
    usage = observe(usage, [node("n1", [])], 800.0)
    assert usage.served == {}
    usage = observe(usage, [seen(1000.0, 1, 0.0, "i-2", "n2")], 1000.0)
    assert lengths(usage)[15] == 1
    both = [seen(1030.0, 6, 20.0), seen(1030.0, 2, 0.0, "i-2", "n2")]
    usage = observe(usage, both, 1030.0)
    assert lengths(usage)[0] == 1, "two nodes used it between two looks: one use, at the later moment"
    assert usage.variants[key()].last_used_s == 1030.0


def test_a_variant_that_nobody_uses_any_more_is_forgotten() -> None:
    usage = observe(Usage(), [seen(0.0, 1, 0.0)], 0.0)
    assert observe(usage, [], FORGET_S).variants
    assert not observe(usage, [], FORGET_S + 1.0).variants


def test_what_was_answered_before_the_first_look_at_a_node_is_no_demand_of_now() -> None:
    """A new leader finds instances that have served for weeks."""
    usage = observe(Usage(), [seen(100.0, 9_000_000, 2.0)], 101.0)
    assert (usage.variants[key()].last_used_s, usage.variants[key()].answers) == (98.0, {})
    usage = observe(usage, [seen(110.0, 9_000_004, 0.0), seen(110.0, 7_000_000, 0.0, "i-2", "n2")], 110.0)
    assert usage.variants[key()].answers == {0: 4}
    instances = [instance("i-1", served=9_000_004), instance("i-3", served=5, idle_s=0.0)]
    usage = observe(usage, [node("n1", instances, at_s=120.0), seen(120.0, 7_000_001, 0.0, "i-2", "n2")], 120.0)
    assert usage.variants[key()].answers == {0: 10}, "what came since counts in full"


def test_demand_is_counted_in_slots_over_all_instances() -> None:
    assert Usage().variants.get(key()) is None
    usage = observe(Usage(), [node("n1", at_s=1.0), node("n2", at_s=1.0)], 1.0)
    usage = observe(usage, [seen(10.0, 3, 0.0), node("n2", at_s=10.0)], 10.0)
    usage = observe(usage, [seen(20.0, 5, 0.0), seen(20.0, 4, 0.0, "i-2", "n2")], 20.0)
    usage = observe(usage, [seen(20.0, 5, 1.0)], 21.0)
    usage = observe(usage, [seen(2 * SLOT_S + 5.0, 6, 0.0)], 2 * SLOT_S + 5.0)
    known = usage.variants[key()]
    assert known.demand(2 * SLOT_S + 9.0) == (*[0] * (SLOTS - 3), 9, 0, 1)
    assert known.demand(4 * SLOT_S)[-5:] == (9, 0, 1, 0, 0)
    assert known.demand((SLOTS + 2) * SLOT_S) == NO_DEMAND
    late_s = (SLOTS + 1) * SLOT_S
    assert observe(usage, [seen(late_s, 7, 0.0)], late_s).variants[key()].answers == {2: 1, SLOTS + 1: 1}, "what is too old is forgotten"
