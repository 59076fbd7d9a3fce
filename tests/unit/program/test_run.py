"""A whole process: signals, exit codes, the loop."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

HEAD = """
import asyncio, sys
from tessera.program import Stop, Tasks, run
from tessera.domain.errors import FailedPrecondition

def say(text):
    print(text, flush=True)
"""


def start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", HEAD + code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    pytest.fail(f"the process ended without {text!r}: {process.communicate(timeout=20)[1]}")


SERVE = """
async def main(stop: Stop) -> None:
    say(type(asyncio.get_running_loop()).__module__)
    say("up")
    await stop.wait()
    say("stopping: " + stop.reason)
    await asyncio.sleep({clean_up_s})
    say("down")

run(main)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_gracefully(number: signal.Signals) -> None:
    with start(SERVE.format(clean_up_s=0.05)) as process:
        wait_for(process, "up")
        process.send_signal(number)
        out, error = process.communicate(timeout=20)
    assert out.splitlines() == [f"stopping: signal {number.name}", "down"]
    assert process.returncode == 0
    assert "Traceback" not in error


def test_it_runs_on_uvloop() -> None:
    with start(SERVE.format(clean_up_s=0)) as process:
        wait_for(process, "uvloop")
        wait_for(process, "up")
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode == 0


def test_a_second_signal_kills() -> None:
    with start(SERVE.format(clean_up_s=60)) as process:
        wait_for(process, "up")
        process.send_signal(signal.SIGTERM)
        wait_for(process, "stopping")
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert "down" not in out


@pytest.mark.parametrize(("raised", "traceback"), [("FailedPrecondition('address in use')", False), ("ZeroDivisionError('odd')", True)])
def test_a_failing_main_is_exit_code_1(raised: str, traceback: bool) -> None:
    with start(f"async def main(stop):\n    raise {raised}\nrun(main)") as process:
        _, error = process.communicate(timeout=20)
    assert process.returncode == 1
    assert ("address in use" in error) or ("odd" in error)
    assert ("Traceback" in error) is traceback


@pytest.mark.parametrize("leaves", ["await stop.wait()", "await asyncio.sleep(0.01)\n        return"])
def test_a_failing_task_is_exit_code_1(leaves: str) -> None:
    code = f"""
async def bad():
    raise FailedPrecondition("lost the lease")

async def main(stop):
    async with Tasks(stop) as tasks:
        tasks.start("lease", bad())
        {leaves}

run(main)
"""
    with start(code) as process:
        _, error = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "lost the lease" in error


def test_main_may_just_return() -> None:
    with start("async def main(stop):\n    say('done')\nrun(main)") as process:
        out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "done\n")


def test_it_may_open_as_many_files_as_is_allowed_at_most() -> None:
    code = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 300))

async def main(stop):
    say(resource.getrlimit(resource.RLIMIT_NOFILE))

run(main)
"""
    with start(code) as process:
        out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "(300, 300)\n")
