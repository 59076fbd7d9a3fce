"""The flat ATen program (docs/adr/0003-graph-formats.md): read, checked, bound to tensors, run."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
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
    """One node, ready to run. Never changed: plans share steps.

    `references`: position in `arguments` -> slot; `nested`: arguments that hold slots further inside. `reads`: all slots in the order in
    which the node names them; `weights`: those of them that are stored tensors.
    """

    operator: Callable[..., Any]
    name: str
    arguments: list[Any]
    references: list[tuple[int, int]]
    nested: list[tuple[int, Any]]
    keywords: dict[str, Any]
    keyword_slots: list[tuple[str, Any]]
    result: int
    reads: tuple[int, ...]
    weights: tuple[int, ...]


class Plan(NamedTuple):
    """A program with its operators resolved. It holds no tensors: siblings share it. `frees`: of each step, the slots that nobody reads
    after it."""

    slots: int
    inputs: list[Port]
    tensors: list[StoredTensor]
    steps: list[Step]
    outputs: list[Port]
    frees: list[list[int]]


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

    def plan(self) -> Plan:
        program = self._program
        for port in program.inputs:
            self._write(port.slot, f"input {port.name}")
        for tensor in program.tensors:
            self._write(tensor.slot, f"tensor {tensor.name}")
        stored = {tensor.slot for tensor in program.tensors}
        steps = []
        for index, (name, arguments, keywords, result) in enumerate(program.nodes):
            what = f"node {index} ({name})"
            steps.append(make_step(name, arguments, keywords, result, what, self._slot, stored))
            self._write(result, what)
        for port in program.outputs:
            self._slot("slot", port.slot, f"output {port.name}")
        return Plan(program.slots, program.inputs, program.tensors, steps, program.outputs, frees_of(steps, program.outputs))

    def _write(self, slot: int, what: str) -> None:
        if not 0 <= slot < len(self._written) or self._written[slot]:
            raise DataCorrupted(f"graph: {what} writes slot {slot}, which is taken or not within {self._program.slots}")
        self._written[slot] = 1

    def _slot(self, kind: str, slot: object, what: str) -> int | None:
        if kind != "slot":
            return None
        if not isinstance(slot, int) or not 0 <= slot < len(self._written) or not self._written[slot]:
            raise DataCorrupted(f"graph: {what} reads slot {slot}, which nothing wrote before")
        return slot


def frees_of(steps: Sequence[Step], outputs: Sequence[Port]) -> list[list[int]]:
    """Values are let go of after the last step that reads them; what nobody reads after the step that makes it. Stored tensors and outputs
    stay."""
    last: dict[int, int] = {}
    for index, step in enumerate(steps):
        last[step.result] = index
        for slot in step.reads:
            last[slot] = index
    for step in steps:
        for slot in step.weights:
            last.pop(slot, None)
    for port in outputs:
        last.pop(port.slot, None)
    frees: list[list[int]] = [[] for _ in steps]
    for slot, index in last.items():
        frees[index].append(slot)
    return frees


SlotOf = Callable[[str, object, str], int | None]
"""The slot that a value of this kind and content stands for, None where it stands for none. Raises DataCorrupted; gets words for it."""


def make_step(
    name: str, arguments: Sequence[Any], keywords: Mapping[str, Any], result: int, what: str, slot_of: SlotOf, stored: Collection[int]
) -> Step:
    """Raises: DataCorrupted, Unsupported, with `what` it is."""
    reads: list[int] = []

    def read(value: Any) -> tuple[Any, bool]:
        """The value, and whether slots are in it."""
        if isinstance(value, list):
            items = [read(item) for item in value]
            return [item for item, _ in items], any(holds for _, holds in items)
        if not isinstance(value, dict):
            return value, False
        if len(value) != 1:
            raise DataCorrupted(f"graph: {what} has a value with keys {sorted(value)}: must be one key")
        ((kind, content),) = value.items()
        slot = slot_of(kind, content, what)
        if slot is None:
            return _constant(kind, content, what), False
        reads.append(slot)
        return _Slot(slot), True

    found = resolve(name)
    references: list[tuple[int, int]] = []
    nested: list[tuple[int, Any]] = []
    values: list[Any] = []
    for position, argument in enumerate(arguments):
        value, holds = read(argument)
        values.append(None if holds else value)
        if isinstance(value, _Slot):
            references.append((position, value.slot))
        elif holds:
            nested.append((position, value))
    fixed: dict[str, Any] = {}
    keyword_slots: list[tuple[str, Any]] = []
    for keyword, argument in sorted(keywords.items()):
        value, holds = read(argument)
        if holds:
            keyword_slots.append((keyword, value))
        else:
            fixed[keyword] = value
    weights = tuple([slot for slot in reads if slot in stored])
    return Step(found, name, values, references, nested, fixed, keyword_slots, result, tuple(reads), weights)


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
    for (operator, _, arguments, references, nested, keywords, keyword_slots, result, _, _), free in zip(
        plan.steps, plan.frees, strict=True
    ):
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
