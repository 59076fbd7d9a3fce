"""Children started from an event loop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from tessera.program import ChildProcess


def _python(code: str, log: Path, *, piped: bool = False) -> ChildProcess:
    with log.open("wb") as words:
        return ChildProcess([sys.executable, "-c", code], stderr=words, piped=piped)


async def test_lines_come_as_they_are_printed_and_the_status_is_told(tmp_path: Path) -> None:
    child = _python("import sys; print('one'); print('two'); sys.exit(3)", tmp_path / "log", piped=True)
    assert [line async for line in child.lines()] == [b"one\n", b"two\n"]
    assert await child.wait() == 3
    assert child.returncode == 3


async def test_without_a_pipe_the_output_goes_where_the_words_go(tmp_path: Path) -> None:
    child = _python("print('to the log')", tmp_path / "log")
    assert await child.wait() == 0
    assert (tmp_path / "log").read_text() == "to the log\n"


async def test_a_signal_shows_as_its_negative_number(tmp_path: Path) -> None:
    child = _python("import time; time.sleep(60)", tmp_path / "log")
    assert child.returncode is None
    child.send_signal(signal.SIGTERM)
    assert await child.wait() == -signal.SIGTERM


async def test_killing_the_group_takes_grandchildren_along(tmp_path: Path) -> None:
    code = "import subprocess, sys; c = subprocess.Popen(['sleep', '60']); print(c.pid, flush=True); c.wait()"
    child = _python(code, tmp_path / "log", piped=True)
    grandchild = int(await anext(aiter(child.lines())))
    child.kill_group()
    assert child.returncode == -signal.SIGKILL
    for _ in range(500):
        if not _runs(grandchild):
            return
        await asyncio.sleep(0.01)
    pytest.fail("the grandchild lives on")


def _runs(pid: int) -> bool:
    """A zombie that waits for whoever adopted it does not run any more."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


async def test_waiting_may_be_cancelled_and_begun_again(tmp_path: Path) -> None:
    child = _python("import time; time.sleep(3)", tmp_path / "log")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await child.wait()
    assert await child.wait() == 0
