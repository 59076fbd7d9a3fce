from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tessera.coord import keys
from tessera.domain.errors import InvalidInput, ModelNotFound, NotFound, VariantNotFound, VersionNotFound
from tessera.domain.ids import DEFAULT_TRUST_DOMAIN, Generation, InstanceId, ModelName, NodeId, RuntimeId, VersionNumber
from tessera.domain.instance import InstanceState
from tessera.domain.objectives import NO_OBJECTIVES, Objectives
from tessera.domain.records import AliasRecord, InstanceRecord, LoadRecord, LoadState, VariantState
from tessera.gateway.core import catalogue as module
from tessera.gateway.core import fleet
from tessera.gateway.core.catalogue import Catalogue
from tessera.gateway.core.slots import InstanceSlot, slot_of
from tessera.policy.variant.plain import PlainVariantPolicy
from tessera.testing.builders import a_model, a_node, a_profile, a_variant, a_variant_key, a_version, an_instance

DOMAIN = DEFAULT_TRUST_DOMAIN


def put(catalogue: Catalogue, record: Any) -> str:
    """Puts a record under its real key, which is returned."""
    match type(record).__name__:
        case "ModelRecord":
            key = keys.model(DOMAIN, record.name)
        case "VersionRecord":
            key = keys.version(a_variant_key(record.model, record.version).version_key)
        case "VariantRecord":
            key = keys.variant(record.key)
        case "AliasRecord":
            key = keys.alias(DOMAIN, record.alias)
        case "ProfileRecord":
            key = keys.profile(record.variant, record.profile_class)
        case "NodeRecord":
            key = keys.node(DOMAIN, record.node_id)
        case "LoadRecord":
            key = keys.load(DOMAIN, record.node_id, record.instance_id)
        case _:
            key = keys.instance(DOMAIN, record.node_id, record.instance_id)
    catalogue.put(key, record)
    return key


def instance(name: str = "i1", generation: int = 1, **fields: Any) -> InstanceRecord:
    values: dict[str, Any] = {
        "instance_id": InstanceId(name), "generation": Generation(generation), "variant": a_variant_key(), "node_id": NodeId("node-0"),
        "state": InstanceState.READY, "runtime_id": RuntimeId("r1"),
    }  # fmt: skip
    return replace(an_instance(), **{**values, **fields})


@pytest.fixture
def catalogue() -> Catalogue:
    """Model `digits`, version 1, variant `aten-fp32`, on one node."""
    made = Catalogue(DOMAIN, PlainVariantPolicy())
    put(made, replace(a_model(), latest=VersionNumber(1)))
    put(made, replace(a_version(), version=VersionNumber(1)))
    put(
        made,
        replace(
            a_variant(), key=a_variant_key(), backend="aten", flavour="aten", precision="fp32", state=VariantState.READY, build_class=None
        ),
    )
    put(made, node())
    return made


def node(name: str = "node-0") -> Any:
    return replace(a_node(), node_id=NodeId(name), flavours=("aten", "ort"))


def picked(catalogue: Catalogue, name: str = "digits", version: str = "") -> str | None:
    slot = catalogue.pick(catalogue.route(name, version))
    return slot.instance_id if slot is not None else None


def usable(catalogue: Catalogue) -> tuple[InstanceSlot, ...]:
    """The instances of `aten-fp32` that may be sent to."""
    (candidate,) = catalogue.route("digits", "").ranking.meeting
    return candidate.activity.instances  # type: ignore[return-value] # instances are slots here


def alias(name: str, version: int | None = None, model: str = "digits") -> AliasRecord:
    return AliasRecord(ModelName(name), DOMAIN, ModelName(model), None if version is None else VersionNumber(version))


def test_names_versions_and_aliases(catalogue: Catalogue) -> None:
    put(catalogue, replace(a_version(), version=VersionNumber(2)))
    put(catalogue, replace(a_model(), latest=VersionNumber(2)))
    put(catalogue, alias("prod", 1))
    put(catalogue, alias("edge"))

    def resolved(name: str, version: str = "") -> int:
        found = catalogue.route(name, version).name.version
        assert found is not None
        return found.version

    assert (resolved("digits"), resolved("digits", "1"), resolved("digits@1"), resolved("digits@1", "1")) == (2, 1, 1, 1)
    assert (resolved("prod"), resolved("edge"), resolved("edge@1"), resolved("prod", "1")) == (1, 2, 1, 1)
    assert catalogue.route("digits@1/aten-fp32", "").name.named == "aten-fp32"
    with pytest.raises(VersionNotFound, match="alias of digits@1"):
        resolved("prod", "2")
    with pytest.raises(VersionNotFound, match="has no version 9; it has 1, 2"):
        resolved("digits", "9")
    with pytest.raises(InvalidInput, match="says version 1"):
        resolved("digits@1", "2")
    with pytest.raises(VariantNotFound, match="there are aten-fp32"):
        resolved("digits@1/ort-int8")
    put(catalogue, alias("prod", 2))
    assert resolved("prod") == 2
    put(catalogue, alias("lost", model="gone"))
    with pytest.raises(ModelNotFound, match="alias stands for 'gone'"):
        resolved("lost")


def test_a_removed_alias_and_model_are_gone_at_once(catalogue: Catalogue) -> None:
    key = put(catalogue, alias("prod"))
    assert catalogue.route("prod", "")
    catalogue.remove(key)
    with pytest.raises(ModelNotFound):
        catalogue.route("prod", "")
    catalogue.remove(keys.model(DOMAIN, ModelName("digits")))
    with pytest.raises(ModelNotFound):
        catalogue.route("digits", "")
    catalogue.remove("never/there")


def test_routes_are_remembered_until_something_of_theirs_changes(catalogue: Catalogue) -> None:
    route = catalogue.route("digits", "")
    assert catalogue.route("digits", "") is route
    put(catalogue, instance())
    put(catalogue, a_variant("stranger"))
    assert catalogue.route("digits", "") is route, "an instance and another model's variant change no order"
    put(catalogue, replace(a_profile(), variant=a_variant_key(), profile_class=node().profile_class))
    changed = catalogue.route("digits", "")
    assert changed is not route
    put(catalogue, node("node-1"))
    assert catalogue.route("digits", "") is changed, "one more node of a class that is there changes nothing"
    put(catalogue, replace(node("node-2"), runtime_threads=7))
    assert catalogue.route("digits", "") is not changed


def test_memory_of_routes_is_bounded(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ROUTES", 3)
    for version in ("1", "01", "001", "0001", "00001"):
        catalogue.route("digits", version)
    assert len(catalogue._routes) <= 3


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


def test_orphans_are_bounded(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "MAX_ORPHANS_PER_NODE", 2)
    for number in range(5):
        catalogue.remove(put(catalogue, instance(f"i{number}", number + 1)))
    assert [slot.instance_id for slot in catalogue.fleet.slots()] == ["i3", "i4"]


def test_a_profile_changes_the_figures(catalogue: Catalogue) -> None:
    put(catalogue, instance())
    assert usable(catalogue)[0].latency is None
    key = put(catalogue, replace(a_profile(), variant=a_variant_key(), profile_class=node().profile_class))
    (candidate,) = catalogue.route("digits", "").ranking.meeting
    assert (candidate.latency_ms, candidate.load_ms, candidate.start_ms) == (2.0, 4.0, 6.0)
    latency = usable(catalogue)[0].latency
    assert latency is not None
    assert (latency.one_ms, latency.at(2)) == (2.0, 3.0)
    catalogue.remove(key)
    assert catalogue.route("digits", "").ranking.meeting[0].latency_ms is None
    assert usable(catalogue)[0].latency is None


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


def names_of(catalogue: Catalogue, name: str, objectives: Objectives = NO_OBJECTIVES) -> list[str]:
    return [f"{one.key.model}@{one.key.version}" for one in catalogue.route(name, "", objectives).ranking.meeting]


def test_a_task_stands_for_the_newest_versions_of_its_models(catalogue: Catalogue) -> None:
    with pytest.raises(NotFound, match="no model is registered for task 'letters'; there are digits"):
        catalogue.route("task:letters", "")
    with pytest.raises(InvalidInput, match="stands for several models"):
        catalogue.route("task:digits", "1")
    assert names_of(catalogue, "task:digits") == ["digits@1"]
    model = put(catalogue, a_model("large"))
    put(catalogue, a_version("large"))
    variant = put(catalogue, a_variant("large", build_class=None))
    assert sorted(names_of(catalogue, "task:digits")) == ["digits@1", "large@1"]
    # A new version: its variants come before the model record says that it is the newest.
    put(catalogue, replace(a_version("large"), version=VersionNumber(2)))
    put(catalogue, replace(a_variant("large"), key=a_variant_key("large", 2), build_class=None))
    assert sorted(names_of(catalogue, "task:digits")) == ["digits@1", "large@1"]
    put(catalogue, a_model("large", latest=VersionNumber(2)))
    assert sorted(names_of(catalogue, "task:digits")) == ["digits@1", "large@2"]
    put(catalogue, a_model("large", latest=VersionNumber(2), task="letters"))
    assert (names_of(catalogue, "task:digits"), names_of(catalogue, "task:letters")) == (["digits@1"], ["large@2"])
    catalogue.remove(variant)
    catalogue.remove(model)
    with pytest.raises(NotFound):
        catalogue.route("task:letters", "")
    assert names_of(catalogue, "task:digits") == ["digits@1"]


def test_the_accuracy_of_a_model_counts_at_once(catalogue: Catalogue) -> None:
    wanted = Objectives(min_accuracy=0.9)
    put(catalogue, a_model(accuracy=0.8))
    assert names_of(catalogue, "digits", wanted) == []
    put(catalogue, a_model(accuracy=0.95))
    assert names_of(catalogue, "digits", wanted) == ["digits@1"]


def test_a_version_that_comes_back_is_not_answered_from_memory(catalogue: Catalogue) -> None:
    put(catalogue, instance())
    assert picked(catalogue) == "i1"
    catalogue.remove(keys.variant(a_variant_key()))
    assert picked(catalogue) is None
    put(catalogue, a_variant(build_class=None))
    assert picked(catalogue) == "i1"


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
        slot = self.catalogue.pick(self.catalogue.route("digits", ""))
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
