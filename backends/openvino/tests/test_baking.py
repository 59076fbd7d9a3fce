"""What the recipe makes of exports of a few operations, and what it refuses. Served ones: tests/conformance/runtime."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tessera.domain.artifact import PREPACKED, Artifact, Blob, TensorRef
from tessera.domain.errors import InvalidInput, Unsupported
from tessera.domain.ids import BuildClass, Digest
from tessera.domain.signature import Signature, TensorSpec
from tessera.registry.core.recipes import DEFAULT_RECIPES, checked_recipes, recipe_named
from tessera.runtime.backends.interface import BackendConfig, Tensor
from tessera.runtime.recipes.base import Built, Work
from tessera.runtime.recipes.calibration import generated
from tessera_openvino.backend import OpenVinoBackend
from tessera_openvino.baking import make
from tessera_openvino.graph import unpack

ROWS, WIDTH = 5, 3
TABLE = np.arange(ROWS * WIDTH, dtype=np.float32).reshape(ROWS, WIDTH)
ELEMENTS = {"INT64": TensorProto.INT64, "FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE, "BOOL": TensorProto.BOOL}


def work(operator: str, scratch: Path, datatype: str = "INT64", table: np.ndarray = TABLE, output: str = "FP32", **attributes: int) -> Work:
    """An export of one operation on a table of weights and the input `x`."""
    signature = Signature((TensorSpec("x", datatype, (-1, WIDTH)),), (TensorSpec("y", output, (-1, WIDTH, WIDTH)),))
    weight = onnx.TensorProto(name="table", data_type=helper.np_dtype_to_tensor_dtype(table.dtype), dims=table.shape)
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="tessera")
    graph = helper.make_graph(
        [helper.make_node(operator, ["table", "x"], ["y"], **attributes)],
        "g",
        [helper.make_tensor_value_info("x", ELEMENTS[datatype], ["batch", WIDTH])],
        [helper.make_tensor_value_info("y", ELEMENTS[output], None)],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Work(
        artifact=Artifact("onnx", "fp32", "onnx", None, None, (), signature, None, 4),
        graph=model.SerializeToString(),
        tensors={"table": table},
        cases=[],
        calibrate=lambda: generated(signature),
        build_class=BuildClass("x86_64-avx2-ort1"),
        scratch=scratch,
        progress=lambda step, share: None,
    )


class Blobs:
    """What was built, still in memory."""

    def __init__(self, built: Built) -> None:
        self._built = built
        self._arrays = {name: array for name, (array, _) in built.tensors.items()}
        for array in self._arrays.values():
            array.flags.writeable = False

    def graph(self) -> bytes:
        return self._built.graph

    def tensors(self) -> dict[str, np.ndarray]:
        return self._arrays

    def derived(self, make: Any) -> Any:
        return make()


def opened(built: Built, blobs: Blobs, signature: Signature, folder: Path) -> Any:
    refs = tuple(TensorRef(name, datatype, array.shape, Digest(""), array.nbytes) for name, (array, datatype) in built.tensors.items())
    artifact = Artifact(built.backend, built.precision, built.dialect, Blob(Digest(""), 0), None, refs, signature, None, 4, built.options)
    return OpenVinoBackend(BackendConfig(1, folder)).load(artifact, Digest(""), blobs)


def test_weights_are_parameters_and_indices_are_known(tmp_path: Path) -> None:
    source = work("Gather", tmp_path)
    built = make(source)
    assert (built.backend, built.dialect, built.exact, built.options) == ("openvino", "openvino", True, (PREPACKED,))
    ((name, (array, datatype)),) = built.tensors.items()
    assert (name, datatype) == ("weight:0", "FP32")
    np.testing.assert_array_equal(array, TABLE)
    assert TABLE.tobytes() not in built.graph
    assert unpack(built.graph)[0].rows == {"x": ROWS}
    blobs = Blobs(built)
    loaded = opened(built, blobs, source.artifact.signature, tmp_path)
    ids = np.array([[0, ROWS - 1, -1]])
    np.testing.assert_array_equal(loaded.run({"x": Tensor("INT64", ids)})["y"].array, TABLE[ids])
    with pytest.raises(InvalidInput, match="inputs x 5: must be from -5 to 4"):
        loaded.run({"x": Tensor("INT64", np.array([[0, 0, ROWS]]))})
    loaded.close()


@pytest.mark.parametrize("axis", [0, -2])
def test_rows_are_counted_along_the_axis(axis: int, tmp_path: Path) -> None:
    assert unpack(make(work("Gather", tmp_path, axis=axis)).graph)[0].rows == {"x": ROWS}


def test_what_is_no_number_with_fractions_comes_out_as_it_is(tmp_path: Path) -> None:
    source = work("Less", tmp_path, "FP32", output="BOOL")
    built = make(source)
    blobs = Blobs(built)
    x = np.arange(ROWS * WIDTH, 0, -1, dtype=np.float32).reshape(ROWS, WIDTH)
    answer = opened(built, blobs, source.artifact.signature, tmp_path).run({"x": Tensor("FP32", x)})["y"]
    assert (answer.datatype, answer.array.dtype) == ("BOOL", np.bool_)
    np.testing.assert_array_equal(answer.array, x > TABLE)


def test_structure_alone_is_in_the_graph(tmp_path: Path) -> None:
    assert make(work("Gather", tmp_path)).graph == make(work("Gather", tmp_path, table=TABLE * 2)).graph


def test_what_follows_a_requests_indices_unchecked_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="operation GatherElements goes where input x says, which OpenVINO does not check"):
        make(work("GatherElements", tmp_path))


def test_what_loses_values_unsaid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="x is FP64: OpenVINO computes with FP32"):
        make(work("MatMul", tmp_path, "FP64"))
    with pytest.raises(Unsupported, match="a weight is f64"):
        make(work("Gather", tmp_path, table=TABLE.astype(np.float64)))


def test_without_openvino_the_build_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unsupported, match="openvino-fp32 needs openvino where the node's agent bakes: it is not installed there"):
        make(work("Gather", tmp_path))


def test_the_registry_makes_it_for_who_asks_alone() -> None:
    assert "openvino-fp32" not in DEFAULT_RECIPES
    assert checked_recipes("recipes", ["openvino-fp32"]) == ("openvino-fp32",)
    found = recipe_named("openvino-fp32")
    assert (found.backend, found.flavour, found.precision, found.exact) == ("openvino", "ort", "fp32", True)
