"""OpenVINO's CPU plugin over mapped tensors.

Weights are constants over the mapped bytes themselves. What the plugin's kernels want in another layout (convolutions, matrix products) it
lays out anew in private memory at the first run; what it reads as it is (embeddings) stays shared. Nothing is written to a cache, nothing
is imported before the fork: the first load pays for that.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov

from tessera.domain.artifact import PREPACKED, Artifact
from tessera.domain.errors import DataCorrupted, Internal, InvalidInput, ResourceExhausted, TesseraError, Unsupported
from tessera.domain.ids import Digest
from tessera.runtime.backends.interface import BackendConfig, BlobSource, Tensor, refuse_unknown_options
from tessera_openvino.graph import ELEMENT_TYPES, Header, unpack

_DEVICE = "CPU"
_KERNELS_KEPT = 64
"""Kernels made for shapes that were seen; the plugin's own default is 5,000."""


class OpenVinoLoaded:
    """A compiled model. OpenVINO keeps bare pointers into the tensors: it ends first, then the mappings.

    Runs are asynchronous and waited for: `infer` with one thread ends without an error where shapes do not fit. A compiled model in which a
    run has failed answers the next ones with that error or with what it had before: the next run has it made again.
    """

    inline = False

    def __init__(self, compile: Callable[[], Any], header: Header, outputs: Mapping[str, str]) -> None:
        self._compile: Callable[[], Any] | None = compile
        self._header = header
        self._outputs = outputs
        self._request: Any = compile().create_infer_request()

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self._compile is None:
            raise Internal("the model is closed")
        arrays = {name: tensor.array for name, tensor in inputs.items()}
        self._header.check(arrays)
        try:
            request = self._request = self._request or self._compile().create_infer_request()
            request.start_async(arrays, share_inputs=True)
            request.wait()
            return {name: Tensor(datatype, request.get_tensor(name).data.copy()) for name, datatype in self._outputs.items()}
        except Exception as error:
            self._request = None
            raise _run_error(error) from error

    def close(self) -> None:
        self._request = self._compile = None


class OpenVinoBackend:
    name = "openvino"
    flavour = "ort"

    def __init__(self, config: BackendConfig) -> None:
        self._core = ov.Core()
        self._properties = {
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": config.threads,
            "ENABLE_HYPER_THREADING": True,  # else the threads are at most as many as there are cores without their twins
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": "f32",
            "EXECUTION_MODE_HINT": "ACCURACY",
            "CPU_RUNTIME_CACHE_CAPACITY": _KERNELS_KEPT,
        }

    def warm(self) -> None:
        """It is made by the load that wants it."""

    def load(self, artifact: Artifact, digest: Digest, blobs: BlobSource) -> OpenVinoLoaded:
        refuse_unknown_options(artifact, PREPACKED)
        header, topology, constants = unpack(blobs.graph())
        arrays = blobs.tensors()
        try:
            model = blobs.derived(lambda: self._bound(artifact, topology, constants, arrays))
            _check_signature(artifact, model)
            outputs = {spec.name: spec.datatype for spec in artifact.signature.outputs}
            return OpenVinoLoaded(partial(self._core.compile_model, model, _DEVICE, self._properties), header, outputs)
        except TesseraError:
            raise
        except Exception as error:
            raise Unsupported(f"OpenVINO cannot open graph {artifact.graph.digest if artifact.graph else ''}: {_line(error)}") from error

    def release(self) -> None:
        gc.collect()

    def _bound(self, artifact: Artifact, topology: bytes, constants: bytes, arrays: Mapping[str, npt.NDArray[Any]]) -> Any:
        """The model with its weights in place.

        Raises:
            DataCorrupted: names the first parameter whose tensor is missing, too many, or of another dtype or shape.
        """
        model = self._core.read_model(topology, ov.Tensor(np.frombuffer(bytearray(constants), np.uint8)))
        weights = {ref.slot: ref for ref in artifact.tensors}
        inputs = {spec.name for spec in artifact.signature.inputs}
        for parameter in model.get_parameters():
            slot = parameter.get_friendly_name()
            if slot in inputs:
                continue
            ref = weights.pop(slot, None)
            if ref is None:
                raise DataCorrupted(f"parameter {slot}: the artifact has no tensor for it")
            wanted = parameter.get_element_type().get_type_name(), tuple(parameter.get_output_shape(0))
            if wanted != (ELEMENT_TYPES.get(ref.dtype), ref.shape):
                raise DataCorrupted(
                    f"tensor {slot}: the artifact has {ref.dtype} {list(ref.shape)}, the graph wants {wanted[0]} {list(wanted[1])}"
                )
            constant = ov.op.Constant(_writable(arrays[slot]), shared_memory=True)
            parameter.output(0).replace(constant.output(0))
            model.remove_parameter(parameter)
        if weights:
            raise DataCorrupted(f"tensor {next(iter(weights))}: the graph has no parameter of that name")
        model.validate_nodes_and_infer_types()
        return model


def _writable(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same memory under an array that says it can be written to: OpenVINO copies what says it cannot, and writes to no constant."""
    if not array.size:
        return array.copy()
    memory = (ctypes.c_byte * array.nbytes).from_address(array.ctypes.data)
    found: npt.NDArray[Any] = np.frombuffer(memoryview(memory), array.dtype).reshape(array.shape)
    return found


def _check_signature(artifact: Artifact, model: Any) -> None:
    signature = artifact.signature
    for kind, specs, ports in (("input", signature.inputs, model.inputs), ("output", signature.outputs, model.outputs)):
        names = [port.get_names() for port in ports]
        if len(ports) < len(specs) or any(not any(spec.name in found for found in names) for spec in specs):
            raise DataCorrupted(
                f"{kind}s of the graph are {sorted(map(sorted, names))}, the signature says {[spec.name for spec in specs]}"
            )


def _run_error(error: Exception) -> TesseraError:
    """The model ran when it was baked; what differs from then is the input (lengths that must agree) or memory."""
    if isinstance(error, MemoryError) or "allocate" in str(error):
        return ResourceExhausted(f"OpenVINO: {_line(error)}")
    if isinstance(error, RuntimeError):
        return InvalidInput("inputs", None, f"the model cannot take them: {_line(error)}")
    return Internal(f"OpenVINO: {_line(error)}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
