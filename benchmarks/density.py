"""How many fine-tuned siblings of resnet50 fit into 2 GiB: make bench NAME=density

Siblings share a frozen trunk; each has a classifier of its own, for a hundred classes (0.8 MB) or a thousand (8.2 MB). One node agent
starts one after the other (`bind`), each answers an image and is compared with its own weights in numpy, until the budget is full or
something else says stop; every fourth answers again after it was parked. *Used*: proportional set sizes of all runtimes and zygotes
without the store's files, and the store's allocated bytes. The agent, its relay and etcd are the same for any number and are left out.

Against it: a process each without sharing, that is one runtime per instance with private copies of its weights, forked from the same
zygote. It would need no store, so that the store's bytes are not counted there.

    BENCH_BUDGET_MIB=2048 BENCH_PER_RUNTIME=256 BENCH_MODELS=resnet50-100,resnet50 make bench NAME=density
"""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.made import Sibling, made, repository, siblings
from benchmarks.models import BY_NAME, SMALL_HEAD, BenchModel, arrays
from benchmarks.node import Node, node
from benchmarks.report import Report
from tessera.domain.errors import TesseraError
from tessera.repository.artifacts import decode
from tessera.runtime.backends.interface import Tensor
from tessera.runtime.baked_graph import runner
from tessera.tensorstore.mapping import tensor_view

MIB = 1 << 20
TOLERANCE = 1e-4
LOOK_EVERY_BYTES = 48 * MIB
"""The budget is looked at again when at least so much may have been added."""
IDLE_S = 1.0
CHUNK = 64
AGAIN_EVERY = 4


class Expected:
    """The trunk's features of one image, and every sibling's answer to it without Tessera's runtimes."""

    def __init__(self, model: BenchModel) -> None:
        self._store = repository()
        artifact = decode(self._store.read(made(model)["ort"]))
        assert artifact.graph is not None
        graph = onnx.load_model_from_string(self._store.read(artifact.graph.digest))
        head = next(item for item in reversed(graph.graph.node) if item.op_type == "Gemm")
        self.slots = (head.input[1], head.input[2])
        graph.graph.output.append(onnx.ValueInfoProto(name=head.input[0]))
        self.image = arrays(model)[0]
        self.input = artifact.signature.inputs[0]
        tensors = self._tensors(made(model)["ort"], None)
        with tempfile.TemporaryDirectory() as scratch:
            run = runner(graph.SerializeToString(), tensors, Path(scratch))
            self._features = run({self.input.name: Tensor(self.input.datatype, self.image)})[head.input[0]]

    def _tensors(self, digest: Any, slots: tuple[str, ...] | None) -> dict[str, np.ndarray]:
        artifact = decode(self._store.read(digest))
        pack = memoryview(self._store.read(artifact.pack.digest)) if artifact.pack else memoryview(b"")
        wanted = [ref for ref in artifact.tensors if slots is None or ref.slot in slots]
        return {
            ref.slot: tensor_view(pack if ref.pack_offset is not None else memoryview(self._store.read(ref.digest)), ref) for ref in wanted
        }

    def of(self, sibling: Sibling) -> np.ndarray:
        weight, bias = (self._tensors(sibling.artifact, self.slots)[slot] for slot in self.slots)
        answer: np.ndarray = self._features @ weight.T + bias
        return answer


async def check(where: Node, instance: Any, expected: Expected, wanted: np.ndarray) -> None:
    (answer,) = await where.ask(instance, [(expected.input.name, expected.input.datatype, expected.image)])
    worst = float(np.abs(answer - wanted).max())
    if worst > TOLERANCE * max(1.0, float(np.abs(wanted).max())):
        raise SystemExit(f"{instance.instance_id} answers wrongly, by {worst}")


def used_bytes(where: Node, sharing: bool) -> int:
    return where.memory().proportional_bytes + (where.store_bytes() if sharing else 0)


async def fill(model: BenchModel, expected: Expected, budget: int, sharing: bool, parked: bool, per_runtime: int) -> dict[str, Any]:
    """One row: starts siblings until the budget is full."""
    settings = {
        "flavours": ["ort"],
        "sharing": sharing,
        "idle_after_s": IDLE_S if parked else 0.0,
        "max_instances_per_runtime": per_runtime,
        "warm_runtimes": 0,
        "pool_policy": "constant",
        "runtime_keep_alive_s": 3600.0,
    }
    async with node(4 * budget, **settings) as where:
        begun = asyncio.get_running_loop().time()
        empty = used_bytes(where, sharing)
        known: list[tuple[Any, np.ndarray]] = []
        stopped_by, looked, used = "budget", empty, empty
        for sibling in every_sibling(model, expected):
            wanted = expected.of(sibling)
            try:
                instance = await where.start(sibling.artifact)
            except TesseraError as error:
                stopped_by = str(error)
                break
            await check(where, instance, expected, wanted)
            known.append((instance, wanted))
            looked += sibling.own_bytes if sharing else LOOK_EVERY_BYTES
            if looked - used >= LOOK_EVERY_BYTES or looked >= budget:
                if parked and looked >= budget - LOOK_EVERY_BYTES:
                    await asyncio.sleep(2 * IDLE_S + 1.5)
                looked = used = used_bytes(where, sharing)
                print(f"{model.name}: {len(known)} instances, {used / MIB:.0f} MiB", flush=True)
                if used > budget:
                    known.pop()
                    break
        if parked:
            for instance, wanted in known[::AGAIN_EVERY]:
                await check(where, instance, expected, wanted)
            await asyncio.sleep(2 * IDLE_S + 1.5)
        status = await where.status()
        memory, count = where.memory(), len(known)
        return {
            "model": model.name,
            "sharing": "on" if sharing else "off",
            "parked": sum(found.parked for found in status.instances),
            "instances": count,
            "runtimes": len(status.runtimes),
            "per_runtime": per_runtime,
            "used_mib": used_bytes(where, sharing) / MIB,
            "empty_mib": empty / MIB,
            "store_mib": where.store_bytes() / MIB,
            "private_mib": memory.private_bytes / MIB,
            "mib_per_instance": (used_bytes(where, sharing) - empty) / MIB / max(1, count),
            "stopped_by": stopped_by,
            "seconds": asyncio.get_running_loop().time() - begun,
        }


def every_sibling(model: BenchModel, expected: Expected) -> Iterator[Sibling]:
    for start in itertools.count(0, CHUNK):
        yield from siblings(model, "ort", CHUNK, expected.slots, start)


async def measure(report: Report, model: BenchModel, budget: int, limits: list[int]) -> None:
    expected = Expected(model)
    alone = await fill(model, expected, budget, sharing=False, parked=False, per_runtime=1)
    report.row(**alone)
    best = 0.0
    for limit in limits:
        row = await fill(model, expected, budget, sharing=True, parked=True, per_runtime=limit)
        best = max(best, row["instances"] / alone["instances"])
        report.row(**row, ratio=row["instances"] / alone["instances"])
    key = "density_ratio" if model is SMALL_HEAD else f"density_ratio.{model.name}"
    report.goal(key, best, ">=", 20, "times the instances of a process each without sharing")


def main() -> None:
    budget = int(os.environ.get("BENCH_BUDGET_MIB", "2048")) * MIB
    limits = [int(limit) for limit in os.environ.get("BENCH_PER_RUNTIME", "256").split(",")]
    report = Report("density")
    for model in (BY_NAME[name] for name in os.environ.get("BENCH_MODELS", f"{SMALL_HEAD.name},resnet50").split(",")):
        asyncio.run(measure(report, model, budget, limits))
    report.finish()


if __name__ == "__main__":
    main()
