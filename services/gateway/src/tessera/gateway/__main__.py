"""python -m tessera.gateway --config FILE"""

from __future__ import annotations

import sys

from tessera.config import load
from tessera.frames.heap import keep_freed_memory
from tessera.gateway.app import serve
from tessera.gateway.config import GatewayConfig
from tessera.program import run


def main() -> None:
    keep_freed_memory()
    config = load(GatewayConfig, sys.argv[1:])
    run(lambda stop: serve(config, stop))


if __name__ == "__main__":
    main()
