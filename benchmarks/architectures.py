"""Architectures for transformations: families of pytorchcv, cells (`cells`) and sizes of BERT, imported once into a folder of their own.

python -m benchmarks.architectures NAME...
"""

from __future__ import annotations

import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.models import SEED
from tessera.domain.ids import Digest

FOLDER = Path(".demo/bench-transform").resolve()
MAX_BATCH = 4
ZOO = "pytorchcv.model_provider:get_model"


@dataclass(frozen=True)
class Architecture:
    name: str
    family: str
    builder: str
    arguments: tuple[tuple[str, Any], ...]

    def build(self) -> Any:
        """The module as a user's script makes it; the libraries that it takes are imported by then."""
        import importlib

        import torch

        module, _, function = self.builder.partition(":")
        torch.manual_seed(SEED)
        return getattr(importlib.import_module(module), function)(**dict(self.arguments)).eval()

    @property
    def state(self) -> Path:
        """Its weights as a state dictionary: what loading from scratch reads."""
        return FOLDER / f"{self.name}.pt"

    @property
    def exported(self) -> Path:
        """What `torch.export.load` reads."""
        return FOLDER / f"{self.name}.pt2"


def _zoo(family: str, *names: str) -> tuple[Architecture, ...]:
    return tuple(Architecture(name, family, ZOO, (("name", name),)) for name in names)


def _bert(hidden: int, layers: int) -> Architecture:
    sizes = (("hidden", hidden), ("layers", layers), ("heads", max(1, hidden // 64)))
    return Architecture(f"bert-{hidden}-{layers}", "bert", "tessera.registry.builders:bert", sizes)


ZOO_FAMILIES = (
    *_zoo("resnet", "resnet10", "resnet12", "resnet14", "resnet16", "resnet18", "resnet18_wd2", "resnet26", "resnetbc26b", "resnet34",
          "resnetbc38b", "resnet50", "resnet50b"),
    *_zoo("mobilenet", "mobilenet_w1", "mobilenet_w3d4", "mobilenet_wd2", "mobilenet_wd4", "mobilenetv2_w1", "mobilenetv2_w3d4",
          "mobilenetv2_wd2", "mobilenetv2_wd4"),
    *_zoo("densenet", "densenet121", "densenet161", "densenet169", "densenet201"),
    *_zoo("shufflenet", "shufflenet_g1_w1", "shufflenet_g2_w1", "shufflenet_g3_w1", "shufflenet_g4_w1", "shufflenet_g1_wd2",
          "shufflenetv2_w1", "shufflenetv2_wd2", "shufflenetv2_w3d2"),
    *_zoo("squeezenet", "squeezenet_v1_0", "squeezenet_v1_1", "squeezeresnet_v1_0", "squeezeresnet_v1_1"),
    *_zoo("efficientnet", "efficientnet_b0", "efficientnet_b1", "efficientnet_b0b", "efficientnet_b1b"),
)  # fmt: skip
CELLS = tuple(Architecture(f"cell-{seed}", "cells", "benchmarks.cells:network", (("seed", seed),)) for seed in range(20))
BERTS = (_bert(128, 2), _bert(256, 4), _bert(512, 4), _bert(512, 8), _bert(768, 6), _bert(768, 12))
ALL = (*ZOO_FAMILIES, *CELLS, *BERTS)
BY_NAME = {each.name: each for each in ALL}


def artifact_of(architecture: Architecture) -> Digest:
    """Its `aten` artifact in `FOLDER / "blobs"`; made in a process of its own when it is not there yet."""
    record = FOLDER / f"{architecture.name}.json"
    if not record.exists():
        print(f"importing {architecture.name}", flush=True)
        subprocess.run([sys.executable, "-W", "ignore", "-m", "benchmarks.architectures", architecture.name], check=True)
    return Digest(json.loads(record.read_text())["aten"])


def make(architecture: Architecture) -> None:
    """The artifact, the state dictionary, and torch's own export."""
    import torch

    from tessera.registry.importer.run import run
    from tessera.registry.importer.task import Builder, Task

    blobs = FOLDER / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as name:
        source, out = Path(name) / "source", Path(name) / "out"
        source.mkdir()
        builder = Builder(architecture.builder, dict(architecture.arguments), SEED)
        task = Task(str(source), str(out), builder, (architecture.builder,), MAX_BATCH, make_onnx=False)
        found = run(task, lambda message, share: None)
        for path in (out / "blobs").iterdir():
            shutil.move(path, blobs / path.name)
        module = architecture.build()
        torch.save(module.state_dict(), architecture.state)
        torch.export.save(torch.export.export(module, example(architecture), strict=False), architecture.exported)
        partial = Path(name) / "record"
        partial.write_text(json.dumps({"aten": found.aten}))
        os.replace(partial, FOLDER / f"{architecture.name}.json")


def example(architecture: Architecture) -> tuple[Any, ...]:
    import torch

    if architecture.family == "bert":
        return (torch.ones(1, 32, dtype=torch.int64), torch.ones(1, 32, dtype=torch.int64), torch.zeros(1, 32, dtype=torch.int64))
    side = 32 if architecture.family == "cells" else 224
    return (torch.zeros(1, 3, side, side),)


def scratch_ms(architecture: Architecture, repeats: int) -> tuple[float, float, float]:
    """Build, read, load, with everything imported; what of it is building; and to the end of the first answer, to one row."""
    import torch

    found, built, first = [], [], []
    given = example(architecture)
    for _ in range(repeats):
        begun = time.perf_counter()
        module = architecture.build()
        there = time.perf_counter()
        module.load_state_dict(torch.load(architecture.state, weights_only=True))
        found.append((time.perf_counter() - begun) * 1e3)
        built.append((there - begun) * 1e3)
        with torch.no_grad():
            module(*given)
        first.append((time.perf_counter() - begun) * 1e3)
    return statistics.median(found), statistics.median(built), statistics.median(first)


def export_load_ms(architecture: Architecture) -> float:
    import torch

    data = architecture.exported.read_bytes()
    begun = time.perf_counter()
    torch.export.load(io.BytesIO(data))
    return (time.perf_counter() - begun) * 1e3


if __name__ == "__main__":
    for each in sys.argv[1:]:
        make(BY_NAME[each])
