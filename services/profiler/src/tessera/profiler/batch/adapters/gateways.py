"""Requests through the gateways that have announced themselves for a trust domain, by the same client library that users have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict

from tessera.domain.errors import Unavailable
from tessera.domain.ids import TrustDomain
from tessera.domain.objectives import Objectives
from tessera.domain.records import ServiceRecord
from tessera.profiler.batch.core.rows import Array
from tessera.sdk import AsyncClient


class GatewayInferences:
    """Implements `Inferences`. A gateway that does not answer hands over to the next one."""

    def __init__(self, services: Callable[[], Iterable[ServiceRecord]]) -> None:
        self._services = services
        self._clients: dict[str, AsyncClient] = {}
        self._turn = 0

    async def infer(
        self, trust_domain: TrustDomain, model: str, inputs: Mapping[str, Array], objectives: Objectives, budget_s: float
    ) -> Mapping[str, Array]:
        endpoints = sorted(
            record.metadata["endpoint"]
            for record in self._services()
            if record.kind == "gateway" and record.metadata.get("trust_domain") == trust_domain and "endpoint" in record.metadata
        )
        if not endpoints:
            raise Unavailable(f"no gateway of trust domain {trust_domain!r} has announced itself")
        await self._forget(endpoints)
        endpoint = endpoints[self._turn % len(endpoints)]
        client = self._clients.get(endpoint)
        if client is None:
            client = self._clients[endpoint] = AsyncClient(endpoint, admin_endpoint=endpoint, trust_domain=trust_domain)
        try:
            return (await client.infer(model, inputs, parameters=parameters_of(objectives), timeout_s=budget_s)).outputs
        except Unavailable:
            self._turn += 1
            raise

    async def _forget(self, endpoints: list[str]) -> None:
        """A client is closed when nobody uses it: the job that asked a gone gateway has its answer, or its error."""
        for gone in [endpoint for endpoint in self._clients if endpoint not in endpoints]:
            await self._clients.pop(gone).close()

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()
        self._clients.clear()


def parameters_of(objectives: Objectives) -> dict[str, bool | float | str]:
    """Request parameters; what was not asked for is left out."""
    return {name: value for name, value in asdict(objectives).items() if value is not None and value is not False and value != ""}
