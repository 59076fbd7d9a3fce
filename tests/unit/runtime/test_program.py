from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tessera.domain.errors import DataCorrupted, Unsupported
from tessera.runtime.backends.aten.operators import resolve
from tessera.runtime.backends.aten.program import execute, read_plan


def program(**changes) -> bytes:
    """y = relu(x + w)"""
    base = {
        "format": 1,
        "dialect": "aten",
        "slots": 4,
        "inputs": [{"name": "x", "slot": 0}],
        "tensors": [{"name": "w", "slot": 1, "dtype": "FP32", "shape": [2]}],
        "nodes": [["aten.add.Tensor", [{"slot": 0}, {"slot": 1}], {}, 2], ["aten.relu.default", [{"slot": 2}], {}, 3]],
        "outputs": [{"name": "y", "slot": 3}],
    }
    return json.dumps({**base, **changes}).encode()


def run(graph: bytes, x: torch.Tensor, w: torch.Tensor) -> list:
    plan = read_plan(graph)
    bound = [None] * plan.slots
    bound[1] = w
    return execute(plan, bound, {"x": x})


def test_runs_and_leaves_what_is_bound_alone():
    x, w = torch.tensor([-5.0, 1.0]), torch.tensor([1.0, 2.0])
    (y,) = run(program(), x, w)
    assert y.tolist() == [0.0, 3.0]
    assert w.tolist() == [1.0, 2.0]


def test_values_are_freed_after_their_last_reader():
    plan = read_plan(program())
    assert plan.frees == [[0], [2]]


def test_all_kinds_of_values():
    nodes = [
        ["aten.sym_size.int", [{"slot": 0}, 0], {}, 2],
        ["operator.mul", [{"slot": 2}, 2], {}, 3],
        [
            "aten.zeros.default",
            [[{"slot": 3}, 1]],
            {"dtype": {"dtype": "float64"}, "device": {"device": "cpu"}, "layout": {"layout": "strided"}},
            4,
        ],
        ["aten.add.Scalar", [{"slot": 4}, {"float": "inf"}], {}, 5],
        ["aten.clone.default", [{"slot": 5}], {"memory_format": {"memory_format": "contiguous_format"}}, 6],
        ["aten.split.Tensor", [{"slot": 6}, {"slot": 2}], {}, 7],
        ["operator.getitem", [{"slot": 7}, 1], {}, 8],
    ]
    graph = program(nodes=nodes, slots=9, outputs=[{"name": "y", "slot": 8}, {"name": "x", "slot": 0}])
    y, x = run(graph, torch.ones(3), torch.zeros(2))
    assert (y.dtype, list(y.shape)) == (torch.float64, [3, 1])
    assert torch.isinf(y).all()
    assert x.tolist() == [1.0] * 3


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"dialect": "onnx"}, Unsupported, "dialect 'onnx'"),
        ({"format": 2}, Unsupported, "format 2"),
        ({"extra": 1}, DataCorrupted, "extra"),
        ({"nodes": [["aten.relu.default", [{"slot": 3}], {}, 2]]}, DataCorrupted, "reads slot 3"),
        ({"nodes": [["aten.relu.default", [{"slot": 0}], {}, 0]]}, DataCorrupted, "writes slot 0"),
        ({"nodes": [["aten.relu.default", [{"slot": 0}], {}, 9]]}, DataCorrupted, "writes slot 9"),
        ({"nodes": [["aten.relu.default", [{"slot": "0"}], {}, 2]]}, DataCorrupted, "reads slot 0"),
        ({"nodes": []}, DataCorrupted, "output y reads slot 3"),
        ({"nodes": [["aten.relu.default", [{"slot": 0, "dtype": "x"}], {}, 2]]}, DataCorrupted, "one key"),
        ({"nodes": [["aten.relu.default", [{"device": "cuda"}], {}, 2]]}, Unsupported, "device 'cuda'"),
        ({"nodes": [["aten.relu.default", [{"dtype": "load"}], {}, 2]]}, Unsupported, "dtype 'load'"),
        ({"nodes": [["aten.relu.default", [{"code": "1+1"}], {}, 2]]}, Unsupported, "code"),
        ({"slots": -1}, DataCorrupted, "slot 0"),
    ],
)
def test_programs_that_are_not_sound_are_refused_with_the_place(changes, kind, words):
    with pytest.raises(kind) as caught:
        read_plan(program(**changes))
    assert words in str(caught.value)


def test_what_is_no_json_is_refused():
    with pytest.raises(DataCorrupted):
        read_plan(b"\x00")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("aten.from_file.default", "effects beyond"),
        ("aten.manual_seed.default", "effects beyond"),
        ("aten.relu_.default", "functional form"),
        ("aten.add.out", "functional form"),
        ("aten.no_such_thing.default", "does not have it"),
        ("aten.relu.no_such_overload", "does not have it"),
        ("aten.__class__.__init__", "does not have it"),
        ("prim.device.default", "must be aten"),
        ("os.system", "must be aten"),
        ("operator.attrgetter", "must be aten"),
        ("torch.load", "must be aten"),
        ("aten.relu.default; import os", "must be aten"),
    ],
)
def test_operators_beyond_the_table_are_refused_by_name(name, words):
    with pytest.raises(Unsupported) as caught:
        resolve(name)
    assert words in str(caught.value)
    assert name.split(";")[0] in str(caught.value)


def test_scalar_operators_are_pythons_own():
    assert resolve("operator.floordiv")(7, 2) == 3
    assert resolve("math.ceil")(1.2) == 2
    assert resolve("sym.max")(2, 3) == 3
    assert resolve("sym.not")(False) is True
    assert np.isclose(resolve("sym.float")(2), 2.0)
