"""What the gateway remembers about one instance."""

from __future__ import annotations

from dataclasses import dataclass, field

from tessera.domain.ids import Generation, InstanceId, NodeId, RuntimeId, VariantKey
from tessera.domain.instance import StartPath


@dataclass(slots=True, eq=False)
class InstanceSlot:
    """An instance that answers, or did. Mutable: `in_flight` changes with every request.

    `suspect`: its connection broke; not chosen until it connects again or is reported again. `orphan`: its record vanished although
    it was ready; chosen only while the record of its node is gone too (a lease ran out), as long as it answers. `slowed`: it is
    interfered with; chosen only where no other will do.
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
    slowed: bool = False
    reply_prefixes: dict[str, bytes] = field(default_factory=dict)
    """Encoded reply parameters but the request id, by start path."""
