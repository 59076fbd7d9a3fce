"""python -m deploy.compose up|down|logs [--with gpu ...]: what `make compose-up` and `make compose-down` run."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from deploy.compose.cluster import FOLDER, Cluster
from deploy.compose.engine import EngineError

UP_S = 300.0


def say(text: str) -> None:
    sys.stderr.write(f"compose: {text}\n")


def main() -> int:
    """Exit code 1 when the cluster does not come up, or something of it is left."""
    parser = argparse.ArgumentParser(prog="deploy.compose", description=__doc__)
    parser.add_argument("what", choices=("up", "down", "logs"))
    parser.add_argument("--project", default=os.environ.get("COMPOSE_PROJECT_NAME", "tessera"))
    parser.add_argument("--port-base", type=int, default=8000, help="gRPC on +1, metrics on +2, admin on +3")
    parser.add_argument("--secrets", type=Path, default=FOLDER / "secrets")
    parser.add_argument("--with", dest="overrides", action="append", default=[], help="an override: gpu, observability, pool")
    parser.add_argument("--within", type=float, default=UP_S, help="seconds until everything must be healthy")
    given = parser.parse_args()
    cluster = Cluster(given.project, given.port_base, given.secrets.resolve(), overrides=given.overrides, say=say)
    try:
        if given.what == "logs":
            print(cluster.logs())
        elif given.what == "up":
            cluster.up(given.within)
            say(f"up: gRPC (Open Inference) on {cluster.endpoint}, admin token in {cluster.token_file}")
        else:
            left = cluster.down()
            if left:
                raise EngineError("left behind: " + "; ".join(left))
            say("down: no container, volume, network or mount is left")
    except EngineError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
