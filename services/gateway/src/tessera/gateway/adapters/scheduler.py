"""The scheduler's leader, found by the election's key, asked by RPC."""

from __future__ import annotations

from collections.abc import Sequence

from tessera.api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from tessera.coord import keys
from tessera.coord.interface import Changed, Coordinator, KeyValue, Removed, Reset
from tessera.domain.errors import Unavailable
from tessera.domain.ids import InstanceId, NodeId, TrustDomain, VariantKey
from tessera.gateway.adapters.channels import Channels
from tessera.gateway.core.slots import InstanceSlot
from tessera.gateway.ports import StartedInstance
from tessera.wire import (
    decode_endpoint,
    decode_generation,
    decode_stage_times,
    decode_start_path,
    decode_variant_key,
    encode_variant_key,
)

MAX_CANDIDATES = 64


class Leader:
    """Who leads: the oldest key of the election. The last one known goes on being asked while etcd is away."""

    def __init__(self, coordinator: Coordinator, channels: Channels) -> None:
        self._coordinator = coordinator
        self._channels = channels
        self._candidates: dict[str, KeyValue] = {}

    async def run(self) -> None:
        """Follows the election until it is cancelled."""
        async for event in self._coordinator.watch(keys.SCHEDULER_ELECTION):
            match event:
                case Reset(listing):
                    self._candidates = {item.key: item for item in listing.items}
                case Changed(item):
                    self._candidates[item.key] = item
                case Removed(key):
                    self._candidates.pop(key, None)
            if self._candidates:
                # Connected before the first start needs it: making the connection takes as long as a start.
                self._channels.to(self.address()).get_state(try_to_connect=True)

    def address(self) -> str:
        """Raises: Unavailable when nobody leads."""
        if not self._candidates:
            raise Unavailable("no scheduler leads now")
        oldest = min(self._candidates.values(), key=lambda item: item.create_revision)
        return oldest.value.decode("utf-8", "replace")


class SchedulerClient:
    """`StartRequests` over gRPC."""

    def __init__(self, leader: Leader, channels: Channels, trust_domain: TrustDomain) -> None:
        self._leader = leader
        self._channels = channels
        self._trust_domain = trust_domain
        self._stubs: dict[str, scheduler_pb2_grpc.SchedulerAsyncStub] = {}

    async def start_instance(self, candidates: Sequence[VariantKey], request_id: str, budget_s: float) -> StartedInstance:
        request = scheduler_pb2.StartInstanceRequest(
            request_id=request_id,
            trust_domain=self._trust_domain,
            candidates=[encode_variant_key(key) for key in candidates[:MAX_CANDIDATES]],
            budget_us=int(budget_s * 1e6),
        )
        answer = await self._stub().StartInstance(request, timeout=budget_s)
        endpoint = decode_endpoint(answer.endpoint)
        path = decode_start_path(answer.start_path)
        slot = InstanceSlot(
            instance_id=InstanceId(answer.instance_id),
            variant=decode_variant_key(answer.variant),
            generation=decode_generation(answer.generation),
            node_id=NodeId(answer.node_id),
            runtime_id=endpoint.runtime_id,
            host_id=endpoint.host_id,
            unix_path=endpoint.unix_path,
            relay_address=endpoint.relay_address,
            start_path=path,
        )
        return StartedInstance(slot, path.value, answer.fetched, decode_stage_times(answer.stages))

    async def explain(self, request_id: str, timeout_s: float) -> scheduler_pb2.ExplainStartResponse:
        """Raises: NotFound when the leader does not know the request; Unavailable."""
        answer: scheduler_pb2.ExplainStartResponse = await self._stub().ExplainStart(
            scheduler_pb2.ExplainStartRequest(request_id=request_id), timeout=timeout_s
        )
        return answer

    def _stub(self) -> scheduler_pb2_grpc.SchedulerAsyncStub:
        """One per address, as the channel below it: a stub makes a callable of every method, at the cost of a call."""
        address = self._leader.address()
        stub = self._stubs.get(address)
        if stub is None:
            stub = self._stubs[address] = scheduler_pb2_grpc.SchedulerStub(self._channels.to(address))
        return stub
