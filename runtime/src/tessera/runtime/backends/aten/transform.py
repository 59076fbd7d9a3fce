"""Meta-operators on a live program (Optimus, EuroSys'24; docs/adr/0012): steps that stay are kept, with their slots, the rest is made.

The new plan is whole before anything of the old one is let go of: who is interrupted has the old one still, unchanged. Steps are shared by
both; what is read after a chain of transformations is the target's program but for the numbers of its slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, count
from typing import Any

import msgspec

from tessera.domain.errors import DataCorrupted, FailedPrecondition, InvalidInput, Unsupported
from tessera.domain.ids import Digest
from tessera.domain.transformation import DELTA_FORMAT
from tessera.runtime.backends.aten.program import Plan, Port, Step, StoredTensor, frees_of, make_step


class _Tensor(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    dtype: str
    shape: list[int]


class Delta(msgspec.Struct, forbid_unknown_fields=True):
    """`kept`: [source, target, count], runs of operations that stay. `nodes`: [target, operator, arguments, keywords], made or written
    anew at their place. `weights`: [target, tensors], of the others that stay."""

    format: int
    source: Digest
    target: Digest
    inputs: list[str]
    tensors: list[_Tensor]
    outputs: list[tuple[str, dict[str, int]]]
    kept: list[tuple[int, int, int]]
    nodes: list[tuple[int, str, list[Any], dict[str, Any]]]
    weights: list[tuple[int, list[int]]]


_DECODER = msgspec.json.Decoder(Delta)


def read_delta(data: bytes) -> Delta:
    """Raises: InvalidInput: it is none. Unsupported: another format."""
    try:
        delta = _DECODER.decode(data)
    except msgspec.MsgspecError as error:
        raise InvalidInput("delta", f"{len(data)} bytes", f"must be one: {error}") from error
    if delta.format != DELTA_FORMAT:
        raise Unsupported(f"delta of format {delta.format}: this reads format {DELTA_FORMAT}")
    return delta


def transform(live: Plan, delta: Delta) -> Plan:
    """The target's plan, from one of the source.

    Raises:
        FailedPrecondition: the delta does not fit the plan, or does not make a whole program; names the place.
        Unsupported: an operator or value that a program may not use.
    """
    try:
        return _Transforming(live, delta).plan()
    except DataCorrupted as error:
        # What is stored is sound: whoever hears otherwise lets the runtime take nothing more, and fetches every byte again.
        raise FailedPrecondition(error.message) from error


class _Transforming:
    def __init__(self, live: Plan, delta: Delta) -> None:
        self._live, self._delta = live, delta
        self._written = {node[0]: node for node in delta.nodes}
        self._steps: dict[int, Step] = {}
        self._inputs: list[Port] = []
        self._tensors: dict[int, int] = {}
        self._free: Iterator[int] = iter(())

    def plan(self) -> Plan:
        live, delta = self._live, self._delta
        self._keep()
        self._seat_weights()
        named = {port.name: port.slot for port in live.inputs}
        taken = {*self._tensors.values(), *named.values(), *(step.result for step in self._steps.values())}
        used = [live.slots]
        self._free = chain((slot for slot in range(live.slots) if slot not in taken), _noting(count(live.slots), used))
        self._inputs = [Port(name, named[name] if name in named else next(self._free)) for name in delta.inputs]
        for number in range(len(delta.tensors)):
            if number not in self._tensors:
                self._tensors[number] = next(self._free)
        stored = set(self._tensors.values())
        for place in sorted(self._written):
            self._write(place, stored)
        total = len(self._steps)
        if any(place not in self._steps for place in range(total)):
            raise DataCorrupted(
                f"delta: operation {next(place for place in range(total) if place not in self._steps)} is neither kept nor made"
            )
        steps = [self._steps[place] for place in range(total)]
        outputs = [Port(name, self._one(origin, total, f"output {name}")) for name, origin in delta.outputs]
        tensors = [StoredTensor(each.name, self._tensors[number], each.dtype, each.shape) for number, each in enumerate(delta.tensors)]
        missing = _read_before_written(steps, self._inputs, tensors)
        if missing:
            raise DataCorrupted(f"delta: {missing}")
        return Plan(used[0], self._inputs, tensors, steps, outputs, frees_of(steps, outputs))

    def _keep(self) -> None:
        steps = self._live.steps
        staying: set[int] = set()
        for source, target, length in self._delta.kept:
            if min(source, target, length) < 0 or source + length > len(steps):
                raise DataCorrupted(f"delta: keeps operations {source} to {source + length - 1} of {len(steps)}")
            for offset in range(length):
                if target + offset in self._steps or source + offset in staying:
                    raise DataCorrupted(f"delta: operation {source + offset} as {target + offset}: one of them is taken")
                self._steps[target + offset] = steps[source + offset]
                staying.add(source + offset)

    def _seat_weights(self) -> None:
        """A tensor of an operation that stays takes the slot of the one that was there."""
        owners: dict[int, int] = {}
        for place, tensors in self._delta.weights:
            step = self._steps.get(place)
            if step is None or len(step.weights) != len(tensors):
                raise DataCorrupted(f"delta: operation {place} gets {len(tensors)} tensors and has {len(step.weights) if step else 'gone'}")
            for slot, tensor in zip(step.weights, tensors, strict=True):
                if owners.setdefault(slot, tensor) != tensor or self._tensors.setdefault(tensor, slot) != slot:
                    raise DataCorrupted(f"delta: tensor {tensor} and another one at one place of operation {place}")
        listed = {place for place, _ in self._delta.weights} | self._written.keys()
        for place, step in self._steps.items():
            if step.weights and place not in listed:
                raise DataCorrupted(f"delta: operation {place} stays and gets no tensors")

    def _write(self, place: int, stored: set[int]) -> None:
        _, name, arguments, keywords = self._written[place]
        what = f"operation {place} ({name})"
        before = self._steps.get(place)
        result = before.result if before is not None else next(self._free)

        def slot_of(kind: str, content: object, what: str) -> int | None:
            return self._slot(kind, content, place, what)

        self._steps[place] = make_step(name, arguments, keywords, result, what, slot_of, stored)

    def _one(self, origin: dict[str, int], before: int, what: str) -> int:
        if len(origin) == 1:
            ((kind, content),) = origin.items()
            slot = self._slot(kind, content, before, what)
            if slot is not None:
                return slot
        raise DataCorrupted(f"delta: {what} is {origin}: must be one input, tensor or operation")

    def _slot(self, kind: str, content: object, before: int, what: str) -> int | None:
        """The slot of a value that is there before operation `before`."""
        if kind not in ("input", "tensor", "operation"):
            return None
        if isinstance(content, int) and content >= 0:
            if kind == "input" and content < len(self._inputs):
                return self._inputs[content].slot
            if kind == "tensor" and content in self._tensors:
                return self._tensors[content]
            if kind == "operation" and content < before and content in self._steps:
                return self._steps[content].result
        raise DataCorrupted(f"delta: {what} reads {kind} {content!r}, which is not there before it")


def _noting(numbers: Iterator[int], used: list[int]) -> Iterator[int]:
    """Beyond the slots that there are; says how many there are then."""
    for number in numbers:
        used[0] = number + 1
        yield number


def _read_before_written(steps: Sequence[Step], inputs: Sequence[Port], tensors: Sequence[StoredTensor]) -> str:
    """The first step that reads what nothing wrote before it, "" where there is none."""
    written = {port.slot for port in inputs} | {tensor.slot for tensor in tensors}
    for place, step in enumerate(steps):
        missing = [slot for slot in step.reads if slot not in written]
        if missing:
            return f"operation {place} ({step.name}) stays and reads what nothing makes before it"
        written.add(step.result)
    return ""
