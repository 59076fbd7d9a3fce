"""Keeps the platform's processes running: starts them in order, restarts with back-off what ends, takes all down in reverse.

Runs as a process of its own (`python -m tessera.cli.embedded.supervisor`), in the foreground for `tessera up`, detached for
`tessera up --detach`. It does not look into the services: ready means that gRPC health says SERVING.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path

import psutil
import yaml

from tessera.cli.embedded import state as platform
from tessera.cli.embedded.child import Child, keep
from tessera.cli.embedded.health import serving
from tessera.cli.embedded.layout import GATEWAY, Layout
from tessera.cli.embedded.leftovers import end_added, leases_left
from tessera.cli.output import note
from tessera.clock import Clock, SystemClock
from tessera.coord.binary import etcd_command, find_etcd
from tessera.domain.errors import FailedPrecondition, TesseraError, Unavailable
from tessera.program import Stop, run

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0


class Supervisor:
    """Owns the children of one platform. `layout` is checked; `clock` is for waits and back-off."""

    def __init__(self, layout: Layout, clock: Clock) -> None:
        self._layout = layout
        self._clock = clock
        self._children: list[Child] = []
        self._status = "starting"
        self._detail = ""
        self._leases: list[str] | None = None
        me = psutil.Process()
        self._me = platform.ProcessState("supervisor", me.pid, me.create_time())

    def _record(self, status: str | None = None, detail: str = "") -> None:
        if status is not None:
            self._status, self._detail = status, detail
        state = platform.PlatformState.of(self._layout, self._status, self._me)
        state.detail, state.leases = self._detail, self._leases
        state.processes = [
            platform.ProcessState(child.name, child.process.pid, child.started_unix_s, child.restarts)
            for child in self._children
            if child.process is not None
        ]
        state.save(self._layout.state)

    def _restarted(self) -> None:
        try:
            self._record()
        except OSError as error:  # a full disk must not end what serves; the next change is recorded again
            note(f"platform.json cannot be written: {error}")

    def _etcd(self) -> Child:
        layout = self._layout
        command = etcd_command(find_etcd(), layout.etcd_data, layout.etcd_client_port, layout.etcd_peer_port)
        return Child("etcd", command, layout.logs / "etcd.log")

    def _services(self) -> list[Child]:
        layout = self._layout
        children = []
        for name, (module, settings) in layout.services().items():
            (layout.config / f"{name}.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
            children.append(Child(name, layout.command(name, module), layout.logs / f"{name}.log"))
        return children

    async def _start(self, child: Child, address: str, *, health: bool = True) -> None:
        """Starts one and waits until it answers.

        Raises:
            Unavailable: it cannot be started, ends or stays silent; with the process's last words.
        """
        try:
            child.start()
        except OSError as error:
            raise Unavailable(f"{child.name} cannot be started: {error}") from error
        self._children.append(child)
        self._record()
        deadline = self._clock.monotonic_s() + START_TIMEOUT_S
        while not await serving(address, health=health):
            assert child.process is not None
            if child.process.returncode is not None:
                raise Unavailable(f"{child.name} ended with {child.process.returncode}:\n{child.last_words()}")
            if self._clock.monotonic_s() > deadline:
                raise Unavailable(f"{child.name} does not answer on {address} after {START_TIMEOUT_S:.0f} s:\n{child.last_words()}")
            await self._clock.sleep(0.05)

    async def start(self) -> None:
        """Everything up, in order: etcd, then the services side by side, the gateways last."""
        layout = self._layout
        await self._start(self._etcd(), layout.etcd_address, health=False)
        services = self._services()
        addresses = {name: str(settings["address"]) for name, (_, settings) in layout.services().items()}
        gateways = [child for child in services if child.name.startswith(GATEWAY)]
        for group_of in ([child for child in services if child not in gateways], gateways):
            async with asyncio.TaskGroup() as group:
                for child in group_of:
                    group.create_task(self._start(child, addresses[child.name]))
        self._record("running")

    async def keep(self, stop: Stop) -> None:
        """Restarts what ends until `stop` is asked for."""
        async with asyncio.TaskGroup() as group:
            keepers = [group.create_task(keep(child, self._clock, self._restarted, note)) for child in self._children]
            await stop.wait()
            self._record("stopping")
            for keeper in keepers:
                keeper.cancel()

    async def stop(self) -> None:
        """Takes everything down: the gateways first (they drain), etcd last; notes which leases were still there before etcd went."""
        self._status = "stopping"
        by_name = {child.name: child for child in self._children}
        etcd = by_name.pop("etcd", None)
        gateways = [child for name, child in by_name.items() if name.startswith(GATEWAY)]
        agents = [child for name, child in by_name.items() if name.startswith("node-agent")]
        others = [child for child in by_name.values() if child not in agents and child not in gateways]
        for group_of in (gateways, agents, others):
            async with asyncio.TaskGroup() as group:
                for child in group_of:
                    group.create_task(child.stop(STOP_TIMEOUT_S))
        if self._layout.more_nodes:
            # Now that no scheduler is left that would add another one.
            await end_added(self._layout, self._clock, STOP_TIMEOUT_S)
        if etcd is not None and etcd.process is not None and etcd.process.returncode is None:
            self._leases = await leases_left(self._layout.etcd_address)
            await etcd.stop(STOP_TIMEOUT_S)
        self._children.clear()
        for folder in sorted(self._layout.run.rglob("*"), reverse=True):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        if self._layout.run.is_dir() and not any(self._layout.run.iterdir()):
            self._layout.run.rmdir()
        self._record("stopped")


async def supervise(layout: Layout, stop: Stop) -> None:
    """One platform from up to down.

    Raises:
        FailedPrecondition, Unavailable: when it does not come up; everything that did start is stopped before.
    """
    platform.prepare(layout)
    with platform.locked(layout):
        supervisor = Supervisor(layout, SystemClock())
        try:
            await supervisor.start()
            note(f"up: {layout.doors}")
            note(f"come back down with Ctrl-C here, or anywhere with: {layout.down_command}")
            await supervisor.keep(stop)
        except* TesseraError as group:
            first = group.exceptions[0]
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            supervisor._record("failed", str(first))
            raise FailedPrecondition(str(first)) from first
        finally:
            failed = supervisor._status == "failed"
            detail = supervisor._detail
            await supervisor.stop()
            if failed:
                supervisor._record("failed", detail)
        note("down")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--port-base", type=int, required=True)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--store-bytes", type=int, required=True)
    parser.add_argument("--no-sharing", action="store_true")
    parser.add_argument("--otlp-endpoint", default="")
    parser.add_argument("--run-folder", type=Path, required=True)
    parser.add_argument("--more-nodes", type=int, default=0)
    parser.add_argument("--trust-domain", action="append", required=True)
    given = parser.parse_args()
    os.umask(0o077)
    sharing = not given.no_sharing
    domains = tuple(given.trust_domain)
    layout = Layout(
        given.state,
        given.port_base,
        given.nodes,
        given.store_bytes,
        sharing,
        given.otlp_endpoint,
        given.run_folder,
        domains,
        given.more_nodes,
    )

    async def body(stop: Stop) -> None:
        await supervise(layout, stop)

    run(body)


if __name__ == "__main__":
    main()
