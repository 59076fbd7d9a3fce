"""`python -m tessera.registry.importer TASK.json`: one import, confined. Events as JSON lines on standard output.

Exit status 0 when the last event is `made` or `failure`; anything else means that the process died.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from tessera.registry.importer.confine import confine, install_audit_hook
from tessera.registry.importer.run import read_task, run
from tessera.registry.importer.task import Event, Failure, Progress, encode_event


def main(arguments: list[str]) -> int:
    events = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # libraries print; only events may reach the pipe

    def send(event: Event) -> None:
        events.write(encode_event(event))

    task = read_task(Path(arguments[0]))
    network = confine(task.limits, int(arguments[1]))
    install_audit_hook(Path(task.out))
    if network == "hook":
        send(Progress("importing", "no network namespace can be made here: connections are refused inside the process instead", 0.0))

    from tessera.domain.errors import TesseraError

    try:
        made = run(task, lambda message, fraction: send(Progress("importing", message, fraction)))
    except TesseraError as error:
        send(Failure(error.kind, error.message))
    except PermissionError as error:
        send(Failure("unsupported", f"the model wants what the import sandbox forbids: {error}"))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
        send(Failure("resource_exhausted" if full else "internal", f"the import cannot read or write its files: {error}"))
    except MemoryError:
        send(Failure("resource_exhausted", f"the import needs more than {task.limits.memory_bytes} bytes of memory"))
    except RecursionError:
        send(Failure("invalid_input", "source: nested too deeply"))
    else:
        send(made)
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # torch's and ONNX Runtime's threads need no farewell
