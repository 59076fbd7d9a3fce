"""The instances that the gateway knows: which of them may be sent to."""

from dataclasses import replace

import pytest
from catalogue_world import DOMAIN, instance, node, picked, put, usable
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tessera.coord import keys
from tessera.domain.ids import Generation, InstanceId, NodeId, RuntimeId
from tessera.domain.instance import InstanceState
from tessera.domain.records import InstanceRecord, LoadRecord, LoadState, VariantState
from tessera.gateway.core import fleet
from tessera.gateway.core.catalogue import Catalogue
from tessera.gateway.core.slots import slot_of
from tessera.policy.variant.plain import PlainVariantPolicy
from tessera.testing.builders import a_model, a_variant, a_variant_key, a_version


def test_the_least_busy_instance_is_picked(catalogue: Catalogue) -> None:
    put(catalogue, instance("i1", 1))
    put(catalogue, instance("i2", 2))
    first, second = usable(catalogue)
    first.in_flight = 2
    second.in_flight = 1
    assert picked(catalogue) == second.instance_id
    second.in_flight = 3
    assert picked(catalogue) == first.instance_id


@pytest.mark.parametrize("state", [InstanceState.DRAINING, InstanceState.GONE, InstanceState.FAILED])
def test_only_ready_instances_are_picked(catalogue: Catalogue, state: InstanceState) -> None:
    put(catalogue, instance(state=InstanceState.LOADING))
    assert picked(catalogue) is None
    put(catalogue, instance())
    assert picked(catalogue) == "i1"
    put(catalogue, instance(state=state))
    assert picked(catalogue) is None


def test_the_schedulers_word_counts_before_etcds(catalogue: Catalogue) -> None:
    slot = catalogue.fleet.adopt(slot_of(instance()))
    assert picked(catalogue) == "i1"
    slot.in_flight = 3
    put(catalogue, instance(state=InstanceState.LOADING))
    assert picked(catalogue) == "i1"
    put(catalogue, instance())
    assert usable(catalogue) == (slot,)
    assert catalogue.fleet.adopt(slot_of(instance())) is slot


def test_a_new_generation_replaces_the_old_one(catalogue: Catalogue) -> None:
    put(catalogue, instance(generation=1))
    put(catalogue, instance(generation=2))
    (slot,) = usable(catalogue)
    assert slot.generation == 2
    newest = catalogue.fleet.adopt(slot_of(instance(generation=3)))
    assert usable(catalogue) == (newest,)


def test_a_stale_generation_never_comes_back(catalogue: Catalogue) -> None:
    put(catalogue, instance())
    (slot,) = usable(catalogue)
    catalogue.fleet.mark_stale(slot)
    assert picked(catalogue) is None
    assert catalogue.fleet.is_stale(slot.generation)
    put(catalogue, instance())
    put(catalogue, replace(instance(), max_batch=3))
    assert picked(catalogue) is None
    put(catalogue, instance(generation=7))
    assert picked(catalogue) == "i1"


def test_a_broken_connection_makes_suspects_until_it_works_or_they_are_reported(catalogue: Catalogue) -> None:
    put(catalogue, instance("i1", 1))
    put(catalogue, instance("i2", 2, runtime_id=RuntimeId("r2")))
    catalogue.fleet.mark_runtime(RuntimeId("r1"), suspect=True)
    assert [slot.instance_id for slot in usable(catalogue)] == ["i2"]
    assert [slot.instance_id for slot in catalogue.fleet.slots_of(a_variant_key()) if slot.suspect] == ["i1"]
    catalogue.fleet.mark_runtime(RuntimeId("r1"), suspect=False)
    assert len(usable(catalogue)) == 2
    catalogue.fleet.mark_runtime(RuntimeId("r1"), suspect=True)
    put(catalogue, instance("i1", 1))
    assert len(usable(catalogue)) == 2
    assert catalogue.runtimes() == {"r1", "r2"}


def test_instances_outlive_the_lease_of_their_agent(catalogue: Catalogue) -> None:
    """A lease that runs out takes node and instances away, in any order; the runtime is not dead for that."""
    node_key = keys.node(DOMAIN, NodeId("node-0"))
    key = put(catalogue, instance())
    catalogue.remove(key)
    assert picked(catalogue) is None
    catalogue.remove(node_key)
    assert picked(catalogue) == "i1"
    catalogue.fleet.mark_runtime(RuntimeId("r1"), suspect=True)
    assert picked(catalogue) is None
    assert not catalogue.fleet.slots()


def test_the_node_comes_back_with_and_without_its_instance(catalogue: Catalogue) -> None:
    node_key = keys.node(DOMAIN, NodeId("node-0"))
    key = put(catalogue, instance())
    catalogue.remove(node_key)
    catalogue.remove(key)
    assert picked(catalogue) == "i1"
    put(catalogue, instance())
    put(catalogue, node())
    assert picked(catalogue) == "i1"
    catalogue.remove(node_key)
    catalogue.remove(key)
    put(catalogue, node())
    assert picked(catalogue) is None
    assert not catalogue.fleet.slots()


def test_an_instance_that_was_stopped_in_order_is_no_orphan(catalogue: Catalogue) -> None:
    key = put(catalogue, instance())
    put(catalogue, instance(state=InstanceState.DRAINING))
    catalogue.remove(key)
    catalogue.remove(keys.node(DOMAIN, NodeId("node-0")))
    assert picked(catalogue) is None


def test_an_instance_that_was_stopped_without_a_word_is_forgotten(catalogue: Catalogue) -> None:
    """Its agent deletes the record of a draining instance at once. Only the loss of a lease takes the node's record away with it."""
    catalogue.remove(put(catalogue, instance()))
    catalogue.fleet.sweep()
    assert len(catalogue.fleet.slots()) == 1
    catalogue.fleet.sweep()
    assert not catalogue.fleet.slots()
    catalogue.remove(put(catalogue, instance("i2", 2)))
    catalogue.remove(keys.node(DOMAIN, NodeId("node-0")))
    for _ in range(3):
        catalogue.fleet.sweep()
    assert picked(catalogue) == "i2"


def test_a_suspect_is_forgotten_where_no_record_will_ever_say_that_it_is_gone(catalogue: Catalogue) -> None:
    """Named by the scheduler; its runtime died before etcd heard of it."""
    for number in (1, 2, 3, 4):
        catalogue.fleet.adopt(slot_of(instance(f"i{number}", number, runtime_id=RuntimeId(f"r{number}"))))
    put(catalogue, instance("i2", 2, runtime_id=RuntimeId("r2")))
    for runtime in ("r1", "r2", "r3"):
        catalogue.fleet.mark_runtime(RuntimeId(runtime), suspect=True)
    catalogue.fleet.sweep()
    assert len(catalogue.fleet.slots()) == 4
    catalogue.fleet.mark_runtime(RuntimeId("r3"), suspect=False)
    for _ in range(3):
        catalogue.fleet.sweep()
    assert catalogue.runtimes() == {"r2", "r3", "r4"}, "one has a record, one works again, one always did"
    assert [slot.instance_id for slot in usable(catalogue)] == ["i3", "i4"]


def test_orphans_are_bounded(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "MAX_ORPHANS_PER_NODE", 2)
    for number in range(5):
        catalogue.remove(put(catalogue, instance(f"i{number}", number + 1)))
    assert [slot.instance_id for slot in catalogue.fleet.slots()] == ["i3", "i4"]


def test_an_interfered_instance_gets_requests_only_where_there_is_no_other(catalogue: Catalogue) -> None:
    def load(name: str, state: LoadState) -> str:
        return put(catalogue, LoadRecord(InstanceId(name), NodeId("node-0"), a_variant_key(), state, 0.0, ""))

    def troubled() -> bool:
        return catalogue.route("digits", "").ranking.meeting[0].activity.troubled

    said_before = load("i1", LoadState.INTERFERED)
    put(catalogue, instance("i1"))
    assert (picked(catalogue), troubled()) == ("i1", True)
    put(catalogue, instance("i2", 2, runtime_id=RuntimeId("r2")))
    catalogue.fleet.slots()[1].in_flight = 50
    assert (picked(catalogue), troubled()) == ("i2", False)
    other = load("i2", LoadState.INTERFERED)
    assert (picked(catalogue), troubled()) == ("i1", True), "both are: the least busy one"
    catalogue.remove(other)
    assert picked(catalogue) == "i2"
    catalogue.remove(said_before)
    assert picked(catalogue) == "i1"
    overloaded = load("i1", LoadState.OVERLOADED)
    assert (picked(catalogue), troubled()) == ("i1", False), "what is in flight says how much it has to do"
    load("i2", LoadState.OVERLOADED)
    assert troubled(), "another variant may do better"
    catalogue.remove(overloaded)
    assert not troubled()


class CatalogueMachine(RuleBasedStateMachine):
    """Whatever order the news comes in: what is picked is ready, alive by some account, and of a generation that is not stale."""

    def __init__(self) -> None:
        super().__init__()
        self.catalogue = Catalogue(DOMAIN, PlainVariantPolicy())
        put(self.catalogue, a_model())
        put(self.catalogue, a_version())
        put(
            self.catalogue,
            replace(
                a_variant(),
                key=a_variant_key(),
                backend="aten",
                flavour="aten",
                precision="fp32",
                state=VariantState.READY,
                build_class=None,
            ),
        )
        self.stale: set[int] = set()

    numbers = st.integers(1, 3)

    @rule(number=numbers, generation=st.integers(1, 5), state=st.sampled_from(list(InstanceState)), where=numbers)
    def report(self, number: int, generation: int, state: InstanceState, where: int) -> None:
        put(
            self.catalogue,
            instance(f"i{number}", 10 * number + generation, state=state, node_id=NodeId(f"n{where}"), runtime_id=RuntimeId(f"r{number}")),
        )

    @rule(number=numbers, where=numbers)
    def vanish(self, number: int, where: int) -> None:
        self.catalogue.remove(keys.instance(DOMAIN, NodeId(f"n{where}"), InstanceId(f"i{number}")))

    @rule(where=numbers)
    def node_comes(self, where: int) -> None:
        put(self.catalogue, node(f"n{where}"))

    @rule(where=numbers)
    def node_goes(self, where: int) -> None:
        self.catalogue.remove(keys.node(DOMAIN, NodeId(f"n{where}")))

    @rule(number=numbers, suspect=st.booleans())
    def link(self, number: int, suspect: bool) -> None:
        self.catalogue.fleet.mark_runtime(RuntimeId(f"r{number}"), suspect=suspect)

    @rule()
    def sweep(self) -> None:
        self.catalogue.fleet.sweep()

    @rule()
    def wrong_generation(self) -> None:
        slot = self.catalogue.ready([a_variant_key()])
        if slot is not None:
            self.catalogue.fleet.mark_stale(slot)
            self.stale.add(slot.generation)

    @rule(number=numbers, generation=st.integers(1, 5))
    def adopt(self, number: int, generation: int) -> None:
        unique = 10 * number + generation
        if not self.catalogue.fleet.is_stale(Generation(unique)):
            self.catalogue.fleet.adopt(slot_of(instance(f"i{number}", unique, runtime_id=RuntimeId(f"r{number}"))))

    @invariant()
    def routes_are_what_a_new_catalogue_says(self) -> None:
        """Of the records alone: what the scheduler said and what links say is in no record."""
        route = self.catalogue.route("digits", "")
        fresh = Catalogue(DOMAIN, PlainVariantPolicy())
        for key, record in self.catalogue._records.items():
            if not isinstance(record, InstanceRecord):
                fresh.put(key, record)
        wanted = fresh.route("digits", "").ranking
        seen = [(one.key, one.nowhere == "", one.latency_ms) for one in route.ranking.meeting]
        assert seen == [(one.key, one.nowhere == "", one.latency_ms) for one in wanted.meeting]

    @invariant()
    def what_is_picked_may_be_used(self) -> None:
        for slot in usable(self.catalogue):
            assert slot.generation not in self.stale
            assert not slot.suspect
            assert not (slot.orphan and slot.node_id in self.catalogue.nodes)
            assert self.catalogue.fleet.slot(slot.instance_id) is slot
        held = [slot for slot in self.catalogue.fleet.slots() if not slot.suspect]
        left_out = [slot for slot in held if slot not in usable(self.catalogue)]
        assert all(slot.orphan and slot.node_id in self.catalogue.nodes for slot in left_out)


CatalogueMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestCatalogueMachine = CatalogueMachine.TestCase
