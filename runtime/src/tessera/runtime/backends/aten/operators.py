"""Operators of the flat program by name: everything in `aten` that only computes, and arithmetic on Python numbers."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from tessera.domain.errors import Unsupported

_ATEN = re.compile(r"aten\.([A-Za-z_][A-Za-z0-9_]*)\.([A-Za-z_][A-Za-z0-9_]*)")

_REFUSED = frozenset(
    {"from_file", "manual_seed", "backward", "_backward", "set_data", "retain_grad", "warn", "_print", "set_grad_enabled", "wait", "fork"}
)
"""In `aten` too, but with effects beyond their results: files, seeds, autograd state, output."""

_SCALAR: dict[str, Callable[..., Any]] = {
    "operator.add": operator.add,
    "operator.sub": operator.sub,
    "operator.mul": operator.mul,
    "operator.truediv": operator.truediv,
    "operator.floordiv": operator.floordiv,
    "operator.mod": operator.mod,
    "operator.pow": operator.pow,
    "operator.neg": operator.neg,
    "operator.eq": operator.eq,
    "operator.ne": operator.ne,
    "operator.lt": operator.lt,
    "operator.le": operator.le,
    "operator.gt": operator.gt,
    "operator.ge": operator.ge,
    "operator.and_": operator.and_,
    "operator.or_": operator.or_,
    "operator.getitem": operator.getitem,
    "math.ceil": math.ceil,
    "math.floor": math.floor,
    "math.trunc": math.trunc,
    "math.sqrt": math.sqrt,
    "sym.max": max,
    "sym.min": min,
    "sym.int": int,
    "sym.float": float,
    "sym.not": operator.not_,
}


@cache
def resolve(name: str) -> Callable[..., Any]:
    """The operator `name`; looked up once per process.

    Raises:
        Unsupported: it is not among those that a program may use; names it and why.
    """
    scalar = _SCALAR.get(name)
    if scalar is not None:
        return scalar
    found = _ATEN.fullmatch(name)
    if found is None:
        raise Unsupported(f"operator {name[:120]!r}: must be aten.<name>.<overload> or one of {', '.join(_SCALAR)}")
    base, overload = found[1], found[2]
    if base in _REFUSED:
        raise Unsupported(f"operator {name}: it has effects beyond its results")
    packet = getattr(torch.ops.aten, base, None)
    if not isinstance(packet, torch._ops.OpOverloadPacket) or overload not in packet.overloads():
        raise Unsupported(f"operator {name}: this version of PyTorch ({torch.__version__}) does not have it")
    found_operator = getattr(packet, overload)
    schema = found_operator._schema
    if schema.is_mutable:
        raise Unsupported(f"operator {name}: it writes to its arguments; use its functional form")
    types = [str(argument.type) for argument in (*schema.arguments, *schema.returns)]
    if not any("Tensor" in text for text in types):
        raise Unsupported(f"operator {name}: it neither takes nor gives a tensor")
    return found_operator  # type: ignore[no-any-return]
