"""Batch jobs, put together; the profiler's `app` starts what stands here."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path

import grpc.aio

from tessera.api.batch.v1 import batch_pb2_grpc
from tessera.clock import Clock
from tessera.coord import keys
from tessera.coord.interface import Coordinator
from tessera.coord.view import View
from tessera.domain.errors import FailedPrecondition
from tessera.domain.ids import JobId, TrustDomain, checked_name
from tessera.domain.records import ServiceRecord
from tessera.profiler.batch.adapters.formats import file_format
from tessera.profiler.batch.adapters.gateways import GatewayInferences
from tessera.profiler.batch.adapters.records import EtcdBatches, EtcdModels
from tessera.profiler.batch.adapters.storage import FsspecStorage
from tessera.profiler.batch.config import BatchConfig
from tessera.profiler.batch.core.locations import location, roots_of
from tessera.profiler.batch.loops.desk import BatchDesk
from tessera.profiler.batch.loops.limits import BatchLimits
from tessera.profiler.batch.loops.live import Live
from tessera.profiler.batch.loops.runner import BatchRunner, Elected
from tessera.profiler.batch.loops.thread import WorkThread
from tessera.profiler.batch.ports import Storage
from tessera.profiler.batch.server import BatchServer
from tessera.program import Tasks

SERVICE = "tessera.api.batch.v1.Batch"


class Batch:
    """`add` binds it to a server; `start` begins the work; `close`, when its tasks have ended."""

    def __init__(self, config: BatchConfig, coordinator: Coordinator, clock: Clock, name: str, lease_ttl_s: float) -> None:
        limits = BatchLimits(
            config.batch_in_flight,
            config.batch_share,
            config.batch_part_rows,
            config.batch_part_bytes,
            config.batch_calm_s,
            config.batch_request_s,
            config.batch_patience_s,
            config.batch_queue_limit,
            config.batch_kept,
        )
        storages = _storages(config)
        live, elected, models = Live(), Elected(), EtcdModels(coordinator)
        self._services: View[ServiceRecord] = View(coordinator, keys.SERVICES, ServiceRecord)
        self._inferences = GatewayInferences(self._services.values)
        self._thread = WorkThread()
        self._runner = BatchRunner(
            clock=clock,
            coordinator=coordinator,
            elected=elected,
            batches=EtcdBatches(coordinator, elected.guard),
            models=models,
            storages=storages,
            formats=file_format,
            inferences=self._inferences,
            live=live,
            thread=self._thread,
            limits=limits,
            name=name,
            lease_ttl_s=lease_ttl_s,
        )
        desk = BatchDesk(
            clock=clock,
            batches=EtcdBatches(coordinator),
            models=models,
            storages=storages,
            formats=file_format,
            live=live,
            limits=limits,
            draw=lambda: JobId(f"b{secrets.token_hex(6)}"),
        )
        self._servicer = BatchServer(desk)

    def add(self, server: grpc.aio.Server) -> None:
        batch_pb2_grpc.add_BatchServicer_to_server(self._servicer, server)

    def start(self, tasks: Tasks) -> None:
        tasks.start("services view", self._services.run())
        for view in self._runner.views:
            tasks.start("batch view", view.run())
        tasks.start("batch", self._runner.run())

    async def close(self) -> None:
        await self._inferences.close()
        self._thread.close()


def _storages(config: BatchConfig) -> Mapping[TrustDomain, Storage]:
    """Raises: FailedPrecondition: a trust domain's part of `batch_folder` cannot be made."""
    domains = [TrustDomain(checked_name("trust_domains", name)) for name in config.trust_domains]
    for domain in domains if config.batch_folder else ():
        try:
            Path(location("batch_folder", config.batch_folder).path, domain).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FailedPrecondition(f"batch_folder {config.batch_folder}: {error}") from error
    return {domain: FsspecStorage(roots_of(domain, config.batch_folder, config.batch_roots), config.batch_options) for domain in domains}
