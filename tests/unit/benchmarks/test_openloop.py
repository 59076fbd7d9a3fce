"""The load generator sends when a request is due, and tells what became of each."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio

from benchmarks.arrivals import Arrival
from benchmarks.openloop import Form, send
from tessera.api.open_inference import inference_pb2 as oip
from tessera.domain.errors import Unavailable
from tessera.rpc import RpcServer

METHOD = "ModelInfer"
SERVICE = "inference.GRPCInferenceService"
ASKED = 5


def reply(asked: str, /, **parameters: str) -> oip.ModelInferResponse:
    answer = oip.ModelInferResponse(model_name=asked)
    for name, value in parameters.items():
        answer.parameters[name].string_param = value
    return answer


class Answers:
    """Answers nobody before `ASKED` requests have come; refuses those for "gone"."""

    def __init__(self) -> None:
        self._asked = 0
        self._all_came = asyncio.Event()

    async def __call__(self, request: oip.ModelInferRequest, context: Any) -> oip.ModelInferResponse:
        self._asked += 1
        if self._asked == ASKED:
            self._all_came.set()
        await self._all_came.wait()
        if request.model_name == "gone":
            raise Unavailable("no node can run it")
        if request.model_name == "task:t":
            return reply("task:t", model="m@1", variant="ort-int8", start_path="bind", objective_missed="latency_ms by 3")
        return reply(request.model_name, variant="ort-fp32", start_path="warm")


def serving(server: grpc.aio.Server) -> None:
    handler = grpc.unary_unary_rpc_method_handler(
        Answers(), request_deserializer=oip.ModelInferRequest.FromString, response_serializer=oip.ModelInferResponse.SerializeToString
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))


def form(name: str) -> Form:
    return Form(name, "quick", 3000.0, oip.ModelInferRequest(model_name=name).SerializeToString())


async def test_requests_do_not_wait_for_answers_to_those_before() -> None:
    server = RpcServer("127.0.0.1:0", handlers=[serving], service_names=[])
    await server.start()
    try:
        schedule = [Arrival(0.001 * at, at % 3) for at in range(ASKED)]
        found = await send(f"127.0.0.1:{server.port}", (form("m"), form("task:t"), form("gone")), schedule)
    finally:
        await server.stop(0)
    assert [one.form.asked for one in found] == ["m", "task:t", "gone", "m", "task:t"]
    assert [one.error for one in found] == ["", "", "unavailable", "", ""]
    assert [one.served_by for one in found[:3]] == ["m/ort-fp32", "m/ort-int8", ""]
    assert (found[1].start_path, found[1].missed) == ("bind", "latency_ms by 3")
    assert all(one.latency_ms >= one.lag_ms >= 0.0 for one in found)


async def test_a_client_gives_up_after_four_times_what_it_asked_for() -> None:
    server = RpcServer("127.0.0.1:0", handlers=[serving], service_names=[])
    await server.start()
    try:
        impatient = Form("m", "quick", 5.0, oip.ModelInferRequest(model_name="m").SerializeToString())
        found = await send(f"127.0.0.1:{server.port}", (impatient,), [Arrival(0.0, 0)])
    finally:
        await server.stop(0)
    assert [one.error for one in found] == ["deadline_exceeded"]
    assert found[0].latency_ms >= 20.0
