"""What group plans cost among many structures at once, without making the plans.

Few forms make all operations, so that each two forms are compared once (on the same cost matrix), and a plan is a sum over places: within a
kind the first with the first, as the group planner has it. Weights all count as new: this is about graphs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from tessera.policy.transform.costs import MetaCosts
from tessera.policy.transform.matrix import CostMatrix, Costs
from tessera.policy.transform.structure import Form, Operation, Program, Structure, Tensor


def group_costs(sources: Sequence[Structure], targets: Sequence[Structure], costs: MetaCosts) -> Costs:
    """Milliseconds, a row for each source: `TransformationPlan.cost_ms` of the group plans. Memory is in the square of the distinct forms
    of a kind."""
    forms = list(dict.fromkeys(chain.from_iterable(each.forms for each in (*sources, *targets))))
    numbers = {form: at for at, form in enumerate(forms)}
    matrix = CostMatrix(Program(_of_each(forms)), Program(_of_each(forms)), costs)
    reduced = np.array([matrix.reduce_ms(at) for at in range(len(forms))])
    added = np.array([matrix.add_ms(at) for at in range(len(forms))])
    here, there = [_by_kind(each, numbers) for each in sources], [_by_kind(each, numbers) for each in targets]
    found = np.add.outer([_total(each, reduced) for each in here], [_total(each, added) for each in there])
    for places, _, saved in matrix.blocks():
        kind = forms[places[0]][0]
        within = {at: place for place, at in enumerate(places)}
        # One row and column more: nobody is at that place, and nothing is saved.
        saved = np.pad(saved, ((0, 1), (0, 1)))
        longest = max(len(each[kind]) for each in (*here, *there))
        columns = _padded([each[kind] for each in there], within, longest)
        for at, row in enumerate(_padded([each[kind] for each in here], within, longest)):
            found[at] -= saved[row, columns].sum(axis=1)
    return found


def _of_each(forms: Sequence[Form]) -> Structure:
    """A structure with one operation of each form."""
    tensors: list[Tensor] = []
    operations = []
    for kind, attributes, weights in forms:
        operations.append(Operation(kind, attributes, tuple(range(len(tensors), len(tensors) + len(weights))), ()))
        tensors += [Tensor("", dtype, shape) for dtype, shape in weights]
    return Structure((), tuple(tensors), tuple(operations), ())


def _by_kind(structure: Structure, numbers: dict[Form, int]) -> defaultdict[str, list[int]]:
    found: defaultdict[str, list[int]] = defaultdict(list)
    for form in structure.forms:
        found[form[0]].append(numbers[form])
    return found


def _total(places: defaultdict[str, list[int]], each_ms: Costs) -> float:
    return float(sum(each_ms[some].sum() for some in places.values()))


def _padded(rows: list[list[int]], within: dict[int, int], length: int) -> npt.NDArray[np.intp]:
    found = np.full((len(rows), length), len(within), dtype=np.intp)
    for at, row in enumerate(rows):
        found[at, : len(row)] = [within[each] for each in row]
    return found
