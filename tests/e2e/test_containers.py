"""A platform whose runtimes are containers: starts, a killed container, an agent that comes back."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import e2e_models
import numpy as np
import psutil
import pytest
from e2e_platform import Platform, until

from tessera.domain.errors import TesseraError
from tessera.sdk import Client

pytestmark = pytest.mark.docker

MODEL = "net@1/ort-fp32"


@pytest.fixture(scope="module")
def contained(tmp_path_factory: pytest.TempPathFactory, sources: Path, ort_image: str) -> Iterator[Platform]:
    settings = {"RUNTIMES": "container", "RUNTIME_IMAGES": json.dumps({"ort": ort_image}), "FLAVOURS": json.dumps(["ort"])}
    found = Platform(tmp_path_factory.mktemp("contained") / "state", env={f"TESSERA_{name}": value for name, value in settings.items()})
    found.up()
    try:
        with found.client() as client:
            client.register("net", sources / "net.pt2", wait=True)
            client.register("sibling", sources / "sibling.pt2", wait=True)
        yield found
        done = found.down()
        assert (done.returncode, found.leftovers()) == (0, []), done.stderr
    finally:
        found.end()


@pytest.fixture
def client(contained: Platform) -> Iterator[Client]:
    with contained.client() as found:
        yield found


def ask(client: Client, net: e2e_models.Net, model: str = MODEL) -> Any:
    images = np.random.default_rng(5).standard_normal((2, *e2e_models.IMAGE)).astype(np.float32)
    answer = client.infer(model, {"image": images}, timeout_s=60)
    np.testing.assert_allclose(next(iter(answer.outputs.values())), net.eager(images), atol=1e-4)
    return answer


def pid_of(client: Client, model: str) -> int:
    """The process in which a model's ready instance lives, as the machine sees it."""
    return next(instance.pid for _, instance in client.instances() if (instance.variant.model, instance.state) == (model, "ready"))


def test_first_answers_come_out_of_warm_containers(contained: Platform, client: Client) -> None:
    assert ask(client, e2e_models.Net(1)).start_path in {"bind", "container"}
    assert ask(client, e2e_models.Net(2), "sibling@1/ort-fp32").start_path == "bind"
    assert ask(client, e2e_models.Net(1)).start_path == "warm"
    container = psutil.Process(pid_of(client, "net"))
    assert "tessera.runtime.container" in container.cmdline()
    if os.geteuid() == 0:
        assert container.uids().real != 0


def test_a_killed_container_costs_a_start_and_no_wrong_answer(contained: Platform, client: Client) -> None:
    ask(client, e2e_models.Net(1))
    os.kill(pid_of(client, "net"), signal.SIGKILL)

    def answered() -> Any:
        try:
            return ask(client, e2e_models.Net(1))
        except TesseraError:  # its request may have been under way
            return None

    assert until(answered, "an answer after a container was killed").start_path in {"bind", "container"}


def test_a_killed_agent_comes_back_to_its_containers(contained: Platform, client: Client) -> None:
    ask(client, e2e_models.Net(1))
    before = pid_of(client, "net")
    agent = contained.kill("node-agent-0")
    assert ask(client, e2e_models.Net(1)).start_path == "warm"  # while nobody is at home
    contained.until_restarted("node-agent-0", agent)
    until(lambda: [i.pid for _, i in client.instances() if i.variant.model == "net" and i.state == "ready"] == [before], "it is adopted")
    assert ask(client, e2e_models.Net(1)).start_path == "warm"
