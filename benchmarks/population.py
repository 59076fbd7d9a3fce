"""Which blobs a lab's functions need: families of fine-tuned siblings over a common trunk, and models that share nothing.

Sizes are those of real architectures' tensors (built without memory on torch's `meta` device); contents do not matter here. A family has
a trunk of its own, so that two families of one architecture share nothing. Small tensors travel in a pack of the variant's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from benchmarks.models import BY_NAME, build_module
from tessera.domain.artifact import PACK_THRESHOLD_BYTES
from tessera.domain.ids import Digest

ARCHITECTURES = {
    "mobilenetv2_w1": ("output.",),
    "resnet18": ("output.",),
    "resnet50": ("output.",),
    "vgg16": ("output.fc3",),
    "bert-small": ("encoder.layer.3.output.",),
    "bert-base": ("encoder.layer.11.output.",),
}
"""Prefixes of the tensors that a sibling has of its own."""

SINGLE_SHARE = 0.3
SIBLINGS = (2, 3, 4, 6, 8, 12, 16)


@dataclass(frozen=True)
class Population:
    """`needs[i]` are the blobs of function `i`; `sharing` counts the functions that need a blob."""

    needs: tuple[tuple[Digest, ...], ...]
    sizes: dict[Digest, int]
    sharing: dict[Digest, int]

    @property
    def total_bytes(self) -> int:
        return sum(self.sizes.values())


@cache
def tensor_sizes(architecture: str) -> dict[str, int]:
    """Bytes of each float tensor by name."""
    import torch

    with torch.device("meta"):
        state = build_module(BY_NAME[architecture]).state_dict()
    return {name: tensor.numel() * tensor.element_size() for name, tensor in state.items() if tensor.is_floating_point()}


def populate(functions: int, seed: int) -> Population:
    """Seeded; how often a function is called has no say in which family it belongs to."""
    draw = np.random.default_rng(seed)
    sizes: dict[Digest, int] = {}
    needs: list[tuple[Digest, ...]] = []

    def blob(size_bytes: int) -> Digest:
        digest = Digest(f"{len(sizes):064x}")
        sizes[digest] = size_bytes
        return digest

    while len(needs) < functions:
        architecture = str(draw.choice(list(ARCHITECTURES)))
        siblings = 1 if draw.uniform() < SINGLE_SHARE else int(draw.choice(SIBLINGS))
        tensors = tensor_sizes(architecture)
        large = {name: size for name, size in tensors.items() if size >= PACK_THRESHOLD_BYTES}
        packed = sum(tensors.values()) - sum(large.values())
        own = [name for name in large if siblings == 1 or name.startswith(ARCHITECTURES[architecture])]
        trunk = tuple(blob(size) for name, size in large.items() if name not in own)
        needs += [(*trunk, *(blob(large[name]) for name in own), blob(packed)) for _ in range(siblings)]
    order = draw.permutation(len(needs))[:functions]
    chosen = tuple(needs[at] for at in order)
    sharing: dict[Digest, int] = {}
    for blobs in chosen:
        for digest in blobs:
            sharing[digest] = sharing.get(digest, 0) + 1
    return Population(chosen, {digest: sizes[digest] for digest in sharing}, sharing)
