"""One process of the platform, and when it is started again after it ended."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from tessera.clock import Clock
from tessera.program import ChildProcess

BACK_OFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)
STEADY_S = 30.0
"""A process that ran this long starts again with the shortest back-off, and so do its next failures."""


@dataclass
class BackOff:
    """How long to wait before each start; `quick_ends` counts the ends in a row that came before the process was steady."""

    quick_ends: int = 0

    def after(self, ran_s: float) -> float:
        """Seconds to wait after a run of `ran_s`."""
        if ran_s > STEADY_S:
            self.quick_ends = 0
        wait_s = BACK_OFF_S[min(self.quick_ends, len(BACK_OFF_S) - 1)]
        self.quick_ends += 1
        return wait_s


@dataclass
class Child:
    """`restarts` counts how often it was started again, over the whole life of the platform."""

    name: str
    command: list[str]
    log: Path
    process: ChildProcess | None = None
    started_unix_s: float = 0.0
    restarts: int = 0

    def start(self) -> None:
        """Raises: OSError: it cannot be started now (no memory, no process, no program)."""
        with self.log.open("ab") as log:
            # gRPC's core writes lines of its own, such as of peers that went away; the services log what matters.
            self.process = ChildProcess(self.command, stderr=log, env={"GRPC_VERBOSITY": "ERROR", **os.environ})
        try:
            self.started_unix_s = psutil.Process(self.process.pid).create_time()
        except psutil.NoSuchProcess:
            self.started_unix_s = 0.0

    async def wait(self) -> int:
        assert self.process is not None
        return await self.process.wait()

    def last_words(self) -> str:
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return "\n".join(lines[-5:])

    async def stop(self, timeout_s: float) -> None:
        if self.process is None or self.process.returncode is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(timeout_s):
                await self.process.wait()
        except TimeoutError:
            self.process.kill_group()


async def keep(child: Child, clock: Clock, restarted: Callable[[], None], say: Callable[[str], None]) -> None:
    """Starts a child that runs again whenever it ends, until cancelled. A start that fails counts as an end like any other.

    `restarted` is called after each new start; `say` gets a line for each end.
    """
    back_off = BackOff()
    while True:
        begun_s = clock.monotonic_s()
        ended = f"ended with {await child.wait()}"
        while True:
            wait_s = back_off.after(clock.monotonic_s() - begun_s)
            say(f"{child.name} {ended}; starting it again in {wait_s} s")
            await clock.sleep(wait_s)
            begun_s = clock.monotonic_s()
            try:
                child.start()
            except OSError as error:
                ended = f"could not be started: {error}"
                continue
            break
        child.restarts += 1
        restarted()
