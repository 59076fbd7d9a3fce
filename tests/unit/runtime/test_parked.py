"""An instance that was idle for long has no session; its next request brings it back."""

from __future__ import annotations

import asyncio

import pytest
from instance_world import Doubler, FakeClock, answer, ask, make

from tessera.domain.errors import DeadlineExceeded, Internal, ResourceExhausted, WrongGeneration
from tessera.runtime.identity import InstancePhase


async def settle() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def parked(clock: FakeClock):
    """A parked instance that has answered once, and what it was closed with."""
    model = Doubler()
    instance = make(model, clock)
    ask(instance, 1.0)
    await model.step()
    assert instance.park() is model
    assert instance.status().parked
    return model, instance


async def test_requests_wait_for_the_opening_and_are_one_batch(clock):
    model, instance = await parked(clock)
    futures = [ask(instance, float(n)) for n in range(3)]
    await settle()
    assert (len(model.openings), model.pending) == (1, [])
    status = instance.status()
    assert (status.queue, status.executing, status.idle_s) == (3, 0, 0.0)
    model.openings[0].set_result(model)
    await settle()
    await model.step()
    assert [answer(future) for future in futures] == [[0.0], [2.0], [4.0]]
    assert model.batches == [1, 3]
    assert not instance.status().parked


async def test_a_deadline_that_ends_meanwhile_is_kept_and_a_cancelled_request_leaves(clock):
    model, instance = await parked(clock)
    late, cancelled, fine = ask(instance, 1.0, budget_us=1000), ask(instance, 2.0), ask(instance, 3.0)
    cancelled.cancel()
    await settle()
    clock.now_s += 0.002
    model.openings[0].set_result(model)
    await settle()
    await model.step()
    with pytest.raises(DeadlineExceeded):
        late.result()
    assert answer(fine) == [6.0]


@pytest.mark.parametrize(("error", "kind"), [(ResourceExhausted("no memory"), ResourceExhausted), (ValueError("odd"), Internal)])
async def test_a_failed_opening_is_the_error_of_who_waited_and_the_next_one_tries_again(clock, error, kind):
    model, instance = await parked(clock)
    futures = [ask(instance, 1.0), ask(instance, 2.0)]
    model.openings[0].set_exception(error)
    await settle()
    for future in futures:
        with pytest.raises(kind, match=str(error)):
            future.result()
    assert instance.status().parked
    assert instance.phase is InstancePhase.SERVING
    again = ask(instance, 4.0)
    model.openings[1].set_result(model)
    await settle()
    await model.step()
    assert answer(again) == [8.0]


async def test_what_has_something_to_do_is_not_parked(clock):
    model = Doubler()
    instance = make(model, clock)
    ask(instance, 1.0)
    assert instance.park() is None
    await model.step()
    await instance.exclusively()
    assert instance.park() is None
    instance.release()
    assert instance.park() is model
    assert instance.park() is None
    ask(instance, 1.0)
    assert instance.park() is None  # it is being opened


@pytest.mark.parametrize(("used", "idle_s"), [(True, 0.0), (False, 15.0)])
async def test_a_donor_of_which_nothing_was_made_is_as_idle_as_it_was(clock, used, idle_s):
    instance = make(Doubler(), clock)
    clock.now_s += 5.0
    instance.reserve()
    clock.now_s += 10.0
    instance.release(used=used)
    assert instance.idle_s == idle_s


async def test_what_answers_in_microseconds_is_never_parked(clock):
    instance = make(Doubler(inline=True), clock)
    clock.now_s += 1000
    assert instance.park() is None


async def test_a_parked_one_is_opened_to_be_measured(clock):
    model, instance = await parked(clock)
    waiting = asyncio.ensure_future(instance.exclusively())
    await settle()
    model.openings[0].set_result(model)
    await waiting
    assert instance.loaded is model
    instance.release()


async def test_measuring_says_why_it_cannot_be_opened_and_requests_go_on(clock):
    model, instance = await parked(clock)
    waiting = asyncio.ensure_future(instance.exclusively())
    await settle()
    model.openings[0].set_exception(ResourceExhausted("no memory"))
    with pytest.raises(ResourceExhausted):
        await waiting
    future = ask(instance, 1.0)
    model.openings[1].set_result(model)
    await settle()
    await model.step()
    assert answer(future) == [2.0]


async def test_a_parked_one_drains_at_once(clock):
    _, instance = await parked(clock)
    await asyncio.wait_for(instance.drain(5.0), 1.0)
    assert instance.phase is InstancePhase.GONE
    with pytest.raises(WrongGeneration):
        ask(instance, 1.0)


async def test_draining_waits_for_an_opening_and_what_it_was_for(clock):
    model, instance = await parked(clock)
    future = ask(instance, 1.0)
    draining = asyncio.ensure_future(instance.drain(5.0))
    await settle()
    assert not draining.done()
    model.openings[0].set_result(model)
    await settle()
    await model.step()
    await asyncio.wait_for(draining, 1.0)
    assert answer(future) == [2.0]


async def test_no_time_to_drain_reroutes_what_waits_and_still_waits_for_the_opening(clock):
    """What is being opened points into mappings that end after the drain."""
    model, instance = await parked(clock)
    future = ask(instance, 1.0)
    draining = asyncio.ensure_future(instance.drain(0.0))
    await asyncio.sleep(0.02)
    with pytest.raises(WrongGeneration):
        future.result()
    assert not draining.done()
    model.openings[0].set_result(model)
    await asyncio.wait_for(draining, 1.0)
    assert instance.loaded is model


async def test_latency_is_of_the_window_alone(clock):
    model = Doubler()
    instance = make(model, clock)
    for ms in (10, 20, 30, 40):
        ask(instance, 1.0)
        clock.now_s += ms / 1e3
        await model.step()
    status = instance.status(10.0)
    assert (status.run_p50_ms, status.run_p99_ms) == (pytest.approx(20), pytest.approx(40))
    assert (status.items, status.run_items) == (4, 1.0)
    for _ in range(3):
        ask(instance, 1.0)
    clock.now_s += 0.1
    await model.step()
    await model.step()
    status = instance.status(10.0)
    assert (status.items, status.run_items) == (7, 7 / 6), "one was run at once, two came together"
    clock.now_s += 1
    ask(instance, 1.0)
    clock.now_s += 0.005
    await model.step()
    assert instance.status(0.5).run_p50_ms == pytest.approx(5)
    clock.now_s += 1
    status = instance.status(0.5)
    assert (status.run_p50_ms, status.run_p99_ms, status.served) == (0.0, 0.0, 8)
