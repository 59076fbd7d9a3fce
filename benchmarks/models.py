"""The benchmark models: how Tessera registers each, and how a user builds it in a process of their own."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

SEED = 11
TOKENS = 32


@dataclass(frozen=True)
class BenchModel:
    """`source` and `arguments` are what `tessera model register` gets; weights are seeded where they do not come with the source. `side`:
    of an image, in pixels."""

    name: str
    family: str
    source: str
    arguments: dict[str, Any] = field(default_factory=dict)
    seed: int | None = SEED
    side: int = 224


def _cnn(name: str) -> BenchModel:
    return BenchModel(name, "cnn", "pytorchcv.model_provider:get_model", {"name": name})


def _bert(name: str, hidden: int, layers: int, heads: int) -> BenchModel:
    return BenchModel(name, "transformer", "tessera.registry.builders:bert", {"hidden": hidden, "layers": layers, "heads": heads})


def _minilm() -> BenchModel:
    from examples.demo.models import minilm_folder

    return BenchModel("minilm", "minilm", str(minilm_folder()), seed=None)


MODELS = (
    _minilm(),
    _cnn("mobilenetv2_w1"),
    _cnn("resnet18"),
    _cnn("resnet50"),
    _cnn("densenet121"),
    _cnn("vgg16"),
    _bert("bert-small", 512, 4, 8),
    _bert("bert-base", 768, 12, 12),
)
SMALL_HEAD = BenchModel("resnet50-100", "cnn", "pytorchcv.model_provider:get_model", {"name": "resnet50", "num_classes": 100})
"""resnet50 for a hundred classes: a fine-tuned head of 0.8 MB instead of 8.2."""
SMALL_CNN = _cnn("mobilenetv2_wd2")
TINY_CNNS = tuple(
    BenchModel(f"tiny-cnn-{seed}", "cnn", "pytorchcv.model_provider:get_model", {"name": "resnet20_cifar10"}, seed, 32)
    for seed in range(1, 9)
)
TINY_BERTS = tuple(replace(_bert(f"tiny-bert-{seed}", 128, 2, 2), seed=seed) for seed in range(1, 10))
"""Siblings by the graph alone: every seed has weights of its own."""
BY_NAME = {model.name: model for model in (*MODELS, SMALL_HEAD, SMALL_CNN, *TINY_CNNS, *TINY_BERTS)}


def build_module(model: BenchModel) -> Any:
    """The eager module in evaluation mode, as a user's script makes it (without loading weights)."""
    import torch

    torch.manual_seed(SEED)
    if model.family == "cnn":
        from pytorchcv.model_provider import get_model

        return get_model(**model.arguments).eval()
    if model.family == "minilm":
        from transformers import BertConfig, BertModel

        return BertModel(BertConfig.from_pretrained(model.source)).eval()
    from tessera.registry.builders import bert

    return bert(**model.arguments).eval()


def pretrained_module(model: BenchModel) -> Any:
    """The module with the weights that it is registered with."""
    if model.family == "minilm":
        from transformers import BertModel

        return BertModel.from_pretrained(model.source).eval()
    return build_module(model)


def arrays(model: BenchModel, batch: int = 1) -> list[np.ndarray]:
    """The inputs in the order of the model's signature: one image, or ids, mask and types of `TOKENS` tokens."""
    draw = np.random.default_rng(SEED)
    if model.family == "cnn":
        return [draw.standard_normal((batch, 3, model.side, model.side), dtype=np.float32)]
    ids = draw.integers(5, 1000, (batch, TOKENS), dtype=np.int64)
    return [ids, np.ones_like(ids), np.zeros_like(ids)]
