"""python -m tessera.registry --config FILE"""

from __future__ import annotations

import sys

from tessera.config import load
from tessera.program import run
from tessera.registry.app import serve
from tessera.registry.config import RegistryConfig


def main() -> None:
    config = load(RegistryConfig, sys.argv[1:])
    run(lambda stop: serve(config, stop))


if __name__ == "__main__":
    main()
