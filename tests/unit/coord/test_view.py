from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tessera.coord import keys
from tessera.coord.interface import Delete, ModRevisionIs, Put
from tessera.coord.records import encode
from tessera.coord.view import View
from tessera.domain.errors import DataCorrupted, Unavailable
from tessera.domain.records import ServiceRecord
from tessera.testing import VirtualClock, settle
from tessera.testing.coord import FakeCoordinator, FakeEtcd

A, B, C = (keys.service("gateway", name) for name in "abc")
Difference = tuple[str, Any, Any]


def record(name: str, port: int = 1) -> ServiceRecord:
    return ServiceRecord("gateway", name, f"127.0.0.1:{port}")


async def put(writer: FakeCoordinator, key: str, value: ServiceRecord | bytes) -> int:
    found = await writer.get(key)
    data = value if isinstance(value, bytes) else encode(value)
    return await writer.transact([ModRevisionIs(key, found.mod_revision if found else 0)], [Put(key, data)])


async def remove(writer: FakeCoordinator, key: str) -> None:
    found = await writer.get(key)
    assert found is not None
    await writer.transact([ModRevisionIs(key, found.mod_revision)], [Delete(key)])


class Scene:
    def __init__(self) -> None:
        self.server = FakeEtcd(VirtualClock())
        self.writer = FakeCoordinator(self.server)
        self.reader = FakeCoordinator(self.server)
        self.view: View[ServiceRecord] = View(self.reader, keys.SERVICES, ServiceRecord)
        self.differences: list[Difference] = []
        self.view.on_change(lambda *difference: self.differences.append(difference))

    def taken(self) -> list[Difference]:
        differences, self.differences = self.differences, []
        return differences


@asynccontextmanager
async def running(scene: Scene) -> AsyncIterator[Scene]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(scene.view.run())
        try:
            yield scene
        finally:
            task.cancel()
            await scene.writer.close()
            await scene.reader.close()


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with running(Scene()) as scene:
        yield scene


async def test_it_is_synced_by_its_first_listing() -> None:
    scene = Scene()
    scene.reader.go_away()
    async with running(scene):
        await settle()
        assert not scene.view.synced.is_set()
        scene.reader.come_back()
        await asyncio.wait_for(scene.view.synced.wait(), 5)
        assert len(scene.view) == 0
        assert scene.taken() == []


async def test_what_was_there_before_is_reported_as_new(scene: Scene) -> None:
    revision = await put(scene.writer, A, record("a"))
    await settle()
    assert dict(scene.view.items()) == {A: record("a")}
    assert list(scene.view.values()) == [record("a")]
    assert A in scene.view
    assert scene.view.mod_revision(A) == revision == scene.view.revision
    assert scene.taken() == [(A, None, record("a"))]


async def test_changes_come_with_what_was_known_before(scene: Scene) -> None:
    await settle()
    await put(scene.writer, A, record("a", 1))
    await put(scene.writer, A, record("a", 2))
    await remove(scene.writer, A)
    await settle()
    assert scene.taken() == [
        (A, None, record("a", 1)),
        (A, record("a", 1), record("a", 2)),
        (A, record("a", 2), None),
    ]
    assert scene.view.get(A) is None
    assert scene.view.mod_revision(A) == 0


async def test_the_last_known_state_serves_through_an_outage_and_only_the_difference_is_told(scene: Scene) -> None:
    for key, name in ((A, "a"), (B, "b")):
        await put(scene.writer, key, record(name))
    await settle()
    scene.taken()
    scene.reader.go_away()
    await remove(scene.writer, A)
    await put(scene.writer, C, record("c"))
    await settle()
    assert dict(scene.view.items()) == {A: record("a"), B: record("b")}
    assert scene.view.synced.is_set()
    assert scene.taken() == []
    scene.reader.come_back()
    await settle()
    assert dict(scene.view.items()) == {B: record("b"), C: record("c")}
    assert scene.taken() == [(A, record("a"), None), (C, None, record("c"))]


async def test_a_key_deleted_and_made_again_meanwhile_is_a_change(scene: Scene) -> None:
    await put(scene.writer, A, record("a", 1))
    await settle()
    scene.taken()
    scene.reader.go_away()
    await remove(scene.writer, A)
    revision = await put(scene.writer, A, record("a", 2))
    scene.reader.come_back()
    await settle()
    assert scene.taken() == [(A, record("a", 1), record("a", 2))]
    assert scene.view.mod_revision(A) == revision


async def test_a_record_that_does_not_decode_is_left_out_and_logged_once(scene: Scene) -> None:
    await put(scene.writer, A, record("a"))
    await settle()
    scene.taken()
    with capture_logs() as logs:
        revision = await put(scene.writer, A, b'{"kind": 3}')
        await put(scene.writer, B, record("b"))
        await settle()
        for _ in range(3):
            scene.reader.drop_watches()
            await settle()
    assert [line["key"] for line in logs if line["event"] == "record left out"] == [A]
    assert scene.view.get(A) is None
    assert scene.view.mod_revision(A) == revision, "whoever repairs it has to know what to compare with"
    assert scene.taken() == [(A, record("a"), None), (B, None, record("b"))]
    await put(scene.writer, A, record("a", 2))
    await settle()
    assert scene.taken() == [(A, None, record("a", 2))]


async def test_a_callback_sees_the_whole_new_state_and_may_be_taken_away(scene: Scene) -> None:
    seen: list[tuple[str, set[str]]] = []
    unsubscribe = scene.view.on_change(lambda key, old, new: seen.append((key, set(dict(scene.view.items())))))
    scene.reader.go_away()
    await put(scene.writer, A, record("a"))
    await put(scene.writer, B, record("b"))
    scene.reader.come_back()
    await settle()
    assert seen == [(A, {A, B}), (B, {A, B})]
    unsubscribe()
    unsubscribe()
    await put(scene.writer, C, record("c"))
    await settle()
    assert len(seen) == 2


async def test_a_callback_that_raises_ends_the_run() -> None:
    scene = Scene()

    def refuse(key: str, old: Any, new: Any) -> None:
        raise RuntimeError("a fault")

    scene.view.on_change(refuse)
    await put(scene.writer, A, record("a"))
    with pytest.raises(RuntimeError, match="a fault"):
        await scene.view.run()
    await scene.writer.close()
    await scene.reader.close()


async def test_it_ends_when_its_coordinator_is_closed() -> None:
    scene = Scene()
    async with asyncio.TaskGroup() as group:
        group.create_task(closing_after_sync(scene))
        with pytest.raises(Unavailable):
            await scene.view.run()
    await scene.writer.close()


async def closing_after_sync(scene: Scene) -> None:
    await scene.view.synced.wait()
    await scene.reader.close()


async def test_values_that_are_no_records_have_their_own_decoder() -> None:
    coordinator = FakeCoordinator(clock=VirtualClock())

    def address(data: bytes) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise DataCorrupted(str(error)) from error

    view = View(coordinator, keys.SCHEDULER_ELECTION, str, decoder=address)
    await coordinator.transact(
        [ModRevisionIs(keys.SCHEDULER_ELECTION + "1", 0)],
        [Put(keys.SCHEDULER_ELECTION + "1", b"127.0.0.1:8011"), Put(keys.SCHEDULER_ELECTION + "2", b"\xff")],
    )
    async with asyncio.TaskGroup() as group:
        task = group.create_task(view.run())
        await view.synced.wait()
        assert dict(view.items()) == {keys.SCHEDULER_ELECTION + "1": "127.0.0.1:8011"}
        task.cancel()
    await coordinator.close()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from([A, B, C]), st.integers(1, 3)),
        st.tuples(st.just("bad"), st.sampled_from([A, B, C])),
        st.tuples(st.just("remove"), st.sampled_from([A, B, C])),
        st.tuples(st.sampled_from(["cut", "heal", "drop", "compact", "stop", "start", "settle", "turn"])),
    ),
    max_size=40,
)


@given(STEPS)
def test_whatever_happens_the_view_and_its_callbacks_end_at_the_server_s_state(steps: list[tuple[Any, ...]]) -> None:
    asyncio.run(play(steps))


async def play(steps: list[tuple[Any, ...]]) -> None:
    async with running(Scene()) as scene:
        replayed: dict[str, ServiceRecord] = {}

        def replay(key: str, old: ServiceRecord | None, new: ServiceRecord | None) -> None:
            assert replayed.get(key) == old
            if new is None:
                del replayed[key]
            else:
                replayed[key] = new

        scene.view.on_change(replay)
        expected: dict[str, ServiceRecord] = {}
        for step, *rest in steps:
            match step, rest:
                case "put", [key, port] if scene.server.running:
                    await put(scene.writer, key, record(key[-1], port))
                    expected[key] = record(key[-1], port)
                case "bad", [key] if scene.server.running:
                    await put(scene.writer, key, b"?")
                    expected.pop(key, None)
                case "remove", [key] if scene.server.running and scene.server.get(key):
                    await remove(scene.writer, key)
                    expected.pop(key, None)
                case "cut", _:
                    scene.reader.go_away()
                case "heal", _:
                    scene.reader.come_back()
                case "drop", _:
                    scene.reader.drop_watches()
                case "compact", _:
                    scene.server.compact()
                case "stop", _:
                    scene.server.stop()
                case "start", _:
                    scene.server.start()
                case "settle", _:
                    await settle()
                case "turn", _:
                    await settle(1)
        scene.server.start()
        scene.reader.come_back()
        await settle()
        assert dict(scene.view.items()) == expected == replayed
        listing = await scene.writer.list(keys.SERVICES)
        assert {item.key: scene.view.mod_revision(item.key) for item in listing.items} == {
            item.key: item.mod_revision for item in listing.items
        }
        assert all(scene.view.mod_revision(key) == 0 for key in (A, B, C) if key not in {item.key for item in listing.items})
