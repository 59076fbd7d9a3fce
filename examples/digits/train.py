"""Trains the digits models and writes one `.pt2` archive each: python -m examples.digits.train FOLDER

Half a minute or so on two cores; archives that are newer than this code are not made again. The siblings reuse the middle network's trunk
unchanged (its batch norms too), so that their trunks are the same bytes.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from examples.digits.data import TASKS, Digits, load, rotated
from examples.digits.networks import Network, Trunk

SIZES = {"digits-small": (16, 1, 5), "digits-medium": (32, 2, 5), "digits-large": (64, 3, 8)}
"""Name -> (width, residual blocks, epochs), smallest first. Longer training brings the smaller ones close to the largest."""

MIDDLE = "digits-medium"
BATCH = 64


def _batches(count: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    order = torch.randperm(count, generator=generator)
    yield from (order[start : start + BATCH] for start in range(0, count, BATCH))


def _fit(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, epochs: int, rate: float, *, shift: bool = False) -> None:
    generator = torch.Generator().manual_seed(7)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-3)
    steps = epochs * -(-len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(epochs):
        for chosen in _batches(len(labels), generator):
            batch = inputs[chosen]
            if shift:  # a pixel to any side: what handwriting does
                move = torch.randint(-1, 2, (2,), generator=generator).tolist()
                batch = torch.roll(batch, move, dims=(2, 3))
            loss = nn.functional.cross_entropy(model(batch), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def _accuracy(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    with torch.inference_mode():
        predicted = model(torch.from_numpy(images)).argmax(dim=1).numpy()
    return float((predicted == labels).mean())


def _save(model: nn.Module, path: Path) -> None:
    """Exports with a dynamic batch; the archive appears under its name complete or not at all."""
    example = torch.zeros(2, 1, 8, 8)
    program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        torch.export.save(program, made)
        os.replace(made, path)


def _train_network(name: str, training: Digits) -> Network:
    width, depth, epochs = SIZES[name]
    torch.manual_seed(sorted(SIZES).index(name))
    network = Network(Trunk(width, depth), width, 10)
    network.train()
    _fit(network, torch.from_numpy(training.images), torch.from_numpy(training.labels), epochs, 4e-3, shift=True)
    network.eval()
    return network


def _train_sibling(task: str, trunk: Trunk, training: Digits) -> Network:
    images = rotated(training.images) if task == "rotated" else training.images
    labels = TASKS[task](training.labels)
    torch.manual_seed(100 + sorted(TASKS).index(task))
    width = SIZES[MIDDLE][0]
    network = Network(trunk, width, int(labels.max()) + 1)
    network.eval()
    with torch.no_grad():
        features = trunk(torch.from_numpy(images))
    _fit(network.head, features, torch.from_numpy(labels), 60, 1e-2)
    return network


def _newer(report: Path, archives: Iterable[Path]) -> bool:
    """Whether everything is there, written after the code that makes it."""
    code_s = max(path.stat().st_mtime for path in Path(__file__).parent.glob("*.py"))
    return report.exists() and report.stat().st_mtime > code_s and all(archive.exists() for archive in archives)


def train(folder: Path, say: Callable[[str], None]) -> dict[str, float]:
    """Makes every archive in `folder` unless they are there; returns the held-out accuracy of each model, 0..1.

    Raises:
        SystemExit: the accuracies are not ordered as the sizes are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    report = folder / "accuracy.json"
    names = [*SIZES, *(f"digits-{task}" for task in TASKS)]
    if _newer(report, (folder / f"{name}.pt2" for name in names)):
        say(f"{len(names)} digits models are trained already")
        known: dict[str, float] = json.loads(report.read_text())
        return known
    accuracies: dict[str, float] = {}
    training, held_out = load()
    middle: Network | None = None
    for name in SIZES:
        network = _train_network(name, training)
        middle = network if name == MIDDLE else middle
        accuracies[name] = _accuracy(network, held_out.images, held_out.labels)
        _save(network, folder / f"{name}.pt2")
        say(f"trained {name}: {accuracies[name]:.1%} of {len(held_out.labels)} held-out digits")
    assert middle is not None
    small, medium, large = (accuracies[name] for name in SIZES)
    if not small < medium < large:
        raise SystemExit("each network should be right more often than the next smaller one")
    for task in TASKS:
        sibling = _train_sibling(task, middle.trunk, training)
        images = rotated(held_out.images) if task == "rotated" else held_out.images
        accuracies[f"digits-{task}"] = _accuracy(sibling, images, TASKS[task](held_out.labels))
        _save(sibling, folder / f"digits-{task}.pt2")
        say(f"trained digits-{task} on the frozen trunk of {MIDDLE}: {accuracies[f'digits-{task}']:.1%}")
    report.write_text(json.dumps(accuracies, indent=1))
    return accuracies


if __name__ == "__main__":
    train(Path(sys.argv[1]), lambda text: print(text, flush=True))
