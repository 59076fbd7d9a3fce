"""The instances that the gateway knows, by variant: which of them may be sent to now.

Level-triggered as the catalogue is: `put` and `remove` say what a record holds now, in any order and as often as they like. Whatever
changes an instance changes the `Activity` of its variant in place, so that no plan has to be made anew because an instance came or went.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from tessera.domain.ids import Generation, InstanceId, NodeId, RuntimeId, VariantKey
from tessera.domain.instance import TERMINAL, InstanceState
from tessera.domain.records import InstanceRecord, LoadRecord, LoadState
from tessera.gateway.core.slots import InstanceSlot, slot_of
from tessera.policy.variant.base import Activity

MAX_ORPHANS_PER_NODE = 1024
MAX_STALE = 65536


@dataclass(slots=True)
class _Held:
    """The instances of one variant, usable or not."""

    slots: dict[InstanceId, InstanceSlot] = field(default_factory=dict)
    activity: Activity = field(default_factory=Activity)


class Fleet:
    """Args:
    nodes: those whose records are there, live.
    measure: sets what is known about a new slot (its latency) from the catalogue.
    """

    def __init__(self, nodes: Collection[NodeId], measure: Callable[[InstanceSlot], None]) -> None:
        self._nodes = nodes
        self._measure = measure
        self._slots: dict[InstanceId, InstanceSlot] = {}
        self._held: dict[VariantKey, _Held] = {}
        self.loads: dict[InstanceId, LoadRecord] = {}
        self._orphans: dict[NodeId, dict[InstanceId, InstanceSlot]] = {}
        self._seen_lost: set[InstanceSlot] = set()
        self._stale: OrderedDict[Generation, None] = OrderedDict()

    # --- what is asked

    def activity(self, variant: VariantKey) -> Activity:
        """Where the variant is ready: one object for as long as the gateway runs, empty while it is nowhere."""
        return self._of(variant).activity

    def slot(self, instance_id: InstanceId) -> InstanceSlot | None:
        return self._slots.get(instance_id)

    def slots(self) -> tuple[InstanceSlot, ...]:
        return tuple(self._slots.values())

    def slots_of(self, variant: VariantKey) -> tuple[InstanceSlot, ...]:
        held = self._held.get(variant)
        return tuple(held.slots.values()) if held is not None else ()

    def holds(self, node_id: NodeId) -> bool:
        return any(slot.node_id == node_id for slot in self._slots.values())

    def is_stale(self, generation: Generation) -> bool:
        return generation in self._stale

    # --- what changes it

    def put(self, record: InstanceRecord) -> None:
        known = self._slots.get(record.instance_id)
        if known is not None and known.generation != record.generation:
            self._discard(known)
            known = None
        if record.state is InstanceState.READY:
            if record.generation in self._stale:
                return
            if known is None:
                known = slot_of(record)
                self._insert(known)
            else:
                known.suspect = False
                known.max_batch = record.max_batch
                self._adopt_orphan(known)
                self._changed(known)
        elif known is not None and (record.state is InstanceState.DRAINING or record.state in TERMINAL):
            # Earlier states are old news: the scheduler said ready before etcd did, and states only go forward.
            self._discard(known)
        if known is not None:
            known.recorded = True

    def remove(self, record: InstanceRecord) -> None:
        slot = self._slots.get(record.instance_id)
        if slot is None or slot.generation != record.generation:
            return
        slot.orphan, slot.recorded = True, False
        orphans = self._orphans.setdefault(slot.node_id, {})
        orphans[slot.instance_id] = slot
        if len(orphans) > MAX_ORPHANS_PER_NODE:
            self._discard(next(iter(orphans.values())))
        self._changed(slot)

    def put_load(self, record: LoadRecord) -> None:
        self.loads[record.instance_id] = record
        self._set_load(record.instance_id, record.state)

    def remove_load(self, record: LoadRecord) -> None:
        self.loads.pop(record.instance_id, None)
        self._set_load(record.instance_id, LoadState.ACTIVE)

    def node_returned(self, node_id: NodeId) -> None:
        """A node's record is there again, without those of its orphans."""
        for slot in list(self._orphans.get(node_id, {}).values()):
            self._discard(slot)

    def node_gone(self, node_id: NodeId) -> None:
        for slot in self._orphans.get(node_id, {}).values():
            self._changed(slot)

    def adopt(self, slot: InstanceSlot) -> InstanceSlot:
        """An instance that the scheduler has just named as ready; etcd will say so later. Returns the slot that stands for it."""
        known = self._slots.get(slot.instance_id)
        if known is not None and known.generation == slot.generation:
            known.suspect = False
            self._adopt_orphan(known)
            self._changed(known)
            return known
        if known is not None:
            self._discard(known)
        self._insert(slot)
        return slot

    def mark_stale(self, slot: InstanceSlot) -> None:
        """It answered that its generation is gone, which is for ever: a record that still says ready is old news."""
        self._stale[slot.generation] = None
        if len(self._stale) > MAX_STALE:
            self._stale.popitem(last=False)
        self._discard(slot)

    def mark_runtime(self, runtime_id: RuntimeId, *, suspect: bool) -> None:
        """Its connection broke, or works again. Orphans have nobody who would report them again: a broken connection ends them."""
        for slot in [slot for slot in self._slots.values() if slot.runtime_id == runtime_id]:
            if suspect and slot.orphan:
                self._discard(slot)
            elif slot.suspect != suspect:
                slot.suspect = suspect
                self._changed(slot)

    def sweep(self) -> None:
        """Forgets what is lost since the last sweep, and no record that goes will say so. Orphans whose node is there: they were stopped in
        order, no lease ran out. Suspects that never had a record: their runtime died before it was written."""
        lost = {slot for node_id in self._nodes for slot in self._orphans.get(node_id, {}).values()}
        lost.update(slot for slot in self._slots.values() if slot.suspect and not slot.recorded)
        for slot in lost & self._seen_lost:
            self._discard(slot)
        self._seen_lost = lost - self._seen_lost

    # --- inside

    def _of(self, variant: VariantKey) -> _Held:
        held = self._held.get(variant)
        if held is None:
            held = self._held[variant] = _Held()
        return held

    def _set_load(self, instance_id: InstanceId, state: LoadState) -> None:
        slot = self._slots.get(instance_id)
        if slot is not None and slot.load_state is not state:
            slot.load_state = state
            self._changed(slot)

    def _insert(self, slot: InstanceSlot) -> None:
        self._slots[slot.instance_id] = slot
        self._of(slot.variant).slots[slot.instance_id] = slot
        load = self.loads.get(slot.instance_id)
        slot.load_state = load.state if load is not None else LoadState.ACTIVE
        self._measure(slot)
        self._changed(slot)

    def _adopt_orphan(self, slot: InstanceSlot) -> None:
        slot.orphan = False
        orphans = self._orphans.get(slot.node_id)
        if orphans is not None:
            orphans.pop(slot.instance_id, None)
            if not orphans:
                del self._orphans[slot.node_id]

    def _discard(self, slot: InstanceSlot) -> None:
        self._adopt_orphan(slot)
        if self._slots.get(slot.instance_id) is slot:
            del self._slots[slot.instance_id]
        held = self._of(slot.variant)
        if held.slots.get(slot.instance_id) is slot:
            del held.slots[slot.instance_id]
        self._changed(slot)

    def _changed(self, slot: InstanceSlot) -> None:
        held = self._of(slot.variant)
        nodes = self._nodes
        usable = [one for one in held.slots.values() if not one.suspect and not (one.orphan and one.node_id in nodes)]
        # How busy an overloaded one is, its requests in flight say; what an interfered one will take, nobody knows.
        held.activity.instances = tuple([one for one in usable if one.load_state is not LoadState.INTERFERED] or usable)
        held.activity.troubled = bool(usable) and all(one.load_state is not LoadState.ACTIVE for one in usable)
