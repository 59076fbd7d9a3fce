"""How a process starts, runs its parts and stops: signals, owned tasks, the order of stopping."""

from tessera.program._child import ChildProcess
from tessera.program._host import host_id
from tessera.program._routines import Routine, Routines
from tessera.program._run import run
from tessera.program._stop import Stop
from tessera.program._tasks import Tasks, to_the_end

__all__ = ["ChildProcess", "Routine", "Routines", "Stop", "Tasks", "host_id", "run", "to_the_end"]
