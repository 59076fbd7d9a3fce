"""Attention as torch's exporter writes it, in small: fused where it is that, left alone where it is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from tessera.domain.signature import Signature, TensorSpec
from tessera.runtime import agreement, baked_graph, classes
from tessera.runtime.fused_attention import fuse
from tessera.runtime.recipes import calibration, fp32
from tessera.runtime.recipes.base import Work
from tessera.testing.builders import an_artifact

WIDTH, HEADS, BATCH, LENGTH = 16, 4, 3, 5
NAMES = ("query", "key", "value")


def draw(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    weights = {f"{name}.weight": random.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 3 for name in NAMES}
    return weights | {f"{name}.bias": random.standard_normal(WIDTH).astype(np.float32) for name in NAMES}


def model(
    weights: dict[str, np.ndarray],
    mask: str = "padding",
    fill: float = -np.inf,
    guarded: bool = True,
    sources: tuple[str, str, str] = ("x", "x", "x"),
    opset: int = 20,
) -> onnx.ModelProto:
    """`mask`: none, padding (unsqueezed), counted (gathered by positions, as transformers does), true (all of it), causal."""
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, np.ndarray] = {"fill": np.float32(fill).reshape(()), "zero": np.float32(0).reshape(())}

    def node(operator: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(name: str, values: object, dtype: type = np.int64) -> str:
        constants[name] = np.array(values, dtype)
        return name

    for name, source in zip(NAMES, sources, strict=True):
        turned = node("Transpose", [f"{name}.weight"], f"{name}.turned", perm=[1, 0])
        linear = node("Add", [node("MatMul", [source, turned], f"{name}.product"), f"{name}.bias"], f"{name}.linear")
        split = node("Reshape", [linear, constant("split", [0, 0, HEADS, WIDTH // HEADS])], f"{name}.split")
        node("Transpose", [split], f"{name}.heads", perm=[0, 2, 1, 3])
    constants["half"] = np.float32((WIDTH // HEADS) ** -0.25).reshape(())
    turned = node("Transpose", ["key.heads"], "key.turned_back", perm=[0, 1, 3, 2])
    left, right = node("Mul", ["query.heads", "half"], "left"), node("Mul", [turned, "half"], "right")
    scores = node("MatMul", [left, right], "scores")
    if mask != "none":
        node("Cast", ["attention_mask"], "kept", to=TensorProto.BOOL)
        if mask == "padding":
            keep = node("Unsqueeze", ["kept", constant("middle", [1, 2])], "keep")
        elif mask == "counted":
            keep = counted(node, constant)
        elif mask == "true":
            keep = node("Expand", [constant("true", [[[[True]]]], np.bool_), node("Shape", [scores], "scores.shape")], "keep")
        else:
            constants["lower"] = np.tril(np.ones((LENGTH, LENGTH), np.bool_))[None, None]
            keep = node("And", [node("Unsqueeze", ["kept", constant("middle", [1, 2])], "row"), "lower"], "keep")
        scores = node("Add", [scores, node("Where", [keep, "zero", "fill"], "added")], "masked")
    probabilities = node("Softmax", [scores], "softmax", axis=-1)
    if guarded:
        probabilities = node("Where", [node("IsNaN", [probabilities], "nan"), "zero", probabilities], "safe")
    context = node("Transpose", [node("MatMul", [probabilities, "value.heads"], "mixed")], "context.heads", perm=[0, 2, 1, 3])
    node("Reshape", [context, constant("joined", [0, 0, WIDTH])], "y")
    shape = ["batch", "sequence", WIDTH]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in dict.fromkeys(sources)]
    if mask != "none":
        inputs.append(helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "sequence"]))
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)])
    graph.value_info.extend(
        helper.make_tensor_value_info(f"{name}.split", TensorProto.FLOAT, ["batch", "sequence", HEADS, WIDTH // HEADS]) for name in NAMES
    )
    graph.value_info.append(helper.make_tensor_value_info("kept", TensorProto.BOOL, ["batch", "sequence"]))
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    for name, array in weights.items():
        entry = graph.initializer.add(name=name, data_type=TensorProto.FLOAT, dims=array.shape, data_location=TensorProto.EXTERNAL)
        entry.external_data.add(key="location", value="tessera")
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def counted(node, constant) -> str:
    def positions(which: int, axes: list[int], after: list[int]) -> str:
        size = node("Gather", [node("Shape", ["attention_mask"], f"shape{which}"), constant(f"at{which}", which)], f"size{which}")
        made = node("Range", [constant("from", 0), size, constant("step", 1)], f"range{which}")
        return node(
            "Unsqueeze", [node("Unsqueeze", [made, constant(f"a{which}", axes)], f"u{which}"), constant(f"b{which}", after)], f"p{which}"
        )

    rows, columns = positions(0, [1, 2], [3]), positions(1, [0, 1], [2])
    shape = node("Shape", [node("Max", [rows, columns], "both")], "both.shape")
    pairs = [
        node("Unsqueeze", [node("Expand", [name, shape], f"{name}.wide"), constant("end", [-1])], f"{name}.index")
        for name in (rows, columns)
    ]
    gathered = node("GatherND", ["kept", node("Concat", pairs, "pairs", axis=-1)], "gathered")
    always = node("And", [constant("true", True, np.bool_), node("GreaterOrEqual", [columns, "from"], "positive")], "always")
    return node("And", [always, gathered], "keep")


def run(made: onnx.ModelProto, weights: dict[str, np.ndarray], inputs: dict[str, np.ndarray]) -> np.ndarray:
    inline = onnx.ModelProto()
    inline.CopyFrom(made)
    for entry in inline.graph.initializer:
        if entry.data_location == TensorProto.EXTERNAL:
            entry.CopyFrom(numpy_helper.from_array(weights[entry.name], entry.name))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(inline.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, inputs)[0]


def inputs(mask: str) -> dict[str, np.ndarray]:
    made = {"x": np.random.default_rng(9).standard_normal((BATCH, LENGTH, WIDTH)).astype(np.float32)}
    if mask != "none":
        made["attention_mask"] = np.array([[1] * LENGTH, [1, 1, 0, 0, 0], [0] * LENGTH], np.int64)
    return made


def operators(made: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in made.graph.node]


@pytest.mark.parametrize("mask", ["none", "padding", "counted", "true"])
@pytest.mark.parametrize(("fill", "guarded"), [(-np.inf, True), (float(np.finfo(np.float32).min), False)])
def test_attention_becomes_one_operator_and_answers_the_same(mask, fill, guarded):
    weights = draw()
    before = model(weights, mask, fill, guarded)
    after, needed = fuse(before, weights)
    assert operators(after).count("Attention") == 1
    assert not {"Softmax", "Reshape", "Transpose", "MatMul", "GatherND", "Range"} & set(operators(after))
    assert {array.shape for array in needed.values()} == {(3 * WIDTH,), (WIDTH, 3 * WIDTH)}
    given = inputs(mask)
    want = run(before, weights, given)
    assert np.isfinite(want).all()
    assert np.abs(run(after, needed, given) - want).max() < 1e-5


def test_a_row_of_which_nothing_counts_gives_zeros_as_the_export_does():
    weights = draw()
    after, needed = fuse(model(weights), weights)
    found = run(after, needed, inputs("padding"))
    assert not found[2].any()
    assert found[:2].all()


def test_structure_alone_decides():
    first, second = (fuse(model(draw(seed)), draw(seed))[0].SerializeToString(deterministic=True) for seed in (1, 2))
    assert first == second


@pytest.mark.parametrize(
    "changes",
    [{"mask": "causal"}, {"sources": ("x", "other", "other")}, {"opset": 17}, {"fill": -1.0}],
    ids=["causal", "of another source", "old opset", "a mask that only weakens"],
)
def test_what_is_not_self_attention_over_a_padding_mask_stays(changes):
    weights = draw()
    before = model(weights, **changes)
    after, needed = fuse(before, weights)
    assert after is before
    assert needed is weights


def test_heads_of_other_numbers_stay():
    weights = draw()
    before = model(weights)
    for value in before.graph.value_info:
        if value.name == "key.split":
            value.type.tensor_type.shape.dim[2].dim_value = HEADS * 2
            value.type.tensor_type.shape.dim[3].dim_value = WIDTH // HEADS // 2
    assert fuse(before, weights)[0] is before


def test_the_model_given_is_not_changed():
    weights = draw()
    before = model(weights)
    data = before.SerializeToString(deterministic=True)
    fuse(before, weights)
    assert before.SerializeToString(deterministic=True) == data
    assert set(weights) == set(draw())


class Export:
    """The blobs of an export, in memory."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self._weights = weights

    def graph(self) -> bytes:
        return model(self._weights).SerializeToString()

    def tensors(self) -> dict[str, np.ndarray]:
        return self._weights

    def derived(self, make: Any) -> Any:
        return make()


SIGNATURE = Signature(
    (TensorSpec("x", "FP32", (-1, -1, WIDTH)), TensorSpec("attention_mask", "INT64", (-1, -1))), (TensorSpec("y", "FP32", (-1, -1, WIDTH)),)
)


def optimise(tmp_path, monkeypatch, change) -> tuple[list[str], list[str]]:
    """Operators of what is baked, and the steps that were taken, with `change` done to what fusing gives."""
    export = Export(draw())
    fused = baked_graph.fuse_attention

    def changed(graph: bytes, tensors: dict[str, np.ndarray]):
        found = fused(graph, tensors)
        assert found is not None
        return change(*found)

    monkeypatch.setattr(fp32, "fuse_attention", changed)
    wanted = agreement.cases(SIGNATURE, 2, baked_graph.runner(export.graph(), export.tensors(), tmp_path))
    assert len(wanted) == 6
    steps: list[str] = []
    made = fp32.make(
        Work(
            artifact=an_artifact(),
            graph=export.graph(),
            tensors=export.tensors(),
            cases=wanted,
            calibrate=lambda: calibration.generated(SIGNATURE),
            build_class=classes.build_class(),
            scratch=tmp_path,
            progress=lambda step, share: steps.append(step),
        )
    )
    graph, tensors = made.graph, made.tensors
    assert made.exact
    run = baked_graph.runner(graph, {name: array for name, (array, _) in tensors.items()}, tmp_path)
    assert all(agreement.disagreement(run(case.inputs), case.wanted) is None for case in wanted)
    return operators(onnx.load_model_from_string(graph)), steps


def test_baking_takes_the_fused_graph_where_it_agrees(tmp_path, monkeypatch):
    found, steps = optimise(tmp_path, monkeypatch, lambda graph, tensors: (graph, tensors))
    assert "Attention" in found
    assert "Softmax" not in found
    assert steps == ["optimising with fused attention"]


def other_weights(graph: bytes, tensors: dict[str, np.ndarray]):
    return graph, {name: array * np.float32(1.01) for name, array in tensors.items()}


def mask_ignored(graph: bytes, tensors: dict[str, np.ndarray]):
    made = onnx.load_model_from_string(graph)
    (node,) = (node for node in made.graph.node if node.op_type == "Attention")
    del node.input[3:]
    return made.SerializeToString(), tensors


def broken(graph: bytes, tensors: dict[str, np.ndarray]):
    return graph[: len(graph) // 2], tensors


@pytest.mark.parametrize("change", [other_weights, mask_ignored, broken])
def test_baking_goes_on_without_fusion_where_it_does_not_agree(tmp_path, monkeypatch, change):
    found, steps = optimise(tmp_path, monkeypatch, change)
    assert "Softmax" in found
    assert "Attention" not in found
    assert steps == ["optimising with fused attention", "optimising"]


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ({"y": np.float32([1, 2.0001])}, None),
        ({"y": np.float32([1, 2.0003])}, "y"),
        ({"y": np.float64([1, 2])}, "y"),
        ({"y": np.float32([[1, 2]])}, "y"),
        ({}, "y"),
        ({"y": np.float32([1, np.nan])}, "y"),
    ],
)
def test_disagreement_names_the_output(answer, name):
    assert agreement.disagreement(answer, {"y": np.float32([1, 2])}) == name


def test_whole_numbers_must_be_equal():
    assert agreement.disagreement({"y": np.int64([3])}, {"y": np.int64([3])}) is None
    assert agreement.disagreement({"y": np.int64([4])}, {"y": np.int64([3])}) == "y"
