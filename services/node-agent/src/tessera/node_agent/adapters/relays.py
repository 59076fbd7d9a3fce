"""The relay of this node as a process: started when none lives, adopted when one does, stopped with a graceful end."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tessera.clock import Clock
from tessera.domain.errors import FailedPrecondition
from tessera.node_agent.adapters.processes import Watched, log_tail, spawn_detached
from tessera.node_agent.relay import INFO_FILE
from tessera.telemetry import get_logger

START_S = 20.0
END_S = 5.0
POLL_S = 0.02

_log = get_logger(__name__)


class RelayProcess:
    """One relay. `address` is what it listens on, once `ensure` has returned."""

    def __init__(self, listen: str, run_folder: Path, logs: Path, orphan_s: float, clock: Clock) -> None:
        self.address = listen
        self._listen = listen
        self._run = run_folder
        self._log = logs / "relay.log"
        self._orphan_s = orphan_s
        self._clock = clock
        self._watched: Watched | None = None

    @property
    def pid(self) -> int:
        return self._watched.pid if self._watched is not None else 0

    @property
    def alive(self) -> bool:
        return self._watched is not None and self._watched.alive

    async def ensure(self) -> None:
        """Adopts the relay that lives, or starts one.

        Raises:
            FailedPrecondition: it does not start (the address may be in use); says the end of its log.
        """
        if self.alive or self._adopt():
            return
        (self._run / INFO_FILE).unlink(missing_ok=True)
        # The address that others were told stays, also where the first relay was free to choose its port.
        command = [sys.executable, "-m", "tessera.node_agent.relay", "--listen", self.address, "--run-folder", str(self._run)]
        watched = Watched(spawn_detached([*command, "--orphan-s", str(self._orphan_s)], self._log, os.environ))
        deadline_s = self._clock.monotonic_s() + START_S
        try:
            while not self._take(watched):
                if not watched.alive or self._clock.monotonic_s() >= deadline_s:
                    raise FailedPrecondition(f"the relay did not start on {self.address}: {log_tail(self._log) or 'no word from it'}")
                await self._clock.sleep(POLL_S)
        except BaseException:
            await watched.end(END_S)
            raise
        _log.info("relay started", pid=watched.pid, address=self.address)

    async def end(self) -> None:
        if self._watched is not None:
            await self._watched.end(END_S)
        (self._run / INFO_FILE).unlink(missing_ok=True)

    async def leave(self) -> None:
        """It goes on without an agent."""
        if self._watched is not None:
            self._watched.release()

    def _info(self) -> tuple[int, str, str] | None:
        try:
            info = json.loads((self._run / INFO_FILE).read_text())
            return int(info["pid"]), str(info["address"]), str(info["listen"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _take(self, watched: Watched) -> bool:
        info = self._info()
        if info is None or info[0] != watched.pid:
            return False
        self._watched, self.address = watched, info[1]
        return True

    def _is_mine(self, listens: str) -> bool:
        host, _, port = self._listen.rpartition(":")
        return listens == self._listen or (port == "0" and listens.rpartition(":")[0] == host)

    def _adopt(self) -> bool:
        """A pid may be somebody else's by now: it must be a relay of this very run folder."""
        info = self._info()
        if info is None or not self._is_mine(info[2]):
            return False
        try:
            watched = Watched(info[0])
        except (ProcessLookupError, PermissionError):
            return False
        try:
            words = Path(f"/proc/{info[0]}/cmdline").read_bytes().split(b"\0")
        except OSError:
            words = []
        if b"tessera.node_agent.relay" not in words or os.fsencode(self._run) not in words:
            watched.release()
            return False
        _log.info("relay adopted", pid=info[0], address=info[1])
        return self._take(watched)
