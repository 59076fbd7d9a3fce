"""The server that every service runs: its own handlers, health, reflection and traces on one address."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import cast

import grpc
import grpc.aio
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from tessera.api.common.v1 import traces_pb2_grpc
from tessera.domain.errors import FailedPrecondition
from tessera.rpc._call_details import checked_token
from tessera.rpc._guard import GuardingServer
from tessera.rpc._options import MAX_MESSAGE_BYTES, server_options
from tessera.rpc._reflection import CombinedPool
from tessera.rpc._traces import TracesServicer

HEALTH_SERVICE = "grpc.health.v1.Health"
TRACES_SERVICE = "tessera.api.common.v1.Traces"


class RpcServer:
    """One gRPC server. `handlers` add servicers (`lambda server: add_XServicer_to_server(X(), server)`), in order.

    `service_names`: full names of those services, for reflection and health; health, reflection and Traces add themselves.
    `token`: every call but health must carry it as `authorization: Bearer <token>`.
    `pools`: descriptor pools besides the default one that reflection shows.
    `untouched`: methods ("/package.Service/Method") whose handlers are left as they are: no span, no token check, no error translation
    (`tessera.rpc.abort` does that by hand). For handlers on a hot path that do all of it themselves.
    `reuse_port`: several processes may listen on the address; a port in use is not noticed then.
    """

    def __init__(
        self,
        address: str,
        *,
        handlers: Sequence[Callable[[grpc.aio.Server], None]],
        service_names: Iterable[str],
        token: str | None = None,
        pools: Sequence[DescriptorPool] = (),
        untouched: Iterable[str] = (),
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        reuse_port: bool = False,
    ) -> None:
        self._address = address
        self._port = 0
        self._handlers = tuple(handlers)
        self._names = tuple(dict.fromkeys([*service_names, HEALTH_SERVICE, TRACES_SERVICE, reflection.SERVICE_NAME]))
        self._token = checked_token(token)
        self._untouched = frozenset(untouched)
        self._pools = tuple(pools)
        self._max_message_bytes = max_message_bytes
        self._reuse_port = reuse_port
        self._health = health_aio.HealthServicer()
        self._server: grpc.aio.Server | None = None

    @property
    def port(self) -> int:
        """The port that is listened on; 0 before `start`, and for a Unix socket."""
        return self._port

    @property
    def address(self) -> str:
        """What to connect to: the given address, with the real port once started."""
        host, _, port = self._address.rpartition(":")
        return f"{host}:{self._port}" if self._port and port == "0" else self._address

    async def start(self) -> None:
        """Listens and answers.

        Raises:
            FailedPrecondition: the address is in use or cannot be bound; names it.
        """
        server = grpc.aio.server(options=server_options(self._max_message_bytes, self._reuse_port))
        guarding = cast(grpc.aio.Server, GuardingServer(server, self._token, self._untouched))  # as far as adding handlers goes
        for add in self._handlers:
            add(guarding)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, guarding)
        traces_pb2_grpc.add_TracesServicer_to_server(TracesServicer(), guarding)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
            reflection.aio.ReflectionServicer(self._names, pool=CombinedPool(self._pools)), guarding
        )
        try:
            port = server.add_insecure_port(self._address)
        except RuntimeError as error:
            await server.stop(None)
            raise FailedPrecondition(f"address {self._address} is in use or cannot be bound") from error
        self._port = 0 if self._address.startswith("unix:") else port
        await server.start()
        for name in self._names:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._server = server

    async def set_serving(self, serving: bool, service_name: str = "") -> None:
        """What health answers for one service, or ("") for the server as a whole. Without effect once it stops."""
        status = health_pb2.HealthCheckResponse
        await self._health.set(service_name, status.SERVING if serving else status.NOT_SERVING)

    async def drain(self) -> None:
        """Health says NOT_SERVING from now on, so that nobody new comes; calls are still answered."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace_s: float = 5.0) -> None:
        """Takes no new calls, lets those in flight end for `grace_s` seconds, then cancels them. Frees the address."""
        server, self._server = self._server, None
        if server is None:
            return
        await self.drain()
        await server.stop(grace_s)
