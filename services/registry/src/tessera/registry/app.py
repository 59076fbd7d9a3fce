"""The registry, put together. The only place that builds concrete things."""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path
from typing import IO

import grpc.aio

from tessera import telemetry
from tessera.api.registry.v1 import registry_pb2_grpc
from tessera.clock import SystemClock
from tessera.coord.etcd import EtcdCoordinator
from tessera.coord.interface import Coordinator
from tessera.coord.presence import announce
from tessera.domain.errors import FailedPrecondition, InvalidInput
from tessera.domain.ids import TrustDomain, checked_name
from tessera.domain.records import ServiceRecord
from tessera.program import Stop, Tasks
from tessera.registry.adapters.bakery import GrpcBaker
from tessera.registry.adapters.blobs import StoredBlobs
from tessera.registry.adapters.sandbox import Sandbox
from tessera.registry.adapters.uploads import UploadFolder
from tessera.registry.config import RegistryConfig
from tessera.registry.core.manifest import UploadLimits
from tessera.registry.core.recipes import checked_recipes
from tessera.registry.importer.task import Limits as SandboxLimits
from tessera.registry.loops.aliases import Aliases
from tessera.registry.loops.builtin import ensure_built_in
from tessera.registry.loops.catalogue import Catalogue
from tessera.registry.loops.imports import Imports, Limits
from tessera.registry.loops.joblog import JobLog
from tessera.registry.loops.planning import Planning
from tessera.registry.loops.shelf import Shelf
from tessera.registry.loops.tidying import Tidying
from tessera.registry.loops.variants import VariantMaker
from tessera.registry.server import RegistryServer
from tessera.repository import Repository
from tessera.rpc import RpcServer

SERVICE = "tessera.api.registry.v1.Registry"


async def serve(config: RegistryConfig, stop: Stop) -> None:
    """Runs until `stop`. Stops in this order: the server, running imports (they are resumed at the next start), etcd."""
    telemetry.configure(
        "registry",
        config.otlp_endpoint,
        config.trace_ring_size,
        sample_ratio=config.trace_sample_ratio,
        log_level=config.log_level,
    )
    state = Path(config.state_folder)
    with _sole_owner(state):
        coordinator = EtcdCoordinator(config.etcd_endpoints)
        try:
            await run(config, stop, coordinator, state)
        finally:
            await coordinator.close()


def _sole_owner(state: Path) -> IO[bytes]:
    """Raises: FailedPrecondition when another registry uses the folder; InvalidInput when it cannot be written."""
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (state / "lock").open("ab")
    except OSError as error:
        raise InvalidInput("state_folder", str(state), error.strerror or str(error)) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise FailedPrecondition(f"state folder {state} is used by another registry") from None
    return lock


async def run(config: RegistryConfig, stop: Stop, coordinator: Coordinator, state: Path) -> None:
    """The registry over any coordinator."""
    clock = SystemClock()
    domains = [TrustDomain(checked_name("trust_domains", name)) for name in config.trust_domains]
    limits = UploadLimits(config.upload_max_files, config.upload_max_file_bytes, config.upload_max_total_bytes)
    allowed_builders = tuple(config.allowed_builders)
    recipes = checked_recipes("recipes", config.recipes)
    uploads = UploadFolder(state / "uploads", config.upload_max_file_bytes)
    blobs = StoredBlobs(Repository(config.repository_url, config.repository_options))
    catalogue, log, baker = Catalogue(coordinator), JobLog(config.jobs_remembered), GrpcBaker()
    shelf = Shelf(catalogue, blobs)
    sandbox = Sandbox(
        limits=SandboxLimits(
            memory_bytes=config.import_memory_bytes,
            cpu_s=config.import_cpu_s,
            file_bytes=config.import_file_bytes,
            nice=config.import_nice,
        ),
        timeout_s=config.import_timeout_s,
        allowed_builders=allowed_builders,
        max_batch=config.max_batch,
        threads=config.import_threads,
    )
    variants = VariantMaker(
        clock=clock, coordinator=coordinator, catalogue=catalogue, baker=baker, blobs=blobs, shelf=shelf, log=log,
        work=state / "work", domains=domains, recipes=recipes, timeout_s=config.bake_timeout_s, attempts=config.bake_attempts,
    )  # fmt: skip
    async with Tasks(stop) as tasks:
        imports = Imports(
            clock=clock, tasks=tasks, catalogue=catalogue, uploads=uploads, importer=sandbox, blobs=blobs, shelf=shelf, variants=variants,
            log=log, work=state / "work", limits=Limits(config.import_attempts, config.imports_at_once), draw=lambda: secrets.token_hex(4),
        )  # fmt: skip
        servicer = RegistryServer(
            domains=domains, uploads=uploads, limits=limits, allowed_builders=allowed_builders, catalogue=catalogue,
            aliases=Aliases(coordinator, clock), imports=imports, variants=variants,
            planning=Planning(catalogue, blobs), shelf=shelf, log=log,
        )  # fmt: skip
        tidying = Tidying(clock=clock, uploads=uploads, imports=imports, keep_s=config.upload_keep_s)

        def add(server: grpc.aio.Server) -> None:
            registry_pb2_grpc.add_RegistryServicer_to_server(servicer, server)

        server = RpcServer(config.address, handlers=[add], service_names=[SERVICE])
        try:
            await blobs.sweep()
            for domain in domains:
                await ensure_built_in(domain, catalogue, blobs, clock.wall_s(), config.max_batch)
            await shelf.sweep()
            await imports.resume()
            await server.start()
            for domain, view in variants.nodes.items():
                tasks.start(f"nodes of {domain}", view.run())
            tasks.start("variants", variants.run())
            tasks.start("tidying", tidying.run())
            address = config.advertised(server.address)
            record = ServiceRecord("registry", address, address, {"pid": str(os.getpid())})
            tasks.start("presence", announce(coordinator, clock, record, config.lease_ttl_s))
            await stop.wait()
        finally:
            await server.stop(config.stop_grace_s)
            await tasks.aclose()
            await baker.close()
