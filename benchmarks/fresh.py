"""What a user's own process does for its first answer: import, build, load, run. One process, one JSON line of milliseconds.

    python -m benchmarks.fresh eager  MODEL WEIGHTS.pt     import torch, build the module, torch.load, run
    python -m benchmarks.fresh export MODEL PROGRAM.pt2    import torch, torch.export.load, .module(), run
    python -m benchmarks.fresh prepare MODEL FOLDER        writes both files (not timed)
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def _minilm() -> Any:
    from benchmarks.minilm import build

    return build()


def _module(name: str) -> Any:
    from benchmarks.models import build_module, built

    return _minilm() if name == "minilm" else build_module(built(name))


def _tensors(name: str) -> tuple[Any, ...]:
    import torch

    from benchmarks.models import inputs_of

    return tuple(torch.from_numpy(array) for array in inputs_of(name)(1).values())


def prepare(name: str, folder: Path) -> None:
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    weights, archive = folder / f"{name}.pt", folder / f"{name}.pt2"
    if weights.exists() and archive.exists():
        return
    module = _module(name)
    torch.save(module.state_dict(), weights)
    torch.export.save(torch.export.export(module, _tensors(name), strict=False), archive)


def main() -> None:
    kind, name, where = sys.argv[1:4]
    if kind == "prepare":
        prepare(name, Path(where))
        return
    begun = time.perf_counter()
    marks: dict[str, float] = {}

    def mark(stage: str, since: float) -> float:
        now = time.perf_counter()
        marks[stage] = (now - since) * 1e3
        return now

    import torch

    torch.set_num_threads(len(__import__("os").sched_getaffinity(0)))
    at = mark("import", begun)
    if kind == "eager":
        module = _module(name)
        at = mark("build", at)
        module.load_state_dict(torch.load(where, weights_only=True))
        at = mark("load", at)
    else:
        module = torch.export.load(where).module()
        at = mark("load", at)
    with torch.inference_mode():
        inputs = _tensors(name)
        at = time.perf_counter()
        module(*inputs)
        at = mark("first_run", at)
        total = (at - begun) * 1e3
        module(*inputs)
        mark("run", at)
    print(json.dumps({"total": total, **marks}))


if __name__ == "__main__":
    main()
