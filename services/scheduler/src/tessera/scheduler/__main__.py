"""python -m tessera.scheduler --config FILE"""

from __future__ import annotations

import sys

from tessera.config import load
from tessera.program import run
from tessera.scheduler.app import serve
from tessera.scheduler.config import SchedulerConfig


def main() -> None:
    config = load(SchedulerConfig, sys.argv[1:])
    run(lambda stop: serve(config, stop))


if __name__ == "__main__":
    main()
