"""python -m tessera.node_agent --config FILE"""

from __future__ import annotations

import sys

from tessera.config import load
from tessera.node_agent.app import serve
from tessera.node_agent.config import NodeAgentConfig
from tessera.program import run


def main() -> None:
    config = load(NodeAgentConfig, sys.argv[1:])
    run(lambda stop: serve(config, stop))


if __name__ == "__main__":
    main()
