"""Finds self-attention in a graph as torch's exporter writes it: three projections of one input, scaled scores, an optional padding mask,
softmax, and the way back to (batch, sequence, hidden).

By structure only. Shape arithmetic between reshapes is not followed: see `tessera.runtime.fused_attention`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper

_TO_HEADS = [0, 2, 1, 3]
_LAYOUT = frozenset({"Unsqueeze", "Expand", "Cast", "Identity"})

Weights = dict[str, npt.NDArray[Any]]
"""Float initializers by name."""


@dataclass(frozen=True, slots=True)
class Projection:
    """x @ weight + bias, seen as heads."""

    source: str
    weight: npt.NDArray[Any]
    bias: npt.NDArray[Any] | None
    name: str
    heads: int


@dataclass(frozen=True, slots=True)
class Mask:
    """`padding`: the value of shape (batch, sequence), true where a token counts; "" where all do. `fill`: what is added elsewhere."""

    padding: str
    fill: float


@dataclass(frozen=True, slots=True)
class Attention:
    last: Any
    query: Projection
    key: Projection
    value: Projection
    scale: float
    mask: Mask | None
    guarded: bool
    """Rows without any token to attend to give zeros; unguarded ones what softmax makes of equal scores."""


class AttentionFinder:
    """Who makes which value of a model, and what is known about it."""

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

    def attention(self, softmax: Any) -> Attention | None:
        """The attention whose softmax this node is; None when it is no self-attention, or is written in another way."""
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
        return Attention(last, query, key, value, scale, mask, guarded)

    def _scores(self, name: str) -> tuple[Projection, Projection, float, Mask | None] | None:
        mask = None
        node = self._made.get(name)
        if node is not None and node.op_type == "Add":
            masks = [self._mask(side) for side in node.input]
            place = next((place for place, found in enumerate(masks) if found is not None), None)
            if place is None:
                return None
            mask, name = masks[place], node.input[1 - place]
            mask = mask if mask is not None and mask.padding else None
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

    def _away(self, softmax: Any) -> tuple[Any, Projection, bool] | None:
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

    def _projection(self, name: str) -> Projection | None:
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
        return Projection(product.input[0], weight, bias, weight_name, shape[2])

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

    def _mask(self, name: str) -> Mask | None:
        """`Where(keep, 0, fill)` in which `keep` is a padding mask seen as (batch, 1, any, sequence)."""
        node = self._made.get(name)
        if node is None or node.op_type != "Where" or self._scalar(node.input[1]) != 0:
            return None
        fill = self._scalar(node.input[2])
        if fill is None or fill > -1e30:
            return None
        if self._always(node.input[0]):
            return Mask("", fill)
        padding = self._padding(self._without_true(node.input[0]))
        return Mask(padding, fill) if padding else None

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


def _attribute(node: Any, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return default
