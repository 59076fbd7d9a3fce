"""Sessions and elections: the second half of the conformance suite of coordinators."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from tessera.coord.interface import (
    Coordinator,
    CreateRevisionIs,
    Delete,
    LeaseLost,
    ModRevisionIs,
    Put,
)
from tessera.domain.errors import Conflict, InvalidInput, Unavailable
from tessera.testing._coord_world import TTL_S, CoordinationWorld, following, outcome_of, present, put, until


class SessionConformance:
    async def test_the_keys_of_a_session_live_as_long_as_it(self, world: CoordinationWorld) -> None:
        coordinator, observer = await world.client(), await world.client()
        session = await coordinator.session(TTL_S)
        await put(coordinator, "/c/s/a", b"1", session.lease_id)
        await put(coordinator, "/c/s/plain", b"1")
        assert (await present(observer, "/c/s/a")).lease_id == session.lease_id != 0
        await world.let_pass(TTL_S * 2)
        assert not session.lost.is_set()
        async with following(observer, "/c/s/") as follower:
            await until(lambda: follower.resets == 1, world)
            await session.close()
            await until(lambda: follower.state == {"/c/s/plain": b"1"}, world)
        assert not session.lost.is_set()
        await session.close()

    async def test_a_key_rewritten_without_the_lease_outlives_the_session(self, world: CoordinationWorld) -> None:
        coordinator = await world.client()
        session = await coordinator.session(TTL_S)
        await put(coordinator, "/c/s/a", b"1", session.lease_id)
        await put(coordinator, "/c/s/a", b"2")
        await session.close()
        assert (await present(coordinator, "/c/s/a")).value == b"2"

    async def test_a_session_that_cannot_renew_is_lost_and_its_keys_vanish(self, world: CoordinationWorld) -> None:
        coordinator, observer = await world.client(), await world.client()
        session = await coordinator.session(TTL_S)
        await put(coordinator, "/c/s/a", b"1", session.lease_id)
        await world.cut(coordinator)
        await until(session.lost.is_set, world)

        async def gone() -> bool:
            return await observer.get("/c/s/a") is None

        await until(gone, world)
        await world.heal(coordinator)
        with pytest.raises(LeaseLost):
            await coordinator.transact([ModRevisionIs("/c/s/a", 0)], [Put("/c/s/a", b"2", session.lease_id)])
        await session.close()
        again = await coordinator.session(TTL_S)
        await put(coordinator, "/c/s/a", b"3", again.lease_id)

    async def test_an_outage_shorter_than_the_lease_costs_nothing(self, world: CoordinationWorld) -> None:
        coordinator = await world.client()
        session = await coordinator.session(6.0)
        await put(coordinator, "/c/s/a", b"1", session.lease_id)
        await world.cut(coordinator)
        await world.let_pass(2.5)
        await world.heal(coordinator)
        await world.let_pass(6.0)
        assert not session.lost.is_set()
        assert (await present(coordinator, "/c/s/a")).lease_id == session.lease_id

    async def test_a_revoked_session_notices(self, world: CoordinationWorld) -> None:
        coordinator = await world.client()
        session = await coordinator.session(TTL_S)
        await put(coordinator, "/c/s/a", b"1", session.lease_id)
        await world.revoke(session.lease_id)
        assert await coordinator.get("/c/s/a") is None
        await until(session.lost.is_set, world)
        await session.close()

    async def test_a_lease_needs_a_positive_time(self, world: CoordinationWorld) -> None:
        coordinator = await world.client()
        for ttl_s in (0.0, -1.0, float("nan")):
            with pytest.raises(InvalidInput, match="ttl_s"):
                await coordinator.session(ttl_s)


class ElectionConformance:
    async def test_the_first_leads_and_hands_over_when_it_resigns(self, world: CoordinationWorld) -> None:
        first, second = await world.client(), await world.client()
        assert await first.leader("/c/e/") is None
        one, two = await first.session(TTL_S), await second.session(TTL_S)
        leadership = await first.campaign("/c/e/", one, b"one")
        leader = await second.leader("/c/e/")
        assert leader is not None
        assert (leader.value, leader.create_revision, leader.key) == (b"one", leadership.term.revision, leadership.guard.key)
        assert leadership.term.cluster_id == await second.cluster_id()
        assert leadership.guard == CreateRevisionIs(leader.key, leader.create_revision)
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(second.campaign("/c/e/", two, b"two"))
            await until(lambda: self._candidates(first, 2), world)
            await world.let_pass(0.2)
            assert not waiting.done()
            await first.transact([leadership.guard], [Put("/c/state", b"by one")])
            await leadership.resign()
            await until(waiting.done, world)
        later = waiting.result()
        assert leadership.term.is_older_than(later.term)
        await leadership.resign()
        with pytest.raises(Conflict):
            await first.transact([leadership.guard], [Put("/c/state", b"too late")])
        assert (await present(second, "/c/state")).value == b"by one"
        found = await first.leader("/c/e/")
        assert found is not None
        assert found.value == b"two"

    @staticmethod
    async def _candidates(coordinator: Coordinator, count: int) -> bool:
        return len((await coordinator.list("/c/e/")).items) == count

    @pytest.mark.parametrize("end", ["close", "revoke", "cut"])
    async def test_a_leader_that_dies_is_followed(self, world: CoordinationWorld, end: str) -> None:
        first, second = await world.client(), await world.client()
        one, two = await first.session(TTL_S), await second.session(TTL_S)
        leadership = await first.campaign("/c/e/", one, b"one")
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(second.campaign("/c/e/", two, b"two"))
            await until(lambda: self._candidates(second, 2), world)
            if end == "close":
                await one.close()
            elif end == "revoke":
                await world.revoke(one.lease_id)
            else:
                await world.cut(first)
            await until(waiting.done, world)
        later = waiting.result()
        assert leadership.term.is_older_than(later.term)
        await second.transact([later.guard], [Put("/c/state", b"by two")])
        if end == "cut":
            await world.heal(first)
        with pytest.raises(Conflict):
            await first.transact([leadership.guard], [Put("/c/state", b"by one")])

    async def test_a_candidate_that_gives_up_takes_its_key_back(self, world: CoordinationWorld) -> None:
        first, second = await world.client(), await world.client()
        one, two = await first.session(TTL_S), await second.session(TTL_S)
        leadership = await first.campaign("/c/e/", one, b"one")
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(second.campaign("/c/e/", two, b"two"))
            await until(lambda: self._candidates(first, 2), world)
            waiting.cancel()
            with suppress(asyncio.CancelledError):
                await waiting
        assert [item.value for item in (await first.list("/c/e/")).items] == [b"one"]
        await leadership.resign()
        assert await second.leader("/c/e/") is None
        assert (await second.campaign("/c/e/", two, b"two")).term.revision > leadership.term.revision

    async def test_a_campaign_ends_with_its_session(self, world: CoordinationWorld) -> None:
        first, second = await world.client(), await world.client()
        one, two = await first.session(TTL_S), await second.session(TTL_S)
        await first.campaign("/c/e/", one, b"one")
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(outcome_of(second.campaign("/c/e/", two, b"two")))
            await until(lambda: self._candidates(first, 2), world)
            await world.revoke(two.lease_id)
            await until(waiting.done, world)
        assert isinstance(waiting.result(), Unavailable)
        assert [item.value for item in (await first.list("/c/e/")).items] == [b"one"]

    async def test_a_candidate_whose_key_was_taken_away_does_not_wait_for_ever(self, world: CoordinationWorld) -> None:
        first, second = await world.client(), await world.client()
        one, two = await first.session(TTL_S), await second.session(TTL_S)
        leadership = await first.campaign("/c/e/", one, b"one")
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(outcome_of(second.campaign("/c/e/", two, b"two")))
            await until(lambda: self._candidates(first, 2), world)
            (other,) = [item for item in (await first.list("/c/e/")).items if item.key != leadership.guard.key]
            await first.transact([CreateRevisionIs(other.key, other.create_revision)], [Delete(other.key)])
            await until(waiting.done, world)
        assert isinstance(waiting.result(), Unavailable)
        assert not two.lost.is_set()

    async def test_a_campaign_under_a_lost_session_does_not_stand(self, world: CoordinationWorld) -> None:
        coordinator = await world.client()
        session = await coordinator.session(TTL_S)
        await world.revoke(session.lease_id)
        with pytest.raises(Unavailable):
            await coordinator.campaign("/c/e/", session, b"one")
        assert await coordinator.leader("/c/e/") is None

    async def test_winning_twice_with_one_session_is_one_term(self, world: CoordinationWorld) -> None:
        coordinator = await world.client()
        session = await coordinator.session(TTL_S)
        once = await coordinator.campaign("/c/e/", session, b"one")
        again = await coordinator.campaign("/c/e/", session, b"one, moved")
        assert once.term == again.term
        leader = await coordinator.leader("/c/e/")
        assert leader is not None
        assert leader.value == b"one, moved"
