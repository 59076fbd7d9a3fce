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

from tessera.api.node.v1.node_pb2 import Instance
from tessera.sdk import Client

SLOWER = 20
"""So many times: of twenty slices of time a runtime gets one."""
RUN_SLICES = 2.5
"""So many of those that it gets a run takes: what fits between two stops is as fast as ever."""
MOVED_S = 60.0
"""Enough for one that moved lately too: that is left alone for half a minute."""
NET = e2e_models.Net(1, width=384)
BATCH = 32
"""With that width large enough that a slice is some milliseconds, which a sleep can hit, on fast machines too."""


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
def throttled(pid: int, running_s: float) -> Iterator[None]:
    """The process runs in slices, as it would on a machine that others took over."""
    over = threading.Event()

    def slice_up() -> None:
        try:
            while not over.is_set():
                os.kill(pid, signal.SIGSTOP)
                time.sleep((SLOWER - 1) * running_s)
                os.kill(pid, signal.SIGCONT)
                time.sleep(running_s)
        except ProcessLookupError:
            pass

    thread = threading.Thread(target=slice_up, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(5)


def serving(client: Client) -> dict[str, tuple[str, Instance]]:
    """Instance id -> (node, instance), of those that are ready."""
    return {one.instance_id: (node, one) for node, one in client.instances() if one.variant.model == "net" and one.state == "ready"}


def run_s(client: Client) -> float:
    """What a run takes: the least median of some seconds, as the machine may have other things to do."""
    seen: list[float] = []
    for _ in range(8):
        seen += [one.run_p50_ms / 1e3 for _, one in serving(client).values() if one.run_p50_ms]
        time.sleep(0.5)
    return min(seen)


def the_only_one(client: Client) -> tuple[str, str, int] | None:
    """(instance id, node, pid), unless a move is under way: other things that the machine does may have caused one already."""
    found = [(name, node, one.pid) for name, (node, one) in serving(client).items()]
    return found[0] if len(found) == 1 else None


def test_load_leaves_a_node_that_became_slow(pair: Platform) -> None:
    with pair.client() as client, Load(pair, "net", NET, batch=BATCH) as load:
        load.progress(50)
        running_s = run_s(client) / RUN_SLICES
        assert running_s > 0.001, "too short for a sleep: widen NET"
        name, slow, pid = until(lambda: the_only_one(client), "one instance serves it")
        began_s = time.monotonic()
        with throttled(pid, running_s):
            until(lambda: any(node != slow for node, _ in serving(client).values()), "another node serves it", MOVED_S)
            until(lambda: name not in serving(client), "the slow instance is gone", MOVED_S)
            print(f"moved after {time.monotonic() - began_s:.1f} s, in slices of {running_s * 1e3:.1f} ms")
            load.progress(50)
    assert (load.wrong, load.errors) == ([], [])


def test_what_moves_is_told(pair: Platform) -> None:
    log = "".join(one.read_text() for one in (pair.state / "logs").glob("scheduler*.log"))  # whichever of the two leads
    assert "instance moves" in log
    assert "times the profiled" in log
