"""Starts whose bytes are not on the node yet, for `make bench NAME=start`: from the repository (page cache warm and dropped) and from
another node, one at a time and eight siblings at once. Every start is on an empty store, in a warm runtime.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.made import repository, siblings
from benchmarks.models import BY_NAME
from benchmarks.node import Node, node
from benchmarks.report import Report, median
from tessera.api.node.v1 import node_pb2
from tessera.domain.ids import Digest
from tessera.repository.artifacts import decode

STORE_BYTES = 3 << 30
MIB = 1 << 20
AT_ONCE = 8
PRIVATE = 0.1
WARM = {"flavours": ["ort"], "warm_runtimes": 1, "pool_policy": "constant"}
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True)
class Outcome:
    ms: float
    stages: dict[str, float]
    fetched_bytes: int
    peer_bytes: int


def union_bytes(artifacts: list[Digest]) -> int:
    """Every blob of the artifacts once, their own included."""
    store = repository()
    sizes: dict[Digest, int] = {}
    for digest in artifacts:
        data = store.read(digest)
        sizes[digest] = len(data)
        sizes |= {blob.digest: blob.size_bytes for blob in decode(data).blobs()}
    return sum(sizes.values())


async def _until_warm(where: Node) -> None:
    while not any(runtime.flavour == "ort" for runtime in (await where.status()).runtimes):  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.05)


async def _started(where: Node, artifacts: list[Digest], sources: list[node_pb2.Source]) -> Outcome:
    """All of them at once, on a node whose store is empty."""
    await _until_warm(where)
    begun = time.perf_counter()
    instances = await asyncio.gather(*(where.start(artifact, sources) for artifact in artifacts))
    ms = (time.perf_counter() - begun) * 1e3
    slowest = max(instances, key=lambda found: sum(stage.ms for stage in found.stages))
    (store,) = (await where.status()).stores
    return Outcome(ms, {stage.stage: stage.ms for stage in slowest.stages}, store.fetched_bytes, store.peer_bytes)


async def _once(artifacts: list[Digest], source: Node | None, cold: bool) -> Outcome:
    async with node(STORE_BYTES, **WARM) as where:
        sources = []
        if source is not None:
            status = await source.status()
            sources = [node_pb2.Source(node_id=status.node_id, peer_address=status.peer_address)]
        if cold:
            await asyncio.to_thread(os.sync)
            DROP_CACHES.write_text("3")
        return await _started(where, artifacts, sources)


async def _measure(report: Report, name: str, repeats: int) -> None:
    artifacts = [sibling.artifact for sibling in siblings(BY_NAME[name], "ort", AT_ONCE, PRIVATE)]
    ways = [("repository, page cache warm", False), ("repository, page cache dropped", True), ("peer", False)]
    async with node(STORE_BYTES, node_id="giver", **WARM) as giver:
        await asyncio.gather(*(giver.start(artifact) for artifact in artifacts))
        for count in (1, AT_ONCE):
            wanted = union_bytes(artifacts[:count])
            for way, cold in ways:
                if cold and not os.access(DROP_CACHES, os.W_OK):
                    report.row(model=name, path=f"fetch, {way}", starts=count, note="left out: not root")
                    continue
                found = [await _once(artifacts[:count], giver if way == "peer" else None, cold) for _ in range(repeats)]
                ms = median([each.ms for each in found])
                stages = {stage: median([each.stages.get(stage, 0.0) for each in found]) for stage in found[0].stages}
                from_peer = min(each.peer_bytes for each in found) / wanted
                times = max(each.fetched_bytes for each in found) / wanted
                report.row(
                    model=name,
                    mib=wanted / MIB,
                    path=f"fetch, {way}",
                    starts=count,
                    first_p50_ms=ms,
                    stages_p50=", ".join(f"{stage} {value:.1f}" for stage, value in stages.items()),
                    note=f"{wanted / MIB / ms * 1e3:.0f} MiB/s, {from_peer:.2f} of them from the peer",
                )
                if count == AT_ONCE:
                    report.goal(
                        f"fetched_once.{name}.{way.replace(', page cache', '').replace(' ', '_')}", times, "<=", 1.0, "of the bytes"
                    )


def measure(report: Report, names: list[str], repeats: int) -> None:
    for name in names:
        asyncio.run(_measure(report, name, repeats))
        print(f"fetch {name}: done", flush=True)
