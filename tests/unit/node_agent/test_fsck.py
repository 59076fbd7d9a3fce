"""Three views of one store: every claim of one has its ground in the next, and what does not is told in words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from tessera.domain.ids import Digest, RuntimeId
from tessera.node_agent.core.fsck import Declaration, Occupant, Seen, compare
from tessera.tensorstore.interface import MappedFile

ONE, TWO, ART = Digest("1" * 64), Digest("2" * 64), Digest("a" * 64)


def occupant(**changes: Any) -> Occupant:
    fields: dict[str, Any] = {
        "runtime_id": RuntimeId("rt-1"),
        "pid": 10,
        "alive": True,
        "declared": Declaration(frozenset({ONE}), frozenset({ONE, TWO})),
        "unmapped": frozenset({ART}),
    }
    return Occupant(**(fields | changes))


def mapped(*files: tuple[int, Digest]) -> list[MappedFile]:
    return [MappedFile(pid, digest, number, 4096, False) for number, (pid, digest) in enumerate(files)]


def look(holders: dict[str, set[Digest]], *occupants: Occupant, own: Iterable[str] = (), files: Iterable[MappedFile] = ()) -> list[str]:
    return compare(Seen({name: frozenset(held) for name, held in holders.items()}, occupants, set(own), {1, 2}, files))


def test_what_agrees_is_no_finding() -> None:
    holders = {"rt-1": {ONE, ART}, "start-x": {TWO}}
    assert look(holders, occupant(), own=["start-x"], files=mapped((10, ONE), (10, TWO), (1, TWO), (2, ONE))) == []


@pytest.mark.parametrize(
    ("holders", "seen", "files", "words"),
    [
        ({"rt-1": {ONE}, "rt-2": {TWO}}, occupant(), [], f"rt-2 holds {TWO}, and nothing of that name lives"),
        ({"rt-1": {ONE}, "start-y": {TWO}}, occupant(), [], f"start-y holds {TWO}, and nothing of that name lives"),
        ({"rt-1": {ONE}}, occupant(alive=False), [], "runtime rt-1 (pid 10) has ended and is kept as if it lived, with 1 holds"),
        ({"rt-1": {ONE}}, occupant(declared=None), [], "runtime rt-1 (pid 10) does not say what it holds"),
        ({}, occupant(), [], f"runtime rt-1 (pid 10) uses {ONE} without a hold in the store"),
        ({"rt-1": {ONE, TWO}}, occupant(), [], f"runtime rt-1 (pid 10) is held {TWO}, which it does not use"),
        ({"rt-1": {ONE}}, occupant(), mapped((10, ART)), f"runtime rt-1 (pid 10) maps {ART} and does not say so"),
        ({"rt-1": {ONE}}, occupant(), mapped((77, ONE)), f"process 77 maps {ONE} and is no runtime of this node"),
    ],
)
def test_what_does_not_agree_is_said(holders: dict[str, set[Digest]], seen: Occupant, files: list[MappedFile], words: str) -> None:
    assert look(holders, seen, files=files) == [words]


async def test_a_node_that_serves_is_sound(node: Any) -> None:
    await node.start("a", node.make_artifact(1))
    await node.start("b", node.make_artifact(2))
    await node.starter.stop("a", "test")
    found = await node.inspector.check(deep=True)
    assert found.findings == ()
    assert (found.blobs, found.unlinked_bytes) == (len(node.store.digests()), 0)
    assert found.size_bytes == sum(node.store.digests().values())


@pytest.mark.unsound_store
async def test_leaks_of_every_kind_are_found(node: Any) -> None:
    artifact = node.make_artifact(1)
    await node.start("a", artifact)
    runtime = node.runtimes.live[0]
    lost = min(runtime.mapped["a"])
    node.store.unpin(runtime.hello.runtime_id, [lost])
    node.store.pin("start-gone", [artifact])
    node.corrupt(max(runtime.mapped["a"]))
    findings = "\n".join((await node.inspector.check(deep=True)).findings)
    assert f"uses {lost} without a hold in the store" in findings
    assert f"start-gone holds {artifact}, and nothing of that name lives" in findings
    assert f"blobs/{max(runtime.mapped['a'])} has bytes of digest" in findings
    node.store.unpin("start-gone", None)


async def test_what_passes_by_itself_is_no_finding(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    await node.start("a", node.make_artifact(1))
    runtime = node.runtimes.live[0]
    declare, looks = runtime.declare, 0

    async def late() -> Declaration:
        nonlocal looks
        looks += 1
        return Declaration(frozenset(), frozenset()) if looks == 1 else await declare()

    monkeypatch.setattr(runtime, "declare", late)
    assert (await node.inspector.check(deep=False)).findings == ()
    assert looks == 2
