"""Runtimes that vanish, instances that are gone, leases that run out, etcd that is away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tessera.api.open_inference import inference_pb2 as pb
from tessera.coord import keys
from tessera.domain.errors import FailedPrecondition
from tessera.domain.ids import NodeId

from .conftest import DOMAIN, World, infer_request

Call = Callable[..., Awaitable[pb.ModelInferResponse]]


async def test_a_wrong_generation_is_rerouted_to_another_instance(served: World, call: Call) -> None:
    gone = served.runtimes["r1"]
    other = await served.add_runtime("r2")
    await served.load("echo", other, node="node-1")
    await asyncio.sleep(0.05)
    gone.generations.clear()
    answers = [await call(infer_request()) for _ in range(4)]
    assert all(answer.raw_output_contents for answer in answers)
    assert len(gone.bodies) <= 1
    assert not served.scheduler.requests


async def test_a_wrong_generation_starts_anew_where_there_is_no_other(served: World, call: Call) -> None:
    served.runtimes["r1"].generations.clear()
    served.starts_in(await served.add_runtime("r2"))
    answer = await call(infer_request())
    assert answer.parameters["start_path"].string_param == "bind"
    assert (await call(infer_request())).parameters["start_path"].string_param == "warm"


async def test_two_wrong_generations_are_a_clear_error(served: World, call: Call) -> None:
    served.runtimes["r1"].generations.clear()
    other = await served.add_runtime("r2")
    instance = await served.load("echo", other, node="node-1")
    other.generations.discard(instance.generation)
    await asyncio.sleep(0.05)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call(infer_request())
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "were gone" in (failure.value.details() or "")


async def test_a_killed_runtime_costs_one_clear_error_for_what_was_executing(served: World, call: Call) -> None:
    runtime = served.runtimes["r1"]
    runtime.delay_s = 30
    executing = asyncio.ensure_future(call(infer_request()))
    await asyncio.wait_for(runtime.entered.wait(), 5)
    served.starts_in(await served.add_runtime("r2"))
    await runtime.kill()
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await executing
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "not repeated" in (failure.value.details() or "")
    assert len(served.runtimes["r2"].bodies) == 0
    answer = await call(infer_request())
    assert answer.parameters["start_path"].string_param == "bind"


async def test_what_was_never_sent_is_rerouted(served: World, call: Call) -> None:
    """The runtime is gone before the request; its record is still there."""
    await call(infer_request())
    await served.runtimes["r1"].kill()
    served.starts_in(await served.add_runtime("r2"))
    assert (await call(infer_request())).raw_output_contents


async def test_a_runtime_that_comes_back_is_used_again(served: World, call: Call) -> None:
    """A relay or an agent that restarts breaks connections, not instances."""
    runtime = served.runtimes["r1"]
    await call(infer_request())
    await runtime.kill()
    await runtime.start()
    answer = await call(infer_request())
    assert answer.parameters["start_path"].string_param == "warm"
    assert not served.scheduler.requests


async def test_an_agent_whose_lease_ran_out_leaves_its_instances_serving(served: World, call: Call) -> None:
    await call(infer_request())
    (instance,) = served.etcd.items(keys.instances(DOMAIN))
    await served.delete(instance.key)
    await served.delete(keys.node(DOMAIN, NodeId("node-0")))
    await asyncio.sleep(0.1)
    answer = await call(infer_request())
    assert answer.parameters["start_path"].string_param == "warm"
    # The node is back without that instance: it is not used any more.
    await served.add_node()
    await asyncio.sleep(0.1)
    served.starts_in(await served.add_runtime("r2"))
    assert (await call(infer_request())).parameters["start_path"].string_param == "bind"


async def test_serving_goes_on_while_everything_else_is_away(served: World, call: Call) -> None:
    served.coordinator.go_away()
    await served.put_raw(keys.SCHEDULER_ELECTION + "2", b"127.0.0.1:1")
    await asyncio.sleep(0.2)
    assert (await call(infer_request())).parameters["start_path"].string_param == "warm"
    async with grpc.aio.insecure_channel(served.doors.address) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    # Starts go on too: the last leader known is asked.
    served.starts_in(await served.add_runtime("r2"))
    served.runtimes["r1"].generations.clear()
    assert (await call(infer_request())).parameters["start_path"].string_param == "bind"
    served.coordinator.come_back()


async def test_before_etcd_ever_answered_nothing_is_guessed(world: World, start: Any) -> None:
    await world.add_node()
    await world.add_model("echo")
    await world.load("echo", await world.add_runtime("r1"))
    world.coordinator.go_away()
    await start(etcd_away=True)
    async with grpc.aio.insecure_channel(world.doors.address) as channel:
        method: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await method(infer_request().SerializeToString())
        assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "has not read the models yet" in (failure.value.details() or "")
        health = health_pb2_grpc.HealthStub(channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.NOT_SERVING
        world.coordinator.come_back()
        for _ in range(200):
            if (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING:
                break
            await asyncio.sleep(0.05)
        assert await method(infer_request().SerializeToString())


async def test_draining_answers_what_is_there_and_takes_nothing_new(served: World, call: Call) -> None:
    runtime = served.runtimes["r1"]
    runtime.delay_s = 0.6
    assert served.etcd.items(keys.SERVICES + "gateway/")
    executing = asyncio.ensure_future(call(infer_request()))
    await asyncio.wait_for(runtime.entered.wait(), 5)
    served.stop.request("SIGTERM")
    await asyncio.sleep(0.2)
    assert not served.etcd.items(keys.SERVICES + "gateway/")
    async with grpc.aio.insecure_channel(served.doors.address) as channel:
        method: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await method(infer_request().SerializeToString(), timeout=0.2)
    assert failure.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert (await executing).raw_output_contents


async def test_going_it_gives_its_lease_back_however_slow_etcd_is(served: World) -> None:
    revoke = served.coordinator._revoke
    given_back: list[int] = []

    async def slowly(lease_id: int) -> None:
        await asyncio.sleep(0.5)  # longer than everything else takes that ends now
        await revoke(lease_id)
        given_back.append(lease_id)

    served.coordinator._revoke = slowly  # type: ignore[method-assign]
    assert served.etcd.items(keys.SERVICES + "gateway/")
    served.stop.request("SIGTERM")
    async with asyncio.timeout(5):
        while not given_back:  # noqa: ASYNC110 - the gateway ends by itself
            await asyncio.sleep(0.02)
    assert not served.etcd.items(keys.SERVICES + "gateway/")


async def test_a_taken_port_is_named(served: World, start: Any, tmp_path: Any) -> None:
    from tessera.gateway.app import run
    from tessera.gateway.config import GatewayConfig
    from tessera.program import Stop

    config = GatewayConfig(address=served.doors.address, metrics_address="", admin_address="127.0.0.1:0", token_file=tmp_path / "token")
    with pytest.raises(FailedPrecondition, match=served.doors.address):
        await asyncio.wait_for(run(config, Stop(), served.coordinator), 10)
