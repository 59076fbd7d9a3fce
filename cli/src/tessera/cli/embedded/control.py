"""Bringing an embedded platform up and down from the command line."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import socket
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from tessera.cli.embedded import state as platform
from tessera.cli.embedded.layout import HOST, Layout
from tessera.cli.embedded.leftovers import clear_files, leases_left, leftovers, processes_of
from tessera.cli.embedded.room import check_stores_fit
from tessera.clock import Clock
from tessera.domain.errors import DeadlineExceeded, FailedPrecondition, Unavailable
from tessera.program import ChildProcess

UP_TIMEOUT_S = 120.0
DOWN_TIMEOUT_S = 90.0
SIGNAL_TIMEOUT_S = 15.0
INSTALL_HINT = "a platform on this machine needs: pip install 'tessera-cli[platform]'"


@dataclass(frozen=True)
class Down:
    """`left`: what is left of the platform, in words. `leases_examined`: whether etcd could still be asked for keys under leases."""

    left: list[str]
    leases_examined: bool


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
    words += ["--run-folder", str(layout.run), *([] if layout.sharing else ["--no-sharing"])]
    words += [word for name in layout.domains for word in ("--trust-domain", name)]
    words += ["--more-nodes", str(layout.more_nodes)]
    return words + (["--otlp-endpoint", layout.otlp_endpoint] if layout.otlp_endpoint else [])


def layout_for(layout: Layout) -> Layout:
    """The layout to start with: on the run folder that an earlier platform left, if it did, so that its store is taken over."""
    recorded = platform.load(layout.state) if layout.state.is_dir() else None
    if recorded is None:
        return layout
    run = Path(recorded.run_folder)
    try:
        ours = run.lstat().st_uid == os.geteuid()
    except OSError:
        ours = False
    return replace(layout, run_folder=run) if ours else layout


def missing_services(layout: Layout) -> list[str]:
    """The modules of services that are not installed beside this command."""
    modules = dict.fromkeys(module for module, _ in layout.services().values())
    return [module for module in modules if importlib.util.find_spec(module) is None]


def check_can_start(layout: Layout) -> None:
    """Raises: FailedPrecondition: services are missing, ports taken, memory too small, or an earlier platform's processes still run."""
    missing = missing_services(layout)
    if missing:
        raise FailedPrecondition(f"not installed: {', '.join(missing)}; {INSTALL_HINT}")
    strays = processes_of(layout)
    if strays:
        shown = ", ".join(f"{process.pid} ({process.info['cmdline'][2:4]})" for process in strays[:5])
        raise FailedPrecondition(f"processes of an earlier platform still run: {shown}; 'tessera down' ends them")
    taken = ports_in_use(layout)
    if taken:
        raise FailedPrecondition(f"ports in use: {', '.join(taken)}; choose others with --port-base")
    check_stores_fit(layout)


async def up_detached(layout: Layout, clock: Clock) -> platform.PlatformState:
    """Starts a supervisor of its own session and waits until the platform runs.

    Raises:
        FailedPrecondition: when it failed, with its words. DeadlineExceeded: when it is not up in time.
    """
    check_can_start(layout)  # before any folder is made: a refusal leaves nothing
    platform.prepare(layout)
    log = layout.logs / "supervisor.log"
    with log.open("ab") as file:
        process = ChildProcess(supervisor_command(layout), stderr=file, cwd=Path("/"))
    deadline = clock.monotonic_s() + UP_TIMEOUT_S
    while clock.monotonic_s() < deadline:
        found = platform.load(layout.state)
        if found is not None and found.supervisor.pid != process.pid:
            found = None  # the record of an earlier one
        if found is not None and found.status == "running":
            return found
        if process.returncode is not None:
            detail = found.detail if found is not None and found.detail else log.read_text(errors="replace")[-800:]
            raise FailedPrecondition(f"the platform did not come up: {detail}")
        await clock.sleep(0.1)
    raise DeadlineExceeded(f"the platform is not up after {UP_TIMEOUT_S:.0f} s; see {layout.logs}")


async def down(state: Path, clock: Clock) -> Down:
    """Takes the platform of a state folder down.

    Raises:
        Unavailable: when nothing runs there. DeadlineExceeded: when the supervisor does not end in time.
    """
    recorded = platform.load(state) if state.is_dir() else None
    layout = recorded.layout(state) if recorded is not None else Layout(state)
    process = recorded.supervisor.alive() if recorded is not None else None
    if recorded is None or (process is None and not leftovers(layout)):
        raise Unavailable(f"nothing runs on {state}")
    if process is None:
        leases = await _sweep(layout, clock)
    else:
        process.send_signal(signal.SIGTERM)
        deadline = clock.monotonic_s() + DOWN_TIMEOUT_S
        while recorded.supervisor.alive():
            if clock.monotonic_s() > deadline:
                raise DeadlineExceeded(f"the supervisor (pid {process.pid}) still runs after {DOWN_TIMEOUT_S:.0f} s")
            await clock.sleep(0.05)
        after = platform.load(state)
        leases = after.leases if after is not None else None
    found = [f"key under a lease: {key}" for key in leases or []]
    return Down([*found, *leftovers(layout)], leases is not None)


async def _sweep(layout: Layout, clock: Clock) -> list[str] | None:
    """Ends what a killed supervisor left: services first so that they stop what they own, then everything, then files and mounts.

    Returns the keys that still hung on a lease before etcd went; None when etcd did not answer.
    """
    found = processes_of(layout)
    services = [process for process in found if any(str(layout.config) in word for word in process.info["cmdline"])]
    await _end(services, signal.SIGTERM, clock)
    etcd_lives = any(f"--data-dir={layout.etcd_data}" in process.info["cmdline"] for process in found)
    # Without ours, another platform's etcd may answer on its port.
    leases = await leases_left(layout.etcd_address) if etcd_lives else None
    for sign in (signal.SIGTERM, signal.SIGKILL):
        await _end(processes_of(layout), sign, clock)
    await asyncio.to_thread(clear_files, layout)
    return leases


async def _end(processes: list[psutil.Process], sign: signal.Signals, clock: Clock) -> None:
    for process in processes:
        try:
            process.send_signal(sign)
        except psutil.NoSuchProcess:
            continue
    deadline = clock.monotonic_s() + SIGNAL_TIMEOUT_S
    while any(_lives(process) for process in processes) and clock.monotonic_s() < deadline:
        await clock.sleep(0.05)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
