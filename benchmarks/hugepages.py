"""What huge pages in the tensor store cost and gain: make bench NAME=hugepages (needs the right to mount)

The blobs of resnet50 and bert-base, with the sizes that they have in a store (large tensors, one pack of the small ones), lie in a tmpfs
mounted with `huge=never`, `within_size` and `always`. *First touch*: a fresh process maps them all and reads one byte of each page; its
median over the rounds, for the model and per GiB. *Wasted*: what the files take beyond their length. *Faults*: of that process,
meanwhile.

    BENCH_ROUNDS=7 BENCH_MODELS=resnet50,bert-base make bench NAME=hugepages
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from benchmarks.models import BY_NAME, BenchModel, build_module
from benchmarks.report import Report, median
from tessera.clock import SystemClock
from tessera.tensorstore.artifact import digest_of
from tessera.tensorstore.interface import flat
from tessera.tensorstore.local import LocalTensorStore
from tessera.tensorstore.mount import HugePages, prepare_store_folder, remove_store_folder
from tessera.tensorstore.pack import PackWriter

MIB, GIB = 1 << 20, 1 << 30

TOUCH = """
import json, resource, sys, time
from tessera.tensorstore.mapping import BlobMap
import numpy as np
maps, faults = BlobMap(), lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before, began = faults(), time.perf_counter()
views = [np.frombuffer(maps.open(path), np.uint8) for path in sys.argv[1:]]
mapped = time.perf_counter()
total = sum(int(view[::4096].sum()) for view in views)
print(json.dumps({"map_ms": (mapped - began) * 1e3, "touch_ms": (time.perf_counter() - mapped) * 1e3, "faults": faults() - before}))
"""


def _blobs(model: BenchModel) -> Iterator[bytes]:
    """What a store has of a model, as the registry would cut it: each distinct blob once."""
    writer, seen = PackWriter(), set()
    for name, tensor in build_module(model).state_dict().items():
        array = tensor.numpy()
        dtype = {"float32": "FP32", "int64": "INT64", "bool": "BOOL"}[str(array.dtype)]
        ref = writer.add(name, dtype, array.shape, array)
        if ref.pack_offset is None and ref.digest not in seen:
            seen.add(ref.digest)
            yield bytes(flat(array))
    _, packed = writer.finish()
    if packed is not None:
        yield bytes(packed)


def _touch(paths: list[Path]) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", TOUCH, *map(str, paths)], capture_output=True, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def main() -> None:
    if os.geteuid() != 0:
        raise SystemExit("hugepages: mounting a tmpfs needs root")
    report, rounds = Report("hugepages"), int(os.environ.get("BENCH_ROUNDS", "7"))
    for name in os.environ.get("BENCH_MODELS", "resnet50,bert-base").split(","):
        blobs = list(_blobs(BY_NAME[name]))
        size_bytes = sum(map(len, blobs))
        for mode in get_args(HugePages):
            with tempfile.TemporaryDirectory(prefix="tessera-huge-") as folder:
                point = Path(folder) / "store"
                prepare_store_folder(point, 2 * size_bytes + len(blobs) * 2 * MIB, huge_pages=mode)
                try:
                    _measure(report, name, mode, point, blobs, rounds)
                finally:
                    remove_store_folder(point)
    report.finish()


def _measure(report: Report, name: str, mode: HugePages, point: Path, blobs: list[bytes], rounds: int) -> None:
    size_bytes = sum(map(len, blobs))
    with LocalTensorStore(point, 2 * size_bytes, SystemClock()) as store:
        for data in blobs:
            with store.ingest(digest_of(data), len(data)) as writer:
                writer.write(data)
                writer.commit()
        paths = [store.path(digest) for digest in store.digests()]
        taken = sum(path.stat().st_blocks * 512 for path in paths)
        touches = [_touch(paths) for _ in range(rounds)]
    touch_ms = median([touch["touch_ms"] for touch in touches])
    report.row(
        model=name,
        huge=mode,
        files=len(paths),
        mib=size_bytes / MIB,
        map_ms=median([touch["map_ms"] for touch in touches]),
        first_touch_ms=touch_ms,
        first_touch_ms_per_gib=touch_ms * GIB / size_bytes,
        faults=int(median([touch["faults"] for touch in touches])),
        wasted_mib=(taken - size_bytes) / MIB,
        wasted_percent=100 * (taken - size_bytes) / size_bytes,
    )


if __name__ == "__main__":
    main()
