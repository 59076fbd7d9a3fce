"""The control socket of a runtime: messages in, manager calls, answers out."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

from tessera.clock import Clock
from tessera.domain.errors import Internal, InvalidInput, TesseraError, Unsupported
from tessera.domain.ids import Digest, InstanceId, checked_digest
from tessera.runtime import control, memory
from tessera.runtime.control import ControlDecoder, Message
from tessera.runtime.identity import InstancePhase
from tessera.runtime.loads import Becoming, LoadAnswer, LoadRequest
from tessera.runtime.manager import InstanceManager
from tessera.runtime.measure import RowLimits

_log = logging.getLogger(__name__)


class _Connection(asyncio.Protocol):
    def __init__(self, server: ControlServer) -> None:
        self._server = server
        self._decoder = ControlDecoder()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._server.connected(self)

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._decoder.feed(data):
                self._server.take(message, self)
        except InvalidInput as error:
            self.write(control.refusal(None, error))
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._server.disconnected(self)

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class ControlServer:
    """Several agents may be connected at a time. `on_connections` hears how many there are; `stop` is called by `shutdown`.

    Each message is a task, which goes on when the agent that asked disconnects.
    """

    def __init__(
        self, manager: InstanceManager, on_connections: Callable[[int], None], stop: Callable[[float], None], clock: Clock
    ) -> None:
        self._manager = manager
        self._clock = clock
        self._use: memory.MemoryUse | None = None
        self._use_at_s = 0.0
        self._on_connections = on_connections
        self._stop = stop
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._operations: dict[str, Callable[[Message], Awaitable[Message]]] = {
            "unload": self._unload,
            "measure": self._measure,
            "status": self._status,
            "trim": self._trim,
            "shutdown": self._shutdown,
        }
        manager.on_released = self._tell_released

    async def start(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._server = await asyncio.get_running_loop().create_unix_server(lambda: _Connection(self), str(path))

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.close()

    def connected(self, connection: _Connection) -> None:
        self._connections.add(connection)
        self._on_connections(len(self._connections))

    def disconnected(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        self._on_connections(len(self._connections))

    def take(self, message: Message, connection: _Connection) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(message, connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, message: Message, connection: _Connection) -> None:
        request_id = message.get("id")
        try:
            data = control.reply(request_id, await self._operation(message, connection))
        except TesseraError as error:
            data = control.refusal(request_id, error)
        except Exception as error:
            _log.exception("control operation %s failed", message.get("op"))
            data = control.refusal(request_id, Internal(f"{type(error).__name__}: {error}"))
        connection.write(data)

    def _operation(self, message: Message, connection: _Connection) -> Awaitable[Message]:
        """Raises: Unsupported."""
        if message.get("op") == "load":
            return self._load(message, connection)
        if message.get("op") == "hello":
            return self._hello(message, connection)
        operation = self._operations.get(str(message.get("op")))
        if operation is None:
            raise Unsupported(f"op {message.get('op')!r}: a runtime knows hello, load, {', '.join(self._operations)}")
        return operation(message)

    def _tell_released(self, digests: list[Digest]) -> None:
        data = control.encode({"event": "released", "digests": digests})
        for connection in list(self._connections):
            connection.write(data)

    async def _hello(self, message: Message, connection: _Connection) -> Message:
        """While something is being loaded the connection hears `loading` at once: whoever asks knows a busy runtime from a dead one."""
        if loading := self._manager.loading:
            connection.write(control.encode({"id": message.get("id"), "event": "loading", "instances": loading}))
        await self._manager.settled()
        config = self._manager.config
        return {
            "runtime_id": config.runtime_id,
            "pid": os.getpid(),
            "flavour": config.flavour,
            "trust_domain": config.trust_domain,
            "threads": config.threads,
            "backends": self._manager.backend_names,
            "holds": sorted(self._manager.holds.held()),
            "mapped": self._manager.mapped(),
            "instances": [
                {
                    "instance_id": instance.identity.instance_id,
                    "generation": control.generation_text(instance.identity.generation),
                    "artifact": instance.identity.artifact_digest,
                    "variant": instance.identity.variant,
                    "max_batch": instance.limits.max_batch,
                }
                for instance in self._manager.instances
                if instance.phase is InstancePhase.SERVING  # whoever took over one that ends would wait for it for ever
            ],
        }

    async def _load(self, message: Message, connection: _Connection) -> Message:
        """With `early` the connection hears `mapped` before the answer. It is written here and now: once the loader opens, this thread has
        to share the interpreter with it."""
        request = LoadRequest(
            InstanceId(control.text_field(message, "instance_id")),
            control.generation_field(message),
            control.text_field(message, "variant"),
            checked_digest("artifact", control.text_field(message, "artifact")),
            control.whole_field(message, "max_delay_us", 0),
            message.get("verify", False) is True,
            _becoming(message),
        )

        def mapped(answer: LoadAnswer) -> None:
            said = {"stages": {"map": answer.map_ms}, "mapped_bytes": answer.mapped_bytes, "private_bytes": answer.private_bytes}
            connection.write(control.encode({"id": message.get("id"), "event": "mapped", **said}))

        answer = await self._manager.load(request, mapped if message.get("early", False) is True else None)
        stages = {"map": answer.map_ms, "load" if request.donor is None else "transform": answer.load_ms}
        return {"stages": stages, "mapped_bytes": answer.mapped_bytes, "private_bytes": answer.private_bytes}

    async def _unload(self, message: Message) -> Message:
        drain_s = control.number_field(message, "drain_ms", 0) / 1e3
        return {"released": await self._manager.unload(InstanceId(control.text_field(message, "instance_id")), drain_s)}

    async def _measure(self, message: Message) -> Message:
        limits = RowLimits(
            control.number_field(message, "seconds", 1.0),
            control.whole_field(message, "min_repeats", 3),
            control.number_field(message, "spread", 0.0),
        )
        names = [InstanceId(name) for name in control.texts_field(message, "instances")]
        found = await self._manager.measure(names, control.whole_field(message, "batch", 1, minimum=1), limits)
        return {
            "repeats": found.repeats,
            "quantiles_ms": found.quantiles_ms,
            "mean_ms": found.mean_ms,
            "spread": found.spread,
            "peak_private_bytes": found.peak_private_bytes,
        }

    async def _status(self, message: Message) -> Message:
        window_s = control.number_field(message, "window_s", 1.0)
        use = await self._memory_use(control.number_field(message, "memory_age_s", 0.0))
        instances = []
        for instance in self._manager.instances:
            status = instance.status(window_s)
            instances.append(
                {
                    "instance_id": instance.identity.instance_id,
                    "queue": status.queue,
                    "executing": status.executing,
                    "served": status.served,
                    "idle_s": status.idle_s,
                    "run_p50_ms": status.run_p50_ms,
                    "run_p99_ms": status.run_p99_ms,
                    "parked": status.parked,
                    "items": status.items,
                    "run_items": status.run_items,
                }
            )
        return {
            "instances": instances,
            "private_bytes": use.private_bytes,
            "shared_bytes": use.shared_bytes,
            "proportional_bytes": use.proportional_bytes,
            "cpu_s": memory.cpu_s(),
        }

    async def _memory_use(self, oldest_s: float) -> memory.MemoryUse:
        """From the last look when that is not older than `oldest_s`: a look at thousands of mappings takes tens of milliseconds of CPU."""
        now_s = self._clock.monotonic_s()
        if self._use is None or now_s - self._use_at_s >= oldest_s:
            self._use = await asyncio.get_running_loop().run_in_executor(None, memory.memory_use, self._manager.config.store)
            self._use_at_s = now_s
        return self._use

    async def _trim(self, message: Message) -> Message:
        digests = message.get("digests")
        if digests is not None and not isinstance(digests, list):
            raise InvalidInput("digests", digests, "must be a list")
        wanted = None if digests is None else [checked_digest("digests", digest) for digest in digests]
        return {"artifacts": await self._manager.trim(wanted)}

    async def _shutdown(self, message: Message) -> Message:
        self._stop(control.number_field(message, "drain_ms", 0) / 1e3)
        return {}


def _becoming(message: Message) -> Becoming | None:
    if "donor" not in message:
        return None
    delta = control.text_field(message, "delta") if "delta" in message else ""
    idle_s = control.number_field(message, "donor_idle_s", 0)
    return Becoming(InstanceId(control.text_field(message, "donor")), delta.encode(), idle_s)
