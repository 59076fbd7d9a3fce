"""What a process does before it serves, or forks those that will: the one way in for zygotes and containers."""

from __future__ import annotations

import os

_SINGLE = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def prepare(flavour: str) -> None:
    """Imports the backends of a flavour and finds out what is found out once. No thread is left at work.

    Raises:
        Unsupported: there is no such flavour, or its libraries are not installed.
    """
    # Before numpy, torch and onnxruntime are imported: their pools start threads, which a fork does not copy. So does ONNX Runtime's
    # telemetry, which also would talk to the network.
    os.environ.update(dict.fromkeys((*_SINGLE, "ORT_DISABLE_TELEMETRY"), "1"))

    from tessera.frames.heap import keep_freed_memory
    from tessera.runtime import backends, classes

    backends.preload(flavour)
    keep_freed_memory()
    classes.build_class()  # found once here instead of in every child
