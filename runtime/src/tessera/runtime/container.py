"""A runtime alone in its container: no zygote, one trust domain, its own folder and a store that it can only read.

python -m tessera.runtime.container --flavour ort --runtime-id ID --trust-domain D --run-folder /run/tessera --store /store [...]
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from tessera.domain.errors import TesseraError
from tessera.runtime.preparing import prepare


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 after a graceful end, 2 when the flavour cannot run here or the container was made wrongly."""
    parser = argparse.ArgumentParser(prog="tessera.runtime.container", description="One runtime, for a container of its own.")
    parser.add_argument("--flavour", required=True)
    parser.add_argument("--runtime-id", required=True)
    parser.add_argument("--trust-domain", required=True)
    parser.add_argument("--run-folder", required=True, type=Path, help="its own folder lies below, named by its id")
    parser.add_argument("--store", required=True, type=Path)
    parser.add_argument("--threads", type=int, default=1, help="intra-op threads")
    parser.add_argument("--workers", type=int, default=1, help="batches of different instances that run at a time")
    parser.add_argument("--orphan-s", type=float, default=600.0, help="how long it lives without an agent")
    parser.add_argument("--idle-after-s", type=float, default=0.0, help="when an instance without requests is parked; 0: never")
    parser.add_argument("--private", action="store_true", help="copy tensors instead of mapping them")
    found = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(name)s %(message)s")
    try:
        prepare(found.flavour)
    except TesseraError as error:
        print(error, file=sys.stderr)
        return 2
    if not (found.store / "blobs").is_dir():
        print(f"store {found.store} has no folder of blobs: what was mounted there is not a tensor store", file=sys.stderr)
        return 2

    # After the preparation: numpy is among what these import, and reads its environment then.
    from tessera.runtime import process
    from tessera.runtime.manager import RuntimeConfig

    config = RuntimeConfig(
        found.runtime_id,
        found.flavour,
        found.trust_domain,
        found.store,
        found.run_folder,
        found.threads,
        found.workers,
        found.private,
        found.orphan_s,
        found.idle_after_s,
    )
    process.run(config, lambda: None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
