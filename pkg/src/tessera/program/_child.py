"""Starting other programs from an event loop.

By `subprocess`, which starts by vfork, and not by asyncio's: uvloop forks, and gRPC's fork handlers crash a child that is forked while
calls are under way (segmentation faults in its event engine's threads, seen when runs of a program were started by a busy server).
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import IO

_LINE_LIMIT_BYTES = 64 << 20


class ChildProcess:
    """A program in a session of its own, with no input. Its words go to `stderr`; its output there too, or to `lines` where `piped`."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        stderr: IO[bytes],
        piped: bool = False,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if piped else stderr,
            stderr=stderr,
            start_new_session=True,
            cwd=cwd,
            env=env,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, the negative signal number where one ended it, None while it runs."""
        return self._process.poll()

    async def lines(self) -> AsyncIterator[bytes]:
        """What it prints, line by line, until it closes its output."""
        reader = asyncio.StreamReader(limit=_LINE_LIMIT_BYTES)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), self._process.stdout
        )
        try:
            async for line in reader:
                yield line
        finally:
            transport.close()

    async def wait(self) -> int:
        """Waits for its end, with no thread that would outlive a cancelled caller."""
        if self._process.poll() is None:
            descriptor = os.pidfd_open(self._process.pid)
            loop = asyncio.get_running_loop()
            ended = asyncio.Event()
            loop.add_reader(descriptor, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(descriptor)
                os.close(descriptor)
        return self._process.wait()

    def send_signal(self, number: signal.Signals) -> None:
        """To the process itself; nothing happens when it has ended."""
        self._process.send_signal(number)

    def kill_group(self) -> None:
        """Kills it with all of its children and reaps it; a killed process is gone in no time, so this does not hold up the loop."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it ended, and so did all of its children
        self._process.wait()
