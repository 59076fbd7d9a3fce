"""The networks. A trunk turns images into features, a head turns features into logits."""

from __future__ import annotations

import torch
from torch import nn


class Block(nn.Module):  # type: ignore[misc] # torch is not followed
    """Two 3x3 convolutions with batch norm around a residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.body(x))


class Trunk(nn.Module):  # type: ignore[misc] # torch is not followed
    """float32 images of shape (n, 1, 8, 8) in [0, 1] -> float32 features of shape (n, width)."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.blocks(self.stem(image)).mean(dim=(2, 3))
        return features


class Network(nn.Module):  # type: ignore[misc] # torch is not followed
    """A trunk with a two-layer head: logits of shape (n, classes)."""

    def __init__(self, trunk: Trunk, width: int, classes: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, classes))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.trunk(image))
        return logits
