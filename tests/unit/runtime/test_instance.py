from __future__ import annotations

import asyncio

import numpy as np
import pytest
from instance_world import SIGNATURE, Doubler, FakeClock, answer, ask, make

from tessera.domain.artifact import ALONE
from tessera.domain.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidInput,
    ResourceExhausted,
    WrongGeneration,
)
from tessera.domain.signature import Signature
from tessera.runtime.backends.interface import Tensor
from tessera.runtime.contents import MAX_ELEMENTS
from tessera.runtime.identity import InstancePhase
from tessera.testing import LoopClock, run_virtual


async def test_what_waits_when_the_worker_gets_free_is_one_batch():
    model = Doubler()
    instance = make(model)
    futures = [ask(instance, float(n)) for n in range(6)]
    await model.step()
    await model.step()
    await model.step()
    assert model.batches == [1, 4, 1]
    assert [answer(future) for future in futures] == [[2.0 * n] for n in range(6)]
    assert [future.result().batch_size for future in futures] == [1, 4, 4, 4, 4, 1]
    assert instance.status().served == 6


async def test_rows_count_and_larger_ones_wait_without_holding_up_what_fits():
    model = Doubler()
    instance = make(model)
    first = ask(instance, 0.0)
    three, three_more, one = ask(instance, 1.0, 2.0, 3.0), ask(instance, 4.0, 5.0, 6.0), ask(instance, 7.0)
    await model.step()
    await model.step()
    assert model.batches == [1, 4]
    assert answer(three) == [2.0, 4.0, 6.0]
    assert answer(one) == [14.0]
    assert not three_more.done()
    await model.step()
    assert answer(three_more) == [8.0, 10.0, 12.0]
    assert first.done()


async def test_other_shapes_are_not_joined():
    model = Doubler()
    instance = make(model)
    futures = [ask(instance, 1.0), ask(instance, 2.0, width=2), ask(instance, 3.0, width=2), ask(instance, 4.0)]
    for _ in range(3):
        await model.step()
    assert model.batches == [1, 2, 1]
    assert answer(futures[2]) == [6.0, 6.0]


async def test_unbatched_models_run_one_by_one():
    model = Doubler()
    instance = make(model, signature=Signature(SIGNATURE.inputs, SIGNATURE.outputs, batched=False))
    futures = [ask(instance, 1.0, 2.0) for _ in range(3)]
    for _ in range(3):
        await model.step()
    assert model.batches == [2, 2, 2]
    assert all(answer(future) == [2.0, 4.0] for future in futures)


async def test_who_shall_be_alone_is_joined_with_nobody_and_keeps_the_rows_of_a_request_together():
    model = Doubler()
    instance = make(model, options=(ALONE,))
    futures = [ask(instance, 1.0, 2.0) for _ in range(3)]
    for _ in range(3):
        await model.step()
    assert model.batches == [2, 2, 2]
    assert all(answer(future) == [2.0, 4.0] for future in futures)
    with pytest.raises(InvalidInput, match="must be 1 to 4"):
        ask(instance, *[0.0] * 5)


async def test_expired_and_cancelled_never_run():
    model, clock = Doubler(), FakeClock()
    instance = make(model, clock)
    running = ask(instance, 1.0)
    expired = ask(instance, 2.0, budget_us=1000)
    short_timeout = ask(instance, 3.0, timeout=500)
    cancelled = ask(instance, 4.0)
    fine = ask(instance, 5.0)
    cancelled.cancel()
    await asyncio.sleep(0)
    assert instance.status().queue == 3, "a cancelled request frees its place at once"
    clock.now_s += 0.002
    await model.step()
    await model.step()
    assert model.batches == [1, 1]
    for future in (expired, short_timeout):
        with pytest.raises(DeadlineExceeded, match=r"2\.0 ms in the queue"):
            future.result()
    assert answer(fine) == [10.0]
    assert running.result().queue_us == 0
    assert fine.result().queue_us == pytest.approx(2000, abs=1)


def test_a_budget_that_ends_in_the_queue_ends_there_whatever_runs():
    async def main():
        model = Doubler()
        instance = make(model, LoopClock(), max_queue=2)
        ask(instance, 0.0)
        patient, hurried = ask(instance, 1.0, budget_us=60_000_000), ask(instance, 2.0, budget_us=60_000_000, timeout=50_000)
        await asyncio.sleep(0.049)
        assert not hurried.done()
        await asyncio.sleep(0.003)
        with pytest.raises(DeadlineExceeded, match="in the queue of m@4/aten-fp32"):
            hurried.result()
        soon = ask(instance, 3.0, budget_us=20_000)  # its place is free
        await asyncio.sleep(0.022)
        assert isinstance(soon.exception(), DeadlineExceeded)
        await model.step()
        await model.step()
        assert (model.batches, answer(patient)) == ([1, 1], [2.0])

    run_virtual(main)


def test_a_budget_ends_in_the_queue_after_a_batch_that_failed_too():
    async def main():
        model = Doubler()
        model.poison = True
        instance = make(model, LoopClock())
        first = ask(instance, 0.0)
        with_the_first = [ask(instance, 13.0), ask(instance, 1.0, budget_us=50_000)]
        await model.step()
        await model.step()
        assert (first.done(), len(model.pending), instance.status().queue) == (True, 1, 1)
        await asyncio.sleep(0.052)
        assert [future.done() for future in with_the_first] == [False, True]
        assert isinstance(with_the_first[1].exception(), DeadlineExceeded)

    run_virtual(main)


async def test_generation_is_checked_again_when_the_batch_is_formed():
    model = Doubler()
    instance = make(model)
    ask(instance, 1.0)
    stale = ask(instance, 2.0, generation=5)
    await model.step()
    with pytest.raises(WrongGeneration):
        stale.result()
    assert model.batches == [1]


async def test_full_queue_says_its_limit():
    instance = make(Doubler(), max_queue=2)
    kept = [ask(instance, float(n)) for n in range(3)]
    with pytest.raises(ResourceExhausted, match="at most 2"):
        ask(instance, 9.0)
    kept[1].cancel()
    await asyncio.sleep(0)
    ask(instance, 9.0)


async def test_one_bad_request_fails_alone():
    model = Doubler()
    model.poison = True
    instance = make(model)
    first = ask(instance, 0.0)
    futures = [ask(instance, value) for value in (1.0, 13.0, 2.0)]
    await model.step()
    await model.step()
    for _ in range(3):
        await model.step()
    assert model.batches == [1, 3, 1, 1, 1]
    assert answer(futures[0]) == [2.0]
    assert answer(futures[2]) == [4.0]
    with pytest.raises(Internal, match="thirteen"):
        futures[1].result()
    assert first.done()


async def test_a_model_that_loses_the_batch_is_served_one_by_one_from_then_on():
    model = Doubler()
    model.output = Tensor("FP32", np.zeros((7, 1), np.float32))
    instance = make(model)
    futures = [ask(instance, float(n)) for n in range(3)]
    for _ in range(4):
        await model.step()
    later = [ask(instance, float(n)) for n in range(3)]
    for _ in range(3):
        await model.step()
    assert model.batches == [1, 2, 1, 1, 1, 1, 1]
    assert all(future.result().status == 0 for future in futures + later)


async def test_delay_waits_for_company_but_not_beyond_the_deadline():
    model = Doubler()
    instance = make(model, LoopClock(), max_delay_us=30_000)
    first = ask(instance, 1.0)
    assert not model.pending
    second = ask(instance, 2.0)
    await asyncio.sleep(0.06)
    await model.step()
    assert model.batches == [2]
    assert (answer(first), answer(second)) == ([2.0], [4.0])
    full = [ask(instance, float(n)) for n in range(4)]
    assert len(model.pending) == 1, "a full batch does not wait"
    await model.step()
    assert all(future.done() for future in full)
    instance.limits.max_delay_us = 60_000_000
    hurried = ask(instance, 5.0, budget_us=100_000)
    await asyncio.sleep(0.07)
    await model.step()
    assert answer(hurried) == [10.0]


@pytest.mark.parametrize("leaves", [False, True])
def test_nobody_who_joins_waits_for_company_beyond_half_of_its_own_budget(leaves):
    async def main():
        model = Doubler()
        instance = make(model, LoopClock(), max_delay_us=100_000)
        patient = ask(instance, 1.0, budget_us=60_000_000)
        await asyncio.sleep(0.005)
        hurried = ask(instance, 2.0, budget_us=20_000)
        last = ask(instance, 3.0, budget_us=60_000_000)
        if leaves:
            patient.cancel()
        await asyncio.sleep(0.009)
        assert not model.pending
        await asyncio.sleep(0.002)
        await model.step()
        assert (model.batches, answer(hurried), answer(last)) == ([2 if leaves else 3], [4.0], [6.0])

    run_virtual(main)


async def test_drain_finishes_what_waits_and_takes_nothing_new():
    model = Doubler()
    instance = make(model, max_batch=1)
    futures = [ask(instance, float(n)) for n in range(3)]
    draining = asyncio.ensure_future(instance.drain(10))
    await asyncio.sleep(0)
    with pytest.raises(WrongGeneration):
        ask(instance, 1.0)
    for _ in range(3):
        await model.step()
    await draining
    assert instance.phase is InstancePhase.GONE
    assert all(future.result().status == 0 for future in futures)


async def test_drain_without_time_reroutes_the_queue_and_waits_for_what_runs():
    model = Doubler()
    instance = make(model, max_batch=1)
    running, waiting = ask(instance, 1.0), ask(instance, 2.0)
    draining = asyncio.ensure_future(instance.drain(0))
    await asyncio.sleep(0.02)
    with pytest.raises(WrongGeneration):
        waiting.result()
    assert not draining.done()
    await model.step()
    await draining
    assert answer(running) == [2.0]


async def test_nothing_runs_while_it_is_measured():
    model = Doubler()
    instance = make(model)
    running = ask(instance, 1.0)
    waiting = asyncio.ensure_future(instance.exclusively())
    await asyncio.sleep(0)
    assert not waiting.done()
    await model.step()
    await waiting
    late = ask(instance, 2.0)
    assert not model.pending
    with pytest.raises(FailedPrecondition, match="measured"):
        await instance.exclusively()
    draining = asyncio.ensure_future(instance.drain(0))
    await asyncio.sleep(0.02)
    assert not draining.done(), "the session must not be closed under a measurement"
    instance.release()
    await draining
    assert running.done()
    with pytest.raises(WrongGeneration):
        late.result()


async def test_giving_up_on_exclusivity_lets_requests_go_on():
    model = Doubler()
    instance = make(model)
    ask(instance, 1.0)
    waiting = asyncio.ensure_future(instance.exclusively())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    later = ask(instance, 2.0)
    await model.step()
    await model.step()
    assert answer(later) == [4.0]


async def test_inline_models_answer_before_submit_returns():
    model = Doubler(inline=True)
    instance = make(model)
    assert answer(ask(instance, 3.0)) == [6.0]
    model.poison = True
    failed = ask(instance, 13.0)
    assert isinstance(failed.exception(), Internal)
    assert answer(ask(instance, 1.0)) == [2.0]


async def test_bad_input_never_enters_the_queue():
    instance = make(Doubler())
    with pytest.raises(InvalidInput, match="1 to 4"):
        ask(instance, 1.0, 2.0, 3.0, 4.0, 5.0)
    assert instance.status().queue == 0


async def test_an_answer_beyond_the_limits_is_told_as_what_the_caller_can_change():
    model = Doubler()
    model.output = Tensor("BYTES", np.full((1, MAX_ELEMENTS + 1), b"", object))
    instance = make(model)
    future = ask(instance, 1.0)
    await model.step()
    with pytest.raises(InvalidInput, match=f"^outputs elements {MAX_ELEMENTS + 1}: at most {MAX_ELEMENTS} of BYTES in one answer"):
        future.result()


async def test_idle_time_counts_from_the_last_answer():
    model, clock = Doubler(), FakeClock()
    instance = make(model, clock)
    clock.now_s += 5
    assert instance.status().idle_s == 5
    ask(instance, 1.0)
    assert (instance.status().executing, instance.status().idle_s) == (1, 0.0)
    await model.step()
    clock.now_s += 2
    assert instance.status().idle_s == 2
