"""A node that becomes many times slower while it serves loses its load to another one, and no request is lost on the way."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import e2e_models
import pytest
from e2e_load import Load
from e2e_platform import Platform, until

from tessera.sdk import Client

STOPPED_S, RUNNING_S = 0.057, 0.003
"""Twenty times slower: a runtime that gets three milliseconds of sixty."""
NET = e2e_models.Net(1, width=256)
BATCH = 32
"""A run takes two or three times RUNNING_S: what fits between two stops is as fast as ever."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    env = {"TESSERA_AUTOSCALING_POLICY": "none"}  # else what waits behind slow runs may be given a second instance first
    source = e2e_models.save(NET, e2e_models.IMAGE, tmp_path_factory.mktemp("source") / "net.pt2")
    found = Platform(tmp_path_factory.mktemp("pair") / "state", store="64M", nodes=2, env=env)
    found.up()
    try:
        with found.client() as client:
            client.register("net", source, wait=True)
            for _ in client.run_profile("net", quick=True):
                pass
        yield found
        found.check_stores()
    finally:
        found.end()


@contextmanager
def throttled(pid: int) -> Iterator[None]:
    """The process runs in slices, as it would on a machine that others took over."""
    over = threading.Event()

    def slice_up() -> None:
        try:
            while not over.is_set():
                os.kill(pid, signal.SIGSTOP)
                time.sleep(STOPPED_S)
                os.kill(pid, signal.SIGCONT)
                time.sleep(RUNNING_S)
        except ProcessLookupError:
            pass

    thread = threading.Thread(target=slice_up, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(5)


def serving(client: Client) -> dict[str, tuple[str, int]]:
    """Instance -> (node, pid), of those that are ready."""
    return {one.instance_id: (node, one.pid) for node, one in client.instances() if one.variant.model == "net" and one.state == "ready"}


def test_load_leaves_a_node_that_became_slow(pair: Platform) -> None:
    with pair.client() as client, Load(pair, "net", NET, batch=BATCH) as load:
        load.progress(50)
        (name, (slow, pid)), *others = serving(client).items()
        assert not others
        began_s = time.monotonic()
        with throttled(pid):
            until(lambda: any(node != slow for node, _ in serving(client).values()), "another node serves it", 20)
            until(lambda: name not in serving(client), "the slow instance is gone", 20)
            print(f"moved after {time.monotonic() - began_s:.1f} s")
            load.progress(50)
    assert (load.wrong, load.errors) == ([], [])


def test_what_moves_is_told(pair: Platform) -> None:
    log = "".join(one.read_text() for one in (pair.state / "logs").glob("scheduler*.log"))  # whichever of the two leads
    assert "instance moves" in log
    assert "times the profiled" in log
