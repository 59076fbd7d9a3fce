"""Starts and requests in virtual time, without sockets."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace

import pytest
from loops_world import REQUEST, Parts, virtually

from tessera.api.open_inference.inference_pb2 import InferParameter, ModelInferRequest
from tessera.domain.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidInput,
    ResourceExhausted,
    StaleTerm,
    TesseraError,
    Unavailable,
)
from tessera.domain.ids import Generation, InstanceId, RuntimeId
from tessera.domain.instance import Stage
from tessera.frames import FrameResponse, RequestHeader
from tessera.frames.head import MAX_HEAD_NAME_BYTES
from tessera.frames.openinference import encode_parameters
from tessera.gateway.loops.inference import MAX_OUTCOME_CHARS, REVIVE_S
from tessera.gateway.loops.starts import REACH_S
from tessera.gateway.loops.watchdog import Watchdog
from tessera.testing import run_virtual
from tessera.testing.builders import a_node, a_profile, a_variant, an_instance


def test_a_cold_request_and_what_it_leaves_behind() -> None:
    async def test(parts: Parts) -> None:
        await parts.inference.infer(REQUEST)
        (decision,) = parts.decisions._last
        assert decision.outcome == "ok"
        assert decision.start_path == "bind"
        assert decision.start_request_id == decision.request_id
        assert decision.waited_ms == pytest.approx(1000, abs=1)
        assert sum(stage.ms for stage in decision.all_stages()) == pytest.approx(decision.actual_ms, abs=1)
        await parts.inference.infer(REQUEST)
        assert parts.decisions._last[-1].start_path == "warm"
        assert len(parts.scheduler.calls) == 1

    virtually(test)


def test_a_start_is_told_within_what_time_who_waits_is_in_time() -> None:
    """By the request's deadline, and by the latency that it asked for; less what an answer takes, where that is known."""

    async def test(parts: Parts) -> None:
        for budget_s, parameters, within_s in (
            (None, {}, 60.0), (5.0, {}, 5.0), (5.0, {"latency_ms": 800.0}, 0.8), (0.5, {"latency_ms": 800.0}, 0.5),
        ):  # fmt: skip
            parts.scheduler.within.clear()
            parts.scheduler.errors = [Internal("broken")] * 9
            with pytest.raises(TesseraError):
                await parts.inference.infer(REQUEST + encode_parameters(parameters), budget_s)
            await asyncio.sleep(60)
            assert parts.scheduler.within[0] == pytest.approx(within_s)

    virtually(test)


def test_the_start_goes_on_when_all_who_waited_have_left() -> None:
    async def test(parts: Parts) -> None:
        parts.scheduler.delay_s = 10.0
        waiting = asyncio.ensure_future(parts.inference.infer(REQUEST))
        await asyncio.sleep(1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert parts.decisions._last[-1].outcome.startswith("cancelled")
        await asyncio.sleep(10)
        await parts.inference.infer(REQUEST)
        assert parts.decisions._last[-1].start_path == "warm"
        assert len(parts.scheduler.calls) == 1

    virtually(test)


def test_asking_again_backs_off_and_ends_with_the_budget() -> None:
    async def test(parts: Parts) -> None:
        parts.scheduler.delay_s = 0.0
        parts.scheduler.errors = [StaleTerm("old")] * 1000
        began = parts.clock.monotonic_s()
        with pytest.raises(StaleTerm):
            await parts.inference.infer(REQUEST)
        assert 9.0 <= parts.clock.monotonic_s() - began <= 10.0
        assert len(parts.scheduler.calls) < 16
        assert parts.scheduler.calls == sorted(parts.scheduler.calls, reverse=True)

    virtually(test, budget_s=10.0)


def test_an_instance_that_appears_by_itself_ends_the_asking() -> None:
    async def test(parts: Parts) -> None:
        parts.scheduler.delay_s = 0.0
        parts.scheduler.errors = [Unavailable("nobody leads")] * 1000
        waiting = asyncio.ensure_future(parts.inference.infer(REQUEST))
        await asyncio.sleep(2)
        parts.catalogue.put("i", an_instance(variant=a_variant().key))
        await asyncio.wait_for(waiting, 2)
        assert parts.decisions._last[-1].start_path == "warm"

    virtually(test)


def test_a_failed_start_pauses_longer_each_time() -> None:
    async def test(parts: Parts) -> None:
        parts.scheduler.delay_s = 0.0
        parts.scheduler.errors = [Internal("poison")] * 3
        tried_at = []
        while parts.scheduler.errors:
            before = len(parts.scheduler.calls)
            with pytest.raises(Internal, match="poison"):
                await parts.inference.infer(REQUEST)
            if len(parts.scheduler.calls) > before:
                tried_at.append(parts.clock.monotonic_s())
            await asyncio.sleep(0.1)
        gaps = [later - earlier for earlier, later in itertools.pairwise(tried_at)]
        assert gaps == pytest.approx([0.5, 1.0], abs=0.11)
        await asyncio.sleep(2.5)
        await parts.inference.infer(REQUEST)
        # A start that worked wipes the slate: the next failure pauses for half a second again.
        assert not parts.starts._failed

    virtually(test)


def test_that_nobody_leads_is_no_failure_however_long_it_lasts() -> None:
    async def test(parts: Parts) -> None:
        parts.scheduler.delay_s = 0.0
        parts.scheduler.errors = [Unavailable("nobody leads")] * 10_000
        until_s = parts.clock.monotonic_s() + 60.0
        while parts.clock.monotonic_s() < until_s:
            with pytest.raises(TesseraError):
                await parts.inference.infer(REQUEST, 1.0)
            await asyncio.sleep(0.5)
        assert len(parts.scheduler.calls) < 200
        parts.scheduler.errors.clear()
        await parts.inference.infer(REQUEST, 1.5)

    virtually(test)


def test_requests_that_give_up_at_once_do_not_have_the_scheduler_asked_for_each() -> None:
    async def test(parts: Parts) -> None:
        parts.scheduler.delay_s = 0.0
        parts.scheduler.errors = [Unavailable("nobody leads")] * 1000
        for _ in range(100):
            with pytest.raises(TesseraError):
                await parts.inference.infer(REQUEST, 0.001)
            await asyncio.sleep(0.001)
        assert len(parts.scheduler.calls) <= 5

    virtually(test)


def test_a_scheduler_that_names_a_gone_generation_is_asked_again() -> None:
    async def test(parts: Parts) -> None:
        parts.scheduler.delay_s = 0.1
        parts.scheduler.fixed_generation = 7
        parts.links.link.answer = lambda header: FrameResponse(2 if header.generation == 7 else 0)
        waiting = asyncio.ensure_future(parts.inference.infer(REQUEST))
        await asyncio.sleep(1)
        parts.scheduler.fixed_generation = None
        await waiting
        first, second = (header.generation for header in parts.links.link.headers)
        assert (first, second > 100) == (7, True)
        assert len(parts.scheduler.calls) > 2
        assert parts.decisions._last[-1].attempts == 2

    virtually(test)


def test_what_a_warm_instance_answers_after_a_started_one_was_gone_is_warm() -> None:
    async def test(parts: Parts) -> None:
        def answer(header: RequestHeader) -> FrameResponse:
            if header.generation != 1:  # what was started is gone, and another instance has come
                parts.catalogue.put("i", an_instance(variant=a_variant().key, generation=Generation(1)))
                return FrameResponse(2)
            return FrameResponse(0, 1, 0, 0, 1000, b"")

        parts.links.link.answer = answer
        reply = await parts.inference.infer(REQUEST)
        (decision,) = parts.decisions._last
        assert (decision.outcome, decision.attempts, decision.instance_id) == ("ok", 2, "instance-0")
        assert decision.start_path == "warm"
        assert b"warm" in reply
        assert b"bind" not in reply
        assert decision.start_request_id == ""
        # The wait for the other one's start is its own still.
        assert [(stage.stage, stage.ms) for stage in decision.all_stages()] == [(Stage.QUEUE, pytest.approx(1000)), (Stage.RUN, 1.0)]

    virtually(test)


def test_queue_limit_counts_only_who_waits() -> None:
    async def test(parts: Parts) -> None:
        first = [asyncio.ensure_future(parts.inference.infer(REQUEST)) for _ in range(2)]
        await asyncio.sleep(0.1)
        with pytest.raises(ResourceExhausted, match="start_queue_limit = 2"):
            await parts.inference.infer(REQUEST)
        first[0].cancel()
        await asyncio.sleep(0)
        third = asyncio.ensure_future(parts.inference.infer(REQUEST))
        await asyncio.gather(first[1], third)

    virtually(test, limit=2)


def test_default_budget_ends_a_request_that_hangs_in_the_runtime() -> None:
    async def test(parts: Parts) -> None:
        parts.catalogue.put("i", an_instance(variant=a_variant().key))
        parts.links.link.delay_s = 1000.0
        began = parts.clock.monotonic_s()
        with pytest.raises(DeadlineExceeded, match="executing on instance instance-0"):
            await parts.inference.infer(REQUEST)
        assert parts.clock.monotonic_s() - began == pytest.approx(60.0)
        assert parts.links.link.cancelled == 1
        assert parts.inference.in_flight == 0
        # A cancellation that was turned into an answer leaves the task usable.
        parts.links.link.delay_s = 0.0
        await parts.inference.infer(REQUEST)

    virtually(test)


def test_budgets_in_the_frames() -> None:
    async def test(parts: Parts) -> None:
        parts.catalogue.put("i", an_instance(variant=a_variant().key))
        await parts.inference.infer(REQUEST)
        await parts.inference.infer(REQUEST, 5.0)
        await parts.inference.infer(REQUEST + encode_parameters({"timeout": 1500}), 5.0)
        with pytest.raises(DeadlineExceeded, match="expired budget"):
            await parts.inference.infer(REQUEST, -0.001)
        assert [header.budget_us for header in parts.links.link.headers] == [60_000_000, 5_000_000, 1_500]

    virtually(test)


def test_unreachable_instances_are_left_for_a_start() -> None:
    async def test(parts: Parts) -> None:
        parts.catalogue.put("i", an_instance(variant=a_variant().key))
        parts.links.reachable = False
        began_s = parts.clock.monotonic_s()
        with pytest.raises(Unavailable, match="cannot be reached"):
            await parts.inference.infer(REQUEST)
        assert len(parts.scheduler.calls) > 1
        assert parts.clock.monotonic_s() - began_s <= 2 * parts.scheduler.delay_s + REACH_S

    virtually(test)


def test_suspects_are_tried_for_a_moment_however_many_they_are() -> None:
    async def test(parts: Parts) -> None:
        for number in range(5):
            runtime = RuntimeId(f"r{number}")
            record = an_instance(f"lost-{number}", variant=a_variant().key, generation=Generation(number + 1), runtime_id=runtime)
            parts.catalogue.put(f"i{number}", record)
            parts.catalogue.fleet.mark_runtime(runtime, suspect=True)
            parts.links.mute.add(record.instance_id)
        began_s = parts.clock.monotonic_s()
        with pytest.raises(DeadlineExceeded):
            await parts.inference.infer(REQUEST + encode_parameters({"timeout": 50_000}), 5.0)
        assert parts.clock.monotonic_s() - began_s == pytest.approx(0.05)
        began_s = parts.clock.monotonic_s()
        await parts.inference.infer(REQUEST, 5.0)
        assert parts.clock.monotonic_s() - began_s <= REVIVE_S + parts.scheduler.delay_s + parts.links.link.delay_s + 0.001

    virtually(test)


def test_a_scheduler_that_does_not_know_yet_what_died_is_asked_again() -> None:
    async def test(parts: Parts) -> None:
        parts.scheduler.delay_s = 0.01
        parts.links.dead = {InstanceId("i101"), InstanceId("i102"), InstanceId("i103")}
        await parts.inference.infer(REQUEST)
        assert len(parts.scheduler.calls) == 4
        (decision,) = parts.decisions._last
        assert (decision.outcome, decision.instance_id, decision.attempts) == ("ok", "i104", 1)

    virtually(test)


def test_a_request_of_two_items_is_predicted_and_counted_as_two() -> None:
    async def test(parts: Parts) -> None:
        parts.catalogue.put("i", an_instance(variant=a_variant().key))
        parts.catalogue.put("p", replace(a_profile(), variant=a_variant().key, profile_class=a_node().profile_class))
        (slot,) = parts.catalogue.fleet.slots()
        seen = []

        def answer(header: RequestHeader) -> FrameResponse:
            seen.append(slot.in_flight)
            return FrameResponse(0, 2, 0, 0, 1000, b"")

        parts.links.link.answer = answer
        await parts.inference.infer(REQUEST + b"\x2a\x04\x1a\x02\x02\x03")
        await parts.inference.infer(REQUEST + b"\x2a\x04\x1a\x02\x01\x03")
        assert seen == [2, 1]
        assert slot.in_flight == 0
        assert [decision.predicted_ms for decision in parts.decisions._last] == [3.0, 2.0]

    virtually(test)


def test_one_slow_answer_has_no_strict_request_refused_for_ever() -> None:
    async def test(parts: Parts) -> None:
        parts.catalogue.put("i", an_instance(variant=a_variant().key))
        parts.catalogue.put("p", replace(a_profile(), variant=a_variant().key, profile_class=a_node().profile_class))
        strict = REQUEST + encode_parameters({"latency_ms": 3.0, "strict": True})
        parts.links.link.delay_s = 0.02
        await parts.inference.infer(strict)
        parts.links.link.delay_s = 0.001
        refused = 0
        for _ in range(20):
            try:
                await parts.inference.infer(strict)
            except FailedPrecondition:
                refused += 1
        assert 0 < refused < 10
        assert parts.decisions._last[-1].outcome == "ok"
        with pytest.raises(FailedPrecondition, match="misses latency_ms by"):
            await parts.inference.infer(REQUEST + encode_parameters({"latency_ms": 0.5, "strict": True}))

    virtually(test)


def test_a_bug_is_an_internal_error_and_leaves_no_count_behind() -> None:
    async def test(parts: Parts) -> None:
        parts.catalogue.put("i", an_instance(variant=a_variant().key))
        parts.links.link.answer = lambda header: replace(FrameResponse(0), status="odd", nothing=1)  # type: ignore[call-arg,arg-type]
        with pytest.raises(Internal, match="the gateway failed: TypeError"):
            await parts.inference.infer(REQUEST)
        assert parts.inference.in_flight == 0
        assert parts.catalogue.fleet.slots()[0].in_flight == 0

    virtually(test)


@pytest.mark.parametrize(
    "request_bytes",
    [
        ModelInferRequest(model_name="x" * 500_000),
        ModelInferRequest(model_name="task:digits", model_version="9" * 500_000),
        ModelInferRequest(model_name="digits", parameters={"timeout": InferParameter(string_param="\0" * 60_000)}),
    ],
    ids=["name", "version", "parameter"],
)
def test_what_is_remembered_of_a_refused_request_is_short(request_bytes: ModelInferRequest) -> None:
    async def test(parts: Parts) -> None:
        with pytest.raises(InvalidInput):
            await parts.inference.infer(request_bytes.SerializeToString())
        (decision,) = parts.decisions._last
        assert decision.outcome.startswith("invalid_input: ")
        assert len(decision.model) + len(decision.outcome) <= MAX_OUTCOME_CHARS + 2 * MAX_HEAD_NAME_BYTES

    virtually(test)


def test_the_watchdog_ends_each_in_its_turn_and_only_those_that_stay() -> None:
    async def main() -> None:
        watchdog = Watchdog(10.0)
        ended: list[tuple[int, float, bool]] = []

        async def work(number: int, seconds: float) -> None:
            loop = asyncio.get_running_loop()
            task = watchdog.enter(loop.time())
            try:
                await asyncio.sleep(seconds)
            except asyncio.CancelledError:
                ended.append((number, loop.time(), watchdog.leave(task)))
                return
            ended.append((number, loop.time(), watchdog.leave(task)))

        async with asyncio.TaskGroup() as group:
            for number, seconds in enumerate((100.0, 3.0, 100.0, 100.0)):
                task = group.create_task(work(number, seconds))
                await asyncio.sleep(2.0)
            task.cancel()
        watchdog.close()
        assert ended == [(1, 5.0, False), (3, 8.0, False), (0, 10.0, True), (2, 14.0, True)]

    run_virtual(main)
