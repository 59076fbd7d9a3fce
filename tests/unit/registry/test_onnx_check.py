"""ONNX files that are broken or mean harm: refused by name before ONNX Runtime sees them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tessera.domain.errors import InvalidInput, TesseraError, Unsupported
from tessera.frames import protowire as wire
from tessera.registry.importer import onnx_check

WEIGHT = np.arange(6, dtype=np.float32).reshape(3, 2)
Change = Callable[[Any], None]


def model(*nodes: Any, functions: tuple[Any, ...] = (), opsets: dict[str, int] | None = None) -> Any:
    """x[batch, 3] @ w[3, 2] -> y, or `nodes` instead of the product."""
    graph = helper.make_graph(
        list(nodes) or [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(WEIGHT, "w")],
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in (opsets or {"": 17}).items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=10, functions=list(functions))


def function(name: str, *calls: str) -> Any:
    nodes = [helper.make_node(call, ["x"], [f"v{place}"], domain="mine") for place, call in enumerate(calls)]
    nodes.append(helper.make_node("Relu", ["x"], ["y"]))
    return helper.make_function("mine", name, ["x"], ["y"], nodes, [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)])


def external(location: str, **more: str) -> Change:
    def change(made: Any) -> None:
        tensor = made.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **more}.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value

    return change


def weight_of(kind: int) -> Change:
    def change(made: Any) -> None:
        made.graph.initializer[0].data_type = kind

    return change


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (external("../secret"), InvalidInput, "external data of initializer 'w' '../secret': must be a file beside the model"),
        (external("/etc/passwd"), InvalidInput, "'/etc/passwd': must be a file beside the model"),
        (external("a/../../secret"), InvalidInput, "must be a file beside the model"),
        (external("c:\\secret"), InvalidInput, "must be a file beside the model"),
        (external(""), InvalidInput, "must be a file beside the model"),
        (external("link"), InvalidInput, "'link': is not among the files"),
        (external("gone.data"), InvalidInput, "'gone.data': is not among the files; register the folder that holds the model and its data"),
        (external("w.data", offset="8"), InvalidInput, "bytes '8 to 32': w.data has 24"),
        (external("w.data", offset="-1"), InvalidInput, "bytes '-1 to 23'"),
        (external("w.data", length="8"), InvalidInput, "length 8: must be 24 for shape [3, 2]"),
        (external("w.data", offset="x"), InvalidInput, "offset and length must be numbers"),
        (weight_of(TensorProto.FLOAT16), Unsupported, "initializer 'w' is FLOAT16; convert the model to float32"),
        (weight_of(TensorProto.BFLOAT16), Unsupported, "initializer 'w' is BFLOAT16; convert the model to float32"),
        (weight_of(TensorProto.STRING), Unsupported, "initializer 'w' is STRING; tensors of FLOAT"),
        (weight_of(999), Unsupported, "initializer 'w' is 999"),
        (weight_of(TensorProto.DOUBLE), InvalidInput, "initializer 'w' shape [3, 2]: is 48 bytes of DOUBLE, 24 are there"),
        (lambda m: m.graph.initializer[0].dims.append(1 << 40), InvalidInput, "initializer 'w' shape [3, 2, 1099511627776]"),
        (lambda m: m.graph.initializer[0].dims.extend([-1, -1]), InvalidInput, "dimensions must not be negative"),
        (lambda m: m.graph.sparse_initializer.add(), Unsupported, "is sparse"),
        (lambda m: setattr(m, "ir_version", 99), Unsupported, "IR version 99: from 3 to"),
        (lambda m: setattr(m.opset_import[0], "version", 6), Unsupported, "opset 6: from 7 to"),
        (lambda m: setattr(m.opset_import[0], "version", 999), Unsupported, "opset 999"),
        (lambda m: m.graph.input.pop(), Unsupported, "it has 0 inputs and 1 outputs"),
        (lambda m: m.graph.output.pop(), Unsupported, "it has 1 inputs and 0 outputs"),
        (lambda m: m.graph.input[0].type.tensor_type.ClearField("shape"), Unsupported, "input 'x' has no shape"),
        (lambda m: setattr(m.graph.output[0], "name", ""), InvalidInput, "output '': must have a name"),
        (lambda m: m.graph.output[0].type.sequence_type.SetInParent(), Unsupported, "output 'y' is a sequence; inputs and outputs must be"),
    ],
)
def test_what_is_refused(tmp_path: Path, change: Change, kind: type[TesseraError], words: str) -> None:
    (tmp_path / "w.data").write_bytes(WEIGHT.tobytes())
    (tmp_path / "link").symlink_to("/etc/passwd")
    made = model()
    change(made)
    with pytest.raises(kind) as refused:
        onnx_check.check_model(made, tmp_path, "m.onnx")
    assert words in str(refused.value)


BRANCH = helper.make_graph(
    [helper.make_node("Sneaky", ["x"], ["inner"], domain="evil")],
    "b",
    [],
    [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
)
LADDER = (*(function(f"f{step}", *[f"f{step + 1}"] * 10) for step in range(8)), function("f8"))


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (model(helper.make_node("Conv3000", ["x"], ["y"])), "operator Conv3000: ai.onnx has none of this name in version 17"),
        (
            model(helper.make_node("GroupNormalization", ["x", "w", "w"], ["y"])),
            "GroupNormalization: ai.onnx has none of this name in version 17",
        ),
        (
            model(helper.make_node("Run", ["x"], ["y"], domain="evil.ops")),
            "operator evil.ops.Run: 'evil.ops' comes with a library of its own",
        ),
        (model(helper.make_node("Word", ["x"], ["y"], domain="ai.onnx.contrib")), "'ai.onnx.contrib' comes with a library"),
        (model(helper.make_node("Gradient", ["x"], ["y"], domain="ai.onnx.preview.training")), "'ai.onnx.preview.training'"),
        (
            model(helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft"), opsets={"": 17, "com.microsoft": 1}),
            "operator com.microsoft.EPContext: ONNX Runtime has none of this name for the CPU",
        ),
        (model(helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")), "the file does not say which version of its operators"),
        (model(helper.make_node("RandomNormalLike", ["x"], ["y"])), "operator RandomNormalLike: it draws random numbers"),
        (model(helper.make_node("If", ["x"], ["y"], then_branch=BRANCH, else_branch=BRANCH)), "operator evil.Sneaky"),
        (
            model(helper.make_node("f", ["x"], ["y"], domain="mine"), functions=(function("f", "g"), function("g", "f"))),
            "'f': calls itself",
        ),
        (model(helper.make_node("f0", ["x"], ["y"], domain="mine"), functions=LADDER), "nodes 1"),
        (model(functions=(helper.make_function("", "Relu", ["x"], ["y"], [], []),)), "function 'Relu': may not take the place of"),
        (model(functions=(helper.make_function("mine", "f", ["x"], ["y"], [helper.make_node("R", [], [], domain="evil")], []),)), "evil.R"),
        (
            model(helper.make_node("Constant", [], ["y"], value=helper.make_tensor("c", TensorProto.FLOAT16, [1], b"ab", raw=True))),
            "attribute 'value' is FLOAT16",
        ),
    ],
)
def test_operators_that_are_refused(made: Any, words: str) -> None:
    with pytest.raises(TesseraError) as refused:
        onnx_check.check_model(made, Path("."), "m.onnx")
    assert words in str(refused.value)


def test_what_is_fine(tmp_path: Path) -> None:
    (tmp_path / "w.data").write_bytes(bytes(8) + WEIGHT.tobytes())
    made = model(
        helper.make_node("f", ["x"], ["r"], domain="mine"),
        helper.make_node("Gelu", ["r"], ["g"], domain="com.microsoft"),
        helper.make_node("MatMul", ["g", "w"], ["y"], domain="ai.onnx"),
        functions=(function("f", "g"), function("g")),
        opsets={"": 17, "com.microsoft": 1, "mine": 1},
    )
    external("w.data", offset="8")(made)
    onnx_check.check_model(made, tmp_path, "m.onnx")


def test_external_data_of_an_attribute(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(WEIGHT, "c")
    made = model(helper.make_node("Constant", [], ["y"], value=tensor))
    made.graph.node[0].attribute[0].t.data_location = TensorProto.EXTERNAL
    with pytest.raises(Unsupported, match="only initializers of the main graph may"):
        onnx_check.check_model(made, tmp_path, "m.onnx")


@pytest.mark.parametrize("data", [b"", b"\x00", b"\xff" * 64, b"not onnx at all", onnx.ModelProto(ir_version=8).SerializeToString()])
def test_no_onnx_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(InvalidInput, match=r"file 'm.onnx': is no ONNX file"):
        onnx_check.read_model(tmp_path / "m.onnx", "m.onnx")


def test_a_message_that_is_nested_too_deeply(tmp_path: Path) -> None:
    def field(number: int, data: bytes) -> bytes:
        return wire.varint(number << 3 | wire.LENGTH) + wire.varint(len(data)) + data

    node = field(4, b"Relu")
    for _ in range(200):
        node = field(5, field(6, field(1, node)))  # the graph of an attribute of a node
    (tmp_path / "m.onnx").write_bytes(model().SerializeToString() + field(7, field(1, node)))
    with pytest.raises(InvalidInput, match="is no ONNX file"):
        onnx_check.read_model(tmp_path / "m.onnx", "m.onnx")


@given(st.data())
def test_a_broken_file_is_refused_or_checked(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    good = bytearray(model(helper.make_node("f", ["x"], ["y"], domain="mine"), functions=(function("f"),)).SerializeToString())
    for _ in range(data.draw(st.integers(1, 6))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "broken.onnx"
    path.write_bytes(good[: data.draw(st.integers(0, len(good)))])
    try:
        onnx_check.check_model(onnx_check.read_model(path, "broken.onnx"), path.parent, "broken.onnx")
    except TesseraError as error:
        refusal = str(error)
    else:
        return
    assert "broken.onnx" in refusal
