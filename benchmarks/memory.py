"""What one more instance costs in memory: make bench NAME=memory

Siblings of eight architectures on one node agent, driven directly. How much a sibling has for itself: *shared* (its small tensors alone,
all large ones are its trunk's), *tenth* (and the last tenth of the large ones), *none* (every weight: nothing is shared). How they live:
*sharing* (several in a runtime over the tensor store), *process* and *container* (the same, each in a runtime of its own), *runtime*
(TETRIS's own baseline: several in one process, weights private), *off* (a process or container each, weights private). 1, 4 and 16 of
them are loaded and answer; only 1 and 4 where each costs the node a model.

*Private*: growth of the runtimes' private memory, store files left out. *Total*: growth of their proportional set sizes, store files left
out, and of the store's allocated bytes; what an instance costs the node. Both per added instance, from the first to the last.

    BENCH_MODELS=resnet50,bert-base BENCH_COUNT=16 BENCH_RUNTIMES=process make bench NAME=memory
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.made import made, repository, siblings
from benchmarks.models import BY_NAME, MODELS, BenchModel, arrays
from benchmarks.node import Node, node
from benchmarks.report import Report
from tessera.repository.artifacts import decode

MIB = 1 << 20
SLACK_MIB = {"process": 8.0, "container": 64.0}
LARGE_MIB = 400
SHARES = {"shared": 0.0, "tenth": 0.1, "none": 1.0}
SETTLE_S = 1.5
"""A runtime gives free memory back a second after it is no longer wanted."""


@dataclass(frozen=True)
class Way:
    """How instances live. `settings` are the node agent's."""

    name: str
    settings: dict[str, Any]
    counts: tuple[int, ...]


def ways(count: int, runtimes: str) -> tuple[Way, ...]:
    own = {"max_instances_per_runtime": 1}
    if runtimes == "container":
        kind = {"runtimes": "container"}
        return (
            Way("sharing", kind, (1, 4)),
            Way("container", kind | own, (1, 4, count)),
            Way("off", kind | own | {"sharing": False}, (1, 4)),
        )
    return (
        Way("sharing", {}, (1, 4, count)),
        Way("process", own, (1, 4)),
        Way("runtime", {"sharing": False}, (1, 4)),
        Way("off", own | {"sharing": False}, (1, 4)),
    )


async def grown(model: BenchModel, backend: str, kind: str, way: Way) -> list[dict[str, Any]]:
    """A row for each count."""
    counts = way.counts if kind != "none" else way.counts[:2]
    family = siblings(model, backend, max(counts), SHARES[kind])
    signature = decode(repository().read(made(model)[backend])).signature
    inputs = [(spec.name, spec.datatype, array) for spec, array in zip(signature.inputs, arrays(model), strict=True)]
    total = sum(each.own_bytes for each in family) + 2 * decode(repository().read(family[0].artifact)).tensor_bytes
    settings = {
        "flavours": [backend],
        "warm_runtimes": 0,
        "pool_policy": "constant",
        "runtime_keep_alive_s": 3600.0,
        "idle_after_s": 0.0,
        **way.settings,
    }
    rows: list[dict[str, Any]] = []
    first: tuple[float, float] | None = None
    async with node(total + 256 * MIB, **settings) as where:
        answers = []
        for index, sibling in enumerate(family, start=1):
            instance = await where.start(sibling.artifact)
            for _ in range(2):
                answer = (await where.ask(instance, inputs))[0]
            answers.append(answer)
            if not np.isfinite(answer).all():
                raise SystemExit(f"{model.name} {kind} answers with numbers that are none")
            if index not in counts:
                continue
            await asyncio.sleep(SETTLE_S)
            private, used = used_mib(where, way.settings.get("sharing", True))
            first = first or (private, used)
            row: dict[str, Any] = {"model": model.name, "backend": backend, "weights": kind, "way": way.name, "instances": index}
            row |= {"own_mib": sibling.own_bytes / MIB, "private_mib": private, "total_mib": used}
            if index > 1:
                row |= {
                    "private_per_added_mib": (private - first[0]) / (index - 1),
                    "total_per_added_mib": (used - first[1]) / (index - 1),
                }
            rows.append(row)
        if len(answers) > 1 and all(np.array_equal(answers[0], answer) for answer in answers[1:]):
            raise SystemExit(f"siblings of {model.name} ({kind}) all answer alike: they have no weights of their own")
    return rows


def used_mib(where: Node, sharing: bool) -> tuple[float, float]:
    memory = where.memory()
    return memory.private_bytes / MIB, (memory.proportional_bytes + (where.store_bytes() if sharing else 0)) / MIB


async def measure(report: Report, model: BenchModel, backend: str, count: int, runtimes: str) -> None:
    added: dict[tuple[str, str], float] = {}
    own: dict[str, float] = {}
    for kind in SHARES:
        for way in ways(count, runtimes):
            if kind != "shared" and way.name in ("runtime", "off"):
                continue  # private copies of all weights, whose they are
            for row in await grown(model, backend, kind, way):
                report.row(**row)
                if row["instances"] > 1:
                    added[kind, way.name] = max(row["total_per_added_mib"], added.get((kind, way.name), 0.0))
                    own[kind] = row["own_mib"]
            print(f"{model.name} {backend} {kind} {way.name}: {added[kind, way.name]:.1f} MiB per added instance", flush=True)
    name = f"{model.name}.{backend}"
    judged = "sharing" if runtimes == "process" else "container"
    overhead = max(added[kind, judged] - own[kind] for kind in SHARES)
    report.goal(f"sibling_overhead_mib.{name}", overhead, "<=", SLACK_MIB[runtimes], "MiB beyond its own tensors")
    alone = added["shared", runtimes] - own["shared"]
    report.row(model=model.name, backend=backend, way=runtimes, note=f"alone beyond its own tensors {alone:.1f} MiB")
    size = decode(repository().read(made(model)[backend])).tensor_bytes / MIB
    if size >= LARGE_MIB:
        saved = 100 * (1 - added["shared", "sharing"] / added["shared", "off"])
        report.goal(f"saved_percent.{name}", saved, ">=", 98, "% of what an instance takes with sharing off")


def main() -> None:
    chosen = os.environ.get("BENCH_MODELS")
    models = [BY_NAME[name] for name in chosen.split(",")] if chosen else list(MODELS)
    backends = os.environ.get("BENCH_BACKENDS", "ort").split(",")
    count, runtimes = int(os.environ.get("BENCH_COUNT", "16")), os.environ.get("BENCH_RUNTIMES", "process")
    if runtimes not in SLACK_MIB:
        raise SystemExit(f"BENCH_RUNTIMES {runtimes!r}: must be one of {', '.join(SLACK_MIB)}")
    report = Report("memory")
    for model in models:
        for backend in backends:
            asyncio.run(measure(report, model, backend, count, runtimes))
    report.finish()


if __name__ == "__main__":
    main()
