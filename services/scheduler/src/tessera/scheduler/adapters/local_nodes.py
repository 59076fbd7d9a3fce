"""Nodes as processes of this machine: each a node agent with a configuration, a run folder and a state folder of its own.

A node outlives the scheduler that made it, and is told by its file whoever leads: FOLDER/<node>/node.json names its process. A node whose
agent ended by itself is no node any more; one of the same name that is made later takes over what it left.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import yaml

from tessera.clock import Clock
from tessera.domain.errors import FailedPrecondition, InvalidInput, Unavailable
from tessera.domain.ids import NodeId
from tessera.program import ChildProcess
from tessera.scheduler.core.pool import free_name

END_S = 30.0
POLL_S = 0.05
COME_S = 120.0
"""How long an agent may take until it answers: its zygotes import their backends first."""
CONFIG, FACTS, LOG = "agent.yaml", "node.json", "agent.log"
ADDRESSES = ("address", "start_address", "relay_address", "peer_address")


class LocalNodes:
    """`template`: the settings of a node agent, of which the nodes are copies under names of their own. `folder`: where they keep things.

    Raises: InvalidInput: the template cannot be read, or names what two nodes cannot share.
    """

    def __init__(self, template: Path, folder: Path, prefix: str, clock: Clock) -> None:
        self._template = _read(template)
        self._folder = folder
        self._prefix = prefix
        self._clock = clock
        self._children: dict[NodeId, ChildProcess] = {}

    async def nodes(self) -> frozenset[NodeId]:
        """Those whose agents live."""
        names = [NodeId(path.parent.name) for path in self._folder.glob(f"{self._prefix}-*/{FACTS}")]
        return frozenset(name for name in names if self._process(name) is not None)

    async def add(self) -> NodeId:
        """Starts one more, and waits until its agent answers.

        Raises: Unavailable: it ended, or does not answer in time; says its last words. FailedPrecondition: the folder cannot be written.
        """
        node_id = free_name(self._prefix, await self.nodes())
        folder = self._folder / node_id
        try:
            folder.mkdir(parents=True, exist_ok=True)
            config = folder / CONFIG
            settings = self._settings(node_id, folder)
            config.write_text(json.dumps(settings))
            with (folder / LOG).open("ab") as log:
                child = ChildProcess([sys.executable, "-m", "tessera.node_agent", "--config", str(config)], stderr=log, env=os.environ)
            facts = {"pid": child.pid, "started_unix_s": psutil.Process(child.pid).create_time()}
            (folder / FACTS).write_text(json.dumps(facts))
        except OSError as error:
            raise FailedPrecondition(f"node {node_id} cannot be made in {folder}: {error}") from error
        except psutil.NoSuchProcess:
            raise Unavailable(f"node {node_id} ended at once: {_last_words(folder)}") from None
        self._children[node_id] = child
        until_s = self._clock.monotonic_s() + COME_S
        while not await _answers(settings["address"]):
            if child.returncode is not None or self._clock.monotonic_s() > until_s:
                words = "ended at once" if child.returncode is not None else f"does not answer after {COME_S:.0f} s"
                said = _last_words(folder)
                await self.remove(node_id)
                raise Unavailable(f"node {node_id} {words}: {said}")
            await self._clock.sleep(POLL_S)
        return node_id

    async def remove(self, node_id: NodeId) -> None:
        """Has its agent take everything of it down, by force after half a minute. Does nothing where it is gone."""
        process = self._process(node_id)
        if process is not None:
            for number, seconds in ((signal.SIGTERM, END_S), (signal.SIGKILL, END_S)):
                try:
                    process.send_signal(number)
                except psutil.NoSuchProcess:
                    break
                until_s = self._clock.monotonic_s() + seconds
                while self._process(node_id) is not None and self._clock.monotonic_s() < until_s:
                    await self._clock.sleep(POLL_S)
                if self._process(node_id) is None:
                    break
        child = self._children.pop(node_id, None)
        if child is not None and self._process(node_id) is None:
            await child.wait()
        shutil.rmtree(self._folder / node_id, ignore_errors=True)

    async def close(self) -> None:
        """Nothing is open."""

    def _process(self, node_id: NodeId) -> psutil.Process | None:
        """Its agent, if it lives: a pid may be somebody else's by now, and another scheduler may have made the node anew."""
        child = self._children.get(node_id)
        if child is not None and child.returncode is not None:
            del self._children[node_id]
        try:
            facts = json.loads((self._folder / node_id / FACTS).read_text())
            process = psutil.Process(int(facts["pid"]))
            same = abs(process.create_time() - float(facts["started_unix_s"])) < 1.0
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except (OSError, ValueError, KeyError, TypeError, psutil.Error):
            return None

    def _settings(self, node_id: NodeId, folder: Path) -> dict[str, Any]:
        run = Path(str(self._template["run_folder"])).with_name(str(node_id))
        own: dict[str, Any] = {"node_id": node_id, "run_folder": str(run), "state_folder": str(folder / "state"), "metrics_address": ""}
        return {**self._template, **own, **_free_addresses(self._template)}


def _read(template: Path) -> Mapping[str, Any]:
    try:
        found = yaml.safe_load(template.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InvalidInput("node_template", str(template), f"must be a node agent's settings: {error}") from error
    if not isinstance(found, dict) or "run_folder" not in found:
        raise InvalidInput("node_template", str(template), "must be a node agent's settings, with a run_folder")
    if any(isinstance(store, dict) and store.get("folder") for store in found.get("stores", ())):
        raise InvalidInput("node_template", str(template), "names a store's folder, which two nodes cannot share")
    return found


def _free_addresses(template: Mapping[str, Any]) -> dict[str, str]:
    """Ports that nobody has now, all different, on the template's hosts."""
    found: dict[str, str] = {}
    probes = []
    try:
        for name in ADDRESSES:
            host = str(template.get(name, "127.0.0.1:0")).rpartition(":")[0]
            probe = socket.socket()
            probes.append(probe)
            probe.bind((host, 0))
            found[name] = f"{host}:{probe.getsockname()[1]}"
    finally:
        for probe in probes:
            probe.close()
    return found


async def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        return False
    writer.close()
    return True


def _last_words(folder: Path) -> str:
    try:
        lines = (folder / LOG).read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    return " / ".join(line[:300] for line in lines[-3:]) or "no word from it"
