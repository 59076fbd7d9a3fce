"""`openvino-fp32`: the export as OpenVINO reads it, normalisations folded into weights. Nothing of it depends on the CPU: kernels are
chosen when it is opened."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from tessera.domain.artifact import PREPACKED
from tessera.domain.errors import Unsupported
from tessera.runtime.recipes.base import Built, Work
from tessera.runtime.recipes.prepacked import NOTES
from tessera_openvino.graph import ELEMENT_TYPES, pack

_WEIGHTS = "weights"
_DATATYPES = {element: datatype for datatype, element in ELEMENT_TYPES.items()}
_READS_ROWS = "Gather"
_UNCHECKED = (
    "GatherElements", "GatherND", "GatherTree", "EmbeddingBagOffsetsSum", "EmbeddingBagPackedSum",
    "ScatterUpdate", "ScatterNDUpdate", "ScatterElementsUpdate",
)  # fmt: skip
"""Operations that read or write where indices, their second input, say."""
_SAME_VALUES = ("Convert", "Reshape", "Unsqueeze", "Squeeze", "Broadcast", "Transpose", "Tile")


def make(work: Work) -> Built:
    """Raises:
    Unsupported: OpenVINO is not here, cannot read the export, or would answer some of its inputs with something else; says why.
    """
    if importlib.util.find_spec("openvino") is None:
        raise Unsupported("openvino-fp32 needs openvino where the node's agent bakes: it is not installed there")
    for spec in (*work.artifact.signature.inputs, *work.artifact.signature.outputs):
        if spec.datatype not in ELEMENT_TYPES:
            raise Unsupported(f"{spec.name} is {spec.datatype}: OpenVINO computes with {', '.join(ELEMENT_TYPES)}")
    work.progress("reading", 0.1)
    export = onnx.load_model_from_string(work.graph)
    lengths = _lengths(export)
    model = _read(export, work)
    work.progress("taking the weights out", 0.5)
    rows = _rows(model)
    tensors = _weights_out(model, {spec.name for spec in work.artifact.signature.inputs})
    topology, constants = _serialised(model, work.scratch)
    return Built(
        pack(lengths, rows, topology, constants),
        tensors,
        work.artifact.precision,
        exact=True,
        options=(PREPACKED,),
        notes=NOTES,
        backend="openvino",
        dialect="openvino",
    )


def _lengths(export: Any) -> dict[str, tuple[str, ...]]:
    """What the export calls the varying dimensions of its inputs."""
    return {given.name: tuple(dim.dim_param for dim in given.type.tensor_type.shape.dim) for given in export.graph.input}


def _read(export: Any, work: Work) -> Any:
    """The export with its weights in it, simplified."""
    import openvino as ov
    from openvino._offline_transformations import apply_fused_names_cleanup, apply_moc_transformations

    with (work.scratch / _WEIGHTS).open("wb") as file:
        for tensor in export.graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                continue
            del tensor.external_data[:]
            array = work.tensors[tensor.name]
            for key, value in (("location", _WEIGHTS), ("offset", file.tell()), ("length", array.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            file.write(array.tobytes())
    path = work.scratch / "export.onnx"
    path.write_bytes(export.SerializeToString())
    try:
        model = ov.Core().read_model(path)
        apply_moc_transformations(model, cf=True)
        apply_fused_names_cleanup(model)
    except Exception as error:  # the front end raises RuntimeError and classes of its own
        raise Unsupported(f"OpenVINO cannot read the export: {' '.join(str(error).split())[:500]}") from error
    return model


def _rows(model: Any) -> dict[str, int]:
    """Input whose values are indices -> how many rows there are for them.

    Raises:
        Unsupported: an input's values index something by an operation that does not look at them.
    """
    found: dict[str, int] = {}
    for operation in model.get_ordered_ops():
        kind = operation.get_type_name()
        if kind not in (_READS_ROWS, *_UNCHECKED):
            continue
        name = _input_of(operation.input_value(1).get_node())
        if name is None:
            continue
        length = _rows_of(operation) if kind == _READS_ROWS else None
        if length is None:
            raise Unsupported(f"operation {kind} goes where input {name} says, which OpenVINO does not check")
        found[name] = min(found.get(name, length), length)
    return found


def _rows_of(gather: Any) -> int | None:
    """How long what it reads from is along its axis; None where that varies."""
    data, axis = gather.input_value(0).get_partial_shape(), gather.input_value(2).get_node()
    if axis.get_type_name() != "Constant" or data.rank.is_dynamic:
        return None
    length = data[int(axis.data.item()) % data.rank.get_length()]
    return None if length.is_dynamic else int(length.get_length())


def _input_of(node: Any) -> str | None:
    """The input that has the node's values; None where they are computed."""
    while node.get_type_name() in _SAME_VALUES:
        node = node.input_value(0).get_node()
    return str(node.output(0).get_any_name()) if node.get_type_name() == "Parameter" else None


def _weights_out(model: Any, inputs: set[str]) -> dict[str, tuple[npt.NDArray[Any], str]]:
    """Makes every constant with fractions a parameter, and names all nodes by their place: equal structure is equal bytes.

    Raises:
        Unsupported: one is of a type that OpenVINO does not compute with as it is.
    """
    import openvino as ov

    taken: dict[str, tuple[npt.NDArray[Any], str]] = {}
    parameters = []
    for place, node in enumerate(model.get_ordered_ops()):
        kind = node.get_type_name()
        node.set_friendly_name(node.output(0).get_any_name() if kind == "Parameter" else f"n{place}")
        if kind != "Constant" or not node.get_element_type().is_real():
            continue
        element = node.get_element_type()
        if element.get_type_name() not in _DATATYPES:
            raise Unsupported(f"a weight is {element.get_type_name()}: OpenVINO computes with {', '.join(ELEMENT_TYPES)}")
        slot = f"weight:{len(taken)}"
        parameter = ov.op.Parameter(element, ov.PartialShape(list(node.get_output_shape(0))))
        parameter.set_friendly_name(slot)
        taken[slot] = np.array(node.data), _DATATYPES[element.get_type_name()]
        node.output(0).replace(parameter.output(0))
        parameters.append(parameter)
    clash = sorted(inputs & taken.keys())
    if clash:
        raise Unsupported(f"input {clash[0]} has the name of a weight")
    model.add_parameters(parameters)
    model.set_friendly_name("g")
    return taken


def _serialised(model: Any, scratch: Path) -> tuple[bytes, bytes]:
    import openvino as ov

    topology, constants = scratch / "model.xml", scratch / "model.bin"
    ov.serialize(model, topology, constants)
    return topology.read_bytes(), constants.read_bytes()
