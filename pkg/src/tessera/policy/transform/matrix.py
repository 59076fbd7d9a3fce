"""What it costs to make an operation of one program into one of another: the matrix on which all planners work.

Operations of different kinds never become each other. With the same form only weights are replaced, and of those only what the source has
not: a tensor that is mapped already costs nothing. With another form it is reshaped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from math import inf, prod

import numpy as np
import numpy.typing as npt

from tessera.domain.transformation import MetaOperator
from tessera.policy.transform.costs import MIB, MetaCosts
from tessera.policy.transform.structure import Form, Program

Costs = npt.NDArray[np.float64]


class CostMatrix:
    """Milliseconds. Rows are the source's operations, columns the target's."""

    def __init__(self, source: Program, target: Program, costs: MetaCosts) -> None:
        self.source, self.target = source, target
        self._costs = costs
        self._sizes = [tensor.size_bytes for tensor in target.structure.tensors]
        self._known = bool(source.digests and target.digests)

    def reduce_ms(self, place: int) -> float:
        return self._costs.line(MetaOperator.REDUCE, self.source.structure.operations[place].kind).ms()

    def add_ms(self, place: int) -> float:
        operation = self.target.structure.operations[place]
        return self._costs.line(MetaOperator.ADD, operation.kind).ms(self.new_bytes(None, place))

    def pair_ms(self, source: int, target: int) -> float:
        """inf where their kinds differ."""
        here, there = self.source.structure.forms[source], self.target.structure.forms[target]
        if here[0] != there[0]:
            return inf
        new_bytes = self.new_bytes(source, target)
        if here == there:
            return self._costs.line(MetaOperator.REPLACE, here[0]).ms(new_bytes) if new_bytes else 0.0
        return self._costs.line(MetaOperator.RESHAPE, here[0]).ms(new_bytes, self.changed_bytes(source, target))

    def changed_bytes(self, source: int, target: int) -> int:
        """By how much the shapes of their weights differ."""
        return int(_changed_bytes([self.source.structure.forms[source]], [self.target.structure.forms[target]])[0, 0])

    def new_bytes(self, source: int | None, target: int) -> int:
        """Of the target operation's weights, those that the source operation (None: nobody) has not at the same place."""
        wanted = self.target.structure.operations[target].weights
        had: tuple[int, ...] = self.source.structure.operations[source].weights if source is not None and self._known else ()
        return sum(
            self._sizes[at]
            for place, at in enumerate(wanted)
            if place >= len(had) or self.source.digests[had[place]] != self.target.digests[at]
        )

    def total_ms(self, kept: tuple[tuple[int, int], ...]) -> float:
        """Of a plan that keeps these pairs, each place at most once."""
        rows, columns = {source for source, _ in kept}, {target for _, target in kept}
        pairs = sum(self.pair_ms(source, target) for source, target in kept)
        gone = sum(self.reduce_ms(at) for at in range(len(self.source.structure.operations)) if at not in rows)
        return pairs + gone + sum(self.add_ms(at) for at in range(len(self.target.structure.operations)) if at not in columns)

    def blocks(self) -> Iterator[tuple[list[int], list[int], Costs]]:
        """Kind by kind: rows, columns, and what each pair saves against taking the one away and adding the other. Whatever lies outside of
        the blocks is inf."""
        rows, columns = _by_kind(self.source), _by_kind(self.target)
        for kind in rows.keys() & columns.keys():
            saved = (
                np.array([self.reduce_ms(at) for at in rows[kind]])[:, None]
                + np.array([self.add_ms(at) for at in columns[kind]])[None, :]
                - self._block(kind, rows[kind], columns[kind])
            )
            yield rows[kind], columns[kind], saved

    def _block(self, kind: str, rows: list[int], columns: list[int]) -> Costs:
        """`pair_ms` of each row with each column. Few forms make many operations, so they are compared form by form."""
        here, row_forms = _numbered([self.source.structure.forms[at] for at in rows])
        there, column_forms = _numbered([self.target.structure.forms[at] for at in columns])
        equal = np.array([[one == other for other in column_forms] for one in row_forms])[np.ix_(here, there)]
        changed = _changed_bytes(row_forms, column_forms)[np.ix_(here, there)]
        new = np.tile(np.array([float(self.new_bytes(None, at)) for at in columns]), (len(rows), 1))
        if self._known:
            self._take_off_what_is_there(rows, columns, new)
        replace, reshape = self._costs.line(MetaOperator.REPLACE, kind), self._costs.line(MetaOperator.RESHAPE, kind)
        replaced = np.where(new > 0, replace.fixed_ms + replace.per_mib_ms * new / MIB, 0.0)
        reshaped = reshape.fixed_ms + (reshape.per_mib_ms * new + reshape.per_changed_mib_ms * changed) / MIB
        return np.where(equal, replaced, reshaped)

    def _take_off_what_is_there(self, rows: list[int], columns: list[int], new: Costs) -> None:
        """One digest at one place of the weights: seldom more than one row has it."""
        having: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
        for row, at in enumerate(rows):
            for place, weight in enumerate(self.source.structure.operations[at].weights):
                having[place, self.source.digests[weight]].append(row)
        for column, at in enumerate(columns):
            for place, weight in enumerate(self.target.structure.operations[at].weights):
                for row in having.get((place, self.target.digests[weight]), ()):
                    new[row, column] -= self._sizes[weight]


def _by_kind(program: Program) -> dict[str, list[int]]:
    found: defaultdict[str, list[int]] = defaultdict(list)
    for at, operation in enumerate(program.structure.operations):
        found[operation.kind].append(at)
    return found


def _numbered(forms: list[Form]) -> tuple[npt.NDArray[np.intp], list[Form]]:
    numbers: dict[Form, int] = {}
    found = np.array([numbers.setdefault(form, len(numbers)) for form in forms], dtype=np.intp)
    return found, list(numbers)


def _changed_bytes(here: list[Form], there: list[Form]) -> npt.NDArray[np.int64]:
    """By how much the shapes of their weights differ, each with each, in elements times 4: a size, whatever their types are."""
    widest = max((len(form[2]) for form in (*here, *there)), default=0)
    one, other = _elements(here, widest), _elements(there, widest)
    return 4 * sum((np.abs(one[:, None, at] - other[None, :, at]) for at in range(widest)), np.zeros((len(here), len(there)), np.int64))


def _elements(forms: list[Form], widest: int) -> npt.NDArray[np.int64]:
    found = np.zeros((len(forms), widest), np.int64)
    for row, form in enumerate(forms):
        found[row, : len(form[2])] = [prod(shape) for _, shape in form[2]]
    return found
