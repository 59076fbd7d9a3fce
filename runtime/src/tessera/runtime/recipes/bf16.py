"""`aten-bf16`: the flat program with its products and convolutions in bfloat16, by PyTorch's autocast.

Autocast turns the operands of those operators into bfloat16 and leaves all others alone (normalisations keep their weights in float32).
Weights that only such operators read are stored in bfloat16, half as long, and are the same bytes for siblings that have the same weights;
every other tensor is shared with `aten-fp32`. Inputs and outputs stay what the signature says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch

from tessera.domain.artifact import AUTOCAST
from tessera.domain.errors import Unsupported
from tessera.domain.ids import BuildClass
from tessera.runtime.backends.aten.program import canonical
from tessera.runtime.backends.aten.values import to_tensor, to_torch
from tessera.runtime.classes import has_bfloat16
from tessera.runtime.recipes.base import Built, Work

_PRODUCTS = frozenset(
    {
        "linear", "matmul", "mm", "bmm", "addmm", "addbmm", "baddbmm", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
        "conv_transpose3d", "scaled_dot_product_attention",
    }
)  # fmt: skip
"""What autocast runs in bfloat16 on CPUs, every operand of it."""


def check_here(build_class: BuildClass) -> None:
    """Raises: Unsupported: CPUs of the class do not multiply bfloat16, and would be slower with it than without."""
    if not has_bfloat16(build_class):
        raise Unsupported(f"aten-bf16 needs a CPU that multiplies bfloat16: class {build_class} does not")


def make(work: Work) -> Built:
    """Raises:
    Unsupported: no product and no convolution has a weight to store in bfloat16.
    """
    program = json.loads(work.graph)
    half = _only_multiplied(program)
    if not half:
        raise Unsupported("aten-bf16: no product and no convolution of the program has a weight of its own")
    work.progress("rounding weights", 0.3)
    tensors = {}
    for tensor in program["tensors"]:
        array = work.tensors[tensor["name"]]
        if tensor["slot"] in half:
            tensor["dtype"] = "BF16"
            array = to_tensor(tensor["name"], to_torch(array, "FP32").to(torch.bfloat16)).array
        tensors[tensor["name"]] = (array, tensor["dtype"])
    floats = {spec.name for spec in work.artifact.signature.outputs if spec.datatype == "FP32"}
    for output in program["outputs"]:
        if output["name"] in floats:
            program["nodes"].append(["aten.to.dtype", [{"slot": output["slot"]}, {"dtype": "float32"}], {}, program["slots"]])
            output["slot"] = program["slots"]
            program["slots"] += 1
    return Built(canonical(program), tensors, "bf16", exact=False, options=(AUTOCAST,), backend="aten", dialect="aten")


def _only_multiplied(program: dict[str, Any]) -> set[int]:
    """Slots of float32 tensors that are operands of products and convolutions and nothing else."""
    multiplied: set[int] = set()
    otherwise = {output["slot"] for output in program["outputs"]}
    for operator, arguments, keywords, _ in program["nodes"]:
        read = multiplied if operator.startswith("aten.") and operator.split(".")[1] in _PRODUCTS else otherwise
        read.update(_slots([arguments, list(keywords.values())]))
    return {tensor["slot"] for tensor in program["tensors"] if tensor["dtype"] == "FP32"} & (multiplied - otherwise)


def _slots(value: Any) -> Iterator[int]:
    if isinstance(value, list):
        for item in value:
            yield from _slots(item)
    elif isinstance(value, dict) and "slot" in value:
        yield value["slot"]
