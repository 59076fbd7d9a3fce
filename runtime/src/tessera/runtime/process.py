"""A runtime's life after the fork: sockets, loop, end (docs/states/runtime.md)."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import resource
import shutil
import signal
from collections.abc import Callable

import uvloop

from tessera.clock import Clock, SystemClock
from tessera.frames.server import FrameServer
from tessera.runtime.manager import InstanceManager, RuntimeConfig
from tessera.runtime.server import ControlServer

_log = logging.getLogger(__name__)

TERMINATE_DRAIN_S = 5.0
_DESCRIPTORS = 4096
"""Places for open files that a runtime begins with: every mapped blob keeps one."""


def run(config: RuntimeConfig, ready: Callable[[], None]) -> None:
    """Serves until `shutdown`, SIGTERM, or until no agent was connected for `orphan_s`. `ready` is called when both sockets listen.

    The run folder of the runtime is removed at the end.
    """
    make_room_for_descriptors()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(config, SystemClock(), ready))
    finally:
        shutil.rmtree(config.folder, ignore_errors=True)


def make_room_for_descriptors() -> None:
    """Lifts the limit of open files as far as is allowed, and grows the kernel's table of them while this process has one thread: with
    more the kernel waits for all processors at every growth, 10 ms in the middle of mapping a model of 50 tensors.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    last = _DESCRIPTORS - 1 if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard) - 1
    source = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if source < last:
            os.close(os.dup2(source, last, inheritable=False))
    finally:
        os.close(source)


class _End:
    """Why and how a runtime ends; the first reason counts."""

    def __init__(self, orphan_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._orphan_s = orphan_s
        self._timer: asyncio.TimerHandle | None = None
        self._wanted = asyncio.Event()
        self.drain_s = 0.0
        self.watch(0)

    def stop(self, drain_s: float) -> None:
        if not self._wanted.is_set():
            self.drain_s = drain_s
            self._wanted.set()

    def watch(self, connections: int) -> None:
        """Hears how many agents are connected."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if connections == 0:
            self._timer = self._loop.call_later(self._orphan_s, self._orphaned)

    def _orphaned(self) -> None:
        _log.warning("no agent was connected for %s s: ending", self._orphan_s)
        self.stop(TERMINATE_DRAIN_S)

    async def wait(self) -> None:
        await self._wanted.wait()


async def _serve(config: RuntimeConfig, clock: Clock, ready: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    end = _End(config.orphan_s)
    loop.add_signal_handler(signal.SIGTERM, end.stop, TERMINATE_DRAIN_S)
    config.folder.mkdir(mode=0o700, exist_ok=True)  # there already, when the zygote was quicker
    manager = InstanceManager(config, clock)
    started = manager.start()
    data = await FrameServer.serve_unix(str(config.folder / "data.sock"), manager.infer, target=config.runtime_id)
    control = ControlServer(manager, end.watch, end.stop, clock)
    await control.start(config.folder / "control.sock")
    ready()
    _write_info(config, clock)
    await started
    await manager.warm()
    gc.collect()
    gc.freeze()  # a full collection over an imported backend takes 50-70 ms, and would come in the middle of a request
    await end.wait()
    await data.close(end.drain_s)
    await manager.close(end.drain_s)
    control.close()


def _write_info(config: RuntimeConfig, clock: Clock) -> None:
    info = {
        "runtime_id": config.runtime_id,
        "pid": os.getpid(),
        "flavour": config.flavour,
        "trust_domain": config.trust_domain,
        "threads": config.threads,
        "started_unix_s": clock.wall_s(),
    }
    path = config.folder / "info.json"
    partial = path.with_suffix(".new")
    partial.write_text(json.dumps(info))
    partial.replace(path)
