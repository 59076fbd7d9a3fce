"""Parks instances that have been idle for long: their mappings stay, their session with its threads and its memory goes.

Why: an open session of resnet50 keeps 0.8 MiB of private memory, its values another 0.2 and a thread for each further core; what the
store maps costs nothing. Opening again takes milliseconds (`OrtBackend`), a program of `aten` half of one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Executor

from tessera.runtime.backends.interface import Loaded
from tessera.runtime.blobs import ArtifactBlobs
from tessera.runtime.instance import Instance

_log = logging.getLogger(__name__)

SHORTEST_LOOK_S = 0.05


class Parking:
    """One per runtime, on its event loop; what it takes away is closed by `loader`, before anything that is asked of that later.

    Args:
        idle_after_s: how long an instance has nothing to do before it is parked; 0: none is.
        held: the instances of the runtime, with their bytes.
        parked: called after some were parked, on the loop.
    """

    def __init__(
        self,
        idle_after_s: float,
        held: Callable[[], Iterable[tuple[Instance, ArtifactBlobs]]],
        loader: Executor,
        parked: Callable[[], None],
    ) -> None:
        self._idle_after_s = idle_after_s
        self._held = held
        self._loader = loader
        self._parked = parked
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False

    def watch(self) -> None:
        """Something was opened: it may become idle."""
        if self._timer is None and self._idle_after_s > 0 and not self._stopped:
            self._timer = self._loop.call_later(self._idle_after_s, self._look)

    def stop(self) -> None:
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        """Parks what is idle for long enough, and comes back when the next one may be."""
        self._timer = None
        count = 0
        waits_s: list[float] = []
        for instance, blobs in self._held():
            if instance.loaded is None or instance.loaded.inline:
                continue
            left_s = self._idle_after_s - instance.idle_s
            loaded = instance.park() if left_s <= 0 else None
            if loaded is not None:
                self._loader.submit(_close, instance, loaded, blobs)
                count += 1
            else:
                waits_s.append(left_s)
        if waits_s:
            self._timer = self._loop.call_later(max(min(waits_s), SHORTEST_LOOK_S), self._look)
        if count:
            _log.info("%d instances parked", count)
            self._parked()


def _close(instance: Instance, loaded: Loaded, blobs: ArtifactBlobs) -> None:
    try:
        loaded.close()
        blobs.forget_derived()
    except Exception:
        _log.exception("%s could not be closed to be parked", instance.identity.variant)
