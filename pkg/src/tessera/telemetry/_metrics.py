"""Prometheus metrics over HTTP, with a stop that frees the port."""

from __future__ import annotations

from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import REGISTRY, CollectorRegistry, start_http_server

from tessera.domain.errors import FailedPrecondition, InvalidInput


class MetricsServer:
    """Serves `registry` in the text format on `address` ("host:port"; port 0 picks one, see `port`) from a thread of its own."""

    def __init__(self, address: str, registry: CollectorRegistry = REGISTRY) -> None:
        self._host, _, port = address.rpartition(":")
        if not self._host or not port.isdigit() or int(port) > 65535:
            raise InvalidInput("metrics address", address, "must be host:port with a port from 0 to 65535")
        self._host = self._host.strip("[]")
        self._port = int(port)
        self._registry = registry
        self._server: WSGIServer | None = None
        self._thread: Thread | None = None

    @property
    def port(self) -> int:
        """The port that is listened on; the asked one before `start`."""
        return self._port

    def start(self) -> None:
        """Raises: FailedPrecondition when the address is in use or is not ours."""
        try:
            self._server, self._thread = start_http_server(self._port, addr=self._host, registry=self._registry)
        except OSError as error:
            raise FailedPrecondition(f"metrics address {self._host}:{self._port} cannot be bound: {error.strerror or error}") from error
        self._port = self._server.server_port

    def stop(self) -> None:
        """Frees the port. Nothing happens when it never started, or stopped before."""
        server, thread = self._server, self._thread
        self._server = self._thread = None
        if server is not None and thread is not None:
            server.shutdown()
            server.server_close()
            thread.join()
