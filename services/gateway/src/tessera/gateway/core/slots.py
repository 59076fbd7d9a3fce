"""What the gateway remembers about one instance."""

from __future__ import annotations

from dataclasses import dataclass, field

from tessera.domain.ids import Generation, InstanceId, NodeId, RuntimeId, VariantKey
from tessera.domain.instance import StartPath
from tessera.domain.records import InstanceRecord, LoadState
from tessera.policy.instance.base import Latency


@dataclass(slots=True, eq=False)
class InstanceSlot:
    """An instance that answers, or did. Mutable: `in_flight`, in items, changes with every request.

    `suspect`: its connection broke; not chosen until it connects again or is reported again. `orphan`: its record vanished although
    it was ready; chosen only while the record of its node is gone too (a lease ran out), as long as it answers. `recorded`: its record is
    there; before that the scheduler's word alone stands for it. `load_state`: one that is interfered with is chosen only where no other
    will do.
    """

    instance_id: InstanceId
    variant: VariantKey
    generation: Generation
    node_id: NodeId
    runtime_id: RuntimeId
    host_id: str
    unix_path: str
    relay_address: str
    start_path: StartPath
    in_flight: int = 0
    suspect: bool = False
    orphan: bool = False
    recorded: bool = False
    max_batch: int = 1
    joins: bool = True
    latency: Latency | None = None
    load_state: LoadState = LoadState.ACTIVE
    reply_prefixes: dict[tuple[str, bool], bytes] = field(default_factory=dict)
    """Encoded reply parameters but the request id, by start path and whether the model is named among them."""
    _labels: tuple[str, str, str, str] | None = None

    @property
    def labels(self) -> tuple[str, str, str, str]:
        """Model, version, variant and node, for metrics."""
        if self._labels is None:
            key = self.variant
            self._labels = (key.model, str(key.version), key.variant, self.node_id)
        return self._labels


def slot_of(record: InstanceRecord) -> InstanceSlot:
    return InstanceSlot(
        instance_id=record.instance_id,
        variant=record.variant,
        generation=record.generation,
        node_id=record.node_id,
        runtime_id=record.runtime_id,
        host_id=record.host_id,
        unix_path=record.unix_path,
        relay_address=record.relay_address,
        start_path=record.start_path,
        max_batch=record.max_batch,
    )
