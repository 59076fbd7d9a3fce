"""Eighteen models for start paths: architectures of five families, and of three of them fine-tuned siblings with a frozen trunk.

python -m benchmarks.startmodels        makes what is missing: state dictionaries, archives to register, answers to compare with
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.architectures import BY_NAME, MAX_BATCH, Architecture, example
from benchmarks.models import SEED, TOKENS

FOLDER = Path(".demo/bench-startpaths").resolve()
TENSORS = FOLDER / "made" / "tensors"
"""A file for each tensor of all states, by digest."""
NOISE = 0.05
SIDE = 224


@dataclass(frozen=True)
class StartModel:
    """`sibling` 0 is the trunk itself; the others have a last layer of their own."""

    name: str
    architecture: Architecture
    sibling: int = 0

    @property
    def state(self) -> Path:
        """What a user's script and the published systems load."""
        return FOLDER / "made" / f"{self.name}.pt"

    @property
    def exported(self) -> Path:
        return FOLDER / "made" / f"{self.name}.pt2"

    @property
    def index(self) -> Path:
        """Its state by name: the file of `TENSORS`, type and shape of each tensor."""
        return FOLDER / "made" / f"{self.name}.json"

    @property
    def answer(self) -> Path:
        return FOLDER / "made" / f"{self.name}.npy"

    @property
    def transformer(self) -> bool:
        return self.architecture.family == "bert"

    def arrays(self) -> list[np.ndarray]:
        """One image or one sentence."""
        draw = np.random.default_rng(SEED)
        if not self.transformer:
            return [draw.standard_normal((1, 3, SIDE, SIDE), dtype=np.float32)]
        ids = draw.integers(5, 1000, (1, TOKENS), dtype=np.int64)
        return [ids, np.ones_like(ids), np.zeros_like(ids)]

    def right(self, answer: np.ndarray) -> bool:
        wanted = np.load(self.answer)
        return answer.shape == wanted.shape and bool(np.allclose(answer, wanted, rtol=1e-3, atol=1e-4))


def _family(name: str, count: int = 1) -> list[StartModel]:
    return [StartModel(f"{name}-{at}" if at else name, BY_NAME[name], at) for at in range(count)]


MODELS = (
    *_family("resnet18", 3),
    *_family("mobilenetv2_w1", 3),
    *_family("bert-512-4", 3),
    *(one for name in ("resnet26", "resnet34", "mobilenetv2_wd2", "squeezenet_v1_1", "shufflenetv2_w1") for one in _family(name)),
    *(one for name in ("densenet121", "efficientnet_b0", "bert-256-4", "bert-512-8") for one in _family(name)),
)
BY_MODEL = {model.name: model for model in MODELS}


def first_of(answer: Any) -> Any:
    """The first tensor of what a module answers with."""
    return answer if hasattr(answer, "numpy") else next(iter(answer.values() if hasattr(answer, "values") else answer))


def make(model: StartModel) -> None:
    import torch

    module = model.architecture.build()
    if model.sibling:
        draw = torch.Generator().manual_seed(model.sibling)
        with torch.no_grad():
            for parameter in list(module.parameters())[-2:]:
                parameter.mul_(1 + NOISE * torch.randn(parameter.shape, generator=draw))
    if model.transformer:
        module.config.return_dict = False  # an archive of plain tensors, which loads without importing transformers
    model.state.parent.mkdir(parents=True, exist_ok=True)
    torch.save(module.state_dict(), model.state)
    two = tuple(each.repeat(2, *[1] * (each.dim() - 1)) for each in example(model.architecture))
    shapes = tuple({0: torch.export.Dim("batch", min=1, max=MAX_BATCH)} for _ in two)
    program = torch.export.export(module, two, dynamic_shapes=shapes, strict=False)
    partial = model.exported.with_name(f"partial-{model.exported.name}")
    torch.export.save(program, partial)
    with torch.inference_mode():
        np.save(model.answer, first_of(module(*(torch.from_numpy(array) for array in model.arrays()))).numpy())
    os.replace(partial, model.exported)


def store_tensors(model: StartModel) -> None:
    import torch

    state = torch.load(model.state, weights_only=True)
    model.index.write_text(json.dumps({name: _stored(tensor.numpy()) for name, tensor in state.items()}))


def _stored(array: np.ndarray) -> tuple[str, str, tuple[int, ...]]:
    data = array.tobytes()
    digest = hashlib.sha256(data + str((array.dtype, array.shape)).encode()).hexdigest()
    TENSORS.mkdir(parents=True, exist_ok=True)
    (TENSORS / digest).write_bytes(data)
    return digest, str(array.dtype), array.shape


def main() -> None:
    for model in MODELS:
        if not model.exported.exists():
            print(f"making {model.name}", flush=True)
            make(model)
        if not model.index.exists():
            store_tensors(model)


if __name__ == "__main__":
    main()
