"""The scheduler's leader, found by the election's key; starts are asked for in frames, the rest by gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from tessera.api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from tessera.coord import keys
from tessera.coord.interface import Changed, Coordinator, KeyValue, Removed, Reset
from tessera.domain.errors import NotFound, Unavailable
from tessera.domain.ids import InstanceId, NodeId, TrustDomain, VariantKey
from tessera.domain.records import ServiceRecord
from tessera.gateway.adapters.channels import Channels
from tessera.gateway.core.slots import InstanceSlot
from tessera.gateway.ports import StartedInstance
from tessera.rpc import FramedCalls
from tessera.wire import (
    decode_endpoint,
    decode_generation,
    decode_stage_times,
    decode_start_path,
    decode_variant_key,
    encode_variant_key,
)

MAX_CANDIDATES = 64
FOLLOWED_S = 1.0
"""How long a leader that another one has followed is waited for: it may have been about to answer. Less than its follower takes to
settle."""
START = "/tessera.api.scheduler.v1.Scheduler/StartInstance"


class Leader:
    """Who leads: the oldest key of the election. The last one known goes on being asked while etcd is away."""

    def __init__(self, coordinator: Coordinator, channels: Channels) -> None:
        self._coordinator = coordinator
        self._channels = channels
        self._candidates: dict[str, KeyValue] = {}
        self._on_change: list[Callable[[], None]] = []

    def on_change(self, callback: Callable[[], None]) -> None:
        """`callback` is called when another may lead."""
        self._on_change.append(callback)

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
                for callback in self._on_change:
                    callback()

    def address(self) -> str:
        """Raises: Unavailable when nobody leads."""
        if not self._candidates:
            raise Unavailable("no scheduler leads now")
        oldest = min(self._candidates.values(), key=lambda item: item.create_revision)
        return oldest.value.decode("utf-8", "replace")


class SchedulerClient:
    """`StartRequests` in frames (docs/adr/0005-start-calls-in-frames.md); `explain` over gRPC.

    Args:
        schedulers: the schedulers' own records, which say where each takes starts.
    """

    def __init__(
        self,
        leader: Leader,
        schedulers: Callable[[], Iterable[ServiceRecord]],
        channels: Channels,
        calls: FramedCalls,
        trust_domain: TrustDomain,
    ) -> None:
        self._leader = leader
        self._schedulers = schedulers
        self._channels = channels
        self._calls = calls
        self._trust_domain = trust_domain
        self._stubs: dict[str, scheduler_pb2_grpc.SchedulerAsyncStub] = {}
        self._asked: dict[asyncio.Timeout, str] = {}
        leader.on_change(self.expect)
        leader.on_change(self._may_have_followed)

    def expect(self) -> None:
        """Connects to the leader in the background, where it is known; called when its record changes."""
        try:
            self._calls.expect(self._start_address())
        except Unavailable:
            pass  # the other of the two, election key and record, is still to come

    async def start_instance(
        self, candidates: Sequence[VariantKey], request_id: str, budget_s: float, ready_within_s: float
    ) -> StartedInstance:
        request = scheduler_pb2.StartInstanceRequest(
            request_id=request_id,
            trust_domain=self._trust_domain,
            candidates=[encode_variant_key(key) for key in candidates[:MAX_CANDIDATES]],
            budget_us=int(budget_s * 1e6),
            ready_within_us=max(1, int(ready_within_s * 1e6)),
        )
        leader, patience = self._leader.address(), asyncio.timeout(None)
        self._asked[patience] = leader
        try:
            async with patience:
                answer = await self._calls.call(self._start_address(), START, request, scheduler_pb2.StartInstanceResponse, budget_s)
        except TimeoutError:
            raise Unavailable(f"scheduler {leader} was followed by another one and has not answered") from None
        finally:
            del self._asked[patience]
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
        """Of a start in this gateway's trust domain: a client may have chosen the id of another one's request.

        Raises:
            NotFound: the leader does not know the request.
            Unavailable: nobody leads.
        """
        answer: scheduler_pb2.ExplainStartResponse = await self._stub().ExplainStart(
            scheduler_pb2.ExplainStartRequest(request_id=request_id), timeout=timeout_s
        )
        if any(option.variant.trust_domain != self._trust_domain for option in answer.options):
            raise NotFound(f"request {request_id!r} started nothing here")
        return answer

    def _may_have_followed(self) -> None:
        """A leader that vanished answers nobody: who asked it asks the next one."""
        leader, until_s = self._leader.address(), asyncio.get_running_loop().time() + FOLLOWED_S
        for patience, asked in self._asked.items():
            if asked != leader and patience.when() is None:
                patience.reschedule(until_s)

    def _start_address(self) -> str:
        """Raises: Unavailable when nobody leads, or the leader has not said where it takes starts."""
        leader = self._leader.address()
        found = next((record.metadata.get("start_address") for record in self._schedulers() if record.address == leader), None)
        if not found:
            raise Unavailable(f"scheduler {leader} leads, but has not announced where it takes starts")
        return found

    def _stub(self) -> scheduler_pb2_grpc.SchedulerAsyncStub:
        """One per address, as the channel below it: a stub makes a callable of every method, at the cost of a call."""
        address = self._leader.address()
        stub = self._stubs.get(address)
        if stub is None:
            stub = self._stubs[address] = scheduler_pb2_grpc.SchedulerStub(self._channels.to(address))
        return stub
