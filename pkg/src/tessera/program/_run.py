"""The outermost shell of a process: event loop, signals, exit code."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable

import structlog
import uvloop

from tessera.program._stop import Stop
from tessera.program._tasks import log_failure

_log = structlog.get_logger(_logger="tessera.program")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run(main: Callable[[Stop], Awaitable[None]]) -> None:
    """Runs `main` on uvloop until it returns. SIGTERM or SIGINT sets its stop; a second one kills the process.

    Ends the process with code 1 when `main` raised, or when something stopped the program by failing (`stop.error`). May open as many
    files as the system allows at most, not only the 1024 that it commonly grants unasked.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if not structlog.is_configured():
        # A process without telemetry still keeps its standard output for its results.
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    failure: BaseException | None = None
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            failure = runner.run(_main(main))
        except Exception as error:
            log_failure("the program failed", "main", error)
            failure = error
    if failure is not None:
        raise SystemExit(1)


async def _main(main: Callable[[Stop], Awaitable[None]]) -> BaseException | None:
    stop = Stop()
    loop = asyncio.get_running_loop()

    def received(number: signal.Signals) -> None:
        if stop.is_set() and stop.reason.startswith("signal "):
            _log.warning("second signal: ending at once", signal=number.name)
            # As if there were no handler, so that whoever waits for us sees the signal.
            for each in _SIGNALS:
                loop.remove_signal_handler(each)
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        _log.info("stopping", signal=number.name)
        stop.request(f"signal {number.name}")

    for number in _SIGNALS:
        loop.add_signal_handler(number, received, number)
    try:
        await main(stop)
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
    return stop.error
