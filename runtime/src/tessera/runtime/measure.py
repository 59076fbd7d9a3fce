"""What a loaded variant costs: repeated runs with made-up inputs, of one instance or of several at a time."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
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
_QUANTILES = np.linspace(0.0, 1.0, 201)
_LEAST_SHARE = 0.1
"""Of the time limit: a row that looks steady sooner may have been lucky, and its p99 would say nothing."""


@dataclass(frozen=True, slots=True)
class RowLimits:
    """A row is repeated until its spread is at most `spread` or `seconds` are over (never longer than 300 s), but `min_repeats` times and a
    tenth of `seconds` at least. `spread` 0: for `seconds`."""

    seconds: float
    min_repeats: int
    spread: float = 0.0


@dataclass(frozen=True, slots=True)
class Measurement:
    """`quantiles_ms`: every half percent of the runs' times, from the least to the largest: what rows that are measured in slices can be
    put together from. `spread`: standard error of the mean over the mean. `peak_private_bytes`: private growth of the process at the worst
    moment of a run, of all instances that ran together."""

    repeats: int
    quantiles_ms: tuple[float, ...]
    mean_ms: float
    spread: float
    peak_private_bytes: int


def measure(instances: Sequence[Loaded], signature: Signature, batch: int, limits: RowLimits, clock: Clock) -> Measurement:
    """Runs all `instances` at the same time, each in a thread of its own, after warming and after looking at memory.

    Raises:
        InvalidInput: `seconds` is beyond 300.
    """
    if limits.seconds > _MAX_SECONDS:
        raise InvalidInput("seconds", limits.seconds, f"at most {_MAX_SECONDS}")
    inputs = synthetic_inputs(signature, batch)
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(len(instances), thread_name_prefix="measure")) if len(instances) > 1 else None

        def everywhere(work: Callable[[Loaded], object]) -> None:
            """One instance needs no thread: handing over would be measured as well."""
            for _ in map(work, instances) if pool is None else pool.map(work, instances):
                pass

        peak = _peak_growth(lambda: everywhere(lambda loaded: loaded.run(inputs)))
        row = _Row(limits, clock)
        everywhere(lambda loaded: row.repeat(loaded, inputs))
    quantiles = tuple(np.quantile(row.times_ms, _QUANTILES).tolist())
    return Measurement(len(row.times_ms), quantiles, float(np.mean(row.times_ms)), row.spread, peak)


class _Row:
    """The runs of one row, noted by the threads that make them. Ends for all at once: what ends after that ran without its neighbours."""

    def __init__(self, limits: RowLimits, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._begin_s = clock.monotonic_s()
        self._over = False
        self._sum = self._squares = 0.0
        self.times_ms: list[float] = []

    def repeat(self, loaded: Loaded, inputs: Mapping[str, Tensor]) -> None:
        try:
            while not self._over:
                start_s = self._clock.monotonic_s()
                loaded.run(inputs)
                self._note(start_s, self._clock.monotonic_s())
        except BaseException:
            self._over = True
            raise

    def _note(self, start_s: float, end_s: float) -> None:
        with self._lock:
            if not self._over:
                ms = (end_s - start_s) * 1e3
                self.times_ms.append(ms)
                self._sum += ms
                self._squares += ms * ms
                self._over = self._enough(end_s - self._begin_s)

    def _enough(self, passed_s: float) -> bool:
        limits = self._limits
        if passed_s >= _MAX_SECONDS:
            return True
        if len(self.times_ms) < max(1, limits.min_repeats):
            return False
        steady = limits.spread > 0 and self.spread <= limits.spread
        return passed_s >= limits.seconds or (steady and passed_s >= _LEAST_SHARE * limits.seconds)

    @property
    def spread(self) -> float:
        """Of a single run nothing is known: as uncertain as it is long."""
        count = len(self.times_ms)
        if count < 2 or self._sum <= 0:
            return 1.0
        mean = self._sum / count
        variance = max(0.0, self._squares - count * mean * mean) / (count - 1)
        return math.sqrt(variance / count) / mean


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
