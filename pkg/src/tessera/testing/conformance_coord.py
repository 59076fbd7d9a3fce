"""What every coordinator does. A test class derives from `CoordinatorConformance` and gives the fixture `world`."""

from __future__ import annotations

import asyncio

import pytest

from tessera.coord.interface import (
    Changed,
    Coordinator,
    CreateRevisionIs,
    Delete,
    KeyValue,
    ModRevisionIs,
    Put,
    Removed,
    Reset,
)
from tessera.domain.errors import Conflict, InvalidInput, Unavailable
from tessera.testing._coord_sessions import ElectionConformance, SessionConformance
from tessera.testing._coord_world import TTL_S, WAIT_S, CoordinationWorld, Follower, following, outcome_of, present, put, until

__all__ = ["CoordinationWorld", "CoordinatorConformance"]


class CoordinatorConformance(SessionConformance, ElectionConformance):
    # --- transactions ---

    async def test_a_key_is_absent_until_it_is_created_once(self, world: CoordinationWorld) -> None:
        coordinator = await world.client()
        assert await coordinator.get("/c/a") is None
        revision = await coordinator.transact([ModRevisionIs("/c/a", 0)], [Put("/c/a", b"\x00one\xff")])
        assert await coordinator.get("/c/a") == KeyValue("/c/a", b"\x00one\xff", revision, revision)
        for compare in (ModRevisionIs("/c/a", 0), CreateRevisionIs("/c/a", 0)):
            with pytest.raises(Conflict):
                await coordinator.transact([compare], [Put("/c/a", b"two")])
        assert (await present(coordinator, "/c/a")).value == b"\x00one\xff"

    async def test_an_update_keeps_the_create_revision_and_a_stale_one_loses(self, world: CoordinationWorld) -> None:
        coordinator = await world.client()
        first = await put(coordinator, "/c/a", b"1")
        second = await coordinator.transact([ModRevisionIs("/c/a", first)], [Put("/c/a", b"2")])
        assert second > first
        with pytest.raises(Conflict):
            await coordinator.transact([ModRevisionIs("/c/a", first)], [Put("/c/a", b"3")])
        found = await present(coordinator, "/c/a")
        assert (found.value, found.create_revision, found.mod_revision) == (b"2", first, second)
        await coordinator.transact([CreateRevisionIs("/c/a", first)], [Delete("/c/a")])
        third = await put(coordinator, "/c/a", b"4")
        assert (await present(coordinator, "/c/a")).create_revision == third
        with pytest.raises(Conflict):
            await coordinator.transact([CreateRevisionIs("/c/a", first)], [Put("/c/a", b"5")])

    async def test_a_transaction_writes_all_at_one_revision_or_nothing(self, world: CoordinationWorld) -> None:
        coordinator = await world.client()
        base = await put(coordinator, "/c/a", b"1")
        with pytest.raises(Conflict):
            await coordinator.transact([ModRevisionIs("/c/a", base), ModRevisionIs("/c/b", 7)], [Put("/c/a", b"2"), Put("/c/b", b"2")])
        assert [(item.key, item.value) for item in (await coordinator.list("/c/")).items] == [("/c/a", b"1")]
        revision = await coordinator.transact([ModRevisionIs("/c/b", 0)], [Put("/c/b", b"3"), Delete("/c/a"), Put("/c/c", b"4")])
        listing = await coordinator.list("/c/")
        assert listing.revision == revision
        assert {item.mod_revision for item in listing.items} == {revision}
        assert [item.key for item in listing.items] == ["/c/b", "/c/c"]

    async def test_compares_alone_and_deletes_of_nothing_do_not_move_the_revision(self, world: CoordinationWorld) -> None:
        coordinator = await world.client()
        base = await put(coordinator, "/c/a", b"1")
        assert await coordinator.transact([ModRevisionIs("/c/a", base)], []) == base
        assert await coordinator.transact([ModRevisionIs("/c/a", base)], [Delete("/c/absent")]) == base
        assert (await coordinator.list("/c/")).revision == base

    async def test_a_blind_or_contradictory_transaction_is_refused(self, world: CoordinationWorld) -> None:
        coordinator = await world.client()
        with pytest.raises(InvalidInput, match="compare"):
            await coordinator.transact([], [Put("/c/a", b"1")])
        with pytest.raises(InvalidInput, match="/c/a"):
            await coordinator.transact([ModRevisionIs("/c/a", 0)], [Put("/c/a", b"1"), Delete("/c/a")])
        with pytest.raises(InvalidInput, match="must not be empty"):
            await coordinator.transact([ModRevisionIs("", 0)], [Put("/c/a", b"1")])
        with pytest.raises(InvalidInput, match="at most"):
            await coordinator.transact([ModRevisionIs("/c/a", 0)], [Put("/c/a", bytes(2 << 20))])
        assert await coordinator.get("/c/a") is None

    async def test_a_listing_is_its_prefix_in_key_order(self, world: CoordinationWorld) -> None:
        coordinator = await world.client()
        for key in ("/c/b/2", "/c/b/1", "/c/b/é", "/c/b", "/c/bb", "/c/c/1"):
            await put(coordinator, key, key.encode())
        assert [item.key for item in (await coordinator.list("/c/b/")).items] == ["/c/b/1", "/c/b/2", "/c/b/é"]
        assert (await coordinator.list("/c/none/")).items == ()

    async def test_keys_are_those_of_the_listing(self, world: CoordinationWorld) -> None:
        coordinator = await world.client()
        for key in ("/c/b/2", "/c/b/1", "/c/b/é", "/c/b", "/c/bb"):
            await put(coordinator, key, b"value")
        assert await coordinator.list_keys("/c/b/") == ("/c/b/1", "/c/b/2", "/c/b/é")
        assert await coordinator.list_keys("/c/none/") == ()
        with pytest.raises(InvalidInput, match="must not be empty"):
            await coordinator.list_keys("")

    async def test_writers_that_race_lose_no_update(self, world: CoordinationWorld) -> None:
        async def add(coordinator: Coordinator, times: int) -> int:
            lost = 0
            for _ in range(times):
                while True:
                    found = await coordinator.get("/c/counter")
                    value, revision = (int(found.value), found.mod_revision) if found else (0, 0)
                    try:
                        await coordinator.transact([ModRevisionIs("/c/counter", revision)], [Put("/c/counter", b"%d" % (value + 1))])
                        break
                    except Conflict:
                        lost += 1
            return lost

        clients = [await world.client() for _ in range(3)]
        lost = await asyncio.gather(*(add(client, 25) for client in clients))
        assert (await present(clients[0], "/c/counter")).value == b"75"
        assert sum(lost) > 0, "the writers never raced, so the test proved nothing"

    # --- watches ---

    async def test_a_watch_starts_with_what_is_there_and_goes_on_in_order(self, world: CoordinationWorld) -> None:
        coordinator = await world.client()
        await put(coordinator, "/c/w/a", b"1")
        listing = await coordinator.list("/c/w/")
        async with following(coordinator, "/c/w/") as follower:
            await until(lambda: follower.resets == 1, world)
            assert follower.events == [Reset(listing)]
            second = await put(coordinator, "/c/w/b", b"2")
            await put(coordinator, "/c/other", b"-")
            third = await coordinator.transact([ModRevisionIs("/c/w/b", second)], [Put("/c/w/b", b"3"), Delete("/c/w/a")])
            await until(lambda: len(follower.events) == 4, world)
        a = listing.items[0].create_revision
        assert a < second
        assert follower.events[1] == Changed(KeyValue("/c/w/b", b"2", second, second))
        same_revision = {type(event): event for event in follower.events[2:]}
        assert same_revision == {Changed: Changed(KeyValue("/c/w/b", b"3", second, third)), Removed: Removed("/c/w/a", third)}

    async def test_a_watch_of_nothing_starts_with_an_empty_listing(self, world: CoordinationWorld) -> None:
        coordinator = await world.client()
        async with following(coordinator, "/c/none/") as follower:
            await until(lambda: follower.resets == 1, world)
        assert isinstance(follower.events[0], Reset)
        assert follower.events[0].listing.items == ()

    async def test_a_watch_that_was_overtaken_by_a_compaction_starts_over(self, world: CoordinationWorld) -> None:
        coordinator = await world.client()
        await put(coordinator, "/c/w/a", b"1")
        watch = coordinator.watch("/c/w/")
        first = await anext(watch)
        assert isinstance(first, Reset)
        # The reader dawdles between the listing and the next event; meanwhile what it has not seen is compacted away.
        found = await present(coordinator, "/c/w/a")
        await coordinator.transact([ModRevisionIs("/c/w/a", found.mod_revision)], [Delete("/c/w/a")])
        await world.compact()
        await put(coordinator, "/c/w/b", b"2")
        await world.compact()
        async with asyncio.timeout(WAIT_S):
            second = await anext(watch)
        assert isinstance(second, Reset), second
        assert [item.key for item in second.listing.items] == ["/c/w/b"]

    async def test_a_watch_whose_next_revision_is_compacted_misses_no_delete(self, world: CoordinationWorld) -> None:
        coordinator = await world.client()
        revision = await put(coordinator, "/c/w/a", b"1")
        watch = coordinator.watch("/c/w/")
        assert isinstance(await anext(watch), Reset)
        await coordinator.transact([ModRevisionIs("/c/w/a", revision)], [Delete("/c/w/a")])
        await world.compact()
        async with asyncio.timeout(WAIT_S):
            event = await anext(watch)
        assert isinstance(event, Removed) or (isinstance(event, Reset) and not event.listing.items), event

    async def test_what_happened_while_it_was_cut_off_is_in_the_next_reset(self, world: CoordinationWorld) -> None:
        watcher, writer = await world.client(), await world.client()
        await put(writer, "/c/w/goes", b"1")
        await put(writer, "/c/w/stays", b"1")
        async with following(watcher, "/c/w/") as follower:
            await until(lambda: follower.resets == 1, world)
            await world.cut(watcher)
            await writer.transact([ModRevisionIs("/c/w/new", 0)], [Delete("/c/w/goes"), Put("/c/w/new", b"2")])
            assert follower.state == {"/c/w/goes": b"1", "/c/w/stays": b"1"}
            await world.compact()
            await world.heal(watcher)
            await until(lambda: follower.state == {"/c/w/stays": b"1", "/c/w/new": b"2"}, world)
            assert follower.resets >= 2
            await put(writer, "/c/w/new", b"3")
            await until(lambda: follower.state["/c/w/new"] == b"3", world)

    async def test_a_watch_that_begins_in_an_outage_waits_it_out(self, world: CoordinationWorld) -> None:
        watcher, writer = await world.client(), await world.client()
        await put(writer, "/c/w/a", b"1")
        await world.cut(watcher)
        async with following(watcher, "/c/w/") as follower:
            await world.let_pass(0.5)
            assert follower.events == []
            await world.heal(watcher)
            await until(lambda: follower.state == {"/c/w/a": b"1"}, world)

    # --- outages ---

    async def test_without_a_server_every_operation_is_unavailable_in_bounded_time(self, world: CoordinationWorld) -> None:
        coordinator = await world.client()
        await put(coordinator, "/c/a", b"1")
        await world.cut(coordinator)
        async with asyncio.timeout(WAIT_S):
            for attempt in (
                coordinator.get("/c/a"),
                coordinator.list("/c/"),
                coordinator.list_keys("/c/"),
                coordinator.transact([ModRevisionIs("/c/b", 0)], [Put("/c/b", b"1")]),
                coordinator.session(TTL_S),
                coordinator.leader("/c/e/"),
            ):
                with pytest.raises(Unavailable):
                    await attempt
        await world.heal(coordinator)
        assert (await present(coordinator, "/c/a")).value == b"1"

    async def test_a_closed_coordinator_says_so_and_ends_its_watches(self, world: CoordinationWorld) -> None:
        coordinator = await world.client()
        follower = Follower(coordinator, "/c/")
        async with asyncio.TaskGroup() as group, asyncio.timeout(WAIT_S):
            ended = group.create_task(outcome_of(follower.run()))
            await until(lambda: follower.resets == 1, world)
            await coordinator.close()
            assert isinstance(await ended, Unavailable)
        with pytest.raises(Unavailable):
            await coordinator.get("/c/a")
        await coordinator.close()

    async def test_clients_of_one_server_see_one_cluster(self, world: CoordinationWorld) -> None:
        first, second = await world.client(), await world.client()
        assert await first.cluster_id() == await second.cluster_id() != 0
