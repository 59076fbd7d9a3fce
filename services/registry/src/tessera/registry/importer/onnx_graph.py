"""An ONNX graph without weights: every float initializer external under its own name, so that siblings share graph and tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from tessera.domain.artifact import Artifact
from tessera.domain.signature import Signature
from tessera.registry.importer.blobs import BlobFolder, store_tensors
from tessera.repository.artifacts import encode

LOCATION = "tessera"
_FLOATS = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16})
_DATATYPES = {
    "float32": "FP32", "float64": "FP64", "float16": "FP16", "bool": "BOOL", "int8": "INT8", "int16": "INT16", "int32": "INT32",
    "int64": "INT64", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """`model`: the serialised graph, float initializers external. `tensors`: (slot, array) of those, in the graph's order."""

    model: bytes
    tensors: tuple[tuple[str, npt.NDArray[Any]], ...]


def externalise(model: ir.Model, integers_from_bytes: int | None = None) -> OnnxGraph:
    """Serialises the graph; float initializers become references, so that a model of any size is a small message.

    `integers_from_bytes`: other initializers too where they are at least this long (quantised weights, no shapes).
    """
    tensors: list[tuple[str, npt.NDArray[Any]]] = []
    external: list[tuple[str, int, list[int]]] = []
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        assert tensor is not None
        if int(tensor.dtype) in _FLOATS or (integers_from_bytes is not None and tensor.nbytes >= integers_from_bytes):
            tensors.append((name, np.asarray(tensor.numpy(), order="C")))  # a scalar keeps its shape ()
            external.append((name, int(tensor.dtype), [int(d) for d in tensor.shape.numpy()]))
            del model.graph.initializers[name]
    proto = ir.to_proto(model)
    for name, dtype, dims in external:
        entry = proto.graph.initializer.add()
        entry.name, entry.data_type = name, dtype
        entry.dims.extend(dims)
        entry.data_location = onnx.TensorProto.EXTERNAL
        location = entry.external_data.add()
        location.key, location.value = "location", LOCATION
    return OnnxGraph(proto.SerializeToString(deterministic=True), tuple(tensors))


def store_export(graph: OnnxGraph, signature: Signature, folder: BlobFolder, max_batch: int) -> str:
    """The digest of the export's artifact, its blobs in `folder`."""
    tensors, pack = store_tensors(
        folder,
        (
            (name, _DATATYPES[array.dtype.name], array.shape, memoryview(array.reshape(-1).view("uint8").data))
            for name, array in graph.tensors
        ),
    )
    batch = max_batch if signature.batched else 1
    return folder.put(encode(Artifact("onnx", "fp32", "onnx", folder.put(graph.model), pack, tensors, signature, None, batch))).digest
