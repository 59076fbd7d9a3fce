"""Self-attention as one operator, before ONNX Runtime optimises an export: its own fusions do not know how torch writes attention.

Found by structure only, never by values of weights, so that siblings keep one graph: three projections of one input, scaled scores, an
optional padding mask, softmax, and the way back to (batch, sequence, hidden). What does not look like that stays as it is. Whoever
bakes compares the result with the export and goes on without fusion where they differ: what is read loosely here (shape arithmetic
between reshapes) is settled there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

_CONTRIB = "com.microsoft"
_TO_HEADS = [0, 2, 1, 3]
_LOWEST = float(np.finfo(np.float32).min)
_OPSET = 18
"""From it on ReduceMax takes its axes as an input."""
_LAYOUT = frozenset({"Unsqueeze", "Expand", "Cast", "Identity"})

Weights = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class _Projection:
    """x @ weight + bias, seen as heads."""

    source: str
    weight: npt.NDArray[Any]
    bias: npt.NDArray[Any] | None
    name: str
    heads: int


@dataclass(frozen=True, slots=True)
class _Mask:
    """`padding`: the value of shape (batch, sequence), true where a token counts. `fill`: what is added where it does not."""

    padding: str
    fill: float


@dataclass(frozen=True, slots=True)
class _Attention:
    last: Any
    query: _Projection
    key: _Projection
    value: _Projection
    scale: float
    mask: _Mask | None
    guarded: bool
    """Rows without any token to attend to give zeros; unguarded ones what softmax makes of equal scores."""


def fuse(model: Any, weights: Weights) -> tuple[Any, Weights]:
    """A model in which every self-attention that is recognised is one `Attention` of com.microsoft, and the weights that it reads.

    `weights`: the external float initializers by name. Both are left unchanged; the same `model` comes back where nothing was found.
    """
    if not any(entry.domain in ("", "ai.onnx") and entry.version >= _OPSET for entry in model.opset_import):
        return model, weights
    graph = _Graph(model, weights)
    found = [made for node in model.graph.node if node.op_type == "Softmax" and (made := graph.attention(node)) is not None]
    if not found:
        return model, weights
    fused = onnx.ModelProto()
    fused.CopyFrom(model)
    tensors = dict(weights)
    masks: dict[_Mask, tuple[str, str]] = {}
    replaced: dict[str, list[Any]] = {}
    for attention in found:
        replaced[attention.last.output[0]] = _nodes(attention, fused, tensors, masks)
    nodes = [node for old in model.graph.node for node in replaced.get(old.output[0], [old])]
    del fused.graph.node[:]
    fused.graph.node.extend(_needed(nodes, [output.name for output in model.graph.output]))
    _drop_unread(fused, tensors)
    if all(entry.domain != _CONTRIB for entry in fused.opset_import):
        fused.opset_import.add(domain=_CONTRIB, version=1)
    return fused, tensors


class _Graph:
    """Who makes which value, and what is known about it."""

    def __init__(self, model: Any, weights: Weights) -> None:
        self._weights = weights
        self._made = {output: node for node in model.graph.node for output in node.output}
        self._readers: dict[str, list[Any]] = {}
        for node in model.graph.node:
            for name in dict.fromkeys(node.input):
                self._readers.setdefault(name, []).append(node)
        self._constants = {t.name: t for t in model.graph.initializer if t.data_location != TensorProto.EXTERNAL}
        known = (*model.graph.value_info, *model.graph.input, *model.graph.output)
        self._shapes = {value.name: [d.dim_value or None for d in value.type.tensor_type.shape.dim] for value in known}

    def attention(self, softmax: Any) -> _Attention | None:
        if _attribute(softmax, "axis", -1) not in (-1, 3):
            return None
        scores = self._scores(softmax.input[0])
        away = self._away(softmax)
        if scores is None or away is None:
            return None
        query, key, scale, mask = scores
        last, value, guarded = away
        same = query.source == key.source == value.source and query.heads == key.heads == value.heads
        sizes = {projection.weight.shape for projection in (query, key, value)}
        if not same or len(sizes) != 1:
            return None
        return _Attention(last, query, key, value, scale, mask, guarded)

    def _scores(self, name: str) -> tuple[_Projection, _Projection, float, _Mask | None] | None:
        mask = None
        node = self._made.get(name)
        if node is not None and node.op_type == "Add":
            masks = [self._mask(side) for side in node.input]
            place = next((place for place, found in enumerate(masks) if found is not None), None)
            if place is None:
                return None
            mask, name = masks[place], node.input[1 - place]
        name, outer = self._unscaled(name)
        product = self._made.get(name)
        if product is None or product.op_type != "MatMul":
            return None
        left, left_scale = self._unscaled(product.input[0])
        right, right_scale = self._unscaled(product.input[1])
        query, key = self._projection(left), self._projection(self._transposed(right))
        if query is None or key is None:
            return None
        return query, key, outer * left_scale * right_scale, mask

    def _away(self, softmax: Any) -> tuple[Any, _Projection, bool] | None:
        """From the softmax to the value of shape (batch, sequence, hidden)."""
        probabilities, guarded = softmax.output[0], False
        readers = self._readers.get(probabilities, [])
        check = next((node for node in readers if node.op_type == "IsNaN"), None)
        if check is not None:
            where = self._only_reader(check.output[0], "Where")
            if where is None or list(where.input)[::2] != [check.output[0], probabilities] or self._scalar(where.input[1]) != 0:
                return None
            probabilities, guarded = where.output[0], True
        product = self._only_reader(probabilities, "MatMul") if guarded or len(readers) == 1 else None
        if product is None or product.input[0] != probabilities:
            return None
        value = self._projection(product.input[1])
        back = self._only_reader(product.output[0], "Transpose")
        if value is None or back is None or _attribute(back, "perm", None) != _TO_HEADS:
            return None
        last = self._only_reader(back.output[0], "Reshape")
        return None if last is None else (last, value, guarded)

    def _only_reader(self, name: str, operator: str) -> Any:
        readers = self._readers.get(name, [])
        return readers[0] if len(readers) == 1 and readers[0].op_type == operator else None

    def _unscaled(self, name: str) -> tuple[str, float]:
        """The value without multiplications by constants, and their product."""
        scale = 1.0
        while (node := self._made.get(name)) is not None and node.op_type in ("Mul", "Div"):
            factors = [self._scalar(side) for side in node.input]
            if factors[1] is not None:
                scale *= factors[1] if node.op_type == "Mul" else 1 / factors[1]
                name = node.input[0]
            elif factors[0] is not None and node.op_type == "Mul":
                scale *= factors[0]
                name = node.input[1]
            else:
                break
        return name, scale

    def _transposed(self, name: str) -> str:
        """What `name` is the transpose of in its last two dimensions, also by way of three dimensions; "" when it is none."""
        node = self._made.get(name)
        if node is None:
            return ""
        if node.op_type == "Transpose":
            return str(node.input[0]) if _attribute(node, "perm", None) == [0, 1, 3, 2] else ""
        flipped = self._made.get(node.input[0]) if node.op_type == "Reshape" else None
        if flipped is None or flipped.op_type != "Transpose" or _attribute(flipped, "perm", None) != [0, 2, 1]:
            return ""
        flat = self._made.get(flipped.input[0])
        return str(flat.input[0]) if flat is not None and flat.op_type == "Reshape" else ""

    def _projection(self, name: str) -> _Projection | None:
        node = self._made.get(name)
        if node is None or node.op_type != "Transpose" or _attribute(node, "perm", None) != _TO_HEADS:
            return None
        split = self._made.get(node.input[0])
        if split is None or split.op_type != "Reshape":
            return None
        shape = self._shapes.get(split.output[0], [])
        if len(shape) != 4 or not shape[2] or not shape[3]:
            return None
        linear, bias = self._biased(split.input[0])
        product = self._made.get(linear)
        if product is None or product.op_type != "MatMul":
            return None
        weight, weight_name = self._matrix(product.input[1])
        if weight is None or weight.ndim != 2 or weight.shape[1] != shape[2] * shape[3] or weight.dtype != np.float32:
            return None
        if bias is not None and bias.shape != weight.shape[1:]:
            return None
        return _Projection(product.input[0], weight, bias, weight_name, shape[2])

    def _biased(self, name: str) -> tuple[str, npt.NDArray[Any] | None]:
        node = self._made.get(name)
        if node is not None and node.op_type == "Add":
            for place, side in enumerate(node.input):
                if side in self._weights:
                    return node.input[1 - place], self._weights[side]
        return name, None

    def _matrix(self, name: str) -> tuple[npt.NDArray[Any] | None, str]:
        if name in self._weights:
            return self._weights[name], name
        node = self._made.get(name)
        turned = node is not None and node.op_type == "Transpose" and _attribute(node, "perm", [1, 0]) == [1, 0]
        if node is not None and turned and node.input[0] in self._weights:
            return self._weights[node.input[0]].T, node.input[0]
        return None, ""

    def _scalar(self, name: str) -> float | None:
        """The value of a constant of one element. An export's own float constants are external too, so a weight of one element counts
        as one (a model that learns a scale of its attention does not share its graph with siblings)."""
        array = self._constant(name)
        return float(array.reshape(())) if array is not None and array.size == 1 and array.dtype.kind in "fiu" else None

    def _constant(self, name: str) -> npt.NDArray[Any] | None:
        if name in self._constants:
            inline: npt.NDArray[Any] = numpy_helper.to_array(self._constants[name])
            return inline
        found = self._weights.get(name)
        return found if found is not None and found.size == 1 else None

    def _mask(self, name: str) -> _Mask | None:
        """`Where(keep, 0, fill)` in which `keep` is a padding mask seen as (batch, 1, any, sequence)."""
        node = self._made.get(name)
        if node is None or node.op_type != "Where" or self._scalar(node.input[1]) != 0:
            return None
        fill = self._scalar(node.input[2])
        keep = self._without_true(node.input[0])
        padding = self._padding(keep)
        if fill is None or fill > -1e30 or not padding:
            return None
        return _Mask(padding, fill)

    def _without_true(self, name: str) -> str:
        node = self._made.get(name)
        if node is not None and node.op_type == "And":
            for place, side in enumerate(node.input):
                if self._always(side):
                    return self._without_true(node.input[1 - place])
        return name

    def _always(self, name: str) -> bool:
        """True wherever it is looked at: a constant, or positions that are not below 0."""
        constant = self._constants.get(name)
        if constant is not None:
            array = numpy_helper.to_array(constant)
            return array.dtype == np.bool_ and bool(array.all())
        node = self._made.get(name)
        if node is None:
            return False
        if node.op_type == "And":
            return all(map(self._always, node.input))
        if node.op_type in ("Unsqueeze", "Expand"):
            return self._always(node.input[0])
        if node.op_type == "GreaterOrEqual":
            limit = self._scalar(node.input[1])
            return limit is not None and limit <= 0 and self._counted(node.input[0]) is not None
        return False

    def _counted(self, name: str) -> Any:
        """The `Range` from 0 in steps of 1 that this value is, but for its layout."""
        node = self._made.get(name)
        while node is not None and node.op_type in _LAYOUT:
            node = self._made.get(node.input[0])
        if node is None or node.op_type != "Range" or self._scalar(node.input[0]) != 0 or self._scalar(node.input[2]) != 1:
            return None
        return node

    def _padding(self, name: str) -> str:
        """The (batch, sequence) value that is seen as (batch, 1, 1, sequence) here: by unsqueezing, or gathered by counted positions."""
        node = self._made.get(name)
        if node is None:
            return ""
        if node.op_type == "Unsqueeze":
            axes = self._constant(node.input[1])
            flat = self._shapes.get(node.input[0], [])
            return str(node.input[0]) if axes is not None and sorted(axes.tolist()) == [1, 2] and len(flat) == 2 else ""
        if node.op_type != "GatherND" or _attribute(node, "batch_dims", 0) != 0:
            return ""
        pairs = self._made.get(node.input[1])
        if pairs is None or pairs.op_type != "Concat" or len(pairs.input) != 2 or _attribute(pairs, "axis", 0) not in (-1, 4):
            return ""
        places = [self._place(side) for side in pairs.input]
        return str(node.input[0]) if places == [0, 3] else ""

    def _place(self, name: str) -> int | None:
        """The one dimension of four along which a value counts 0, 1, 2, ...; its last, fifth, dimension is the index itself."""
        axes: list[list[int]] = []
        node = self._made.get(name)
        while node is not None and node.op_type in _LAYOUT:
            if node.op_type == "Unsqueeze":
                constant = self._constant(node.input[1])
                if constant is None:
                    return None
                axes.append([int(axis) for axis in constant.reshape(-1)])
            node = self._made.get(node.input[0])
        if self._counted(name) is None:
            return None
        dims = ["count"]
        for added in reversed(axes):
            rank = len(dims) + len(added)
            rest = iter(dims)
            at = {axis % rank for axis in added}
            dims = ["1" if place in at else next(rest) for place in range(rank)]
        return dims.index("count") if len(dims) == 5 else None


def _nodes(attention: _Attention, model: Any, tensors: Weights, masks: dict[_Mask, tuple[str, str]]) -> list[Any]:
    """The nodes in place of `attention.last`. Adds the joined weights, and the mask's values where they are the first to need them."""
    parts = (attention.query, attention.key, attention.value)
    output = attention.last.output[0]
    weight, bias = f"{attention.query.name}/qkv", f"{attention.query.name}/qkv_bias"
    _add(model, tensors, weight, np.concatenate([part.weight for part in parts], axis=1))
    biases = [part.bias if part.bias is not None else np.zeros(part.weight.shape[1], np.float32) for part in parts]
    _add(model, tensors, bias, np.concatenate(biases))
    nodes: list[Any] = []
    mask = attention.mask
    counts = any_counts = ""
    fill = _LOWEST
    if mask is not None:
        if mask not in masks:
            nodes += _mask_nodes(mask, model, masks)
        counts, any_counts = masks[mask]
        fill = max(mask.fill, _LOWEST)
    zeroed = mask is not None and attention.guarded and math.isinf(mask.fill)
    made = f"{output}/attention" if zeroed else output
    given = [attention.query.source, weight, bias, *([counts] if counts else [])]
    heads = attention.query.heads
    nodes.append(
        helper.make_node("Attention", given, [made], domain=_CONTRIB, num_heads=heads, scale=attention.scale, mask_filter_value=fill)
    )
    if zeroed:
        nodes.append(helper.make_node("Mul", [made, any_counts], [output]))
    return nodes


def _mask_nodes(mask: _Mask, model: Any, masks: dict[_Mask, tuple[str, str]]) -> list[Any]:
    """The mask as whole numbers, and for each row of the batch, as (batch, 1, 1) floats, whether any token counts."""
    base = f"{mask.padding}/{len(masks)}"
    counts, floats, one, any_counts, axis, last = (f"{base}/{name}" for name in ("counts", "floats", "one", "any", "axis", "last"))
    masks[mask] = counts, any_counts
    model.graph.initializer.extend(numpy_helper.from_array(np.array([place], np.int64), name) for name, place in ((axis, 1), (last, 2)))
    return [
        helper.make_node("Cast", [mask.padding], [counts], to=TensorProto.INT32),
        helper.make_node("Cast", [mask.padding], [floats], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", [floats, axis], [one], keepdims=1),
        helper.make_node("Unsqueeze", [one, last], [any_counts]),
    ]


def _add(model: Any, tensors: Weights, name: str, array: npt.NDArray[Any]) -> None:
    tensors[name] = np.ascontiguousarray(array)
    entry = model.graph.initializer.add(name=name, data_type=TensorProto.FLOAT, dims=array.shape)
    entry.data_location = TensorProto.EXTERNAL
    entry.external_data.add(key="location", value="tessera")


def _needed(nodes: list[Any], outputs: list[str]) -> list[Any]:
    """The nodes that the outputs depend on, in their order."""
    wanted = set(outputs)
    kept = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(_reads(node))
            kept.append(node)
    return kept[::-1]


def _reads(node: Any) -> Iterator[str]:
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _reads(inner)


def _drop_unread(model: Any, tensors: Weights) -> None:
    read = {name for node in model.graph.node for name in _reads(node)} | {output.name for output in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
    del model.graph.initializer[:]
    model.graph.initializer.extend(copies)
    for name in set(tensors) - read:
        del tensors[name]


def _attribute(node: Any, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return default
