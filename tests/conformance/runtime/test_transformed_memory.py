"""A runtime in which one model becomes another ten thousand times weighs what it did."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TIMES, WARM_UP = 10_000, 2_000
GROWTH_BYTES = 1 << 20
"""What the allocator may round up to; a hundred bytes left by each would be as much."""

SCRIPT = """
import asyncio, json, sys
from pathlib import Path
import numpy as np
from tessera.clock import SystemClock
from tessera.domain.artifact import Artifact, Blob, TensorRef
from tessera.domain.signature import Signature, TensorSpec
from tessera.policy.transform.aligned import AlignedPlanner
from tessera.policy.transform.costs import MetaCosts
from tessera.policy.transform.delta import delta_of
from tessera.policy.transform.plan import plan
from tessera.policy.transform.structure import Program, structure_of
from tessera.runtime import memory
from tessera.runtime.loads import Becoming, LoadRequest
from tessera.runtime.manager import InstanceManager, RuntimeConfig
from tessera.tensorstore.artifact import digest_of, encode
from tessera.tensorstore.seal import seal

SIGNATURE = Signature((TensorSpec("x", "FP32", (8,)),), (TensorSpec("y", "FP32", (8,)),), False)

def put(store, data):
    digest = digest_of(data)
    (store / "blobs" / digest).write_bytes(data)
    seal(store / "blobs" / digest, digest)
    return digest

def model(store, length, seed):
    refs = []
    for at in range(length):
        data = np.random.default_rng((seed, at)).standard_normal(8).astype(np.float32).tobytes()
        refs.append(TensorRef(f"t{at}", "FP32", (8,), put(store, data), len(data)))
    kinds = ("aten.mul.Tensor", "aten.add.Tensor")
    nodes = [[kinds[(at + seed) % 2], [{"slot": length + at if at else 0}, {"slot": 1 + at}], {}, length + 1 + at] for at in range(length)]
    graph = json.dumps({
        "format": 1, "dialect": "aten", "slots": 2 * length + 1, "inputs": [{"name": "x", "slot": 0}], "nodes": nodes,
        "tensors": [{"name": ref.slot, "slot": 1 + at, "dtype": "FP32", "shape": [8]} for at, ref in enumerate(refs)],
        "outputs": [{"name": "y", "slot": 2 * length}],
    }).encode()
    blob = Blob(put(store, graph), len(graph))
    artifact = put(store, encode(Artifact("aten", "fp32", "aten", blob, None, tuple(refs), SIGNATURE, None, 1)))
    return artifact, blob.digest, Program(structure_of(graph))

async def main(folder, times, warm_up):
    store = Path(folder) / "store"
    (store / "blobs").mkdir(parents=True)
    config = RuntimeConfig("r", "aten", "default", store, Path(folder))
    config.folder.mkdir()
    manager = InstanceManager(config, SystemClock())
    await manager.start()
    models = [model(store, length, seed) for length, seed in ((3, 0), (6, 1), (4, 0))]
    deltas = {}
    for i, (_, here, source) in enumerate(models):
        for j, (_, there, target) in enumerate(models):
            made = plan(source, target, AlignedPlanner(), MetaCosts())
            deltas[i, j] = delta_of(source.structure, target.structure, made, (here, there))
    await manager.load(LoadRequest("i0", 1, "m@1/v", models[0][0]))
    figures = []
    for n in range(1, times + 1):
        i, j = (n - 1) % 3, n % 3
        await manager.load(LoadRequest(f"i{n}", n + 1, "m@1/v", models[j][0], donor=Becoming(f"i{n - 1}", deltas[i, j])))
        if n in (warm_up, times):
            await manager.trim()
            figures.append(memory.anonymous_bytes())
    (last,) = manager.instances
    print(json.dumps([figures, last.loaded.plan.slots, manager.mapped(), sorted(manager.holds.held())]))
    await manager.close(0)

asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
"""


@pytest.mark.timeout(180)
def test_ten_thousand_transformations_leave_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(TIMES), str(WARM_UP)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    assert found.returncode == 0, found.stderr
    (early, late), slots, mapped, held = json.loads(found.stdout)
    assert late - early < GROWTH_BYTES
    assert slots <= 1 + 2 * 6 + 2 * 6, "as many as two of them together"
    assert set(mapped) < set(held), "nothing is mapped but what the last one holds; its graph is read"
    assert len(mapped) == len(held) - 1
