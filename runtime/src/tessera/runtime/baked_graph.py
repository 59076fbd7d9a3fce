"""The ONNX side of baking: optimise, pull the weights out, slim what is left. Uses the `onnx` package; serving does not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, numpy_helper

from tessera.domain.errors import DataCorrupted, Internal
from tessera.runtime.backends.interface import Tensor
from tessera.runtime.backends.ort.backend import EXTERNAL_NAME
from tessera.runtime.backends.ort.graph import ELEMENT_TYPES, external_initializers
from tessera.runtime.fused_attention import fuse

_FLOATS = {TensorProto.FLOAT: "FP32", TensorProto.DOUBLE: "FP64", TensorProto.FLOAT16: "FP16", TensorProto.BFLOAT16: "BF16"}
_INTEGERS = {TensorProto.INT8: "INT8", TensorProto.UINT8: "UINT8", TensorProto.INT32: "INT32"}
"""What quantising makes of weights, zero points and biases: data of one model, not structure that siblings share."""
_DATATYPES = {number: name for name, number in ELEMENT_TYPES.items()}
_WEIGHTS = "weights"


Optimised = tuple[bytes, dict[str, tuple[npt.NDArray[Any], str]]]
"""A graph without weights, as deterministic bytes, and its external initializers: name -> (array, datatype)."""


def fuse_attention(graph: bytes, tensors: Mapping[str, npt.NDArray[Any]]) -> tuple[bytes, Mapping[str, npt.NDArray[Any]]] | None:
    """The export and its tensors with every self-attention that is recognised as one operator; None where there is none."""
    model = onnx.load_model_from_string(graph)
    weights = {name: tensors[name].reshape(found.shape) for name, found in external_initializers(graph).items() if name in tensors}
    fused, needed = fuse(model, weights)
    return None if fused is model else (fused.SerializeToString(deterministic=True), needed)


def optimise(graph: bytes, tensors: Mapping[str, npt.NDArray[Any]], scratch: Path, *, quantised: bool = False) -> Optimised:
    """The graph as ONNX Runtime optimises it for this CPU. `quantised`: whole numbers that are weights become external too.

    Raises:
        Internal: ONNX Runtime cannot open or optimise it.
    """
    path = scratch / "optimised.onnx"
    _session(graph, tensors, scratch, path)
    model = onnx.load(str(path), load_external_data=True)
    found = _externalise(model, {**_FLOATS, **_INTEGERS} if quantised else _FLOATS)
    _slim(model)
    return model.SerializeToString(deterministic=True), found


def fold(graph: bytes, tensors: Mapping[str, npt.NDArray[Any]], scratch: Path) -> Any:
    """The graph in standard operators with its weights inside, constants and normalisations folded: what quantising starts from.

    Raises:
        Internal: ONNX Runtime cannot open or fold it.
    """
    path = scratch / "folded.onnx"
    _session(graph, tensors, scratch, path, ort.GraphOptimizationLevel.ORT_ENABLE_BASIC)
    return onnx.load(str(path), load_external_data=True)


def runner(graph: bytes, tensors: Mapping[str, npt.NDArray[Any]], scratch: Path) -> Callable[[Mapping[str, Tensor]], dict[str, Any]]:
    """Runs a graph as it is, not optimised; answers by output name."""
    session = _session(graph, tensors, scratch, None)
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        answers = session.run(names, {name: tensor.array for name, tensor in inputs.items()})
        return dict(zip(names, answers, strict=True))

    return run


def _session(
    graph: bytes,
    tensors: Mapping[str, npt.NDArray[Any]],
    scratch: Path,
    optimised: Path | None,
    level: Any = ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
) -> Any:
    """A session on the export with its weights copied in, so that optimisation sees their values."""
    (scratch / EXTERNAL_NAME).touch()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(scratch))
    if optimised is not None:
        options.graph_optimization_level = level
        options.optimized_model_filepath = str(optimised)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", _WEIGHTS)
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    values = _shaped(graph, tensors)  # kept until the session is there: ONNX Runtime has pointers only until it has copied
    if values:
        options.add_external_initializers(list(values), list(values.values()))
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise Internal(
            f"ONNX Runtime cannot {'optimise' if optimised else 'open'} the export: {' '.join(str(error).split())[:500]}"
        ) from error


def _shaped(graph: bytes, tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """OrtValues by name. A scalar that the artifact lists as one element of one dimension gets the graph's shape.

    Raises:
        DataCorrupted: a tensor is missing, or has another number of elements than the graph says.
    """
    values: dict[str, Any] = {}
    for name, initializer in external_initializers(graph).items():
        array = tensors.get(name)
        if array is None or array.size != math.prod(initializer.shape):
            got = "nothing" if array is None else list(array.shape)
            raise DataCorrupted(f"initializer {name}: the graph wants {list(initializer.shape)}, the artifact has {got}")
        values[name] = ort.OrtValue.ortvalue_from_numpy(array.reshape(initializer.shape))
    return values


def _externalise(model: Any, external: Mapping[int, str]) -> dict[str, tuple[npt.NDArray[Any], str]]:
    """Takes initializers of the `external` types out of the main graph; all others become inline raw bytes, so that equal structure is
    equal bytes."""
    found: dict[str, tuple[npt.NDArray[Any], str]] = {}
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        name, dims, data_type = tensor.name, list(tensor.dims), tensor.data_type
        tensor.Clear()
        tensor.name, tensor.data_type = name, data_type
        tensor.dims.extend(dims)
        if data_type in external:
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=EXTERNAL_NAME)
            found[name] = (array.view(np.uint16) if data_type == TensorProto.BFLOAT16 else array, external[data_type])
        else:
            if data_type not in _DATATYPES:
                raise Internal(f"initializer {name} has ONNX element type {data_type}, which is not served")
            tensor.raw_data = array.tobytes()
    initializers = sorted(model.graph.initializer, key=lambda tensor: str(tensor.name))
    copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in initializers]
    del model.graph.initializer[:]
    model.graph.initializer.extend(copies)
    return found


def _slim(model: Any) -> None:
    """Leaves out what opening a session costs time for and running does not need."""
    for field in ("producer_name", "producer_version", "doc_string", "domain", "metadata_props", "functions"):
        model.ClearField(field)
    graph = model.graph
    for field in ("value_info", "doc_string", "metadata_props", "quantization_annotation"):
        graph.ClearField(field)
    graph.name = "g"
    domains = set()
    for node in _nodes(graph):
        domains.add(node.domain if node.domain != "ai.onnx" else "")
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
        node.ClearField("name")
    imports = sorted((entry.domain, entry.version) for entry in model.opset_import if entry.domain in domains or not entry.domain)
    del model.opset_import[:]
    for domain, version in imports:
        model.opset_import.add(domain=domain, version=version)


def _nodes(graph: Any) -> Any:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)
