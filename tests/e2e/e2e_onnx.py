"""ONNX files: one that torch exports, one made by hand, and what ONNX Runtime says to them. Loads torch and onnxruntime."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

WORDS, WIDTH = 200, 48


def from_torch(module: torch.nn.Module, example: tuple[int, ...], path: Path, *, external_data: bool = False) -> Path:
    """As `torch.onnx.export` writes it, with a batch that varies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        batch = torch.export.Dim("batch")
        given, shapes = (torch.zeros(2, *example),), ({0: batch},)
        torch.onnx.export(module, given, str(path), dynamo=True, dynamic_shapes=shapes, external_data=external_data, verbose=False)
    return path


def by_hand(path: Path, seed: int = 0) -> Path:
    """ids[batch, length] -> mean embedding through a function of the file's own, an operator of ONNX Runtime's and a branch.

    Outputs `vector` [batch, WIDTH] and `best` [batch]. The embedding is the same for every seed.
    """
    table = np.random.default_rng(99).standard_normal((WORDS, WIDTH), dtype=np.float32)
    matrix = np.random.default_rng(seed).standard_normal((WIDTH, WIDTH), dtype=np.float32)
    twice = helper.make_function("mine", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)])

    def branch(operator: str) -> Any:
        node = helper.make_node(operator, ["dense"], [f"{operator}_out"])
        return helper.make_graph([node], operator, [], [helper.make_tensor_value_info(f"{operator}_out", TensorProto.FLOAT, None)])

    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["embedded"]),
        helper.make_node("ReduceMean", ["embedded"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("Twice", ["mean"], ["doubled"], domain="mine"),
        helper.make_node("Gelu", ["doubled"], ["active"], domain="com.microsoft"),
        helper.make_node("Constant", [], ["matrix"], value=numpy_helper.from_array(matrix, "m")),
        helper.make_node("MatMul", ["active", "matrix"], ["dense"]),
        helper.make_node("If", ["always"], ["vector"], then_branch=branch("Tanh"), else_branch=branch("Relu")),
        helper.make_node("ArgMax", ["vector"], ["best"], axis=1, keepdims=0),
    ]
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])]
    outputs = [
        helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["batch", WIDTH]),
        helper.make_tensor_value_info("best", TensorProto.INT64, ["batch"]),
    ]
    weights = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array(True), "always")]
    graph = helper.make_graph(nodes, "hand-made", inputs, outputs, weights)
    opsets = [helper.make_opsetid(domain, version) for domain, version in {"": 17, "com.microsoft": 1, "mine": 1}.items()]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=[twice])
    onnx.save(model, str(path))
    return path


def answers(path: Path, **inputs: np.ndarray) -> Mapping[str, np.ndarray]:
    """What ONNX Runtime says to the file itself."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))
