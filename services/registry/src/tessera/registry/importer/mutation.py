"""In-place operators become their functional twins where that changes nothing, so that mapped weights are never written.

An in-place operator may be rewritten when what it writes to is a temporary that nobody reads afterwards except through the
operator's own result. Values that may share memory are put in one alias group; the judgement is made on groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch.fx import Node

_TWINS_WITH_SAME_DTYPE = frozenset(
    {
        "relu_", "relu6_", "hardtanh_", "silu_", "mish_", "hardswish_", "hardsigmoid_", "sigmoid_", "tanh_", "leaky_relu_", "elu_", "selu_",
        "celu_", "threshold_", "clamp_", "clamp_min_", "clamp_max_", "exp_", "neg_", "abs_", "sqrt_", "rsqrt_", "square_", "add_", "sub_",
        "mul_", "div_", "masked_fill_", "pow_", "erf_", "floor_", "round_", "addcmul_", "addcdiv_",
    }
)  # fmt: skip

_FRESH = frozenset(
    {
        "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear", "matmul", "batch_norm",
        "layer_norm", "group_norm", "instance_norm", "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "adaptive_avg_pool1d",
        "adaptive_avg_pool2d", "adaptive_avg_pool3d", "scaled_dot_product_attention", "embedding", "cross_entropy_loss", "silu", "relu6",
        "selu", "log_softmax", "softmax", "linalg_vector_norm", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d",
    }
)  # fmt: skip
"""Composite operators that always answer with memory of their own, whatever their schema leaves unsaid."""


def functional_twin(target: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    """`aten.relu.default` for `aten.relu_.default`; None where none is known to be exactly equal."""
    name = target._schema.name.removeprefix("aten::")
    if name not in _TWINS_WITH_SAME_DTYPE:
        return None
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
    overload = target._overloadname
    return getattr(packet, overload) if packet is not None and overload in packet.overloads() else None


def _may_alias_arguments(node: Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return True  # operator.getitem, higher-order operators
    if any(result.alias_info is not None for result in target._schema.returns):
        return True
    name = target._schema.name.removeprefix("aten::")
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), "CompositeImplicitAutograd")
    return composite and name not in _FRESH


class AliasGroups:
    """Union-find over the nodes of a graph, in running order."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._parent: dict[Node, Node] = {}
        self._members: dict[Node, list[Node]] = {}
        for node in nodes:
            self._parent[node] = node
            self._members[node] = [node]
            if node.op == "call_function" and _may_alias_arguments(node):
                for argument in node.all_input_nodes:
                    if argument in self._parent:
                        self._join(node, argument)

    def _find(self, node: Node) -> Node:
        while self._parent[node] is not node:
            node = self._parent[node]
        return node

    def _join(self, left: Node, right: Node) -> None:
        left, right = self._find(left), self._find(right)
        if left is not right:
            self._parent[right] = left
            self._members[left].extend(self._members.pop(right))

    def members(self, node: Node) -> Iterator[Node]:
        return iter(self._members[self._find(node)])


def rewritable(node: Node, groups: AliasGroups, order: dict[Node, int]) -> bool:
    """Whether the in-place `node` can be its functional twin without a reader noticing."""
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)
    twin = functional_twin(target)
    written = node.args[0] if node.args else None
    if twin is None or not isinstance(written, Node):
        return False
    before, after = written.meta.get("val"), node.meta.get("val")
    operands = [n.meta.get("val") for n in node.all_input_nodes]
    if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor) or before.shape != after.shape:
        return False
    # with operands of one dtype the twin promotes to nothing else; zero-dimensional operands never promote a float
    if any(isinstance(value, torch.Tensor) and value.dtype not in (before.dtype, torch.bool) for value in operands):
        return False
    if not before.dtype.is_floating_point and target._schema.name in {
        "aten::div_",
        "aten::exp_",
        "aten::sqrt_",
        "aten::mul_",
        "aten::add_",
    }:
        return False
    here = order[node]
    for member in groups.members(node):
        if member.op in ("placeholder", "get_attr"):
            return False
        if order[member] < here and any(order[user] > here for user in member.users):
            return False
    return True
