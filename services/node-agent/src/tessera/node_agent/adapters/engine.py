"""The container engine, over its API. Knows nothing of runtimes: containers in, containers out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from docker.errors import APIError, NotFound
from docker.types import DeviceRequest, LogConfig, Ulimit
from docker.types import Mount as DockerMount

from tessera.domain.errors import FailedPrecondition
from tessera.engine import EngineCalls, remove_container
from tessera.node_agent.core.containers import NODE_LABEL, ContainerSpec, ContainerState, EngineSource, FoundContainer, Mount
from tessera.telemetry import get_logger

SCRATCH_BYTES = 16 << 20
LOG_BYTES = "1m"
LOG_FILES = "2"
LOG_TAIL_LINES = 20

_log = get_logger(__name__)


class Engine:
    """`url` as Docker clients take it, e.g. unix:///var/run/docker.sock. Nothing is asked before the first call."""

    def __init__(self, url: str, make: Callable[[str], Any] | None = None) -> None:
        """`make` gives tests their own client."""
        self.url = url
        self._calls = EngineCalls(url, make)

    async def check(self, images: Iterable[str]) -> None:
        """Whether the engine answers, has these images, and can keep containers to their limits (where it cannot, the log says so).

        Raises:
            FailedPrecondition: an image is not there.
            Unavailable: no engine answers.
        """

        def act(client: Any) -> dict[str, Any]:
            for image in images:
                try:
                    client.inspect_image(image)
                except NotFound as error:
                    raise FailedPrecondition(
                        f"image {image} is not at the container engine {self.url}: make it (make images) or name another in runtime_images"
                    ) from error
            info: dict[str, Any] = client.info()
            return info

        info = await self._calls.call("check images", act)
        lacking = [name for name in ("MemoryLimit", "SwapLimit", "CpuCfsQuota", "PidsLimit") if info.get(name) is False]
        if lacking:
            _log.warning("this engine cannot keep containers to all of their limits", lacking=lacking)

    async def mounts_of(self, container_id: str) -> tuple[Mount, ...] | None:
        """None: this engine does not know the container (it may itself run in one of another engine). Raises: Unavailable."""

        def act(client: Any) -> tuple[Mount, ...] | None:
            try:
                found = client.inspect_container(container_id)["Mounts"]
            except NotFound:
                return None
            return tuple(Mount(item["Type"], item.get("Source", ""), item["Destination"], item.get("Name", "")) for item in found)

        return await self._calls.call("look at the agent's own container", act)

    async def run(self, spec: ContainerSpec) -> str:
        """Makes and starts a container; returns its id. Nothing is left of one that does not start.

        Raises:
            Unavailable: no engine answers, or it failed.
            FailedPrecondition: it refuses the container; in its own words.
        """

        def act(client: Any) -> str:
            container_id: str = client.create_container_from_config(arguments_of(client, spec), spec.name)["Id"]
            try:
                client.start(container_id)
            except BaseException:
                client.remove_container(container_id, force=True)
                raise
            return container_id

        return await self._calls.call(f"start {spec.name}", act)

    async def state(self, container_id: str) -> ContainerState | None:
        """None when there is no such container. Raises: Unavailable."""

        def act(client: Any) -> ContainerState | None:
            try:
                found = client.inspect_container(container_id)["State"]
            except NotFound:
                return None
            return ContainerState(found["Running"], int(found["ExitCode"]), bool(found["OOMKilled"]), found.get("Error", ""))

        return await self._calls.call("look at a container", act)

    async def log_tail(self, container_id: str) -> str:
        """Its last words. Raises: Unavailable."""

        def act(client: Any) -> str:
            try:
                return bytes(client.logs(container_id, tail=LOG_TAIL_LINES)).decode(errors="replace").strip()
            except NotFound:
                return ""

        return await self._calls.call("read a container's log", act)

    async def containers_of(self, node_id: str) -> tuple[FoundContainer, ...]:
        """All that carry the node's label, ended ones too. Raises: Unavailable."""

        def act(client: Any) -> tuple[FoundContainer, ...]:
            found = client.containers(all=True, filters={"label": f"{NODE_LABEL}={node_id}"})
            return tuple(FoundContainer(item["Id"], item["State"] in ("running", "paused"), item["Labels"]) for item in found)

        return await self._calls.call("list containers", act)

    async def kill(self, container_id: str) -> None:
        """Nothing happens when it has ended. Raises: Unavailable."""

        def act(client: Any) -> None:
            try:
                client.kill(container_id)
            except NotFound:
                return
            except APIError as error:
                if error.status_code != 409:  # it is not running
                    raise

        await self._calls.call("kill a container", act)

    async def remove(self, container_id: str) -> None:
        """Killed when it runs. Nothing happens when it is gone, or going. Raises: Unavailable."""
        await self._calls.call("remove a container", lambda client: remove_container(client, container_id))

    async def close(self) -> None:
        """Calls from here on are `Unavailable`."""
        await self._calls.close()


def arguments_of(client: Any, spec: ContainerSpec) -> dict[str, Any]:
    """The request that makes the container: everything that it may not do stands here."""
    limits = spec.limits
    host = client.create_host_config(
        network_mode="none",
        read_only=True,
        mounts=[_mount(spec.store, spec.store_target, read_only=True), _mount(spec.folder, spec.folder_target, read_only=False)],
        tmpfs={"/tmp": f"rw,noexec,nosuid,nodev,size={SCRATCH_BYTES},mode=1777"},
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        ipc_mode="none",
        init=True,
        mem_limit=limits.memory_bytes,
        memswap_limit=limits.memory_bytes,
        nano_cpus=round(limits.cpus * 1e9),
        pids_limit=limits.pids,
        ulimits=[Ulimit(name="core", soft=0, hard=0)],  # a core file would be somebody's weights and requests
        log_config=LogConfig(type=LogConfig.types.JSON, config={"max-size": LOG_BYTES, "max-file": LOG_FILES}),
        device_requests=[DeviceRequest(count=-1, capabilities=[["gpu"]])] if spec.gpus else None,
    )
    config: dict[str, Any] = client.create_container_config(
        spec.image,
        list(spec.command),
        user=spec.user,
        environment=dict(spec.environment),
        labels=dict(spec.labels),
        network_disabled=True,
        host_config=host,
    )
    return config


def _mount(source: EngineSource, target: str, read_only: bool) -> DockerMount:
    return DockerMount(target, source.source, type=source.kind, read_only=read_only, no_copy=True if source.kind == "volume" else None)
