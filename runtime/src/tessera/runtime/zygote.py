"""A zygote: imports the backends of one flavour, runs nothing, and forks runtimes on request.

python -m tessera.runtime.zygote --flavour ort --socket RUN/zygote-ort.sock --run-folder RUN --store STORE [--threads N] [--orphan-s S]
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tessera.clock import SystemClock
from tessera.domain.errors import TesseraError
from tessera.runtime.preparing import prepare
from tessera.runtime.users import become

_log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 after a graceful end, 2 when the flavour cannot run here."""
    parser = argparse.ArgumentParser(prog="tessera.runtime.zygote", description="Forks runtimes of one flavour.")
    parser.add_argument("--flavour", required=True)
    parser.add_argument("--socket", required=True, type=Path)
    parser.add_argument("--run-folder", required=True, type=Path)
    parser.add_argument("--store", required=True, type=Path)
    parser.add_argument("--threads", type=int, default=1, help="intra-op threads of a runtime")
    parser.add_argument("--workers", type=int, default=1, help="batches of different instances that a runtime runs at a time")
    parser.add_argument("--orphan-s", type=float, default=600.0, help="how long it lives without an agent")
    parser.add_argument("--user", type=int, default=None, help="the user id to run as (this process starts as root)")
    found = parser.parse_args(arguments)
    if found.user is not None:
        become(found.user)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(name)s %(message)s")
    return _serve(found)


def _serve(found: argparse.Namespace) -> int:
    try:
        prepare(found.flavour)
    except TesseraError as error:
        print(error, file=sys.stderr)
        return 2
    # After the preparation: numpy is among what this imports, and reads its environment then.
    from tessera.runtime.forking import Zygote, ZygoteConfig

    config = ZygoteConfig(found.flavour, found.socket, found.run_folder, found.store, found.threads, found.workers, found.orphan_s)
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        _log.warning("%d threads run before the first fork; children will not have them", threads)
    gc.collect()
    gc.freeze()
    Zygote(config, SystemClock()).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
