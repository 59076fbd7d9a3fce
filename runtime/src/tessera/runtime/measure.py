"""What a loaded instance costs: repeated runs with made-up inputs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tessera.clock import Clock
from tessera.domain.errors import InvalidInput
from tessera.domain.signature import ANY_DATATYPE, Signature, TensorSpec
from tessera.runtime import memory
from tessera.runtime.backends.interface import Loaded, Tensor
from tessera.tensorstore.mapping import numpy_dtype

DYNAMIC_DIMENSION = 32
"""Length of a varying dimension that is not the batch, such as a sequence."""
_MAX_SECONDS = 300.0
_SAMPLE_S = 0.002
_WARM_RUNS = 2


@dataclass(frozen=True, slots=True)
class Measurement:
    """`peak_private_bytes`: private growth of the process at the worst moment of a run."""

    repeats: int
    p50_ms: float
    p99_ms: float
    mean_ms: float
    peak_private_bytes: int


def measure(loaded: Loaded, signature: Signature, batch: int, seconds: float, min_repeats: int, clock: Clock) -> Measurement:
    """Runs for `seconds` and at least `min_repeats` times (never longer than 300 s), after warming and after looking at memory.

    Raises:
        InvalidInput: `seconds` is beyond 300.
    """
    if seconds > _MAX_SECONDS:
        raise InvalidInput("seconds", seconds, f"at most {_MAX_SECONDS}")
    inputs = synthetic_inputs(signature, batch)
    peak = _peak_growth(lambda: loaded.run(inputs))
    times: list[float] = []
    begin = clock.monotonic_s()
    while True:
        start = clock.monotonic_s()
        loaded.run(inputs)
        end = clock.monotonic_s()
        times.append((end - start) * 1e3)
        if (end - begin >= seconds and len(times) >= max(1, min_repeats)) or end - begin >= _MAX_SECONDS:
            break
    p50, p99 = np.percentile(times, [50, 99])
    return Measurement(len(times), float(p50), float(p99), float(np.mean(times)), peak)


def synthetic_inputs(signature: Signature, batch: int, seed: int = 0) -> dict[str, Tensor]:
    """Inputs that any model of the signature takes: masks of ones, small whole numbers, floats drawn from `seed`."""
    random = np.random.default_rng(seed)
    return {spec.name: _synthetic(spec, signature.batched, batch, random) for spec in signature.inputs}


def _synthetic(spec: TensorSpec, batched: bool, batch: int, random: np.random.Generator) -> Tensor:
    shape = [DYNAMIC_DIMENSION if dimension < 0 else dimension for dimension in spec.shape]
    if batched and shape:
        shape[0] = batch
    datatype = "FP32" if spec.datatype == ANY_DATATYPE else spec.datatype
    if datatype == "BYTES":
        array = np.empty(shape, dtype=object)
        array[...] = b"tessera"
        return Tensor(datatype, array)
    dtype = numpy_dtype(datatype)
    if "mask" in spec.name or datatype == "BOOL":
        return Tensor(datatype, np.ones(shape, dtype))
    if datatype == "BF16":  # the upper half of a float32 is its bfloat16, rounded down
        return Tensor(datatype, (random.standard_normal(shape, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16))
    if dtype.kind in "iu":
        highest = 1 if "type" in spec.name else 100
        return Tensor(datatype, random.integers(0, highest, size=shape, endpoint=False).astype(dtype))
    return Tensor(datatype, random.standard_normal(shape).astype(dtype))


def _peak_growth(run: Callable[[], object]) -> int:
    """Runs a few times and watches this process's anonymous memory from a thread of its own."""
    before = highest = memory.anonymous_bytes()
    stop = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not stop.wait(_SAMPLE_S):
            highest = max(highest, memory.anonymous_bytes())

    watcher = threading.Thread(target=watch, name="memory-watch", daemon=True)
    watcher.start()
    try:
        for _ in range(_WARM_RUNS):
            run()
            highest = max(highest, memory.anonymous_bytes())
    finally:
        stop.set()
        watcher.join()
    return highest - before
