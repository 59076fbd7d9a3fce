"""What eager PyTorch answers in one process on all cores, one image or sentence at a time. One JSON line of items a second by model.

python -m benchmarks.eager SECONDS MODEL...
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.models import BY_NAME, arrays, build_module

WARM_UP = 3


def eager_items_per_s(names: Sequence[str], seconds: float) -> dict[str, float]:
    """In a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.eager", str(seconds), *names]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measured(name: str, seconds: float) -> float:
    import torch

    model = BY_NAME[name]
    module = build_module(model)
    inputs = [torch.from_numpy(array) for array in arrays(model)]
    with torch.inference_mode():
        for _ in range(WARM_UP):
            module(*inputs)
        items, began_s = 0, time.perf_counter()
        while (took_s := time.perf_counter() - began_s) < seconds:
            module(*inputs)
            items += 1
    return items / took_s


def main() -> None:
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    seconds = float(sys.argv[1])
    print(json.dumps({name: _measured(name, seconds) for name in sys.argv[2:]}))


if __name__ == "__main__":
    main()
