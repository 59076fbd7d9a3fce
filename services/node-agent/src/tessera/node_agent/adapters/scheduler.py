"""The status stream to the scheduler's leader."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from tessera import rpc
from tessera.api.node.v1 import node_pb2
from tessera.api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from tessera.domain.ids import Term
from tessera.node_agent.adapters.etcd import EtcdRecords
from tessera.node_agent.loops.reporter import Report
from tessera.wire import decode_term


class SchedulerLeader:
    """Implements `Leader`. `encode` turns a report into its message (the server's, so that both doors say the same)."""

    def __init__(self, records: EtcdRecords, encode: Callable[[Report], node_pb2.NodeStatus]) -> None:
        self._records = records
        self._encode = encode

    async def address(self) -> str | None:
        return await self._records.leader()

    async def report(self, address: str, reports: AsyncIterator[Report], heard: Callable[[Term], Awaitable[None]]) -> None:
        channel = rpc.connect(address)
        try:
            call = scheduler_pb2_grpc.SchedulerStub(channel).ReportStatus(self._messages(reports))
            async for answer in call:
                assert isinstance(answer, scheduler_pb2.ReportStatusResponse)
                await heard(decode_term(answer.term))
        finally:
            await channel.close()

    async def _messages(self, reports: AsyncIterator[Report]) -> AsyncIterator[node_pb2.NodeStatus]:
        async for report in reports:
            yield self._encode(report)
