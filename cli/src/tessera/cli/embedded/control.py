"""Bringing an embedded platform up and down from the command line."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil

from tessera.cli.embedded import state as platform
from tessera.cli.embedded.layout import HOST, Layout
from tessera.cli.embedded.leftovers import leftovers, processes_of
from tessera.clock import Clock
from tessera.domain.errors import DeadlineExceeded, FailedPrecondition, Unavailable
from tessera.program import ChildProcess

UP_TIMEOUT_S = 120.0
DOWN_TIMEOUT_S = 90.0


def ports_in_use(layout: Layout) -> list[str]:
    """The ports that somebody else holds, in words."""
    found = []
    for port, name in sorted(layout.ports().items()):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                found.append(f"{port} ({name})")
    return found


def supervisor_command(layout: Layout) -> list[str]:
    words = [sys.executable, "-m", "tessera.cli.embedded.supervisor", "--state", str(layout.state)]
    words += ["--port-base", str(layout.port_base), "--nodes", str(layout.nodes), "--store-bytes", str(layout.store_bytes)]
    words += [] if layout.sharing else ["--no-sharing"]
    return words + (["--otlp-endpoint", layout.otlp_endpoint] if layout.otlp_endpoint else [])


def check_can_start(layout: Layout) -> None:
    """Raises: FailedPrecondition: when ports are taken or processes of an earlier platform still run."""
    strays = processes_of(layout)
    if strays:
        shown = ", ".join(f"{process.pid} ({process.info['cmdline'][2:4]})" for process in strays[:5])
        raise FailedPrecondition(f"processes of an earlier platform still run: {shown}; 'tessera down' ends them")
    taken = ports_in_use(layout)
    if taken:
        raise FailedPrecondition(f"ports in use: {', '.join(taken)}; choose others with --port-base")


async def up_detached(layout: Layout, clock: Clock) -> platform.PlatformState:
    """Starts a supervisor of its own session and waits until the platform runs.

    Raises:
        FailedPrecondition: when it failed, with its words. DeadlineExceeded: when it is not up in time.
    """
    check_can_start(layout)  # before any folder is made: a refusal leaves nothing
    platform.prepare(layout)
    (layout.state / platform.FILE).unlink(missing_ok=True)
    log = layout.logs / "supervisor.log"
    with log.open("ab") as file:
        process = ChildProcess(supervisor_command(layout), stderr=file, cwd=Path("/"))
    deadline = clock.monotonic_s() + UP_TIMEOUT_S
    while clock.monotonic_s() < deadline:
        found = platform.load(layout.state)
        if found is not None and found.status == "running":
            return found
        if process.returncode is not None:
            detail = found.detail if found is not None and found.detail else log.read_text(errors="replace")[-800:]
            raise FailedPrecondition(f"the platform did not come up: {detail}")
        await clock.sleep(0.1)
    raise DeadlineExceeded(f"the platform is not up after {UP_TIMEOUT_S:.0f} s; see {layout.logs}")


async def down(layout: Layout, clock: Clock) -> list[str]:
    """Takes the platform of a state folder down; returns what is left of it, in words (empty when it went cleanly).

    Raises:
        Unavailable: when nothing runs there. DeadlineExceeded: when the supervisor does not end in time.
    """
    recorded = platform.load(layout.state)
    process = recorded.supervisor.alive() if recorded is not None else None
    if recorded is None or (process is None and not processes_of(layout) and not layout.run.exists()):
        raise Unavailable(f"nothing runs on {layout.state}")
    if process is not None:
        process.send_signal(signal.SIGTERM)
        deadline = clock.monotonic_s() + DOWN_TIMEOUT_S
        while recorded.supervisor.alive():
            if clock.monotonic_s() > deadline:
                raise DeadlineExceeded(f"the supervisor (pid {process.pid}) still runs after {DOWN_TIMEOUT_S:.0f} s")
            await clock.sleep(0.05)
    else:
        await _sweep(layout, clock)
    after = platform.load(layout.state)
    detail = [after.detail] if after is not None and after.status == "stopped" and after.detail else []
    return [*detail, *leftovers(layout)]


async def _sweep(layout: Layout, clock: Clock) -> None:
    """Ends what a killed supervisor left: services first so that they stop what they own, then everything, then files and mounts."""
    services = [process for process in processes_of(layout) if str(layout.state / "config") in " ".join(process.info["cmdline"])]
    for group, sign in ((services, signal.SIGTERM), (None, signal.SIGTERM), (None, signal.SIGKILL)):
        found = processes_of(layout) if group is None else group
        for process in found:
            try:
                process.send_signal(sign)
            except psutil.NoSuchProcess:
                continue
        deadline = clock.monotonic_s() + 15.0
        while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in found):
            if clock.monotonic_s() > deadline:
                break
            await clock.sleep(0.05)
    await asyncio.to_thread(_clear_files, layout)


def _clear_files(layout: Layout) -> None:
    for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
        target = line.split()[1]
        if target.startswith(str(layout.run)):
            subprocess.run(["umount", target], check=False, capture_output=True)
    for folder in Path("/dev/shm").glob(f"tessera-*{layout.run.name.removeprefix('tessera-')}*"):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(layout.run, ignore_errors=True)
