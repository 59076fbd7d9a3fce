"""The settings that the processes of a platform really run with, as each service works them out itself (`--show-config`)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import yaml

from tessera.cli.embedded import state as platform
from tessera.cli.embedded.layout import Layout
from tessera.cli.output import note
from tessera.domain.errors import FailedPrecondition, Unavailable

Settings = dict[str, Any]

_PREFIX = "TESSERA_"
_ANSWER_S = 60.0


def effective_settings(state: Path) -> dict[str, Settings]:
    """Process name to settings, etcd's flags included while it runs.

    Where nothing runs: those of the last start, with this shell's variables instead of the platform's; a line on stderr says so.

    Raises:
        Unavailable: nothing was ever started there. FailedPrecondition: a service refuses its settings; with its words.
    """
    recorded = platform.load(state) if state.is_dir() else None
    if recorded is None:
        raise Unavailable(f"no platform was ever started on {state}")
    layout, supervisor = recorded.layout(state), recorded.supervisor.alive()
    if supervisor is None:
        note("nothing runs: the settings of its last start, with the TESSERA_ variables of this shell")
    environment = _environment(os.environ if supervisor is None else supervisor.environ())
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        names = [name for name in layout.services() if (layout.config / f"{name}.yaml").is_file()]
        services = dict(zip(names, pool.map(lambda name: _ask(layout, name, environment), names), strict=True))
    return _etcd(recorded) | services


def _environment(source: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with the settings of another one's."""
    here = {name: value for name, value in os.environ.items() if not name.upper().startswith(_PREFIX)}
    return here | {name: value for name, value in source.items() if name.upper().startswith(_PREFIX)}


def _ask(layout: Layout, name: str, environment: Mapping[str, str]) -> Settings:
    command = [*layout.command(name, layout.services()[name][0]), "--show-config"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_ANSWER_S, env=environment, cwd="/")
    if done.returncode != 0:
        raise FailedPrecondition(f"{name} does not take its settings: {done.stderr.strip()[-800:]}")
    found: Settings = yaml.safe_load(done.stdout)
    return found


def _etcd(recorded: platform.PlatformState) -> dict[str, Settings]:
    """Its flags, from its command line."""
    process = next((each.alive() for each in recorded.processes if each.name == "etcd"), None)
    try:
        words = process.cmdline() if process is not None else []
    except psutil.NoSuchProcess:
        words = []
    flags = dict(word.removeprefix("--").split("=", 1) for word in words[1:] if "=" in word)
    return {"etcd": {"program": words[0], **flags}} if words else {}
