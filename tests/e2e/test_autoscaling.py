"""Instances follow a real load up and down, to another variant and to none, and no request is lost on the way.

What the variants answer at most is said by profiles that are written here, far below what they can, so that the load leaves the second
core to the instance that is to come: it comes only where a core is free.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import e2e_models
import pytest
from e2e_load import BATCH, Load
from e2e_models import Net, agrees
from e2e_platform import Platform, until
from e2e_profiles import write_profile

from tessera.sdk import Client

ORT, ATEN = "ort-fp32", "aten-fp32"
PEAK_PER_S, FAST_PER_S = 40.0, 400.0
KEEP_ALIVE_S = 4.0


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory, sources: Path) -> Iterator[Platform]:
    env = {"TESSERA_INSTANCE_KEEP_ALIVE_S": str(KEEP_ALIVE_S), "TESSERA_MOVE_INTERFERED": "false"}
    found = Platform(tmp_path_factory.mktemp("scaled") / "state", store="64M", env=env)
    found.up()
    try:
        with found.client() as client:
            client.register("net", sources / "net.pt2", wait=True)
        write_profile(found.layout.etcd_address, "net", ORT, PEAK_PER_S)
        yield found
        found.check_stores()
    finally:
        found.end()


def ready(client: Client) -> dict[str, str]:
    """Instance -> variant."""
    return {one.instance_id: one.variant.variant for _, one in client.instances() if one.state == "ready"}


def serving(client: Client) -> list[str]:
    return sorted(ready(client).values())


def times_the_peak(platform: Platform, model: str, net: Net, times: float) -> Load:
    threads = 4
    return Load(platform, model, net, threads=threads, pause_s=threads * BATCH / (times * PEAK_PER_S))


def test_a_second_instance_comes_and_goes_with_the_load_and_none_is_left_without_it(scaled: Platform, net: Net) -> None:
    with scaled.client() as client:
        with times_the_peak(scaled, f"net@1/{ORT}", net, 1.7) as load:
            until(lambda: serving(client) == [ORT, ORT], "two instances serve", 30)
            load.progress(40)
        with times_the_peak(scaled, f"net@1/{ORT}", net, 0.5) as less:
            until(lambda: serving(client) == [ORT], "one is enough", 30)
            less.progress(20)
        assert (load.errors, less.errors) == ([], [])
        until(lambda: not serving(client), "none is left", KEEP_ALIVE_S + 15)
        asked = e2e_models.images(1)
        (output,) = client.infer("net", {"image": asked}).outputs.values()
        assert agrees(output, net.eager(asked))


def test_an_instance_that_requests_wait_for_is_not_taken(scaled: Platform, net: Net) -> None:
    with scaled.client() as client, times_the_peak(scaled, f"net@1/{ORT}", net, 0.5) as load:
        (before,) = ready(client)
        with scaled.frozen("net", ORT):
            time.sleep(KEEP_ALIVE_S + 3)
        load.progress(20)
        assert before in ready(client)
    assert load.errors == []


def test_a_variant_that_answers_more_takes_over(scaled: Platform, net: Net) -> None:
    with scaled.client() as client:
        client.infer(f"net@1/{ORT}", {"image": e2e_models.images(1)})
        with times_the_peak(scaled, "net", net, 1.7) as load:
            write_profile(scaled.layout.etcd_address, "net", ATEN, FAST_PER_S)
            until(lambda: serving(client) == [ATEN], "the better variant serves alone", 40)
            load.progress(40)
    assert load.errors == []
