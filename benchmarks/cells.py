"""A small space of convolutional cells in the manner of NAS-Bench-101 (Ying et al., ICML'19), drawn by a seed: our own generator.

A network is a stem, then three stacks of the same cell with halved resolution and doubled width between them, and a classifier. A cell is a
directed acyclic graph: each of its nodes is one of three operations and reads one or more earlier ones (added up); the output joins what
nobody else reads.
"""

from __future__ import annotations

import random
from typing import Any

OPERATIONS = ("conv3x3", "conv1x1", "maxpool3x3")
WIDTH, STACKS, REPEATS, SIDE = 32, 3, 2, 32


def drawn(seed: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Three to five nodes: operation, and which earlier values it reads (0: the cell's input)."""
    draw = random.Random(f"cell {seed}")
    nodes = []
    for at in range(1, draw.randint(3, 5) + 1):
        reads = tuple(sorted(draw.sample(range(at), draw.randint(1, min(2, at)))))
        nodes.append((draw.choice(OPERATIONS), reads))
    return tuple(nodes)


def network(seed: int) -> Any:
    """The network of a cell, as `tessera model register` builds it: an image model that says its size."""
    import torch
    from torch import nn

    nodes = drawn(seed)
    unread = [at for at in range(1, len(nodes) + 1) if all(at not in reads for _, reads in nodes)]

    def operation(name: str, width: int) -> nn.Module:
        if name == "maxpool3x3":
            return nn.MaxPool2d(3, stride=1, padding=1)
        size = 3 if name == "conv3x3" else 1
        return nn.Sequential(nn.Conv2d(width, width, size, padding=size // 2, bias=False), nn.BatchNorm2d(width), nn.ReLU())

    class Cell(nn.Module):  # type: ignore[misc] # torch is not followed
        def __init__(self, width: int) -> None:
            super().__init__()
            self.operations = nn.ModuleList(operation(name, width) for name, _ in nodes)
            self.join = nn.Conv2d(width * len(unread), width, 1, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            values = [x]
            for each, (_, reads) in zip(self.operations, nodes, strict=True):
                total = values[reads[0]]
                for other in reads[1:]:
                    total = total + values[other]
                values.append(each(total))
            joined = torch.cat([values[at] for at in unread], 1) if len(unread) > 1 else values[unread[0]]
            return self.join(joined)

    layers: list[nn.Module] = [nn.Conv2d(3, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU()]
    width = WIDTH
    for stack in range(STACKS):
        if stack:
            layers += [nn.MaxPool2d(2), nn.Conv2d(width, 2 * width, 1, bias=False)]
            width *= 2
        layers += [Cell(width) for _ in range(REPEATS)]
    found = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
    found.in_size = (SIDE, SIDE)
    return found.eval()
