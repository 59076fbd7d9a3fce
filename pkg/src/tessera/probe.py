"""Asks a service for its health: python -m tessera.probe HOST:PORT. Exit code 0 when it says SERVING, 1 with a line on stderr otherwise.

For health checks of containers, which run every few seconds: it imports nothing but gRPC.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_S = 2.0


def probe(address: str, timeout_s: float = TIMEOUT_S) -> str:
    """The word of the gRPC health service at an address (`SERVING`, `NOT_SERVING`), or why there is none."""
    with grpc.insecure_channel(address, options=[("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call)  # noqa: PT017 - not a test
            return f"{error.code().name}: {error.details()}"
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m tessera.probe HOST:PORT\n")
        return 2
    word = probe(arguments[0])
    if word != "SERVING":
        sys.stderr.write(f"{arguments[0]}: {word}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
