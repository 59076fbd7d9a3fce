"""Requests through the gateways that have announced themselves for a trust domain, by the same client library that users have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass

from tessera.domain.errors import Unavailable
from tessera.domain.ids import TrustDomain
from tessera.domain.objectives import Objectives
from tessera.domain.records import ServiceRecord
from tessera.profiler.batch.core.rows import Array
from tessera.sdk import AsyncClient


@dataclass(slots=True)
class _Used:
    """A client, and how many requests are under way on it."""

    client: AsyncClient
    requests: int = 0


class GatewayInferences:
    """Implements `Inferences`. A gateway that does not answer hands over to the next one."""

    def __init__(self, services: Callable[[], Iterable[ServiceRecord]]) -> None:
        self._services = services
        self._clients: dict[str, _Used] = {}
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
        used = self._clients.get(endpoint)
        if used is None:
            used = self._clients[endpoint] = _Used(AsyncClient(endpoint, admin_endpoint=endpoint, trust_domain=trust_domain))
        used.requests += 1
        try:
            return (await used.client.infer(model, inputs, parameters=parameters_of(objectives), timeout_s=budget_s)).outputs
        except Unavailable:
            self._turn += 1
            raise
        finally:
            used.requests -= 1

    async def _forget(self, endpoints: list[str]) -> None:
        """A gone gateway's client is closed at the first request that finds none under way on it: closing would cancel those.

        All are taken out before the first is waited for, as others may come by meanwhile.
        """
        gone = [endpoint for endpoint, used in self._clients.items() if endpoint not in endpoints and not used.requests]
        for used in [self._clients.pop(endpoint) for endpoint in gone]:
            await used.client.close()

    async def close(self) -> None:
        for used in self._clients.values():
            await used.client.close()
        self._clients.clear()


def parameters_of(objectives: Objectives) -> dict[str, bool | float | str]:
    """Request parameters; what was not asked for is left out."""
    return {name: value for name, value in asdict(objectives).items() if value is not None and value is not False and value != ""}
