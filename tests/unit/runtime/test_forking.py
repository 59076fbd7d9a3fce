"""A zygote's loop: events that come in an order that hurts, and its end when nobody needs it."""

from __future__ import annotations

import asyncio
import selectors
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tessera.runtime import control, forking
from tessera.runtime.control import ControlDecoder, Message
from tessera.runtime.forking import Zygote, ZygoteConfig
from tessera.testing import VirtualClock

HASTY = Path(__file__).parent / "hasty_zygote.py"


async def test_a_runtime_that_is_reaped_before_its_pipe_is_read_does_not_end_its_zygote(tmp_path: Path) -> None:
    socket, run_folder = tmp_path / "zygote.sock", tmp_path / "not-a-folder"
    run_folder.touch()  # no runtime comes up there
    zygote = await asyncio.create_subprocess_exec(sys.executable, HASTY, socket, run_folder)
    try:
        async with asyncio.timeout(60):
            while not socket.is_socket():
                assert zygote.returncode is None
                await asyncio.sleep(0.01)
            reader, writer = await asyncio.open_unix_connection(socket)
            said = messages(reader)
            for number in (1, 2):
                writer.write(control.encode({"id": number, "op": "fork", "runtime_id": f"r-{number}", "trust_domain": "default"}))
                assert (await anext(said))["error"]["message"] == f"runtime r-{number} ended with 1 before it served"
                assert (await anext(said))["event"] == "exit"
            writer.write(control.encode({"id": 3, "op": "shutdown"}))
            assert await anext(said) == {"id": 3, "ok": {}}
            writer.close()
            assert await zygote.wait() == 0
    finally:
        if zygote.returncode is None:
            zygote.kill()
            await zygote.wait()


async def messages(reader: asyncio.StreamReader) -> AsyncIterator[Message]:
    decoder = ControlDecoder()
    while data := await reader.read(1 << 16):
        for message in decoder.feed(data):
            yield message


Step = Callable[[float | None], float]
"""What happens when a zygote with nothing to do waits so many seconds (None: for ever); returns how many of them pass."""


class Scripted(selectors.DefaultSelector):
    """Where nothing is to be done the next step happens instead of a wait."""

    def __init__(self, clock: VirtualClock, steps: list[Step]) -> None:
        super().__init__()
        self._clock = clock
        self._steps = steps

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        if not found and timeout != 0.0:
            self._clock.move(self._steps.pop(0)(timeout))
        return found


@pytest.fixture
def zygote_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Step]], Path]:
    """Runs a zygote that lives 0.4 s without an agent, to its end; returns its socket's path."""
    deaf = SimpleNamespace(**{name: getattr(signal, name) for name in ("SIGCHLD", "SIGTERM", "SIGINT")})
    deaf.signal = deaf.set_wakeup_fd = lambda *what, **more: None  # this process has signals of its own
    monkeypatch.setattr(forking, "signal", deaf)

    def run(steps: list[Step]) -> Path:
        clock, path = VirtualClock(), tmp_path / "zygote.sock"
        zygote = Zygote(ZygoteConfig("ort", path, tmp_path, tmp_path, orphan_s=0.4), clock)
        zygote._selector = Scripted(clock, steps)
        zygote.run()
        assert steps == []
        return path

    return run


def passes(share: float, of_s: float) -> Step:
    """A part of the time goes by that is left, which is to be `of_s`."""

    def step(timeout: float | None) -> float:
        assert timeout == pytest.approx(of_s)
        return share * of_s

    return step


def test_a_zygote_without_an_agent_ends(zygote_runs: Callable[[list[Step]], Path]) -> None:
    assert not zygote_runs([passes(0.5, 0.4), passes(1.0, 0.2)]).exists()


def test_a_zygote_with_an_agent_stays_and_counts_anew_when_that_is_gone(zygote_runs: Callable[[list[Step]], Path], tmp_path: Path) -> None:
    agent = socket.socket(socket.AF_UNIX)

    def connects(timeout: float | None) -> float:
        assert timeout == pytest.approx(0.2)
        agent.connect(str(tmp_path / "zygote.sock"))
        return 0.2  # at the last moment

    def stays(timeout: float | None) -> float:
        assert timeout is None
        return 1000.0

    def goes(timeout: float | None) -> float:
        assert timeout is None
        agent.close()
        return 1000.0

    assert not zygote_runs([passes(0.5, 0.4), connects, stays, goes, passes(1.0, 0.4)]).exists()


def test_a_zygote_whose_place_another_one_took_leaves_it_that(zygote_runs: Callable[[list[Step]], Path], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:

        def replaced(timeout: float | None) -> float:
            (tmp_path / "zygote.sock").rename(tmp_path / "old.sock")
            other.bind(str(tmp_path / "zygote.sock"))
            return 0.4

        assert zygote_runs([replaced]).is_socket()
