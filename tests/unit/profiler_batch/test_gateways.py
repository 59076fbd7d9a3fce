"""Requests through gateways that come and go: real servers on loopback ports, which answer with what they are asked, when they may."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from tessera.api.open_inference import inference_pb2 as oip
from tessera.domain.errors import Unavailable
from tessera.domain.ids import DEFAULT_TRUST_DOMAIN, TrustDomain
from tessera.domain.objectives import NO_OBJECTIVES
from tessera.domain.records import ServiceRecord
from tessera.profiler.batch.adapters.gateways import GatewayInferences
from tessera.rpc import RpcServer
from tessera.sdk import AsyncClient

SERVICE = "inference.GRPCInferenceService"


class Gateway:
    def __init__(self) -> None:
        self.asked, self.may_answer = asyncio.Event(), asyncio.Event()
        self.server = RpcServer("127.0.0.1:0", handlers=[self._add], service_names=[SERVICE])

    def _add(self, server: grpc.aio.Server) -> None:
        handlers = {"ModelInfer": grpc.unary_unary_rpc_method_handler(self._infer)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def _infer(self, data: bytes, _context: Any) -> bytes:
        self.asked.set()
        await self.may_answer.wait()
        request = oip.ModelInferRequest.FromString(data)
        answer = oip.ModelInferResponse(model_name=request.model_name, model_version="1")
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            answer.raw_output_contents.append(raw)
        return answer.SerializeToString()

    def announced(self, trust_domain: TrustDomain = DEFAULT_TRUST_DOMAIN) -> ServiceRecord:
        metadata = {"endpoint": self.server.address, "trust_domain": str(trust_domain)}
        return ServiceRecord("gateway", self.server.address, self.server.address, metadata)


class World:
    def __init__(self, gateways: list[Gateway]) -> None:
        self.gateways = gateways
        self.services: list[ServiceRecord] = []
        self.inferences = GatewayInferences(lambda: self.services)

    async def ask(self, number: int) -> int:
        inputs = {"x": np.array([number])}
        return int((await self.inferences.infer(DEFAULT_TRUST_DOMAIN, "m", inputs, NO_OBJECTIVES, 10.0))["x"][0])


@pytest.fixture
async def world() -> AsyncIterator[World]:
    found = World([Gateway(), Gateway()])
    for gateway in found.gateways:
        await gateway.server.start()
    yield found
    await found.inferences.close()
    for gateway in found.gateways:
        await gateway.server.stop(0)


def recorded_closes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The endpoints of clients that were closed."""
    closed: list[str] = []
    close: Callable[[AsyncClient], Any] = AsyncClient.close

    async def recorded(client: AsyncClient) -> None:
        closed.append(client.target.endpoint)
        await close(client)

    monkeypatch.setattr(AsyncClient, "close", recorded)
    return closed


async def test_what_is_under_way_at_a_gateway_that_goes_is_answered(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = world.gateways
    closed = recorded_closes(monkeypatch)
    world.services = [first.announced()]
    second.may_answer.set()
    async with asyncio.TaskGroup() as group:
        under_way = group.create_task(world.ask(1))
        await first.asked.wait()
        world.services = [second.announced()]
        assert await world.ask(2) == 2
        assert closed == []
        first.may_answer.set()
    assert not under_way.cancelled()
    assert under_way.result() == 1
    assert await world.ask(3) == 3
    assert closed == [first.server.address], "its client goes with the next request"


async def test_only_gateways_of_the_trust_domain_are_asked(world: World) -> None:
    world.services = [world.gateways[0].announced(TrustDomain("lab"))]
    with pytest.raises(Unavailable, match="no gateway of trust domain 'default' has announced itself"):
        await world.ask(1)
