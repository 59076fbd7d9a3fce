"""PyTorch without modules: a flat list of ATen operations bound to mapped tensors."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tessera.domain.artifact import Artifact
from tessera.domain.errors import DataCorrupted, Internal, InvalidInput, ResourceExhausted
from tessera.domain.ids import Digest
from tessera.runtime.backends.aten.program import Plan, execute, read_plan
from tessera.runtime.backends.interface import BackendConfig, BlobSource, Tensor, refuse_unknown_options

_DATATYPES: dict[torch.dtype, str] = {
    torch.bool: "BOOL", torch.uint8: "UINT8", torch.uint16: "UINT16", torch.uint32: "UINT32", torch.uint64: "UINT64",
    torch.int8: "INT8", torch.int16: "INT16", torch.int32: "INT32", torch.int64: "INT64",
    torch.float16: "FP16", torch.bfloat16: "BF16", torch.float32: "FP32", torch.float64: "FP64",
}  # fmt: skip
_READ_ONLY = "The given (NumPy array|buffer) is not writable"


class AtenLoaded:
    inline = False

    def __init__(self, plan: Plan, bound: list[Any]) -> None:
        self._plan: Plan | None = plan
        self._bound = bound

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        plan = self._plan
        if plan is None:
            raise Internal("the program is closed")
        try:
            with torch.inference_mode():
                given = {name: _to_torch(tensor.array, tensor.datatype) for name, tensor in inputs.items()}
                return {
                    port.name: _to_tensor(port.name, value)
                    for port, value in zip(plan.outputs, execute(plan, self._bound, given), strict=True)
                }
        except (RuntimeError, IndexError, ValueError) as error:
            text = " ".join(str(error).split())[:500]
            if "allocate memory" in text:
                raise ResourceExhausted(f"PyTorch: {text}") from error
            # The program ran when it was imported; what differs from then is the input (lengths that must agree, an index too large).
            raise InvalidInput("inputs", None, f"the model cannot take them: {text}") from error

    def close(self) -> None:
        self._plan = None
        self._bound = []


class AtenBackend:
    name = "aten"
    flavour = "aten"

    def __init__(self, config: BackendConfig) -> None:
        warnings.filterwarnings("ignore", message=_READ_ONLY)  # what is mapped read-only is meant to be; no operator may write
        torch.set_num_threads(config.threads)

    def warm(self) -> None:
        """The first convolution of a process costs 8-14 ms more than the next."""
        with torch.inference_mode():
            image = torch.zeros(1, 8, 8, 8)
            weight = torch.zeros(8, 8, 3, 3)
            one = torch.ones(8)
            image = torch.relu(torch.batch_norm(torch.conv2d(image, weight, padding=1), one, one, one, one, False, 0.0, 1e-5, False))
            image = torch.nn.functional.linear(image, torch.zeros(8, 8), one)
            torch.nn.functional.layer_norm(image, [8])
            torch.nn.functional.scaled_dot_product_attention(image, image, image)

    def load(self, artifact: Artifact, digest: Digest, blobs: BlobSource) -> AtenLoaded:
        refuse_unknown_options(artifact)
        plan = read_plan(blobs.graph())
        arrays = blobs.tensors()
        _check_signature(artifact, plan)
        references = {ref.slot: ref for ref in artifact.tensors}
        bound: list[Any] = [None] * plan.slots
        for tensor in plan.tensors:
            ref = references.get(tensor.name)
            if ref is None:
                raise DataCorrupted(f"tensor {tensor.name}: the graph wants it and the artifact does not have it")
            if ref.dtype != tensor.dtype or list(ref.shape) != tensor.shape:
                raise DataCorrupted(
                    f"tensor {tensor.name}: the artifact has {ref.dtype} {list(ref.shape)}, the graph wants {tensor.dtype} {tensor.shape}"
                )
            bound[tensor.slot] = _to_torch(arrays[tensor.name], tensor.dtype)
        if len(plan.tensors) != len(references):
            unread = sorted(set(references) - {tensor.name for tensor in plan.tensors})
            raise DataCorrupted(f"tensor {unread[0] if unread else ''}: the artifact has it and the graph does not name it")
        return AtenLoaded(plan, bound)

    def release(self) -> None:
        """PyTorch gives CPU memory back by itself; the heap is trimmed by the caller."""


def prepare() -> None:
    """Nothing beyond the import is worth doing before a fork."""


def create(config: BackendConfig) -> AtenBackend:
    return AtenBackend(config)


def _check_signature(artifact: Artifact, plan: Plan) -> None:
    for kind, specs, ports in (("input", artifact.signature.inputs, plan.inputs), ("output", artifact.signature.outputs, plan.outputs)):
        if [spec.name for spec in specs] != [port.name for port in ports]:
            raise DataCorrupted(
                f"{kind}s of the graph are {[port.name for port in ports]}, the signature says {[spec.name for spec in specs]}"
            )


def _to_torch(array: npt.NDArray[Any], datatype: str) -> torch.Tensor:
    """A tensor on the array's own memory."""
    if datatype == "BF16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _to_tensor(name: str, value: Any) -> Tensor:
    if not isinstance(value, torch.Tensor):
        raise Internal(f"output {name} is a {type(value).__name__}, not a tensor")
    value = value.contiguous()
    if value.dtype == torch.bfloat16:
        return Tensor("BF16", value.view(torch.int16).numpy().view(np.uint16))
    datatype = _DATATYPES.get(value.dtype)
    if datatype is None:
        raise Internal(f"output {name} has dtype {value.dtype}, which the protocol does not have")
    return Tensor(datatype, value.numpy())
