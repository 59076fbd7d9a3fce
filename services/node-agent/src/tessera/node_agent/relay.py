"""Carries data frames between TCP and the runtimes' Unix sockets. A small process of its own, so that requests go on while the agent
is away.

It reads one frame, the HELLO, whose target names the runtime; from then on it moves bytes both ways and looks at none of them. A slow
reader on one side pauses reading on the other. It ends on SIGTERM, when its run folder is gone, or when for `orphan_s` there was
neither a connection nor a runtime.

    python -m tessera.node_agent.relay --listen HOST:PORT --run-folder RUN [--orphan-s SECONDS]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
from pathlib import Path
from typing import cast

import uvloop

from tessera.clock import Clock, SystemClock
from tessera.frames.codec import FrameError, encode_goaway, peek_hello
from tessera.frames.heap import keep_freed_memory
from tessera.frames.silence import end_on_silence

INFO_FILE = "relay.json"
HELLO_TIMEOUT_S = 10.0
WATCH_S = 1.0
HIGH_WATER_BYTES = 1 << 20

DOMAIN_FOLDER = "d-"
"""How the folders begin that hold one trust domain's runtimes each; the domain's tag follows."""

_RUNTIME_ID = re.compile(r"[a-z]{1,12}-[a-z0-9]{1,8}-([0-9a-f]{6})-[a-z0-9]{1,20}")


def folder_of(runtime_id: str) -> str | None:
    """The folder, below the run folder, in which a runtime's folder lies: its id says which trust domain it is of. None: that is no
    runtime's id. Nothing else than the id decides: what a domain lays into its own folder misleads nobody."""
    found = _RUNTIME_ID.fullmatch(runtime_id)
    return f"{DOMAIN_FOLDER}{found[1]}" if found is not None else None


class _Side(asyncio.Protocol):
    """One end of a connection; `peer` is the other. An end that closes closes the other once that has written what it holds."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.peer: _Side | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self.transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)

    def data_received(self, data: bytes) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.write(data)

    def pause_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None and not self.peer.transport.is_closing():
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None and not self.peer.transport.is_closing():
            self.peer.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.close()


class _Back(_Side):
    """The runtime's side. One that leaves says that nothing more comes and closes after the gateway, which must read it all first: a
    TCP socket that is closed while the other side still sends takes along what that has not read."""

    def eof_received(self) -> bool:
        front = self.peer.transport if self.peer is not None else None
        if front is None or front.is_closing():
            return False
        with contextlib.suppress(OSError):  # the gateway was quicker
            front.write_eof()
        return True


class _Front(_Side):
    """The TCP side: waits for the HELLO, then opens the runtime's socket."""

    def __init__(self, relay: Relay) -> None:
        super().__init__()
        self._relay = relay
        self._begin = bytearray()
        self._routed = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        end_on_silence(transport.get_extra_info("socket"))
        self._relay.fronts.add(self)
        self._timer = asyncio.get_running_loop().call_later(HELLO_TIMEOUT_S, self.refuse, f"no hello within {HELLO_TIMEOUT_S:.0f} s")

    def data_received(self, data: bytes) -> None:
        if self.peer is not None:
            super().data_received(data)
            return
        self._begin += data
        if self._routed:
            return
        try:
            found = peek_hello(bytes(self._begin))
        except FrameError as error:
            self.refuse(str(error))
            return
        if found is None:
            return
        self._routed = True
        if self._timer is not None:
            self._timer.cancel()
        if self.transport is not None:
            self.transport.pause_reading()  # what follows waits in the kernel until the runtime is reached
        self._relay.open(self, found[0].target)

    def connect(self, back: _Side) -> None:
        """The runtime is reached: sends on what came, then reads again."""
        if self.transport is None or self.transport.is_closing():
            if back.transport is not None:
                back.transport.close()
            return
        self.peer, back.peer = back, self
        assert back.transport is not None
        back.transport.write(bytes(self._begin))
        self._begin.clear()
        self.transport.resume_reading()

    def refuse(self, reason: str) -> None:
        """Says why and closes. Once bytes pass, nothing is said any more: it could fall into the middle of a frame."""
        if self.transport is not None and not self.transport.is_closing():
            if self.peer is None:
                self.transport.write(encode_goaway(reason))
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._relay.fronts.discard(self)
        super().connection_lost(error)


class Relay:
    """All connections of one relay process. Tasks that open a runtime's socket are owned by `group`."""

    def __init__(self, run_folder: Path, group: asyncio.TaskGroup) -> None:
        self._run_folder = run_folder
        self._group = group
        self.fronts: set[_Front] = set()

    def front(self) -> _Front:
        return _Front(self)

    def open(self, front: _Front, target: str) -> None:
        folder = folder_of(target)
        if folder is None:
            front.refuse(f"target {target[:64]!r}: a runtime id is PURPOSE-FLAVOUR-DOMAIN-NUMBER")
            return
        self._group.create_task(self._open(front, folder, target))

    async def _open(self, front: _Front, folder: str, target: str) -> None:
        path = self._run_folder / folder / target / "data.sock"
        try:
            _, back = await asyncio.get_running_loop().create_unix_connection(_Back, str(path))
        except OSError as error:
            front.refuse(f"runtime {target} is not on this node ({error.strerror or type(error).__name__})")
            return
        front.connect(back)

    def close(self) -> None:
        for front in tuple(self.fronts):
            front.refuse("the relay stops")


async def serve(listen: str, run_folder: Path, orphan_s: float, clock: Clock, stop: asyncio.Event) -> None:
    """Runs until `stop`, or until nothing needs it. Writes `INFO_FILE` (pid, address) into the run folder once it listens."""
    host, _, port = listen.rpartition(":")
    info = run_folder / INFO_FILE
    async with asyncio.TaskGroup() as group:
        relay = Relay(run_folder, group)
        server = await asyncio.get_running_loop().create_server(relay.front, host.strip("[]"), int(port))
        bound = server.sockets[0].getsockname()[1]
        partial = run_folder / f"{INFO_FILE}.{os.getpid()}"
        partial.write_text(json.dumps({"pid": os.getpid(), "address": f"{host}:{bound}", "listen": listen}))
        partial.rename(info)
        try:
            await _until_idle(relay, run_folder, orphan_s, clock, stop)
        finally:
            server.close()
            relay.close()
            with contextlib.suppress(OSError):
                if json.loads(info.read_text())["pid"] == os.getpid():
                    info.unlink()


async def _until_idle(relay: Relay, run_folder: Path, orphan_s: float, clock: Clock, stop: asyncio.Event) -> None:
    idle_since = clock.monotonic_s()
    while not stop.is_set():
        try:
            async with asyncio.timeout(WATCH_S):
                await stop.wait()
        except TimeoutError:
            pass
        if not run_folder.is_dir():
            return
        if relay.fronts or any(run_folder.glob(f"{DOMAIN_FOLDER}*/*/data.sock")):
            idle_since = clock.monotonic_s()
        elif clock.monotonic_s() - idle_since >= orphan_s:
            return


async def _main(listen: str, run_folder: Path, orphan_s: float) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await serve(listen, run_folder, orphan_s, SystemClock(), stop)


def main() -> None:
    parser = argparse.ArgumentParser(prog="tessera.node_agent.relay", description="Carries data frames between TCP and runtimes.")
    parser.add_argument("--listen", required=True, metavar="HOST:PORT", help="port 0 takes any; relay.json says which")
    parser.add_argument("--run-folder", required=True, type=Path)
    parser.add_argument("--orphan-s", type=float, default=600.0)
    given = parser.parse_args()
    keep_freed_memory()
    uvloop.run(_main(given.listen, given.run_folder, given.orphan_s))


if __name__ == "__main__":
    main()
