"""Structures and models for benchmarks of what looks at many, drawn by a seed: families of chains of convolutions and of attention blocks.

A family is a width, a kernel and a kind; its members differ in depth and in the widths of their stages, as the sizes of one published
architecture do. No torch: planners see operations, and these are made of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tessera.domain.artifact import PACK_THRESHOLD_BYTES, Blob
from tessera.domain.ids import Digest
from tessera.policy.transform.structure import Operation, Origin, OriginKind, Structure, Tensor

CHAINS = 0.7
"""Share of the families that are convolutional."""
MEMBERS = 8
SIBLINGS = (1, 2, 4, 8, 16, 32)
"""How many models have one trunk."""
OWN_SHARE = 0.1
"""Of its tensors, the last ones: what a sibling has of its own, beside the pack of small tensors."""


@dataclass
class _Writing:
    tensors: list[Tensor] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)

    def add(self, kind: str, attributes: str, shapes: tuple[tuple[int, ...], ...] = (), reads: tuple[Origin, ...] = ()) -> Origin:
        """Reads what was written last where nothing else is said."""
        first = len(self.tensors)
        self.tensors += [Tensor(f"{len(self.operations)}.{at}", "FP32", shape) for at, shape in enumerate(shapes)]
        weights = tuple(range(first, len(self.tensors)))
        self.operations.append(Operation(f"aten.{kind}.default", attributes, weights, reads or (self.last,)))
        return self.last

    @property
    def last(self) -> Origin:
        return Origin(OriginKind.OPERATION, len(self.operations) - 1) if self.operations else Origin(OriginKind.INPUT, 0)

    def structure(self) -> Structure:
        self.add("linear", "[]", ((10, 64), (10,)))
        return Structure(("x",), tuple(self.tensors), tuple(self.operations), (("y", self.last),))


def _chain(width: int, kernel: int, depths: tuple[int, ...]) -> Structure:
    made = _Writing()
    made.add("conv2d", "[2]", ((width, 3, 7, 7),))
    came = width
    for stage, depth in enumerate(depths):
        wide = width << stage
        for block in range(depth):
            begin = made.last
            made.add("conv2d", f"[{1 + (block == 0 and stage > 0)}]", ((wide, came, kernel, kernel),))
            made.add("batch_norm", "[]", ((wide,),) * 4)
            made.add("relu", "[]")
            made.add("conv2d", "[1]", ((wide, wide, kernel, kernel),))
            body = made.add("batch_norm", "[]", ((wide,),) * 4)
            if came == wide:
                made.add("add", "[]", reads=(body, begin))
            made.add("relu", "[]")
            came = wide
    made.add("mean", "[]")
    return made.structure()


def _attention(width: int, heads: int, depth: int) -> Structure:
    made = _Writing()
    made.add("embedding", "[]", ((8192, width),))
    made.add("layer_norm", "[]", ((width,), (width,)))
    square = ((width, width), (width,))
    for _ in range(depth):
        begin = made.last
        parts = tuple(made.add("linear", "[]", square, (begin,)) for _ in range(3))
        made.add("attention", f"[{heads}]", reads=parts)
        made.add("add", "[]", reads=(made.add("linear", "[]", square), begin))
        middle = made.add("layer_norm", "[]", ((width,), (width,)))
        made.add("linear", "[]", ((4 * width, width), (4 * width,)))
        made.add("gelu", "[]")
        made.add("add", "[]", reads=(made.add("linear", "[]", ((width, 4 * width), (width,))), middle))
        made.add("layer_norm", "[]", ((width,), (width,)))
    return made.structure()


def structures(count: int, seed: int) -> dict[Digest, Structure]:
    """By digest of the graph, all different, family by family."""
    draw = np.random.default_rng(seed)
    found: dict[tuple[int, ...], Structure] = {}
    while len(found) < count:
        chain, width, kernel = draw.uniform() < CHAINS, int(draw.choice((16, 24, 32, 48, 64))), int(draw.choice((1, 3, 5)))
        for _ in range(MEMBERS):
            depths = tuple(int(depth) for depth in draw.integers(1, 7, size=4))
            if chain:
                found.setdefault((width, kernel, *depths), _chain(width, kernel, depths))
            else:
                found.setdefault((width, kernel, sum(depths)), _attention(8 * width, kernel, sum(depths)))
    return {Digest(f"{at:064x}"): structure for at, structure in enumerate(list(found.values())[:count])}


def siblings(count: int, graphs: Mapping[Digest, Structure], seed: int) -> list[tuple[Digest, tuple[Blob, ...]]]:
    """Graph and blobs of so many models, in an order that says nothing. Two trunks of one graph share no bytes."""
    draw = np.random.default_rng(seed)
    names = sorted(graphs)
    found: list[tuple[Digest, tuple[Blob, ...]]] = []
    numbers = itertools.count()

    def blob(size_bytes: int) -> Blob:
        return Blob(Digest(f"{next(numbers):064x}"), size_bytes)

    while len(found) < count:
        graph = names[int(draw.integers(len(names)))]
        sizes = [tensor.size_bytes for tensor in graphs[graph].tensors]
        large = [size for size in sizes if size >= PACK_THRESHOLD_BYTES]
        own = large[len(large) - math.ceil(OWN_SHARE * len(large)) :]
        trunk = tuple(blob(size) for size in large[: len(large) - len(own)])
        packed = sum(sizes) - sum(large)
        found += [(graph, (*trunk, *map(blob, own), blob(packed))) for _ in range(int(draw.choice(SIBLINGS)))]
    return [found[at] for at in draw.permutation(len(found))[:count]]
