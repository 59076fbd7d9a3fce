"""Start paths: the same calls for all, what published systems may do, and what is made of what was seen."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from benchmarks import published
from benchmarks.arrivals import Arrival
from benchmarks.published import SYSTEMS, Known, Node
from benchmarks.report import Report
from benchmarks.startcells import MOST_PER_S, PATIENCE_S, Call, Cell, _compressed, schedules, sent
from benchmarks.startmodels import MODELS
from benchmarks.startpaths import LEAST_STARTS, NAMES, PLAIN, goals, regret_row, summed_up, true_ms
from benchmarks.traces import generated, thinned
from tessera.domain.artifact import Blob
from tessera.domain.errors import ResourceExhausted
from tessera.domain.ids import Digest
from tessera.policy.transform.structure import Structure
from tessera.testing import run_virtual

MIB = 1 << 20
EMPTY = Structure((), (), (), ())


def known() -> dict[str, Known]:
    """Of 100 MiB each, of which siblings share 90."""
    found = {}
    for at, model in enumerate(MODELS[:6]):
        trunk, own = Blob(Digest(f"{model.architecture.name:>064}"), 90 * MIB), Blob(Digest(f"{at:064x}"), 10 * MIB)
        found[model.name] = Known(model, trunk.digest, (trunk, own), EMPTY)
    return found


class Process:
    """In place of a container: every command takes a second, and is written down."""

    made: list[Process] = []

    def __init__(self) -> None:
        self.did: list[str] = []
        self.process = self
        self.pid = len(Process.made)
        Process.made.append(self)

    @classmethod
    async def spawned(cls, libraries: str, made: list[Process]) -> Process:
        await asyncio.sleep(1)
        made.append(cls())
        return made[-1]

    async def do(self, what: str, **given: str) -> bool:
        await asyncio.sleep(1)
        self.did.append(f"{what} {given['name']}")
        return True

    async def end(self) -> None:
        self.did.append("end")


class Plans:
    def ms(self, source: Known, target: Known) -> float:
        return 10.0 if source.graph == target.graph else 900.0

    def delta(self, source: Known, target: Known) -> bytes:
        return b""


def at_work(name: str, monkeypatch: pytest.MonkeyPatch, budget_mib: int, *calls: tuple[str, float]) -> list[str]:
    """What became of calls, each so many seconds after the one before."""
    monkeypatch.setattr(published, "Runtime", Process)
    Process.made = []
    (system,) = [one for one in SYSTEMS if one.name == name]
    now = [0.0]
    paths = []

    async def main() -> None:
        node = Node(system, known(), Plans(), budget_mib * MIB, 100.0, 5.0, now_s=lambda: now[0])  # type: ignore[arg-type]
        await node.open()
        for model, after_s in calls:
            now[0] += after_s
            path, right = await node.call(model)
            await asyncio.gather(*node._behind)
            assert right
            paths.append(path)
        await node.close()

    run_virtual(main)
    return paths


def test_a_new_process_for_everything_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = at_work(
        "always-fresh", monkeypatch, 200, ("resnet18", 0), ("resnet18", 1), ("resnet18-1", 1), ("resnet18-2", 1), ("resnet18", 1)
    )
    assert paths == ["fresh", "warm", "fresh", "fresh", "fresh"]
    assert Process.made[0].did == ["load resnet18", "run resnet18", "run resnet18", "end"], (
        "the one that was idle for the longest made room"
    )


def test_an_idle_runtime_is_taken_once_it_has_been_idle_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = at_work("pagurus", monkeypatch, 600, ("resnet18", 0), ("resnet18-1", 1), ("mobilenetv2_w1", 6))
    assert paths == ["fresh", "fresh", "reused"]
    assert Process.made[0].did[-4:] == ["drop resnet18", "load mobilenetv2_w1", "run mobilenetv2_w1", "end"]


@pytest.mark.parametrize("name", ["pagurus", "optimus"])
def test_the_runtime_of_a_model_that_makes_room_is_reused_however_short_its_idleness(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = at_work(name, monkeypatch, 100, ("resnet18", 0), ("mobilenetv2_w1", 1), ("resnet18", 1))
    assert paths == ["fresh", "reused", "reused"]
    (process,) = Process.made
    assert [did.split()[0] for did in process.did if "flatten" not in did] == [*["load", "run", "drop"] * 2, "load", "run", "end"]


def test_a_model_that_is_called_while_another_one_expires_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "Runtime", Process)
    Process.made = []
    (system,) = [one for one in SYSTEMS if one.name == "always-fresh"]
    now = [0.0]

    async def end(self: Process) -> None:
        await asyncio.sleep(1)
        self.did.append("end")

    async def main() -> None:
        node = Node(system, known(), Plans(), 600 * MIB, 100.0, 5.0, now_s=lambda: now[0])  # type: ignore[arg-type]
        await node.open()
        for model in ("resnet18", "resnet18-1"):
            await node.call(model)
        monkeypatch.setattr(Process, "end", end)
        now[0] += 101.0
        third = asyncio.create_task(node.call("mobilenetv2_w1"))
        await asyncio.sleep(0.5)
        assert await node.call("resnet18-1") == ("warm", True)
        await third
        await node.close()

    run_virtual(main)
    assert Process.made[1].did == ["load resnet18-1", "run resnet18-1", "run resnet18-1", "end"]


def test_who_is_refused_waited_to_the_end() -> None:
    async def refusing(name: str) -> tuple[str, bool, str]:
        if name == MODELS[0].name:
            raise ResourceExhausted("no room")
        return "warm", True, ""

    async def main() -> None:
        calls = await sent([Arrival(0.0, 0), Arrival(0.1, 1), Arrival(0.3, 0)], refusing)
        assert calls[0].error == "resource_exhausted: no room"
        assert calls[0].ms == pytest.approx(1e3 * (0.3 + PATIENCE_S))
        assert calls[2].ms == pytest.approx(1e3 * PATIENCE_S), "as who never had an answer"
        assert calls[1].ms < 300.0

    asyncio.run(main())


def test_the_cheapest_donor_unless_loading_is_cheaper(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = at_work("optimus", monkeypatch, 600, ("resnet18", 0), ("mobilenetv2_w1", 1), ("resnet18-1", 6), ("mobilenetv2_w1-1", 0))
    assert paths == ["fresh", "fresh", "transformed", "transformed"]
    paths = at_work("optimus", monkeypatch, 600, ("resnet18", 0), ("mobilenetv2_w1", 6))
    assert paths == ["fresh", "reused"], "the published safeguard"


def test_shared_weights_count_once_where_they_are_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = (("resnet18", 0.0), ("resnet18-1", 1.0), ("resnet18-2", 1.0), ("resnet18", 1.0))
    assert at_work("tetris", monkeypatch, 120, *calls) == ["mapped", "mapped", "mapped", "warm"]
    assert at_work("tetris", monkeypatch, 119, *calls) == ["mapped"] * 4


def test_what_is_kept_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    assert at_work("tetris", monkeypatch, 600, ("resnet18", 0), ("resnet18-1", 101), ("resnet18", 0)) == ["mapped"] * 3


def test_calls_are_the_same_for_all_and_no_more_than_five_a_second() -> None:
    first, second = (_compressed(thinned(generated(200, 4.0, 3), len(MODELS)), 120.0) for _ in range(2))
    assert first == second
    assert first
    seconds = [int(arrival.at_s) for arrival in first]
    assert max(seconds.count(second) for second in set(seconds)) <= MOST_PER_S
    assert all(0 <= arrival.at_s < 120.0 and arrival.form < len(MODELS) for arrival in first)
    rates = {name: len(found) / 600.0 for name, found in schedules(60.0, 600.0).items() if name.startswith("poisson")}
    assert list(rates.values()) == pytest.approx([0.5, 1.5, 5.0], rel=0.2)


def test_a_cell_is_read_as_it_was_kept(tmp_path: Path) -> None:
    cell = Cell([Call("resnet18", 0.5, 12.0, "bind", True, "", "r", [("bind", 5.0, True)], 6.0)], 100.0)
    cell.kept(tmp_path / "a" / "cell.json")
    assert Cell.of(tmp_path / "a" / "cell.json") == cell


def started(path: str, ms: float) -> Call:
    return Call("resnet18", 0.0, ms, path, True, "", "r", [("bind", 1.0, path == "bind"), ("transform", 1.0, path == "transform")], ms)


def test_regret_is_what_the_best_of_those_offered_would_have_saved() -> None:
    calls = [started(path, ms + at) for path, ms in (("bind", 10.0), ("transform", 4.0)) for at in range(LEAST_STARTS)]
    calls += calls[:1] * 3  # who waited for the first one, too
    report = Report("startpaths")
    regret_row(
        report,
        "trace",
        [*calls, Call("resnet34", 0.0, 9.0, "bind", True, "", "r", [("bind", 1.0, True)], 9.0)],
        true_ms([Cell(calls, 0.0)]),
    )
    (row,) = report.rows
    assert (row["calls"], row["mean_ms"]) == (2 * LEAST_STARTS, 3.0)
    assert row["paths"].startswith("1 more starts")


def test_goals_compare_call_by_call() -> None:
    cells = {name: Cell([Call("resnet18", 0.0, ms, "bind", True) for ms in took], 0.0) for name, took in {
        "always-fresh": (100.0, 300.0), "pagurus": (50.0, 50.0), "tetris": (20.0, 20.0), "optimus": (20.0, 20.0), PLAIN: (11.0, 9.0),
        "tessera": (12.0, 8.0)}.items()}  # fmt: skip
    report = Report("startpaths")
    goals(report, "t", cells)
    assert {key: (goal["value"], goal["met"]) for key, goal in report.goals.items()} == {
        "vs_always-fresh.t": (-0.95, True), "vs_pagurus.t": (-0.8, True), "vs_tetris.t": (-0.5, True), "vs_optimus.t": (-0.5, True),
        "vs_tetris_on_ours.t": (0.0, True),
    }  # fmt: skip


def test_the_table_says_that_nothing_is_implemented_on_cuda() -> None:
    """Whatever machine it is made on: that a device is missing is not the reason."""
    took = {name: Cell([Call("resnet18", 0.0, 1.0, "bind", True)], 0.0) for name in NAMES}
    report = Report("startpaths")
    summed_up(report, {"t": took})
    assert [row["system"] for row in report.rows] == [*NAMES, "CUDA"]
    assert "nothing is implemented on CUDA" in report.rows[-1]["paths"]
