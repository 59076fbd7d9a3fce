"""The same exported program as an ONNX graph without weights (docs/adr/0003-graph-formats.md, dialect `onnx`, backend `onnx`).

Structure must not depend on weight values, so that siblings share the graph: nothing is fused or folded that looks at them, and weights
keep their names and layout (ONNX Runtime folds, fuses and transposes when the graph is baked). Their bytes are the flat program's bytes.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir as ir
import onnxscript.rewriter as rewriter
import torch
from onnx_ir.passes import common
from onnxscript.optimizer import _constant_folding as folding
from onnxscript.rewriter import pattern
from torch.export import ExportedProgram

from tessera.domain.signature import Signature
from tessera.registry.importer.agreement import Run
from tessera.registry.importer.loaded import Axis, Loaded
from tessera.registry.importer.onnx_graph import LOCATION, OnnxGraph, externalise

_INPUT_LIMIT_BYTES = 1024
_OUTPUT_LIMIT_BYTES = 64 << 10
_VALUE_RULES = ("_fuse_batchnorm", "_remove_optional_bias", "_fuse_pad_into_conv")


def export_onnx(program: ExportedProgram, signature: Signature, loaded: Loaded) -> OnnxGraph:
    """Raises: whatever torch.onnx raises when it has no translation for an operator; the message names it."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False)
    assert exported is not None
    model = exported.model
    weights = frozenset(program.state_dict) | frozenset(program.constants)
    _simplify(model, weights)
    _name_dimensions(model, loaded)
    _name(model, signature, loaded.prefix, weights)
    return externalise(model)


def _simplify(model: ir.Model, weights: frozenset[str]) -> None:
    """Folds and rewrites what does not look at weights."""
    rules = [rule for rule in rewriter._DEFAULT_REWRITE_RULES if not _looks_at_values(rule)]
    parameters = {value for name, value in model.graph.initializers.items() if name in weights}

    def may_fold(node: ir.Node) -> bool | None:
        return False if any(value in parameters for value in node.inputs) else None

    ir.passes.Sequential(
        common.InlinePass(),
        ir.passes.PassManager(
            [
                folding.FoldConstantsPass(
                    shape_inference=True, input_size_limit=_INPUT_LIMIT_BYTES, output_size_limit=_OUTPUT_LIMIT_BYTES, should_fold=may_fold
                ),
                rewriter.RewritePass(pattern.RewriteRuleSet(rules)),
                common.IdentityEliminationPass(),
                common.RemoveUnusedNodesPass(),
                common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call] # untyped there
                common.RemoveUnusedOpsetsPass(),
            ],
            steps=2,
            early_stop=True,
        ),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
    )(model)
    _merge_equal_constants(model, weights)
    ir.passes.Sequential(
        common.CommonSubexpressionEliminationPass(), common.RemoveUnusedNodesPass(), common.OutputFixPass(), common.NameFixPass()
    )(model)


def _looks_at_values(rule: Any) -> bool:
    return any(name in str(getattr(rule._condition_function, "__module__", "")) + str(rule.name) for name in _VALUE_RULES)


def _merge_equal_constants(model: ir.Model, weights: frozenset[str]) -> None:
    """Constants made by the exporter that are equal become one; weights are left alone, equal or not."""
    first: dict[tuple[Any, ...], ir.Value] = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if name in weights or tensor is None or tensor.nbytes > _INPUT_LIMIT_BYTES or value.is_graph_output():
            continue
        key = (tensor.dtype, tuple(tensor.shape.numpy()), tensor.tobytes())
        if key in first:
            ir.convenience.replace_all_uses_with(value, first[key])
            del model.graph.initializers[name]
        else:
            first[key] = value


def _name(model: ir.Model, signature: Signature, prefix: str, weights: frozenset[str]) -> None:
    """Signature names for inputs and outputs, the weights' own names for initializers, counted names for the rest."""
    graph = model.graph
    taken = {spec.name for spec in (*signature.inputs, *signature.outputs)}
    initializers = list(graph.initializers.items())
    graph.initializers.clear()
    for place, (name, value) in enumerate(initializers):
        value.name = name.removeprefix(prefix) if name in weights else f"constant_{place}"
        while value.name in taken:
            value.name += "_"
        taken.add(value.name)
        graph.initializers[value.name] = value
    for place, node in enumerate(graph.all_nodes()):
        node.name = f"n{place}"
        node.doc_string = None
        node.metadata_props.clear()
        for index, output in enumerate(node.outputs):
            output.name = f"v{place}.{index}"
            output.metadata_props.clear()
    for spec, value in zip(signature.inputs, graph.inputs, strict=True):
        value.name = spec.name
        value.metadata_props.clear()
    for spec, value in zip(signature.outputs, graph.outputs, strict=True):
        value.name = spec.name
        value.metadata_props.clear()
    graph.name = "graph"
    graph.doc_string = None
    graph.metadata_props.clear()
    model.metadata_props.clear()
    model.doc_string = None
    model.producer_name = "tessera"
    model.producer_version = ""


def _name_dimensions(model: ir.Model, loaded: Loaded) -> None:
    """Dimensions that vary are called "batch" and "sequence", whatever symbols the trace had; others stay unnamed.

    Inner values keep their shapes: ONNX Runtime fuses residual and normalisation only where it sees that they are equal.
    """
    names: dict[str, str] = {}
    for spec, value in zip(loaded.inputs, model.graph.inputs, strict=True):
        for axis, dim in zip(spec.shape, value.shape or (), strict=True):
            if isinstance(axis, Axis):
                names[str(dim)] = axis.value
    made = (value for node in model.graph.all_nodes() for value in node.outputs)
    for value in dict.fromkeys((*model.graph.inputs, *made, *model.graph.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape([dim if isinstance(dim, int) else names.get(str(dim)) for dim in value.shape])


def onnx_runner(graph: OnnxGraph, signature: Signature, folder: Path) -> Run:
    """Runs the graph with ONNX Runtime over the tensors in memory. `folder` receives the empty file that ONNX Runtime wants to see."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    (folder / LOCATION).touch()
    options = onnxruntime.SessionOptions()
    # as it stands: optimisers would look for the weights in the file
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in graph.tensors}
    for name, value in values.items():
        options.add_initializer(name, value)
    session = onnxruntime.InferenceSession(graph.model, options, providers=["CPUExecutionProvider"])
    names = [spec.name for spec in signature.outputs]

    def run(inputs: Sequence[torch.Tensor]) -> Sequence[npt.NDArray[Any]]:
        assert values  # the session only points at them
        given = {spec.name: value.contiguous().numpy() for spec, value in zip(signature.inputs, inputs, strict=True)}
        return list(session.run(names, given))

    return run
