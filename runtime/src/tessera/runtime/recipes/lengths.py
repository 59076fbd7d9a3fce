"""Which lengths of a program's inputs have to be equal, found by asking the program itself.

A tracer gives every length that varies a name, and two of them to lengths that meet only in operators that broadcast (a mask's and what it
masks). Code compiled for both takes any pair and reads beyond the end of the shorter one; the flat program, which checks, refuses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import combinations

from tessera.domain.errors import Unsupported


def tied(lengths: Mapping[str, int], takes: Callable[[Mapping[str, int]], bool]) -> dict[str, str]:
    """Name of a length -> the first name of those that it has to be equal to, its own where it is free.

    `lengths`: what the program takes. `takes`: whether it takes others, none of them below 2, which could be broadcast.

    Raises:
        Unsupported: one may not change, or changes with what it is not equal to.
    """
    others = {name: length - 1 if length > 2 else length + 1 for name, length in lengths.items()}

    def together(names: Iterable[str]) -> bool:
        return takes({**lengths, **{name: others[name] for name in names}})

    first = {name: name for name in lengths}
    for name in lengths:
        alike = [other for other in lengths if other != name and lengths[other] == lengths[name]]
        sets = (rest for size in range(len(alike) + 1) for rest in combinations(alike, size))
        group = next(((name, *rest) for rest in sets if together((name, *rest))), None)
        if group is None:
            raise Unsupported(f"the flat program takes no other length {name} than {lengths[name]}")
        joined = {first[one] for one in group}
        head = next(one for one in lengths if one in joined)
        first = {one: head if at in joined else at for one, at in first.items()}
    return first
