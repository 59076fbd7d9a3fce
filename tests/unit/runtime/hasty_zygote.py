"""A zygote that hears of a runtime's end before it looks at its pipe, as it may happen: `hasty_zygote.py SOCKET RUN_FOLDER`."""

from __future__ import annotations

import inspect
import selectors
import sys
from pathlib import Path

from tessera.clock import SystemClock
from tessera.runtime.forking import Zygote, ZygoteConfig

Event = tuple[selectors.SelectorKey, int]


class SignalFirst(selectors.DefaultSelector):
    """When a pipe speaks it waits for the signal too, and tells of that first."""

    def select(self, timeout: float | None = None) -> list[Event]:
        found = super().select(timeout)
        while any(map(_pipe, found)) and not any(map(_signal, found)):
            found = super().select(timeout)
        return sorted(found, key=_signal, reverse=True)


def _signal(event: Event) -> bool:
    return isinstance(event[0].fileobj, int) and inspect.ismethod(event[0].data)


def _pipe(event: Event) -> bool:
    return isinstance(event[0].fileobj, int) and not _signal(event)


if __name__ == "__main__":
    zygote = Zygote(ZygoteConfig("ort", Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[2])), SystemClock())
    zygote._selector = SignalFirst()
    zygote.run()
