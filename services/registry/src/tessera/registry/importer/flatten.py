"""An exported program as a flat program (docs/adr/0003-graph-formats.md, dialect `aten`).

Input: a `torch.export.ExportedProgram`. Output: canonical JSON and the tensors it names. What the flat program cannot say raises
`Unsupported`, which names the operator and what would work instead.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument
from torch.fx import GraphModule, Node

from tessera.domain.errors import Unsupported
from tessera.registry.importer.dtypes import datatype_of
from tessera.registry.importer.mutation import AliasGroups, functional_twin, rewritable
from tessera.runtime.backends.aten.program import canonical

_PYTHON = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "getitem")
_OPERATORS: dict[Any, str] = {
    **{
        getattr(operator, name): f"operator.{name}"
        for name in _PYTHON
    },
    **{getattr(math, name): f"math.{name}" for name in ("ceil", "floor", "trunc", "sqrt")},
    torch.sym_max: "sym.max", torch.sym_min: "sym.min", torch.sym_int: "sym.int", torch.sym_float: "sym.float", torch.sym_not: "sym.not",
}  # fmt: skip

_LEFT_OUT = frozenset(
    {
        "_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range", "sym_constrain_range_for_size",
    }
)  # fmt: skip
_SAME_VALUE = frozenset({"detach", "detach_", "alias", "lift_fresh_copy", "lift_fresh"})
_DROPOUTS = frozenset({"dropout", "dropout_", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout"})
_EFFECTS = frozenset({"from_file", "_print", "record_stream", "set_", "resize_"})
_FLATTENED = frozenset({"wrap_with_set_grad_enabled", "wrap_with_autocast"})


@dataclass(frozen=True, slots=True)
class Flat:
    """`graph`: canonical JSON. `tensors`: (slot name, tensor) in the graph's order. `inputs`/`outputs`: fake values in order."""

    graph: bytes
    tensors: tuple[tuple[str, torch.Tensor], ...]
    inputs: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]
    operators: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Value:
    """A value of the flat program before slots are numbered: `source` is an input, tensor or node record."""

    index: int


class _Writes(Exception):
    """An operator writes to something that must not change."""

    def __init__(self, node: Node) -> None:
        super().__init__(str(node.target))


class _Flattener:
    def __init__(self, program: ExportedProgram, rename: Callable[[str], str]) -> None:
        self._program = program
        self._rename = rename
        self._values = 0
        self._inputs: list[tuple[_Value, torch.Tensor]] = []
        self._tensors: list[tuple[_Value, str, torch.Tensor]] = []
        self._nodes: list[tuple[str, list[Any], dict[str, Any], _Value]] = []
        self._attributes: dict[str, _Value] = {}

    def _new(self) -> _Value:
        self._values += 1
        return _Value(self._values - 1)

    def _tensor(self, name: str, tensor: torch.Tensor) -> _Value:
        value = self._new()
        self._tensors.append((value, self._rename(name), tensor))
        return value

    def run(self) -> list[tuple[Any, torch.Tensor]]:
        """Walks the program; returns the outputs as (value, fake value)."""
        signature = self._program.graph_signature
        state = dict(self._program.state_dict) | dict(self._program.constants)
        environment: dict[Node, Any] = {}
        placeholders = [node for node in self._program.graph.nodes if node.op == "placeholder"]
        for node, spec in zip(placeholders, signature.input_specs, strict=True):
            if spec.kind is InputKind.USER_INPUT and isinstance(spec.arg, TensorArgument):
                environment[node] = value = self._new()
                self._inputs.append((value, node.meta["val"]))
            elif spec.kind is InputKind.USER_INPUT and isinstance(spec.arg, ConstantArgument):
                environment[node] = spec.arg.value
            elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR) and spec.target is not None:
                environment[node] = self._tensor(spec.target, state[spec.target])
            else:
                raise Unsupported(f"the exported program takes {spec.arg} ({spec.kind.name.lower()}): inputs must be tensors")
        results = self._walk(self._program.graph_module, environment)
        outputs: list[tuple[Any, torch.Tensor]] = []
        last = next(node for node in self._program.graph.nodes if node.op == "output")
        for index, (spec, value) in enumerate(zip(signature.output_specs, results, strict=True)):
            if spec.kind is not OutputKind.USER_OUTPUT:
                raise Unsupported(
                    f"the model changes {spec.target!r} when it runs ({spec.kind.name.lower()}): call eval() before exporting"
                )
            if value is None:
                continue
            if not isinstance(value, _Value) or not isinstance(spec.arg, TensorArgument):
                raise Unsupported(f"output {index} is {spec.arg}: outputs must be tensors")
            outputs.append((value, last.args[0][index].meta["val"]))
        return outputs

    def _walk(self, module: GraphModule, environment: dict[Node, Any]) -> Sequence[Any]:
        nodes = list(module.graph.nodes)
        order = {node: place for place, node in enumerate(nodes)}
        groups = AliasGroups(nodes)
        for node in nodes:
            if node.op == "placeholder":
                continue
            if node.op == "output":
                results = node.args[0]
                return [
                    environment[r] if isinstance(r, Node) else r for r in (results if isinstance(results, (tuple, list)) else (results,))
                ]
            if node.op == "get_attr":
                environment[node] = self._attribute(module, node)
            elif node.op == "call_function":
                environment[node] = self._call(node, environment, groups, order)
            else:
                raise Unsupported(f"the exported program has a {node.op} of {node.target}: export it with torch.export")
        raise Unsupported("the exported program has no output")

    def _attribute(self, module: GraphModule, node: Node) -> Any:
        found: Any = module
        for part in str(node.target).split("."):
            found = getattr(found, part)
        if isinstance(found, torch.Tensor):
            key = f"{id(module)}.{node.target}"
            if key not in self._attributes:
                self._attributes[key] = self._tensor(str(node.target), found)
            return self._attributes[key]
        return found

    def _call(self, node: Node, environment: dict[Node, Any], groups: AliasGroups, order: dict[Node, int]) -> Any:
        target = node.target
        arguments = [self._resolve(argument, environment) for argument in node.args]
        keywords = {name: self._resolve(argument, environment) for name, argument in node.kwargs.items()}
        if isinstance(target, torch._ops.HigherOrderOperator):
            return self._inline(target.name(), arguments, keywords)
        if target in _OPERATORS:
            if target is operator.getitem and isinstance(arguments[0], (list, tuple)):
                return arguments[0][arguments[1]]
            return self._emit(_OPERATORS[target], arguments, keywords)
        if not isinstance(target, torch._ops.OpOverload):
            raise Unsupported(f"operator {target}: the flat program knows aten operators and arithmetic on sizes")
        if target.namespace != "aten":
            raise Unsupported(
                f"operator {target.name()}: the flat program knows no operators of namespace {target.namespace!r}; "
                f"write it with operators of torch itself (aten)"
            )
        name = target._schema.name.removeprefix("aten::")
        if name in _LEFT_OUT:
            return None
        if name in _SAME_VALUE:
            return arguments[0]
        if name in _DROPOUTS:
            training = arguments[2] if len(arguments) > 2 else keywords.get("train", True)
            if training:
                raise Unsupported(f"operator aten.{name} in training mode: call eval() before exporting")
            return arguments[0] if name != "native_dropout" else (arguments[0], None)
        if name in _EFFECTS:
            raise Unsupported(f"operator aten.{name}: it has effects outside its results; compute with tensors only")
        if torch.Tag.nondeterministic_seeded in target.tags and name != "scaled_dot_product_attention":
            raise Unsupported(f"operator aten.{name}: it draws random numbers; make them an input of the model")
        if target._schema.is_mutable:
            if not rewritable(node, groups, order):
                raise _Writes(node)
            twin = functional_twin(target)
            assert twin is not None
            target = twin
        return self._emit(f"aten.{target._schema.name.removeprefix('aten::')}.{target._overloadname or 'default'}", arguments, keywords)

    def _inline(self, name: str, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        if name not in _FLATTENED or keywords:
            raise Unsupported(f"operator {name}: the flat program has no control flow; compute both ways and select with torch.where")
        place = next(index for index, argument in enumerate(arguments) if isinstance(argument, GraphModule))
        if name == "wrap_with_autocast" and arguments[2] is True:
            raise Unsupported("an enabled autocast region: export the model without autocast, in float32")
        module: GraphModule = arguments[place]
        inner = [node for node in module.graph.nodes if node.op == "placeholder"]
        results = self._walk(module, dict(zip(inner, arguments[place + 1 :], strict=True)))
        output = next(node for node in module.graph.nodes if node.op == "output")
        return list(results) if isinstance(output.args[0], (tuple, list)) else results[0]

    def _emit(self, name: str, arguments: list[Any], keywords: dict[str, Any]) -> _Value:
        value = self._new()
        self._nodes.append((name, arguments, keywords, value))
        return value

    def _resolve(self, argument: Any, environment: dict[Node, Any]) -> Any:
        if isinstance(argument, Node):
            return environment[argument]
        if isinstance(argument, (list, tuple)):
            return [self._resolve(item, environment) for item in argument]
        return argument

    def finish(self, outputs: list[tuple[Any, torch.Tensor]], input_names: Sequence[str], output_names: Sequence[str]) -> Flat:
        """Leaves out what nothing reads, numbers the slots, writes the JSON."""
        needed: set[int] = {value.index for value, _ in outputs}
        kept = []
        for node in reversed(self._nodes):
            if node[3].index in needed:
                kept.append(node)
                _collect(node[1], needed)
                _collect(list(node[2].values()), needed)
        kept.reverse()
        tensors = [entry for entry in self._tensors if entry[0].index in needed]
        slots: dict[int, int] = {}
        for value in [v for v, _ in self._inputs] + [v for v, _, _ in tensors] + [node[3] for node in kept]:
            slots[value.index] = len(slots)
        program = {
            "format": 1,
            "dialect": "aten",
            "slots": len(slots),
            "inputs": [{"name": name, "slot": slots[v.index]} for name, (v, _) in zip(input_names, self._inputs, strict=True)],
            "tensors": [
                {"name": name, "slot": slots[v.index], "dtype": datatype_of(t.dtype, name), "shape": list(t.shape)}
                for v, name, t in tensors
            ],
            "nodes": [
                [name, _write(args, slots), {k: _write(a, slots) for k, a in kwargs.items()}, slots[v.index]]
                for name, args, kwargs, v in kept
            ],
            "outputs": [{"name": name, "slot": slots[v.index]} for name, (v, _) in zip(output_names, outputs, strict=True)],
        }
        return Flat(
            graph=canonical(program),
            tensors=tuple((name, tensor) for _, name, tensor in tensors),
            inputs=tuple(fake for _, fake in self._inputs),
            outputs=tuple(fake for _, fake in outputs),
            operators=tuple(sorted({node[0] for node in kept})),
        )


def _collect(argument: Any, into: set[int]) -> None:
    if isinstance(argument, _Value):
        into.add(argument.index)
    elif isinstance(argument, (list, tuple)):
        for item in argument:
            _collect(item, into)


def _write(argument: Any, slots: dict[int, int]) -> Any:
    """A value in the flat program's JSON."""
    if isinstance(argument, _Value):
        return {"slot": slots[argument.index]}
    if isinstance(argument, (list, tuple)):
        return [_write(item, slots) for item in argument]
    if argument is None or isinstance(argument, (bool, int, str)):
        return argument
    if isinstance(argument, float):
        return argument if math.isfinite(argument) else {"float": "nan" if math.isnan(argument) else "inf" if argument > 0 else "-inf"}
    if isinstance(argument, torch.dtype):
        return {"dtype": str(argument).removeprefix("torch.")}
    if isinstance(argument, torch.device):
        if argument.type != "cpu":
            raise Unsupported(f"the exported program names device {argument}: export the model on the CPU")
        return {"device": "cpu"}
    if isinstance(argument, torch.layout):
        return {"layout": str(argument).removeprefix("torch.")}
    if isinstance(argument, torch.memory_format):
        return {"memory_format": str(argument).removeprefix("torch.")}
    raise Unsupported(f"an operator's argument of type {type(argument).__name__}: the flat program has numbers, texts, lists and tensors")


def flatten(
    program: ExportedProgram, input_names: Sequence[str], output_names: Callable[[int], Sequence[str]], rename: Callable[[str], str]
) -> Flat:
    """The flat program of `program`.

    `output_names` is asked once the number of tensor outputs is known; `rename` turns a parameter's full name into its slot.

    Raises:
        Unsupported: names the operator that the flat program lacks, and what would work.
    """
    flattener = _Flattener(program, rename)
    try:
        outputs = flattener.run()
    except _Writes as first:
        flattener = _Flattener(program.run_decompositions({}), rename)
        try:
            outputs = flattener.run()
        except _Writes:
            raise Unsupported(f"operator {first}: it writes to its argument; use the operator without the trailing underscore") from None
    return flattener.finish(outputs, input_names, output_names(len(outputs)))
