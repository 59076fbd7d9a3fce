"""ONNX files: checked by `onnx_check.py`, their weights made tensors of their own, and compared with ONNX Runtime on the file itself.

There is no flat program of them, so no `aten` variant. What the file does not say is found out by running it: whether rows of a batch
are independent, and which dimensions outputs have.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from tessera.domain.errors import Internal, InvalidInput, TesseraError, Unsupported
from tessera.domain.signature import ROWS_MIX, Signature, TensorSpec
from tessera.registry.importer import onnx_check
from tessera.registry.importer.onnx_graph import OnnxGraph, externalise

_INTEGERS_FROM_BYTES = 4096
"""Shapes, axes and indices are shorter and belong to the graph; what is longer are weights."""
_ROWS = 3
_DATATYPES = {
    "float": "FP32", "double": "FP64", "float16": "FP16", "bool": "BOOL", "int8": "INT8", "int16": "INT16", "int32": "INT32",
    "int64": "INT64", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
}  # fmt: skip
_TENSOR = re.compile(r"tensor\((\w+)\)")

Answers = Mapping[str, Any]
Run = Callable[[Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class OnnxModel:
    graph: OnnxGraph
    signature: Signature
    notes: tuple[str, ...]


def load(path: Path, shown: str, scratch: Path) -> OnnxModel:
    """`scratch`: an empty folder.

    Raises:
        InvalidInput: the file is broken, or leads out of its folder.
        Unsupported: it holds what is not served; says what would work.
    """
    model = onnx_check.read_model(path, shown)
    onnx_check.check_model(model, path.parent, shown)
    try:
        onnx.checker.check_model(_without_external_data(model))
    except Exception as error:  # the checker's own class, and what its parser raises
        raise InvalidInput("file", shown, f"breaks the rules of ONNX: {_line(error)}") from None
    original = _Original(path, shown)
    signature, notes = _signature(model, original, shown)
    try:
        graph = _normalised(model, path.parent)
    except Exception as error:  # onnx-ir's passes raise what they find: nothing here is ours
        raise InvalidInput("file", shown, f"cannot be read: {_line(error)}") from error
    _compare(graph, signature, original, scratch, shown)
    return OnnxModel(graph, signature, notes)


def _without_external_data(model: Any) -> Any:
    """The model with inputs in place of what lies outside: ONNX's checker takes files that have a second name for an attack, and the
    registry lays uploads out as links. `onnx_check` has looked at them."""
    outside = [tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    if not outside:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    inputs = {value.name for value in model.graph.input}
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.data_location != onnx.TensorProto.EXTERNAL)
    copy.graph.input.extend(
        onnx.helper.make_tensor_value_info(one.name, one.data_type, list(one.dims)) for one in outside if one.name not in inputs
    )
    return copy


class _Original:
    """The file run by ONNX Runtime as it stands."""

    def __init__(self, path: Path, shown: str) -> None:
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises a dozen classes
            raise Unsupported(f"{shown}: ONNX Runtime refuses it: {_line(error)}") from None
        self.outputs = {one.name: one for one in self._session.get_outputs()}
        self.inputs = {one.name: one for one in self._session.get_inputs()}

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Answers by name for `Tensor`s by name. Raises what ONNX Runtime raises."""
        names = list(self.outputs)
        return dict(zip(names, self._session.run(names, {name: tensor.array for name, tensor in inputs.items()}), strict=True))


def _signature(model: Any, run: _Original, shown: str) -> tuple[Signature, tuple[str, ...]]:
    """What the file says, and whether requests may be joined: every input and output varies in dimension 0, and rows stay by themselves."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(
        TensorSpec(value.name, _datatype(run.inputs[value.name].type, f"{shown}: input {value.name!r}"), _dims(value))
        for value in model.graph.input
        if value.name not in weights
    )
    may_batch = all(spec.shape and spec.shape[0] == -1 for spec in inputs)
    plain = Signature(inputs, (), batched=may_batch)
    together = _answer(run, plain, _ROWS, shown) if may_batch else None
    if may_batch and together is None:
        fixed = tuple(replace(spec, shape=(1, *spec.shape[1:])) for spec in inputs)
        answers = _needed(run, Signature(fixed, (), batched=False), 1, shown)
        return Signature(fixed, _outputs(run, answers, shown), False), ("it takes one row at a time, whatever it says about its batch",)
    answers = _needed(run, plain, 1, shown)
    outputs = _outputs(run, answers, shown)
    if together is None:
        return Signature(inputs, outputs, False), ()
    if all(_same_row(together[name], answers[name]) for name in answers):
        return Signature(inputs, tuple(replace(spec, shape=(-1, *spec.shape[1:])) for spec in outputs), True), ()
    return Signature(inputs, outputs, False), (ROWS_MIX,)


def _needed(run: _Original, signature: Signature, rows: int, shown: str) -> dict[str, Any]:
    from tessera.runtime.measure import synthetic_inputs

    inputs = synthetic_inputs(signature, _ROWS)
    if signature.batched:  # the first row of what the whole batch was asked with
        inputs = {name: tensor._replace(array=tensor.array[:rows]) for name, tensor in inputs.items()}
    try:
        return run(inputs)
    except Exception as error:  # ONNX Runtime raises a dozen classes
        shapes = ", ".join(f"{name} {list(tensor.array.shape)}" for name, tensor in inputs.items())
        raise Unsupported(f"{shown}: the model fails with made-up inputs {shapes}: {_line(error)}") from None


def _answer(run: _Original, signature: Signature, rows: int, shown: str) -> dict[str, Any] | None:
    """None: the model takes no such batch."""
    try:
        return _needed(run, signature, rows, shown)
    except Unsupported:
        return None


def _same_row(together: Any, alone: Any) -> bool:
    """Whether the first row's answer is the same beside others; far looser than agreement, as kernels differ by batch."""
    if not together.shape or len(together) != _ROWS or together.shape[1:] != alone.shape[1:] or len(alone) != 1:
        return False
    if together.dtype.kind != "f":
        return bool(np.array_equal(together[:1], alone))
    scale = max(1.0, float(np.nan_to_num(np.abs(alone), posinf=0.0).max(initial=0.0)))
    return bool(np.allclose(together[:1], alone, rtol=0, atol=1e-2 * scale, equal_nan=True))


def _outputs(run: _Original, answers: Answers, shown: str) -> tuple[TensorSpec, ...]:
    """ONNX Runtime's inferred dimensions where the answers bear them out; where it knows no rank, nothing varies but the batch."""
    found = []
    for name, value in run.outputs.items():
        datatype = _datatype(value.type, f"{shown}: output {name!r}")
        shape = answers[name].shape
        known = value.shape if len(value.shape or ()) == len(shape) else shape  # declared sizes may be wrong
        dims = tuple(size if isinstance(size, int) and size == got else -1 for size, got in zip(known, shape, strict=True))
        found.append(TensorSpec(name, datatype, dims))
    return tuple(found)


def _dims(value: Any) -> tuple[int, ...]:
    return tuple(dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else -1 for dim in value.type.tensor_type.shape.dim)


def _datatype(kind: str, what: str) -> str:
    match = _TENSOR.fullmatch(kind)
    if match is None or match[1] not in _DATATYPES:
        raise Unsupported(f"{what} is {kind}; inputs and outputs must be tensors of {', '.join(_DATATYPES)}")
    return _DATATYPES[match[1]]


def _normalised(model: Any, folder: Path) -> OnnxGraph:
    """The same graph with all its weights in one place and under their own names, whatever form the file has."""
    made = ir.from_proto(model)
    for value in made.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = _mapped(value.const_value, folder)
    ir.passes.Sequential(
        common.InlinePass(),
        common.RemoveInitializersFromInputsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call] # untyped there
        common.RemoveUnusedOpsetsPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
        common.ClearMetadataAndDocStringPass(),
    )(made)
    made.graph.name, made.producer_name, made.producer_version, made.domain = "graph", "tessera", "", ""
    made.model_version = None
    return externalise(made, _INTEGERS_FROM_BYTES)


def _mapped(tensor: ir.ExternalTensor, folder: Path) -> Any:
    """As onnx-ir would map it, which takes files that have a second name for an attack as ONNX's checker does."""
    shape, dtype = tensor.shape.numpy(), tensor.dtype.numpy()
    array = np.memmap(folder / tensor.location, dtype, "r", tensor.offset or 0, shape) if tensor.size else np.empty(shape, dtype)
    return ir.Tensor(array, name=tensor.name)


def _compare(graph: OnnxGraph, signature: Signature, original: Run, scratch: Path, shown: str) -> None:
    """The export must answer as the file does."""
    from tessera.runtime.agreement import cases, disagreement
    from tessera.runtime.baked_graph import runner

    try:
        wanted = cases(signature, _ROWS, original)
        made = runner(graph.model, dict(graph.tensors), scratch)
        different = next((name for case in wanted if (name := disagreement(made(case.inputs), case.wanted)) is not None), None)
    except TesseraError:
        raise
    except Exception as error:  # ONNX Runtime raises a dozen classes
        raise Unsupported(f"{shown}: the model fails with made-up inputs: {_line(error)}") from None
    if different is not None:
        raise Internal(f"{shown}: output {different} of the export differs from the file's")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
