"""Looks into an ONNX file before ONNX Runtime does, and refuses what leads out of its folder or is not served.

An ONNX file names other files (external data), operators that a runtime may look up in libraries, and functions that expand when they
are inlined. So: external data lies beside the file and has the bytes that are claimed; operators are the standard's, or ONNX Runtime's
own with a kernel for the CPU; functions end, in a bounded number of nodes. Messages name the node, tensor or value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from onnx import AttributeProto, TensorProto

from tessera.domain.errors import InvalidInput, Unsupported

MAX_FILE_BYTES = (1 << 31) - 1
"""What a protobuf message can hold; larger models have their weights as external data."""
MAX_NODES = 200_000
OLDEST_OPSET = 7
"""The oldest that ONNX Runtime promises to run."""
STANDARD = ("", "ai.onnx.ml")
MICROSOFT = "com.microsoft"
_RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"})
_SHOWN = 120
_ITEM_BYTES = {
    TensorProto.FLOAT: 4, TensorProto.DOUBLE: 8, TensorProto.BOOL: 1, TensorProto.INT8: 1, TensorProto.UINT8: 1, TensorProto.INT16: 2,
    TensorProto.UINT16: 2, TensorProto.INT32: 4, TensorProto.UINT32: 4, TensorProto.INT64: 8, TensorProto.UINT64: 8,
}  # fmt: skip
"""Element types that tensors may have, and bytes per element."""
Functions = dict[tuple[str, str, str], Any]
"""(domain, name, overload) of a function that the file defines -> the function."""
_HALF = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})


def read_model(path: Path, shown: str) -> Any:
    """The file as a message, nothing of it believed yet.

    Raises:
        InvalidInput: too large, or no ONNX file.
    """
    size_bytes = path.stat().st_size
    if size_bytes > MAX_FILE_BYTES:
        raise InvalidInput("file", shown, f"has {size_bytes} bytes, at most {MAX_FILE_BYTES}: save the weights as external data beside it")
    try:
        model = onnx.ModelProto.FromString(path.read_bytes())
    except Exception as error:  # protobuf's own class, which differs between its implementations
        raise InvalidInput("file", shown, f"is no ONNX file: {str(error)[:200]}") from None
    if not model.HasField("graph") or not model.opset_import:
        raise InvalidInput("file", shown, "is no ONNX file: it has no graph, or does not say which operators it uses")
    if not _is_text(model):
        raise InvalidInput("file", shown, "is no ONNX file: a name in it is no UTF-8")
    return model


def _is_text(model: Any) -> bool:
    """Whether all strings are; the parser lets others through as bytes."""
    stack = [model]
    while stack:
        for field, value in stack.pop().ListFields():
            values = value if field.is_repeated else (value,)
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                stack.extend(values)
            elif field.type == FieldDescriptor.TYPE_STRING and not all(isinstance(one, str) for one in values):
                return False
    return True


def check_model(model: Any, folder: Path, shown: str) -> None:
    """Raises:
    InvalidInput: the file contradicts itself, or names a file that is not beside it.
    Unsupported: it holds what is not served; names it, and what would work.
    """
    if not 3 <= model.ir_version <= onnx.IR_VERSION:
        raise Unsupported(f"{shown}: IR version {model.ir_version}: from 3 to {onnx.IR_VERSION} are imported")
    opsets = _opsets(model)
    version = opsets.get("", 0)
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= version <= newest:
        raise Unsupported(f"{shown}: opset {version}: from {OLDEST_OPSET} to {newest} are imported; convert it with onnx.version_converter")
    functions = {(function.domain, function.name, function.overload): function for function in model.functions}
    for domain, name, _ in functions:
        if domain in (*STANDARD, "ai.onnx", MICROSOFT):
            raise InvalidInput(f"{shown}: function", name[:_SHOWN], f"may not take the place of an operator of {domain or 'ai.onnx'}")
    _check_expansion(model, functions, shown)
    _check_nodes(list(_nodes(model.graph.node)), opsets, functions, shown)
    for function in model.functions:
        _check_nodes(list(_nodes(function.node)), opsets | _opsets(function), functions, shown)
    for graph in _graphs(model):
        if graph.sparse_initializer:
            name = graph.sparse_initializer[0].values.name
            raise Unsupported(f"{shown}: initializer {name!r} is sparse; save it dense")
        for tensor in graph.initializer:
            check_tensor(tensor, f"initializer {tensor.name[:_SHOWN]!r}", folder if graph is model.graph else None, shown)
    _check_values(model.graph, shown)


def check_tensor(tensor: Any, what: str, folder: Path | None, shown: str) -> None:
    """`folder`: where its external data must lie; None where it may have none."""
    kind = tensor.data_type
    words = TensorProto.DataType.Name(kind) if kind in TensorProto.DataType.values() else str(kind)
    if kind in _HALF:
        raise Unsupported(f"{shown}: {what} is {words}; convert the model to float32")
    if kind not in _ITEM_BYTES:
        raise Unsupported(f"{shown}: {what} is {words}; tensors of {', '.join(map(TensorProto.DataType.Name, _ITEM_BYTES))} are imported")
    if min(tensor.dims, default=0) < 0:
        raise InvalidInput(f"{shown}: {what} shape", list(tensor.dims)[:16], "dimensions must not be negative")
    wanted = math.prod(tensor.dims) * _ITEM_BYTES[kind]
    if tensor.data_location == TensorProto.EXTERNAL:
        if folder is None:
            raise Unsupported(f"{shown}: {what} has external data; only initializers of the main graph may")
        _check_external(tensor, what, wanted, folder, shown)
        return
    if tensor.HasField("raw_data"):
        found = len(tensor.raw_data)
    else:
        listed = (tensor.float_data, tensor.double_data, tensor.int32_data, tensor.int64_data, tensor.uint64_data)
        found = sum(map(len, listed)) * _ITEM_BYTES[kind]
    if found != wanted:
        raise InvalidInput(f"{shown}: {what} shape", list(tensor.dims)[:16], f"is {wanted} bytes of {words}, {found} are there")


def _check_external(tensor: Any, what: str, wanted: int, folder: Path, shown: str) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    field = f"{shown}: external data of {what}"
    parts = location.split("/")
    if (
        not location
        or location.startswith("/")
        or "\\" in location
        or "\0" in location
        or location[1:2] == ":"
        or {"", ".", ".."} & set(parts)
    ):
        raise InvalidInput(field, location[:_SHOWN], "must be a file beside the model, by its relative path")
    path = folder / location
    if path.is_symlink() or not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
        raise InvalidInput(field, location[:_SHOWN], "is not among the files; register the folder that holds the model and its data")
    try:
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", str(wanted)))
    except ValueError:
        raise InvalidInput(
            field, f"{entries.get('offset')}, {entries.get('length')}"[:_SHOWN], "offset and length must be numbers"
        ) from None
    if length != wanted:
        raise InvalidInput(f"{field}: length", length, f"must be {wanted} for shape {list(tensor.dims)[:16]}")
    size_bytes = path.stat().st_size
    if offset < 0 or offset + length > size_bytes:
        raise InvalidInput(f"{field}: bytes", f"{offset} to {offset + length}", f"{location[:_SHOWN]} has {size_bytes}")


def _graphs(model: Any) -> Iterator[Any]:
    yield model.graph
    for holder in (model.graph, *model.functions):
        for node in _nodes(holder.node):
            for attribute in node.attribute:
                yield from _subgraphs(attribute)


def _subgraphs(attribute: Any) -> list[Any]:
    return [*([attribute.g] if attribute.type == AttributeProto.GRAPH or attribute.HasField("g") else []), *attribute.graphs]


def _nodes(nodes: Any) -> Iterator[Any]:
    """These nodes and those of the graphs inside them. The message's own depth is bounded by its parser."""
    stack = list(nodes)
    while stack:
        node = stack.pop()
        yield node
        for attribute in node.attribute:
            for graph in _subgraphs(attribute):
                stack.extend(graph.node)


def _check_nodes(nodes: list[Any], opsets: dict[str, int], functions: Functions, shown: str) -> None:
    for node in nodes:
        _check_operator(node, opsets, functions, shown)
        what = f"node {node.name[:_SHOWN]!r} ({node.op_type[:_SHOWN]})"
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                raise Unsupported(f"{shown}: {what}: attribute {attribute.name!r} is sparse; save it dense")
            for tensor in [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]:
                check_tensor(tensor, f"{what}: attribute {attribute.name[:_SHOWN]!r}", None, shown)


def _opsets(holder: Any) -> dict[str, int]:
    """Domain -> version; the standard's own domain has two names, and "" here."""
    return {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in holder.opset_import}


def _check_operator(node: Any, opsets: dict[str, int], functions: Functions, shown: str) -> None:
    if _called(node) in functions:
        return
    domain, name = "" if node.domain == "ai.onnx" else node.domain, node.op_type
    what = f"{shown}: operator {f'{domain}.' if domain else ''}{name}"[:_SHOWN]
    if domain not in (*STANDARD, MICROSOFT):
        raise Unsupported(
            f"{what}: {domain[:_SHOWN]!r} comes with a library of its own; operators of ai.onnx, ai.onnx.ml and {MICROSOFT} are served"
        )
    version = opsets.get(domain, 0)
    if version < 1:
        raise InvalidInput(what, None, "the file does not say which version of its operators it uses")
    if domain == MICROSOFT:
        if name not in kernels_of(MICROSOFT):
            raise Unsupported(f"{what}: ONNX Runtime has none of this name for the CPU")
    elif not onnx.defs.has(name, domain=domain, max_inclusive_version=version):
        raise Unsupported(f"{what}: {domain or 'ai.onnx'} has none of this name in version {version}")
    elif name in _RANDOM:
        raise Unsupported(f"{what}: it draws random numbers, so that no two builds would answer alike")


@cache
def kernels_of(domain: str) -> frozenset[str]:
    """Operators of a domain for which this ONNX Runtime has a CPU kernel."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return frozenset(one.op_name for one in state.get_all_opkernel_def() if one.domain == domain and one.provider == "CPUExecutionProvider")


def _called(node: Any) -> tuple[str, str, str]:
    return node.domain, node.op_type, node.overload


def _check_expansion(model: Any, functions: Functions, shown: str) -> None:
    """Functions may not call themselves, and all of them inlined make a bounded number of nodes."""
    calls = {key: [_called(node) for node in _nodes(function.node)] for key, function in functions.items()}
    sizes: dict[tuple[str, str, str], int] = {}
    for key in functions:
        path = [key]  # from a function down to one whose callees are all counted
        while path:
            waiting = [callee for callee in calls[path[-1]] if callee in functions and callee not in sizes]
            if not waiting:
                done = path.pop()
                sizes[done] = sum(sizes.get(callee, 1) for callee in calls[done])
            elif waiting[0] in path:
                raise InvalidInput(f"{shown}: function", waiting[0][1][:_SHOWN], "calls itself")
            else:
                path.append(waiting[0])
    total = sum(sizes.get(_called(node), 1) for node in _nodes(model.graph.node))
    if total > MAX_NODES:
        raise InvalidInput(f"{shown}: nodes", total, f"at most {MAX_NODES}, functions inlined")


def _check_values(graph: Any, shown: str) -> None:
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if not inputs or not graph.output:
        raise Unsupported(f"{shown}: it has {len(inputs)} inputs and {len(graph.output)} outputs; at least one of each is needed")
    for kind, values in (("input", inputs), ("output", graph.output)):
        for value in values:
            what = f"{shown}: {kind} {value.name[:_SHOWN]!r}"
            if not value.name:
                raise InvalidInput(what, None, "must have a name")
            held = value.type.WhichOneof("value")
            if held not in ("tensor_type", None) or (held is None and kind == "input"):
                hint = "; scikit-learn's converter leaves it out with options={'zipmap': False}" if held == "sequence_type" else ""
                kind_of_value = f"a {held.removesuffix('_type')}" if held else "of no type"
                raise Unsupported(f"{what} is {kind_of_value}; inputs and outputs must be tensors{hint}")
            if kind == "input" and not value.type.tensor_type.HasField("shape"):
                raise Unsupported(f"{what} has no shape; say its dimensions, with names for those that vary")
