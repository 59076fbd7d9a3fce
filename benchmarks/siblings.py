"""Writes fine-tuned siblings of a benchmark model as safetensors: the trunk's bytes unchanged, the last layers new.

python -m benchmarks.siblings MODEL COUNT FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.models import BY_NAME, SEED, BenchModel, build_module

HEADS = {"resnet50": ("output.",), "bert-base": ("encoder.layer.11.output.dense.", "encoder.layer.11.output.LayerNorm.")}
"""What a sibling has of its own: resnet50's classifier (8.2 MB), bert-base's last projection (9.4 MB)."""


def sibling_paths(model: str, count: int, folder: Path) -> list[Path]:
    return [folder / f"{model}-sibling{index}.safetensors" for index in range(count)]


def write(model: BenchModel, count: int, folder: Path) -> None:
    paths = sibling_paths(model.name, count, folder)
    if all(path.exists() for path in paths):
        return
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    trunk = build_module(model).state_dict()
    for index, path in enumerate(paths):
        draw = torch.Generator().manual_seed(SEED + 1 + index)
        own = {
            name: tensor + 0.01 * torch.randn(tensor.shape, generator=draw)
            for name, tensor in trunk.items()
            if name.startswith(HEADS[model.name]) and tensor.is_floating_point()
        }
        assert own, f"{model.name} has no tensor below {HEADS[model.name]}"
        save_file({name: own.get(name, tensor).contiguous() for name, tensor in trunk.items()}, path)


if __name__ == "__main__":
    write(BY_NAME[sys.argv[1]], int(sys.argv[2]), Path(sys.argv[3]))
