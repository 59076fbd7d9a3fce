"""The benchmark models: how Tessera registers each, and how a user builds and runs it in a process of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SEED = 11


@dataclass(frozen=True)
class BenchModel:
    """`reference` and `arguments` are what `tessera model register` gets; `inputs(batch)` are arrays by input name."""

    name: str
    reference: str
    arguments: dict[str, Any]
    inputs: Callable[[int], dict[str, np.ndarray]]
    family: str
    options: dict[str, Any] = field(default_factory=dict)


def _image(size: int) -> Callable[[int], dict[str, np.ndarray]]:
    def make(batch: int) -> dict[str, np.ndarray]:
        return {"x": np.random.default_rng(SEED).standard_normal((batch, 3, size, size), dtype=np.float32)}

    return make


def _tokens(batch: int) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(SEED).integers(5, 1000, (batch, 32), dtype=np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def _cnn(name: str) -> BenchModel:
    return BenchModel(name, "pytorchcv.model_provider:get_model", {"name": name, "pretrained": False}, _image(224), "cnn")


def _bert(name: str, hidden: int, layers: int, heads: int) -> BenchModel:
    arguments = {"hidden": hidden, "layers": layers, "heads": heads}
    return BenchModel(name, "tessera.registry.builders:bert", arguments, _tokens, "transformer")


BUILT = (
    _cnn("mobilenetv2_w1"),
    _cnn("resnet18"),
    _cnn("resnet50"),
    _cnn("vgg16"),
    _bert("bert-small", 512, 4, 8),
    _bert("bert-base", 768, 12, 12),
)


def built(name: str) -> BenchModel:
    return next(model for model in BUILT if model.name == name)


def build_module(model: BenchModel) -> Any:
    """The eager module, with seeded weights, as the registry's builder makes it."""
    import torch

    torch.manual_seed(SEED)
    if model.family == "cnn":
        from pytorchcv.model_provider import get_model

        return get_model(**model.arguments).eval()
    from tessera.registry.builders import bert

    return bert(**model.arguments).eval()
