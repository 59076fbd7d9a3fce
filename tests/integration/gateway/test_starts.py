"""Requests for a model that nobody serves yet."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from tessera.api.open_inference import inference_pb2 as pb
from tessera.coord import keys
from tessera.domain.errors import Internal, ResourceExhausted, StaleTerm, Unavailable
from tessera.domain.ids import ProfileClass
from tessera.domain.instance import InstanceState, Stage, StageTime, StartPath
from tessera.domain.records import LatencyRow, LoadCost, ProfileRecord
from tessera.gateway.core import admission

from .conftest import DOMAIN, World, infer_request, variant_key

Call = Callable[..., Awaitable[pb.ModelInferResponse]]


@pytest.fixture
async def cold(served: World) -> World:
    """Model `cold` is registered in two variants; the scheduler can start it in runtime `r2`."""
    await served.add_model("cold", "ort-fp32", "aten-fp32")
    served.starts_in(await served.add_runtime("r2"))
    return served


async def test_the_first_request_starts_and_the_second_is_warm(cold: World, call: Call) -> None:
    first = await call(infer_request("cold"))
    second = await call(infer_request("cold"))
    assert first.parameters["start_path"].string_param == "bind"
    assert second.parameters["start_path"].string_param == "warm"
    assert second.parameters["node"].string_param == "node-0"
    assert len(cold.scheduler.requests) == 1
    asked = cold.scheduler.requests[0]
    assert [key.variant for key in asked.candidates] == ["ort-fp32", "aten-fp32"]
    assert asked.request_id == first.parameters["request_id"].string_param
    assert asked.request_id == cold.scheduler.trace_ids[0]
    assert 55e6 < asked.budget_us <= 60e6


async def test_requests_share_one_start(cold: World, call: Call) -> None:
    cold.starts_in(cold.runtimes["r2"], "fork", after_s=2.0)
    answers = await asyncio.gather(*(call(infer_request("cold")) for _ in range(20)))
    assert len(cold.scheduler.requests) == 1
    assert {answer.parameters["start_path"].string_param for answer in answers} == {"fork"}


async def test_metrics_of_starts(cold: World, call: Call) -> None:
    cold.starts_in(cold.runtimes["r2"], "fork")
    await call(infer_request("cold"))
    text = (await asyncio.to_thread(cold.metrics)).decode()
    assert 'tessera_gateway_start_total{path="fork"} 1.0' in text
    assert 'tessera_gateway_start_seconds_count{stage="load"} 1.0' in text
    assert "tessera_gateway_queue_length 0.0" in text


async def test_the_record_in_etcd_that_lags_behind_does_not_disturb(cold: World, call: Call) -> None:
    await call(infer_request("cold"))
    generation = max(cold.runtimes["r2"].generations)
    instance = await cold.load("cold", cold.runtimes["r2"], record=False)
    lagging = type(instance)(
        **{**{f: getattr(instance, f) for f in instance.__slots__}, "instance_id": f"i{generation}", "generation": generation}
    )
    await cold.set_state(lagging, InstanceState.LOADING)
    await asyncio.sleep(0.05)
    assert (await call(infer_request("cold"))).parameters["start_path"].string_param == "warm"
    await cold.set_state(lagging, InstanceState.DRAINING)
    async with asyncio.timeout(10):
        while (await call(infer_request("cold"))).parameters["start_path"].string_param != "bind":  # noqa: ASYNC110 - until it is seen
            await asyncio.sleep(0.02)


async def test_a_full_queue_names_its_limit(world: World, start: Any) -> None:
    await world.add_node()
    await world.add_model("cold")
    await world.lead()
    world.starts_in(await world.add_runtime("r2"), after_s=3.0)
    await start(start_queue_limit=2)
    async with grpc.aio.insecure_channel(world.doors.address) as channel:
        method: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        body = infer_request("cold").SerializeToString()
        answers = await asyncio.gather(*(method(body) for _ in range(5)), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert len(refused) == 3
    assert all(error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED for error in refused)
    assert "start_queue_limit = 2" in (refused[0].details() or "")


async def test_what_cannot_make_its_deadline_is_refused_early_but_still_starts(world: World, start: Any) -> None:
    await world.add_node()
    await world.add_model("cold", "ort-fp32", "aten-fp32")
    runtime = await world.add_runtime("r2")
    world.starts_in(runtime)
    await world.lead()
    key = variant_key("cold")
    load = LoadCost(StartPath.BIND, (StageTime(Stage.LOAD, 5000.0),))
    rows = (LatencyRow(1, 1, 20, 10.0, 10.0, 10.0),)
    profile = ProfileRecord(key, ProfileClass("test-2"), (load,), rows, 0.0)
    await world.put(keys.profile(key, profile.profile_class), profile)
    await start()
    async with grpc.aio.insecure_channel(world.doors.address) as channel:
        method: Any = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer", response_deserializer=pb.ModelInferResponse.FromString
        )
        body = infer_request("cold").SerializeToString()
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await method(body, timeout=4.0)
        assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "would answer in 5010 ms at best" in (failure.value.details() or "")
        async with asyncio.timeout(10):
            while not runtime.generations:  # noqa: ASYNC110 - the start goes on by itself
                await asyncio.sleep(0.02)
        assert (await method(body, timeout=30.0)).parameters["start_path"].string_param in ("bind", "warm")
    assert len(world.scheduler.requests) == 1


async def test_a_budget_that_ends_in_the_queue(cold: World, call: Call) -> None:
    cold.starts_in(cold.runtimes["r2"], after_s=1.0)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call(infer_request("cold", parameters={"timeout": pb.InferParameter(int64_param=100_000)}))
    assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "became ready within the 100 ms" in (failure.value.details() or "")
    # The start went on: the next request profits from it.
    assert (await call(infer_request("cold"))).parameters["start_path"].string_param in ("bind", "warm")
    assert len(cold.scheduler.requests) == 1


@pytest.mark.parametrize("error", [Unavailable("not the leader"), StaleTerm("an older term")])
async def test_nobody_leading_is_waited_out(cold: World, call: Call, error: Exception) -> None:
    make, tries = cold.scheduler.start, []

    async def moody(request: Any) -> Any:
        tries.append(request)
        if len(tries) < 3:
            raise error
        assert make is not None
        return await make(request)

    cold.scheduler.start = moody
    assert (await call(infer_request("cold"))).parameters["start_path"].string_param == "bind"
    assert len(tries) == 3


async def test_a_leader_that_comes_later_is_found(world: World, start: Any) -> None:
    await world.add_node()
    await world.add_model("cold")
    world.starts_in(await world.add_runtime("r2"))
    await start()
    async with grpc.aio.insecure_channel(world.doors.address) as channel:
        method: Any = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer", response_deserializer=pb.ModelInferResponse.FromString
        )
        waiting = asyncio.ensure_future(method(infer_request("cold").SerializeToString()))
        await asyncio.sleep(0.2)
        await world.lead()
        answer = await asyncio.wait_for(waiting, 10)
    assert answer.parameters["start_path"].string_param == "bind"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Internal("the runtime was killed while loading"), grpc.StatusCode.INTERNAL),
        (ResourceExhausted("store: 900 MiB needed, 100 MiB there"), grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
async def test_why_a_start_failed_is_told_to_all_and_tried_again_later(
    cold: World, call: Call, error: Exception, code: grpc.StatusCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "FIRST_PAUSE_S", 3.0)
    make = cold.scheduler.start

    async def fail(request: Any) -> Any:
        await asyncio.sleep(0.1)
        raise error

    cold.scheduler.start = fail
    answers = await asyncio.gather(*(call(infer_request("cold")) for _ in range(3)), return_exceptions=True)
    assert all(
        isinstance(answer, grpc.aio.AioRpcError) and answer.code() is code and str(error) in (answer.details() or "") for answer in answers
    )
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call(infer_request("cold"))
    assert "next try in" in (failure.value.details() or "")
    assert len(cold.scheduler.requests) == 1
    cold.scheduler.start = make
    await asyncio.sleep(3.1)
    assert (await call(infer_request("cold"))).parameters["start_path"].string_param == "bind"


async def test_other_models_are_not_disturbed_by_a_failing_one(cold: World, call: Call) -> None:
    async def fail(request: Any) -> Any:
        raise Internal("poison")

    cold.scheduler.start = fail
    with pytest.raises(grpc.aio.AioRpcError):
        await call(infer_request("cold"))
    assert (await call(infer_request("echo"))).parameters["start_path"].string_param == "warm"


async def test_no_variant_and_no_node_say_why(world: World, start: Any) -> None:
    await world.add_model("cold")
    await start()
    async with grpc.aio.insecure_channel(world.doors.address) as channel:
        method: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await method(infer_request("cold").SerializeToString())
        assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "no node is there" in (failure.value.details() or "")
        await world.add_node()
        await world.delete(keys.variant(variant_key("cold")))
        ready: Any = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelReady",
            request_serializer=pb.ModelReadyRequest.SerializeToString,
            response_deserializer=pb.ModelReadyResponse.FromString,
        )
        async with asyncio.timeout(10):
            while (await ready(pb.ModelReadyRequest(name="cold"))).ready:  # noqa: ASYNC110 - until it is seen
                await asyncio.sleep(0.02)
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await method(infer_request("cold").SerializeToString())
    assert failure.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "it has no variants yet" in (failure.value.details() or "")
    assert DOMAIN == "default"
