"""What a user's own process does for its first answer. One process, one JSON line of milliseconds by stage.

python -m benchmarks.fresh prepare MODEL FOLDER    writes MODEL.pt and MODEL.pt2 (not timed)
python -m benchmarks.fresh eager   MODEL FOLDER    import torch, build the module, torch.load, run
python -m benchmarks.fresh export  MODEL FOLDER    import torch, torch.export.load, .module(), run
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from benchmarks.models import BY_NAME, BenchModel, arrays, build_module, pretrained_module


def _prepare(model: BenchModel, folder: Path) -> None:
    import torch

    weights, archive = folder / f"{model.name}.pt", folder / f"{model.name}.pt2"
    if weights.exists() and archive.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    module = pretrained_module(model)
    torch.save(module.state_dict(), weights)
    if model.family != "cnn":
        module.config.return_dict = False  # an archive of plain tensors, which loads without importing transformers
    torch.export.save(torch.export.export(module, tuple(torch.from_numpy(array) for array in arrays(model)), strict=False), archive)


def _timed(kind: str, model: BenchModel, folder: Path) -> dict[str, float]:
    stages: dict[str, float] = {}
    begun = at = time.perf_counter()

    def mark(stage: str) -> None:
        nonlocal at
        now = time.perf_counter()
        stages[stage] = (now - at) * 1e3
        at = now

    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    mark("import")
    if kind == "eager":
        module = build_module(model)
        mark("build")
        module.load_state_dict(torch.load(folder / f"{model.name}.pt", weights_only=True))
    else:
        module = torch.export.load(folder / f"{model.name}.pt2").module()
    mark("load")
    inputs = [torch.from_numpy(array) for array in arrays(model)]
    with torch.inference_mode():
        module(*inputs)
        mark("first_run")
        total = (at - begun) * 1e3
        module(*inputs)
        mark("second_run")
    return {**stages, "total": total}


def main() -> None:
    kind, name, where = sys.argv[1:4]
    model, folder = BY_NAME[name], Path(where)
    if kind == "prepare":
        _prepare(model, folder)
    else:
        print(json.dumps(_timed(kind, model, folder)))


if __name__ == "__main__":
    main()
