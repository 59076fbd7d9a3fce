"""The flat ATen program (docs/adr/0003-graph-formats.md): read, checked, bound to tensors, run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
import torch

from tessera.domain.errors import DataCorrupted, Unsupported
from tessera.runtime.backends.aten.operators import resolve

FORMAT = 1


class Port(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    slot: int


class StoredTensor(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    slot: int
    dtype: str
    shape: list[int]


class _Program(msgspec.Struct, forbid_unknown_fields=True):
    format: int
    dialect: str
    slots: int
    inputs: list[Port]
    tensors: list[StoredTensor]
    nodes: list[tuple[str, list[Any], dict[str, Any], int]]
    outputs: list[Port]


def canonical(program: dict[str, Any]) -> bytes:
    """The bytes of a program's JSON: equal programs are equal bytes."""
    return json.dumps(program, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


class Step(NamedTuple):
    """One node, ready to run. `references`: position in `arguments` -> slot; `nested`: arguments that hold slots further inside."""

    operator: Callable[..., Any]
    name: str
    arguments: list[Any]
    references: list[tuple[int, int]]
    nested: list[tuple[int, Any]]
    keywords: dict[str, Any]
    keyword_slots: list[tuple[str, Any]]
    result: int
    free: list[int]


class Plan(NamedTuple):
    """A program with its operators resolved. It holds no tensors: siblings share it."""

    slots: int
    inputs: list[Port]
    tensors: list[StoredTensor]
    steps: list[Step]
    outputs: list[Port]


class _Slot(NamedTuple):
    slot: int


_DECODER = msgspec.json.Decoder(_Program)


@lru_cache(maxsize=32)
def read_plan(graph: bytes) -> Plan:
    """Reads and checks a program.

    Raises:
        DataCorrupted: it is none, or its slots are not written once and before they are read; names the place.
        Unsupported: an operator or value that a program may not use; names it.
    """
    try:
        program = _DECODER.decode(graph)
    except msgspec.MsgspecError as error:
        raise DataCorrupted(f"graph: {error}") from error
    if program.dialect != "aten" or program.format != FORMAT:
        raise Unsupported(f"graph of dialect {program.dialect!r} and format {program.format}: this reads aten, format {FORMAT}")
    return _Reader(program).plan()


class _Reader:
    def __init__(self, program: _Program) -> None:
        self._program = program
        self._written = bytearray(max(0, min(program.slots, 1 << 24)))
        self._last_read: dict[int, int] = {}

    def plan(self) -> Plan:
        program = self._program
        for port in program.inputs:
            self._write(port.slot, f"input {port.name}")
        for tensor in program.tensors:
            self._write(tensor.slot, f"tensor {tensor.name}")
        kept = {port.slot for port in program.outputs} | {tensor.slot for tensor in program.tensors}
        steps = [self._step(index, *node) for index, node in enumerate(program.nodes)]
        for port in program.outputs:
            self._read(port.slot, -1, f"output {port.name}")
        produced = {step.result: index for index, step in enumerate(steps)}
        for slot in (*produced, *(port.slot for port in program.inputs)):
            if slot not in kept:
                last = self._last_read.get(slot, produced.get(slot, -1))
                if last >= 0:
                    steps[last].free.append(slot)
        return Plan(program.slots, program.inputs, program.tensors, steps, program.outputs)

    def _write(self, slot: int, what: str) -> None:
        if not 0 <= slot < len(self._written) or self._written[slot]:
            raise DataCorrupted(f"graph: {what} writes slot {slot}, which is taken or not within {self._program.slots}")
        self._written[slot] = 1

    def _read(self, slot: object, index: int, what: str) -> None:
        if not isinstance(slot, int) or not 0 <= slot < len(self._written) or not self._written[slot]:
            raise DataCorrupted(f"graph: {what} reads slot {slot}, which nothing wrote before")
        if index >= 0:
            self._last_read[slot] = index

    def _step(self, index: int, name: str, arguments: list[Any], keywords: dict[str, Any], result: int) -> Step:
        found = resolve(name)
        what = f"node {index} ({name})"
        references: list[tuple[int, int]] = []
        nested: list[tuple[int, Any]] = []
        values: list[Any] = []
        for position, argument in enumerate(arguments):
            value, holds = self._value(argument, index, what)
            values.append(None if holds else value)
            if isinstance(value, _Slot):
                references.append((position, value.slot))
            elif holds:
                nested.append((position, value))
        fixed: dict[str, Any] = {}
        keyword_slots: list[tuple[str, Any]] = []
        for keyword, argument in keywords.items():
            value, holds = self._value(argument, index, what)
            if holds:
                keyword_slots.append((keyword, value))
            else:
                fixed[keyword] = value
        self._write(result, what)
        return Step(found, name, values, references, nested, fixed, keyword_slots, result, [])

    def _value(self, value: Any, index: int, what: str) -> tuple[Any, bool]:
        """The value, and whether slots are in it."""
        if isinstance(value, list):
            items = [self._value(item, index, what) for item in value]
            return [item for item, _ in items], any(holds for _, holds in items)
        if not isinstance(value, dict):
            return value, False
        if len(value) != 1:
            raise DataCorrupted(f"graph: {what} has a value with keys {sorted(value)}: must be one key")
        ((kind, content),) = value.items()
        if kind == "slot":
            self._read(content, index, what)
            return _Slot(content), True
        return _constant(kind, content, what), False


def _constant(kind: str, content: object, what: str) -> Any:
    if kind == "float" and content in ("inf", "-inf", "nan"):
        return float(str(content))
    if kind == "device" and content == "cpu":
        return torch.device("cpu")
    if kind in ("dtype", "layout", "memory_format"):
        found = getattr(torch, str(content), None)
        if isinstance(found, {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}[kind]):
            return found
    raise Unsupported(f"graph: {what} has the value {kind} {content!r}, which a program may not use")


def execute(plan: Plan, bound: Sequence[Any], inputs: Mapping[str, torch.Tensor]) -> list[Any]:
    """Runs a plan. `bound`: value by slot, with tensors in their places. Returns the outputs in order."""
    slots = list(bound)
    for port in plan.inputs:
        slots[port.slot] = inputs[port.name]
    for operator, _, arguments, references, nested, keywords, keyword_slots, result, free in plan.steps:
        if references or nested:
            arguments = arguments[:]
            for position, slot in references:
                arguments[position] = slots[slot]
            for position, template in nested:
                arguments[position] = _fill(template, slots)
        if keyword_slots:
            keywords = {**keywords, **{keyword: _fill(template, slots) for keyword, template in keyword_slots}}
        slots[result] = operator(*arguments, **keywords)
        for slot in free:
            slots[slot] = None
    return [slots[port.slot] for port in plan.outputs]


def _fill(template: Any, slots: list[Any]) -> Any:
    if isinstance(template, _Slot):
        return slots[template.slot]
    if isinstance(template, list):
        return [_fill(item, slots) for item in template]
    return template
