"""python -m tessera.profiler --config FILE"""

from __future__ import annotations

import sys

from tessera.config import load
from tessera.profiler.app import serve
from tessera.profiler.config import ProfilerConfig
from tessera.program import run


def main() -> None:
    config = load(ProfilerConfig, sys.argv[1:])
    run(lambda stop: serve(config, stop))


if __name__ == "__main__":
    main()
