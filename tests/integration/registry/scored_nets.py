"""Small models that import quickly, and evaluation sets of their own answers. Loads torch."""

from __future__ import annotations

import io

import numpy as np
import torch


class Net(torch.nn.Module):
    """A trunk that siblings share, and a head of their own."""

    def __init__(self, head_seed: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = torch.nn.Sequential(torch.nn.Conv2d(1, 32, 3), torch.nn.ReLU(), torch.nn.Conv2d(32, 32, 3), torch.nn.ReLU())
        torch.manual_seed(head_seed)
        self.head = torch.nn.Linear(32, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(image).mean((2, 3)))


def pt2(module: torch.nn.Module) -> dict[str, bytes]:
    program = torch.export.export(module.eval(), (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return {"net.pt2": buffer.getvalue()}


def images(samples: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((samples, 1, 8, 8)).astype(np.float32)


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def evaluation(module: torch.nn.Module, samples: int = 64) -> bytes:
    """The model's own answers, so that the model itself scores 1."""
    with torch.no_grad():
        return npz(image=images(samples), labels=module.eval()(torch.from_numpy(images(samples))).numpy().argmax(axis=1))
