"""ONNX Runtime over mapped tensors: sessions that open in milliseconds and hold nothing private (docs/adr/0003-graph-formats.md).

The graph was optimised when it was baked, so it is opened with optimisation and prepacking off (prepacking on where the artifact says
`prepacked`); every external initializer is handed over as an OrtValue on mapped memory. All sessions of a process share one arena. Each has
threads of its own, one less than the runtime may use: the pool that sessions can share cannot be kept from spinning, which burns a core for
13 to 35 ms after every run.

What is not prepacked reads its weights where they lie, at every run: a session becomes a sibling's when that one's are mapped over its own.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import _pybind_state as C

from tessera.domain.artifact import PREPACKED, Artifact
from tessera.domain.errors import DataCorrupted, FailedPrecondition, Internal, InvalidInput, ResourceExhausted, TesseraError, Unsupported
from tessera.domain.ids import Digest
from tessera.runtime import overlay
from tessera.runtime.backends.interface import (
    BackendConfig,
    BlobSource,
    Donor,
    MappedBlobs,
    Tensor,
    refuse_another_graph,
    refuse_unknown_options,
)
from tessera.runtime.backends.ort.graph import ELEMENT_TYPES, Initializer, external_initializers, readers, warm_graph

EXTERNAL_NAME = "tessera"
_ERROR_LEVEL = 3
_CPU = C.OrtDevice(C.OrtDevice.cpu(), C.OrtDevice.default_memory(), 0)
_SPIN_US = "100"
"""Bridges the gap between two operators of a run (MiniLM: 6.8 ms instead of 8.1 without), and costs next to nothing after it."""
READ_AT_RUNS = frozenset({
    "Add", "Attention", "BatchNormalization", "BiasGelu", "Conv", "Div", "EmbedLayerNormalization", "FastGelu", "FusedConv", "FusedGemm",
    "FusedMatMul", "Gather", "Gemm", "LayerNormalization", "MatMul", "Mul", "PRelu", "Pow", "QuickGelu", "SkipLayerNormalization", "Sub",
    "Where",
})  # fmt: skip
"""Operators whose kernels keep nothing of their weights when a session is opened without prepacking. Others may: `QLinearSigmoid` makes
itself a table."""
_SHRINK = "memory.enable_memory_arena_shrinkage"


class _Opening(NamedTuple):
    """What sessions of the same bytes are opened with, one after the other: options that name the values, and what these point into."""

    options: Any
    values: list[Any]
    arrays: list[npt.NDArray[Any]]


class OrtLoaded:
    """A session. ONNX Runtime keeps bare pointers: it ends first, then the values in its `_Opening`, then the mappings. `seats`: those that
    were another instance's."""

    inline = False

    def __init__(self, session: Any, opening: _Opening | None, artifact: Artifact, seats: overlay.Seats) -> None:
        self._session = session
        self._opening = opening
        self._datatypes = {spec.name: spec.datatype for spec in artifact.signature.outputs}
        self.seats = seats
        self._names = [output.name for output in session.get_outputs()]

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        session = self._session
        if session is None:
            raise Internal("the session is closed")
        try:
            arrays = session.run(self._names, {name: tensor.array for name, tensor in inputs.items()})
        except Exception as error:
            raise _run_error(error) from error
        return {name: Tensor(self._datatypes[name], array) for name, array in zip(self._names, arrays, strict=True)}

    def becomes(self, artifact: Artifact, change: overlay.Overlay) -> OrtLoaded:
        """Carries a change out, and is closed by it. Raises: Internal: half of it may be done."""
        session, opening = self._session, self._opening
        try:
            overlay.map_over(change)
        finally:
            self.close()
        return OrtLoaded(session, opening, artifact, change.seats)

    @property
    def session(self) -> Any:
        """None once it is closed."""
        return self._session

    def close(self) -> None:
        self._session = None
        self._opening = None
        self.seats = {}


class OrtBackend:
    name = "ort"
    flavour = "ort"

    def __init__(self, config: BackendConfig) -> None:
        self._config = config
        ort.set_default_logger_severity(_ERROR_LEVEL)
        info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
        ort.create_and_register_allocator(info, None)
        (config.folder / EXTERNAL_NAME).touch()  # it must exist; nothing is read from it
        self._warm_session: Any = None

    def warm(self) -> None:
        graph, inputs, weights = warm_graph()
        self._warm_opening = self._opening(weights, prepacked=False)
        session = _session(graph, self._warm_opening)
        session.run(None, inputs)
        self._warm_session, self._warm_inputs = session, inputs

    def load(self, artifact: Artifact, digest: Digest, blobs: BlobSource) -> OrtLoaded:
        refuse_unknown_options(artifact, PREPACKED)
        graph, arrays = blobs.graph(), blobs.tensors()
        _check_initializers(artifact, external_initializers(graph))
        try:
            weights = {ref.slot: (arrays[ref.slot], ref.dtype) for ref in artifact.tensors}
            opening = blobs.derived(lambda: self._opening(weights, prepacked=PREPACKED in artifact.options))
            session = _session(graph, opening)
        except Exception as error:
            raise Unsupported(
                f"ONNX Runtime cannot open graph {artifact.graph.digest if artifact.graph else ''}: {_first_line(error)}"
            ) from error
        _check_signature(artifact, session)
        return OrtLoaded(session, opening, artifact, {})

    def transform(self, donor: Donor, delta: bytes, artifact: Artifact, digest: Digest, blobs: BlobSource) -> OrtLoaded:
        """See `TransformingBackend`. Replace alone: the donor's session reads the artifact's tensors, mapped over its own."""
        refuse_unknown_options(artifact, PREPACKED)
        refuse_another_graph(donor, artifact)
        live = donor.loaded
        if PREPACKED in (*donor.artifact.options, *artifact.options):
            raise FailedPrecondition("prepacked weights are copies: the session does not read what is mapped")
        if not isinstance(live, OrtLoaded) or live.session is None:
            raise FailedPrecondition("the donor is parked: it has no session")
        there = donor.blobs
        if not isinstance(there, MappedBlobs) or not isinstance(blobs, MappedBlobs):
            raise FailedPrecondition("the tensors are not mapped from files")
        graph = blobs.graph()
        _check_initializers(artifact, external_initializers(graph))
        _check_signature(artifact, live.session)
        change = overlay.checked(donor.artifact, there, live.seats, artifact, blobs)
        _check_readers(change.changed, readers(graph))
        donor.spent = True
        try:
            return live.becomes(artifact, change)
        finally:
            there.close()

    def release(self) -> None:
        """The shared arena gives its free regions back after a run that asks for it."""
        if self._warm_session is None:
            self.warm()
        options = ort.RunOptions()
        options.add_run_config_entry(_SHRINK, "cpu:0")
        self._warm_session.run(None, self._warm_inputs, options)
        gc.collect()  # sessions are garbage in circles, in whichever generation; what was there before the fork is frozen

    def _opening(self, weights: Mapping[str, tuple[npt.NDArray[Any], str]], *, prepacked: bool) -> _Opening:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = self._config.threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = _ERROR_LEVEL
        for key, value in (
            ("session.use_env_allocators", "1"),
            ("session.disable_prepacking", "0" if prepacked else "1"),
            ("session.intra_op.spin_duration_us", _SPIN_US),
            ("session.model_external_initializers_file_folder_path", str(self._config.folder)),
        ):
            options.add_session_config_entry(key, value)
        values = []
        for name, (array, datatype) in weights.items():
            value = _value(array, datatype)
            options.add_initializer(name, value)
            values.append(value)
        return _Opening(options, values, [array for array, _ in weights.values()])


def _session(graph: bytes, opening: _Opening) -> Any:
    return ort.InferenceSession(graph, opening.options, providers=["CPUExecutionProvider"])


def prepare() -> None:
    """Builds ONNX Runtime's table of kernels (4 ms that a first session pays otherwise) and the graph of `warm`. Makes no environment and
    no thread."""
    warm_graph()
    list_kernels = getattr(C, "get_all_opkernel_def", None)
    if list_kernels is not None:
        list_kernels()


def create(config: BackendConfig) -> OrtBackend:
    return OrtBackend(config)


def _value(array: npt.NDArray[Any], datatype: str) -> Any:
    """An OrtValue on the array's own memory, which must outlive it."""
    if datatype == "BF16":
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, ELEMENT_TYPES["BF16"])
    return ort.OrtValue(C.OrtValue.ortvalue_from_numpy(array, _CPU), array)  # as `ortvalue_from_numpy` does, with one device for all


def _check_initializers(artifact: Artifact, wanted: Mapping[str, Initializer]) -> None:
    """ONNX Runtime takes any shape for an initializer that it is given; a wrong one would be a wrong answer.

    Raises:
        DataCorrupted: names the first initializer whose tensor is missing, too many, or of another dtype or shape.
    """
    given = set()
    for ref in artifact.tensors:
        initializer = wanted.get(ref.slot)
        if initializer is None:
            raise DataCorrupted(f"tensor {ref.slot}: the graph has no external initializer of that name")
        if initializer.element_type != ELEMENT_TYPES.get(ref.dtype) or initializer.shape != ref.shape:
            raise DataCorrupted(
                f"tensor {ref.slot}: the artifact has {ref.dtype} {list(ref.shape)}, "
                f"the graph wants element type {initializer.element_type} {list(initializer.shape)}"
            )
        given.add(ref.slot)
    for name in wanted:
        if name not in given:
            raise DataCorrupted(f"initializer {name}: the artifact has no tensor for it")


def _check_readers(changed: frozenset[str], found: Mapping[str, frozenset[str]]) -> None:
    """Raises: FailedPrecondition, naming a tensor that a session may have read when it was opened, and who did."""
    for slot in sorted(changed):
        others = found.get(slot, frozenset({"nobody"})) - READ_AT_RUNS
        if others:
            raise FailedPrecondition(f"tensor {slot} is read by {min(others)}, perhaps when the session was opened")


def _check_signature(artifact: Artifact, session: Any) -> None:
    signature = artifact.signature
    half = [spec.name for spec in (*signature.inputs, *signature.outputs) if spec.datatype == "BF16"]
    if half:
        raise Unsupported(f"{half[0]} is BF16: ONNX Runtime hands bfloat16 neither in nor out through numpy; use backend aten")
    for kind, specs, found in (
        ("input", artifact.signature.inputs, session.get_inputs()),
        ("output", artifact.signature.outputs, session.get_outputs()),
    ):
        names = {item.name for item in found}
        missing = [spec.name for spec in specs if spec.name not in names]
        if missing or len(names) != len(specs):
            raise DataCorrupted(f"{kind}s of the graph are {sorted(names)}, the signature says {[spec.name for spec in specs]}")


def _run_error(error: Exception) -> TesseraError:
    """The graph ran when it was baked; what differs from then is the input (lengths that must agree, an index too large) or memory."""
    text = _first_line(error)
    if "allocate memory" in text or isinstance(error, MemoryError):
        return ResourceExhausted(f"ONNX Runtime: {text}")
    if type(error).__name__ in ("InvalidArgument", "Fail", "RuntimeException"):
        return InvalidInput("inputs", None, f"the model cannot take them: {text}")
    return Internal(f"ONNX Runtime: {text}")


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
