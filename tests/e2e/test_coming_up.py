"""`tessera up` where it cannot: it says why, and leaves nothing."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from e2e_platform import Platform, free_port_base, tessera


def test_ports_in_use_are_named_and_nothing_is_left(tmp_path: Path) -> None:
    base = free_port_base()
    other = Platform(tmp_path / "state")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", base + 11))
        taken.listen()
        done = tessera("up", "--detach", "--state", str(other.state), "--port-base", str(base))
        assert done.returncode == 1
        assert f"{base + 11} (scheduler)" in done.stderr
        assert "--port-base" in done.stderr
        examined = tessera("doctor", "--state", str(other.state), "-o", "json")
    assert examined.returncode == 0, "the default ports are meant: nobody recorded others"
    assert other.leftovers() == []


@pytest.mark.parametrize("where", ["/proc/tessera", "file"])
def test_an_unwritable_state_folder_is_named(tmp_path: Path, where: str) -> None:
    state = Path(where)
    if where == "file":
        state = tmp_path / "file" / "state"
        state.parent.write_text("in the way")
    done = tessera("up", "--detach", "--state", str(state), "--port-base", str(free_port_base()))
    assert done.returncode == 1
    assert f"state folder {state} cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert Platform(state).leftovers() == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--port-base", "80"), "--port-base 80: must be from 1024"),
        (("--nodes", "0"), "--nodes 0: must be from 1"),
        (("--store", "1M"), "--store '1M': must be at least 64M"),
        (("--store", "lots"), "--store 'lots': must be a number"),
    ],
)
def test_bad_options_of_up_are_usage_errors(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    done = tessera("up", "--detach", "--state", str(tmp_path / "state"), *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "state").exists()


def test_a_store_larger_than_the_machine_is_refused_with_both_figures(tmp_path: Path) -> None:
    other = Platform(tmp_path / "state", store="99999G")
    done = tessera("up", "--detach", "--state", str(other.state), "--port-base", str(other.port_base), "--store", other.store)
    try:
        assert done.returncode == 1
        assert str(99999 << 30) in done.stderr
        assert "memory" in done.stderr
    finally:
        other.end()
    assert other.leftovers() == []
