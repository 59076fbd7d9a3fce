"""`tessera up | down | doctor | config show`: the embedded platform."""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tessera.cli.embedded import control
from tessera.cli.embedded import state as platform
from tessera.cli.embedded.doctor import examine
from tessera.cli.embedded.effective import effective_settings
from tessera.cli.embedded.layout import DEFAULT_PORT_BASE, Layout, default_state_folder
from tessera.cli.output import EXIT_FAILED, Format, OutputOption, exit_codes, note, show
from tessera.clock import SystemClock
from tessera.domain.errors import InvalidInput
from tessera.domain.ids import DEFAULT_TRUST_DOMAIN

StateOption = Annotated[
    Path | None, typer.Option("--state", help="the platform's folder (default: TESSERA_STATE, else the user's state home)")
]

config = typer.Typer(no_args_is_help=True, help="The configuration that the embedded platform runs with.")

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def _bytes(text: str) -> int:
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].upper() in _UNITS else (text, "")
    try:
        value = int(float(number) * _UNITS.get(unit, 1))
    except ValueError:
        raise InvalidInput("--store", text, "must be a number of bytes, or one with K, M or G") from None
    if value < 64 << 20:
        raise InvalidInput("--store", text, "must be at least 64M")
    return value


def _folder(state: Path | None) -> Path:
    return state.expanduser().resolve() if state is not None else default_state_folder()


def _say_running(found: platform.PlatformState, state: Path) -> None:
    layout = found.layout(state)
    for line in layout.doors.splitlines():
        note(line)
    note(f"state in {state}; come back down with: {layout.down_command}")


def up(
    detach: Annotated[bool, typer.Option("--detach", "-d", help="return when it runs; it goes on in the background")] = False,
    state: StateOption = None,
    port_base: Annotated[
        int, typer.Option("--port-base", help="8001 gRPC, 8002 metrics, 8003 admin, and so on from here")
    ] = DEFAULT_PORT_BASE,
    nodes: Annotated[int, typer.Option("--nodes", help="node agents on this machine")] = 1,
    more_nodes: Annotated[int, typer.Option("--more-nodes", help="nodes that may be added while the load asks for them")] = 0,
    store: Annotated[str, typer.Option("--store", help="budget of each node's tensor store, for each trust domain")] = "4G",
    sharing: Annotated[
        bool, typer.Option("--sharing/--no-sharing", help="share weights between instances (off: for fair baselines)")
    ] = True,
    otlp_endpoint: Annotated[str, typer.Option("--otlp-endpoint", help="send traces there (host:port, OTLP over gRPC)")] = "",
    trust_domain: Annotated[
        list[str] | None,
        typer.Option(
            "--trust-domain", help="a trust domain that it serves (may be given several times; the second one's ports are 100 up)"
        ),
    ] = None,
) -> None:
    """Bring a whole platform up on this machine: etcd, the five services, runtimes as processes."""
    with exit_codes():
        domains = tuple(trust_domain or [DEFAULT_TRUST_DOMAIN])
        wanted = Layout(_folder(state), port_base, nodes, _bytes(store), sharing, otlp_endpoint, domains=domains, more_nodes=more_nodes)
        layout = control.layout_for(wanted)
        running = platform.running(layout.state) if layout.state.is_dir() else None
        if running is not None:
            note(f"a platform runs here already ({running.status}, pid {running.supervisor.pid})")
            _say_running(running, layout.state)
            return
        if detach:
            found = asyncio.run(control.up_detached(layout, SystemClock()))
            _say_running(found, layout.state)
            return
        control.check_can_start(layout)
        platform.prepare(layout)
        note(f"starting; Ctrl-C takes it down (gRPC will be on {layout.endpoint}, logs in {layout.logs})")
    command = control.supervisor_command(layout)
    os.execv(command[0], command)


def down(state: StateOption = None) -> None:
    """Take the platform down and say what is left of it (nothing, if all is well)."""
    with exit_codes():
        found = asyncio.run(control.down(_folder(state), SystemClock()))
        for line in found.left:
            note(f"left behind: {line}")
        if not found.leases_examined:
            note("leases were not examined: etcd had ended or did not answer")
        if found.left:
            raise typer.Exit(EXIT_FAILED)
        note(f"down; no process, {'socket, lease' if found.leases_examined else 'socket'} or tmpfs file is left")


def doctor(state: StateOption = None, output: OutputOption = Format.TABLE) -> None:
    """Examine this machine: what Tessera can use here, and what to mend."""
    with exit_codes():
        findings = examine(platform.known_layout(_folder(state)))
        show([asdict(finding) for finding in findings], output, columns=("check", "status", "detail"), name=lambda item: item["check"])
        if any(finding.status == "fail" for finding in findings):
            raise typer.Exit(EXIT_FAILED)


@config.command("show")
def config_show(state: StateOption = None, output: OutputOption = Format.YAML) -> None:
    """What every process of the platform runs with: its configuration file, defaults and `TESSERA_` variables."""
    with exit_codes():
        data = effective_settings(_folder(state))
        rows = [
            {"process": name, "setting": key, "value": str(value)} for name, settings in data.items() for key, value in settings.items()
        ]
        show(data, output, rows=rows, columns=("process", "setting", "value"), name="\n".join)


def register(app: typer.Typer) -> None:
    app.command()(up)
    app.command()(down)
    app.command()(doctor)
    app.add_typer(config, name="config")
