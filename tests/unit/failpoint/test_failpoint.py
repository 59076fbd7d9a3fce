from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tessera import failpoint
from tessera.domain.errors import Conflict, Internal, InvalidInput, Unavailable


@pytest.fixture(autouse=True)
def none_is_left() -> Iterator[None]:
    failpoint.clear()
    yield
    failpoint.clear()


def outcomes(name: str, times: int) -> list[str]:
    seen = []
    for _ in range(times):
        try:
            failpoint.hit(name)
            seen.append("")
        except Exception as error:
            seen.append(str(error))
    return seen


def test_nothing_is_set() -> None:
    failpoint.hit("a")
    assert failpoint.count("a") == 0


def test_terms_follow_each_other_and_end() -> None:
    with failpoint.active("a=1*off->2*error(bad)->1*error(worse)"):
        assert outcomes("a", 6) == ["", "bad", "bad", "worse", "", ""]
        assert failpoint.count("a") == 6
        failpoint.hit("b")
        assert failpoint.count("b") == 0
    assert outcomes("a", 1) == [""]


def test_a_term_without_a_count_stays() -> None:
    with failpoint.active("a=1*off->error(always)"):
        assert outcomes("a", 4) == ["", "always", "always", "always"]
    with failpoint.active("a=0*error(never)->off"):
        assert outcomes("a", 2) == ["", ""]


def test_kinds_of_errors() -> None:
    with failpoint.active("a=error(unavailable: gone away); b=error(conflict:); c=error; d=error(see: http)"):
        with pytest.raises(Unavailable, match=r"^gone away$"):
            failpoint.hit("a")
        with pytest.raises(Conflict):
            failpoint.hit("b")
        with pytest.raises(Internal, match="failpoint c"):
            failpoint.hit("c")
        with pytest.raises(Internal, match="http"):
            failpoint.hit("d")


def test_system_errors() -> None:
    with failpoint.active("disk=oserror(ENOSPC);any=oserror(5)"):
        with pytest.raises(OSError, match="failpoint disk") as caught:
            failpoint.hit("disk")
        assert caught.value.errno == errno.ENOSPC
        with pytest.raises(OSError) as other:
            failpoint.hit("any")
        assert other.value.errno == 5


async def test_an_async_delay_lets_others_run() -> None:
    with failpoint.active("a=1*delay(0.05)->1*error(bad)"):
        waiting = asyncio.ensure_future(failpoint.async_hit("a"))
        await asyncio.sleep(0)
        assert not waiting.done()
        await asyncio.wait_for(waiting, 5)
        with pytest.raises(Internal, match="bad"):
            await failpoint.async_hit("a")
        await failpoint.async_hit("a")


def test_points_nest() -> None:
    with failpoint.active("a=error(outer)"):
        with failpoint.active("a=error(inner)"):
            assert outcomes("a", 1) == ["inner"]
        assert outcomes("a", 1) == ["outer"]
    assert outcomes("a", 1) == [""]


def test_no_delay_still_counts_as_a_hit() -> None:
    with failpoint.active("a=delay(0)"):
        failpoint.hit("a")
        assert failpoint.count("a") == 1


@pytest.mark.parametrize(
    "text",
    ["a", "=off", "a b=off", "a=", "a=explode", "a=2*", "a=x*off", "a=delay", "a=delay(soon)", "a=delay(-1)", "a=delay(nan)",
     "a=oserror(EWHAT)", "a=oserror", "a=off(x)", "a=kill(now)", "a=off->", "a=error(unclosed"],
)  # fmt: skip
def test_what_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(InvalidInput, match="failpoint"):
        failpoint.configure(text)
    assert outcomes("a", 1) == [""]


def run_python(code: str, points: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TESSERA_FAILPOINTS": points}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_kill_ends_the_process_at_once() -> None:
    code = "import atexit; from tessera import failpoint; atexit.register(print, 'cleaned up'); failpoint.hit('x'); failpoint.hit('x')"
    ended = run_python(code, "x=1*off->kill")
    assert ended.returncode == 137
    assert ended.stdout == ""


def test_a_malformed_environment_is_an_error() -> None:
    ended = run_python("import tessera.failpoint", "x=explode")
    assert ended.returncode == 1
    assert "failpoint action 'explode'" in ended.stderr
