"""Nodes as containers: each a copy of one node agent's container, under a name and with volumes of its own.

The engine alone remembers them, by labels on containers and volumes, so that whoever leads finds what others made. A node whose container
has ended is no node any more: with the next look it goes, its runtimes' containers and its volumes too.
"""

from __future__ import annotations

from typing import Any

from docker.errors import APIError, NotFound

from tessera.clock import Clock
from tessera.domain.errors import FailedPrecondition, Unavailable
from tessera.domain.ids import NodeId
from tessera.domain.labels import POOL_LABEL, RUNTIME_LABEL
from tessera.engine import EngineCalls, remove_container
from tessera.scheduler.core.pool import (
    MEMBER_LABEL,
    copy_of,
    free_name,
    labels_of,
    networks_of,
    own_volumes,
    vet_room,
)

END_S = 30
"""How long an agent may take to take its runtimes down."""
POLL_S = 0.25
COME_S = 120.0
"""How long a container may take until its check says that the agent answers."""
LOG_TAIL_LINES = 3
_LIVING = ("running", "restarting", "paused")


class DockerNodes:
    """`like`: the name of a node agent's container, at the engine of `calls`. It need not run; its limits, networks, settings and what it
    only reads are the nodes' too, and of each volume that it writes to they have one of their own."""

    def __init__(self, calls: EngineCalls, like: str, prefix: str, clock: Clock) -> None:
        self._calls = calls
        self._like = like
        self._prefix = prefix
        self._clock = clock

    async def nodes(self) -> frozenset[NodeId]:
        """Those whose containers run. What is left of others goes."""
        return await self._calls.call("look at the nodes of the pool", self._look)

    async def add(self) -> NodeId:
        """Starts one more, and waits until its container's check says that its agent answers.

        Raises:
            Unavailable: no engine answers; the agent ended, or does not answer in time; says its last words.
            FailedPrecondition: there is no container to copy, or none that two nodes can be like; the engine refuses (no such image, or
                network); the machine's memory does not do.
        """
        there = await self.nodes()
        node_id = free_name(self._prefix, there)
        container_id = await self._calls.call(f"make node {node_id}", lambda client: self._make(client, node_id, len(there)))
        until_s = self._clock.monotonic_s() + COME_S
        while True:
            answers, ended = await self._calls.call(f"look at node {node_id}", lambda client: _condition(client, container_id))
            if answers:
                return node_id
            if ended or self._clock.monotonic_s() > until_s:
                said = await self._calls.call("read a node's log", lambda client: _last_words(client, container_id))
                await self.remove(node_id)
                raise Unavailable(f"node {node_id} {ended or f'does not answer after {COME_S:.0f} s'}: {said}")
            await self._clock.sleep(POLL_S)

    async def remove(self, node_id: NodeId) -> None:
        """Has its agent take everything of it down, by force after half a minute. Does nothing where it is gone."""

        def act(client: Any) -> None:
            for container in self._containers(client, node_id):
                try:
                    client.stop(container["Id"], timeout=END_S)
                except NotFound:
                    continue
            self._clear(client, node_id)

        await self._calls.call(f"take node {node_id} away", act)

    async def close(self) -> None:
        await self._calls.close()

    def _look(self, client: Any) -> frozenset[NodeId]:
        containers, volumes = self._containers(client), self._volumes(client)
        living = frozenset(_node(found) for found in containers if found["State"] in _LIVING)
        for node_id in {_node(found) for found in (*containers, *volumes)} - living:
            self._clear(client, node_id)
        return living

    def _make(self, client: Any, node_id: NodeId, there: int) -> str:
        try:
            template = client.inspect_container(self._like)
        except NotFound as error:
            raise FailedPrecondition(
                f"node_like {self._like!r}: the container engine {self._calls.url} has no container of this name; name a node agent's"
            ) from error
        vet_room(template, there, client.info()["MemTotal"])
        request = copy_of(template, {name: client.inspect_volume(name) for name in own_volumes(template)}, node_id)
        container_id: str = client.create_container_from_config(request, f"{self._like}-{node_id}")["Id"]
        try:
            for network in networks_of(template)[1:]:
                client.connect_container_to_network(container_id, network, aliases=[node_id])
            client.start(container_id)
        except BaseException:
            self._clear(client, node_id)
            raise
        return container_id

    def _clear(self, client: Any, node_id: NodeId) -> None:
        """All that is left of a node: what holds its volumes, itself, and the volumes."""
        volumes = [found["Name"] for found in self._volumes(client, node_id)]
        for name in volumes:
            for runtime in client.containers(all=True, filters={"volume": name, "label": RUNTIME_LABEL}):
                remove_container(client, runtime["Id"])
        for container in self._containers(client, node_id):
            remove_container(client, container["Id"])
        for name in volumes:
            try:
                client.remove_volume(name)
            except APIError as error:
                if error.status_code not in (404, 409):  # it went with its container; it is in use, and the next look tries again
                    raise

    def _containers(self, client: Any, node_id: NodeId | None = None) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = client.containers(all=True, filters={"label": self._labels(node_id)})
        return found

    def _volumes(self, client: Any, node_id: NodeId | None = None) -> list[dict[str, Any]]:
        return client.volumes(filters={"label": self._labels(node_id)})["Volumes"] or []

    def _labels(self, node_id: NodeId | None) -> list[str]:
        """Of one node; None: of all."""
        wanted = {POOL_LABEL: self._like} if node_id is None else labels_of(self._like, node_id)
        return [f"{name}={value}" for name, value in wanted.items()]


def _node(found: dict[str, Any]) -> NodeId:
    return NodeId(found["Labels"][MEMBER_LABEL])


def _condition(client: Any, container_id: str) -> tuple[bool, str]:
    """Whether its agent answers (where the container has no check, that it runs must do), and how it ended, "" while it has not."""
    try:
        found = client.inspect_container(container_id)
    except NotFound:
        return False, "was removed"
    state = found["State"]
    if not state["Running"] or found["RestartCount"] > 0:
        return False, "ended at once"
    return state.get("Health", {}).get("Status", "healthy") == "healthy", ""


def _last_words(client: Any, container_id: str) -> str:
    try:
        lines = bytes(client.logs(container_id, tail=LOG_TAIL_LINES)).decode(errors="replace").splitlines()
    except NotFound:
        lines = []
    return " / ".join(line[:300] for line in lines) or "no word from it"
