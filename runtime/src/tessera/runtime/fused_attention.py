"""Self-attention as one operator, before ONNX Runtime optimises an export: its own fusions do not know how torch writes attention.

What is fused is found by structure only, never by values of weights, so that siblings keep one graph. Whoever bakes compares the result
with the export and goes on without fusion where they differ: what `attention_pattern` reads loosely is settled there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from tessera.runtime.attention_pattern import Attention, AttentionFinder, Mask, Weights

_CONTRIB = "com.microsoft"
_LOWEST = float(np.finfo(np.float32).min)
_OPSET = 18
"""From it on ReduceMax takes its axes as an input."""


def fuse(model: Any, weights: Weights) -> tuple[Any, Weights]:
    """A model in which every self-attention that is recognised is one `Attention` of com.microsoft, and the weights that it reads.

    `weights`: the external float initializers by name. Both are left unchanged; the same `model` comes back where nothing was found.
    """
    if not any(entry.domain in ("", "ai.onnx") and entry.version >= _OPSET for entry in model.opset_import):
        return model, weights
    graph = AttentionFinder(model, weights)
    found = [made for node in model.graph.node if node.op_type == "Softmax" and (made := graph.attention(node)) is not None]
    if not found:
        return model, weights
    fused = onnx.ModelProto()
    fused.CopyFrom(model)
    tensors = dict(weights)
    masks: dict[Mask, tuple[str, str]] = {}
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


def _nodes(attention: Attention, model: Any, tensors: Weights, masks: dict[Mask, tuple[str, str]]) -> list[Any]:
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


def _mask_nodes(mask: Mask, model: Any, masks: dict[Mask, tuple[str, str]]) -> list[Any]:
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
    if name in tensors:  # layers that share their weights
        return
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
