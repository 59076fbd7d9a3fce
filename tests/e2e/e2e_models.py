"""Small models that import quickly, and what eager PyTorch says to them. Loads torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

IMAGE = (1, 8, 8)
CLASSES = 10
WIDTH = 64


class Net(torch.nn.Module):
    """Images of IMAGE to CLASSES numbers; the trunk is the same for every `head_seed` of a width."""

    def __init__(self, head_seed: int, width: int = WIDTH) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.trunk = torch.nn.Sequential(
                torch.nn.Conv2d(1, width, 3), torch.nn.BatchNorm2d(width), torch.nn.ReLU(), torch.nn.Conv2d(width, width, 3)
            )
            torch.manual_seed(head_seed)
            self.head = torch.nn.Linear(width, CLASSES)
        self.eval().requires_grad_(False)

    def forward(self, image: torch.Tensor) -> Any:
        return self.head(self.trunk(image).mean((2, 3)))

    def eager(self, images: np.ndarray) -> np.ndarray:
        found: np.ndarray = self(torch.from_numpy(images)).numpy()
        return found


class Wide(torch.nn.Module):
    """One matrix of `mebibytes`."""

    def __init__(self, mebibytes: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(1024, mebibytes * 256, bias=False)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> Any:
        return self.linear(x)


class OnlyHere(torch.nn.Module):
    """Calls an operator of a library of its own, which no other process has."""

    def forward(self, x: torch.Tensor) -> Any:
        return torch.ops.tessera_e2e.twice(x) + 1


class Dice(torch.nn.Module):
    """An aten operator that the flat program lacks."""

    def forward(self, x: torch.Tensor) -> Any:
        return x + torch.rand_like(x)


def define_operator() -> None:
    @torch.library.custom_op("tessera_e2e::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @twice.register_fake
    def _(x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x)


def save(module: torch.nn.Module, example: tuple[int, ...], path: Path) -> Path:
    """`torch.export.save` with a batch that varies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        batch = torch.export.Dim("batch")
        program = torch.export.export(module, (torch.zeros(2, *example),), dynamic_shapes=({0: batch},), strict=False)
        torch.export.save(program, path)
    return path


def save_net(folder: Path, name: str, head_seed: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return save(Net(head_seed), IMAGE, folder / f"{name}.pt2")


def images(count: int, seed: int = 7) -> np.ndarray:
    """FP32 of shape (count, *IMAGE)."""
    return np.random.default_rng(seed).standard_normal((count, *IMAGE), dtype=np.float32)


def bert(builder: Callable[..., Any], seed: int, arguments: dict[str, Any]) -> Any:
    """What the registry's importer makes of a builder reference: seeded, for inference."""
    torch.manual_seed(seed)
    return builder(**arguments).eval().requires_grad_(False)


def agrees(found: np.ndarray, eager: np.ndarray) -> bool:
    """Within 1e-4 of the largest value (or of 1, if that is more): docs/states/variant.md."""
    return found.shape == eager.shape and float(np.abs(found - eager).max()) <= 1e-4 * max(1.0, float(np.abs(eager).max()))


class Member(torch.nn.Module):
    """A fine-tuned model: the trunk (16 MiB) is its family's, the head (32 MiB) its own."""

    WIDTH = 512

    def __init__(self, family: int, member: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(family)
            self.trunk = torch.nn.Linear(self.WIDTH, 8192)
            torch.manual_seed(1000 * (family + 1) + member)
            self.head = torch.nn.Linear(8192, 1024)
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(torch.relu(self.trunk(x)))

    def eager(self, given: np.ndarray) -> np.ndarray:
        found: np.ndarray = self(torch.from_numpy(given)).numpy()
        return found
