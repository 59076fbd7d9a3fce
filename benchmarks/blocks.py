"""Blocks of runs at one batch, by eager PyTorch in a process of its own or by the platform on its node: what rounds are made of.

    python -m benchmarks.blocks MODEL THREADS    eager PyTorch: reads "BATCH SECONDS" by line, answers a block by line, as JSON

Both run at the priority at which the platform measures, so that what else the machine does takes as much from either.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial

from benchmarks.models import BY_NAME, arrays, pretrained_module
from benchmarks.report import median
from tessera.api.node.v1 import node_pb2, node_pb2_grpc
from tessera.api.registry.v1 import registry_pb2
from tessera.rpc import connect_sync
from tessera.sdk import Client
from tessera.wire import decode_latency_row

NICE = 10
WARM_RUNS = 2
LEAST_RUNS = 3
BLOCK_LIMIT_S = 600.0
"""What a block may take, waiting until the node is quiet included."""


@dataclass(frozen=True)
class Block:
    batch: int
    items_per_s: float
    p50_ms: float


class Eager:
    """A user's own process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def block(self, batch: int, seconds: float) -> Block:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(batch, seconds, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"eager PyTorch ended with {self._process.wait()} at batch {batch}")
        return Block(**json.loads(line))


@contextmanager
def eager(model: str, threads: int) -> Iterator[Eager]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.blocks", model, str(threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Eager(process)
        finally:
            process.kill()


@dataclass(frozen=True)
class Cell:
    """Where the platform measures: `concurrency` instances at a time, each with `threads`."""

    batch: int
    threads: int
    concurrency: int


class OnNode:
    """The platform's own measuring, in a runtime of the node that serves nobody."""

    def __init__(self, client: Client) -> None:
        (node,) = client.nodes()
        self._agent = node_pb2_grpc.NodeAgentStub(connect_sync(node.agent_address))

    def block(self, variant: registry_pb2.VariantInfo, cell: Cell, seconds: float) -> Block:
        request = node_pb2.MeasureRequest(
            variant=variant.key, artifact_digest=variant.artifact_digest, batch=cell.batch, threads=cell.threads,
            concurrency=cell.concurrency, seconds=seconds, min_repeats=LEAST_RUNS,
        )  # fmt: skip
        events = self._agent.Measure(request, timeout=BLOCK_LIMIT_S)
        (row,) = [decode_latency_row(event.row) for event in events if event.HasField("row")]
        return Block(cell.batch, row.items_per_s, row.p50_ms)


def _run(name: str, threads: int) -> None:
    import torch

    os.setpriority(os.PRIO_PROCESS, 0, NICE)
    torch.set_num_threads(threads)
    module = pretrained_module(BY_NAME[name])
    for line in sys.stdin:
        batch, seconds = line.split()
        run = partial(module, *(torch.from_numpy(array) for array in arrays(BY_NAME[name], int(batch))))
        with torch.inference_mode():
            for _ in range(WARM_RUNS):
                run()
            took_ms: list[float] = []
            until_s = time.perf_counter() + float(seconds)
            while len(took_ms) < LEAST_RUNS or time.perf_counter() < until_s:
                began_s = time.perf_counter()
                run()
                took_ms.append((time.perf_counter() - began_s) * 1e3)
        block = Block(int(batch), 1e3 * int(batch) * len(took_ms) / sum(took_ms), median(took_ms))
        print(json.dumps(asdict(block)), flush=True)


if __name__ == "__main__":
    _run(sys.argv[1], int(sys.argv[2]))
