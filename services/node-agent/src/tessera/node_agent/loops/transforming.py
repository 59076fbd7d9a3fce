"""Starts by transformation: an idle instance of the node becomes another one, in its own runtime (docs/adr/0012).

The donor ends when the other one is open. Whatever goes wrong before fails the start; it leaves the donor as it was, or it has cost it too.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

from tessera.clock import Clock
from tessera.domain.errors import Conflict, DataCorrupted, FailedPrecondition, Internal, TesseraError, Unavailable, Unsupported
from tessera.domain.ids import Digest, InstanceId, RuntimeId
from tessera.domain.instance import InstanceState, StartPath
from tessera.node_agent.core.artifacts import Load
from tessera.node_agent.core.runtimes import RuntimeLimits, Wanted, choose_runtime
from tessera.node_agent.core.table import Instance, InstanceTable
from tessera.node_agent.loops.fleet import Fleet
from tessera.node_agent.loops.larder import Larder
from tessera.node_agent.ports import Becoming, Notes, Records
from tessera.policy.transform.by_size import planner_for
from tessera.policy.transform.costs import MetaCosts
from tessera.policy.transform.delta import planned
from tessera.policy.transform.structure import structure_of
from tessera.telemetry import get_logger

KEPT_DELTAS = 256
"""Of pairs of graphs: siblings have one. Some 40 KB each."""

OLD_LOOK_S = 3600.0
"""Memory figures of a runtime that is asked who is there may be as old."""

_log = get_logger(__name__)


class Transformer:
    """What starts of one trust domain need to know of donors."""

    def __init__(
        self,
        table: InstanceTable,
        fleet: Fleet,
        larder: Larder,
        limits: RuntimeLimits,
        records: Records,
        notes: Notes,
        read: Callable[[Digest], bytes],
        clock: Clock,
    ) -> None:
        """`read`: a blob of the store; raises NotFound."""
        self._table = table
        self._fleet = fleet
        self._larder = larder
        self._limits = limits
        self._records = records
        self._notes = notes
        self._read = read
        self._clock = clock
        self._deltas: OrderedDict[tuple[Digest, Digest], bytes] = OrderedDict()

    def place(self, instance: Instance, load: Load, isolated: bool) -> RuntimeId:
        """The runtime of the instance's donor, which the instance counts in from here on.

        Raises:
            NotFound: the donor is not on this node.
            Conflict: it is not ready.
            FailedPrecondition: it is of another trust domain, or its runtime takes nothing like this.
        """
        donor = self._donor(instance)
        wanted = Wanted(load.flavour, self._fleet.trust_domain, self._fleet.threads, load.blobs, StartPath.BIND, isolated)
        views = [view for view in self._fleet.views() if view.runtime_id == donor.runtime_id]
        # Without the donor: a full runtime is what transformations are for.
        choice = choose_runtime(wanted, [replace(view, instances=view.instances - 1) for view in views], self._limits)
        if choice.runtime_id is None:
            raise FailedPrecondition(f"donor {donor.instance_id}: {choice.reason}")
        self._table.note(instance.instance_id, runtime_id=choice.runtime_id, start_path=StartPath.TRANSFORM, blobs=frozenset(load.blobs))
        self._table.tell(
            instance.instance_id, self._clock.monotonic_s(), f"out of {donor.instance_id} ({donor.variant}) in {choice.runtime_id}"
        )
        return choice.runtime_id

    async def becoming(self, instance: Instance, load: Load, delta: bytes = b"", idle_s: float = 0.0) -> Becoming:
        """What the runtime is told; it looks itself whether nobody has asked the donor for `idle_s`.

        Where no delta came with the order, a pair of graphs takes a plan the first time, in a thread; one graph takes none.

        Raises:
            NotFound, Conflict, FailedPrecondition: as `place`. The last also where one of the graphs cannot be planned: loading them by
                themselves says what is wrong with them.
        """
        donor = self._donor(instance)
        assert donor.artifact is not None
        if delta:
            return Becoming(donor.instance_id, delta, idle_s)
        source = self._larder.load(donor.artifact)
        pair = (source.program, load.program)
        if source.program == load.program:
            return Becoming(donor.instance_id, b"", idle_s)
        known = self._deltas.get(pair)
        if known is None:
            known = self._deltas[pair] = await asyncio.to_thread(self._delta, pair)
            if len(self._deltas) > KEPT_DELTAS:
                self._deltas.popitem(last=False)
        else:
            self._deltas.move_to_end(pair)
        return Becoming(donor.instance_id, known, idle_s)

    def done(self, instance: Instance) -> None:
        """The donor has become the instance. One that was being stopped meanwhile ends by that."""
        assert instance.donor is not None
        donor = self._table.find(instance.donor)
        if donor is None or donor.state is not InstanceState.READY or donor.runtime_id is None:
            return
        why, now_s = f"became {instance.instance_id} ({instance.variant})", self._clock.monotonic_s()
        self._table.move(donor.instance_id, InstanceState.DRAINING, now_s, why)
        self._table.move(donor.instance_id, InstanceState.GONE, now_s, why)
        self._records.withdraw(donor.variant.trust_domain, donor.instance_id)
        self._fleet.unpin(donor.runtime_id, donor.blobs)
        self._notes.remove(donor.runtime_id, donor.instance_id)
        _log.info("instance transformed", instance_id=donor.instance_id, variant=str(donor.variant), into=instance.instance_id)

    async def refused(self, instance: Instance, fail: Callable[[InstanceId, TesseraError], None]) -> None:
        """Nothing was made of the donor. `fail` is told of one that its runtime does not have any more."""
        donor = self._table.find(instance.donor) if instance.donor is not None else None
        if donor is None or donor.state is not InstanceState.READY or donor.runtime_id is None:
            return
        try:
            there = await self._fleet.get(donor.runtime_id).activity(1.0, OLD_LOOK_S)
        except Unavailable:
            return  # whoever deals with the loss of the runtime deals with the donor
        if donor.instance_id not in {each.instance_id for each in there.instances}:
            fail(donor.instance_id, Internal(f"instance {donor.instance_id} was lost on its way to become {instance.instance_id}"))
            self._fleet.unpin(donor.runtime_id, donor.blobs)
            self._notes.remove(donor.runtime_id, donor.instance_id)

    def _donor(self, instance: Instance) -> Instance:
        if instance.donor is None:
            raise FailedPrecondition(f"instance {instance.instance_id}: no donor is named")
        donor = self._table.get(instance.donor)
        if donor.variant.trust_domain != instance.variant.trust_domain:
            raise FailedPrecondition(f"donor {donor.instance_id} ({donor.variant}) is of another trust domain")
        if donor.state is not InstanceState.READY or donor.opening:
            raise Conflict(f"donor {donor.instance_id} ({donor.variant}) is {donor.whereabouts}, not ready")
        return donor

    def _delta(self, pair: tuple[Digest, Digest]) -> bytes:
        try:
            source, target = (structure_of(self._read(digest)) for digest in pair)
        except (DataCorrupted, Unsupported) as error:
            raise FailedPrecondition(f"no plan from graph {pair[0][:12]} to {pair[1][:12]}: {error}") from error
        return planned(source, target, planner_for(source, target), MetaCosts(), pair)[1]
