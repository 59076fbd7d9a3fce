"""Where models live on two real nodes: a balancer gives them homes, and their starts go there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from e2e_models import save
from e2e_platform import Platform, until
from e2e_transformations import FEATURES, Stack

from tessera.sdk import Client

FAMILIES = {"plain": (16, 0), "deep": (24, 5)}
"""Siblings have one graph and no large tensor in common: bytes do not say that they belong together."""
GIVEN = np.ones((1, FEATURES), np.float32)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("homes")
    env = {"TESSERA_BALANCE_POLICY": "k-medoids", "TESSERA_TRANSFORM_IDLE_S": "0", "TESSERA_AUTOSCALING_POLICY": "none"}
    found = Platform(folder / "state", store="64M", nodes=2, env=env)
    try:
        found.up()
        with found.client() as client:
            for family, (width, blocks) in FAMILIES.items():
                for sibling in range(2):
                    path = save(Stack(width, blocks, sibling), (FEATURES,), folder / f"{family}{sibling}.pt2")
                    client.register(f"{family}{sibling}", path, wait=True)
        yield found
        found.check_stores()
    finally:
        found.end()


def started(client: Client) -> dict[str, Any]:
    """An answer of each model by an instance of its own, when nothing of any is there."""
    for node, instance in client.instances():
        if instance.state == "ready":
            client.stop_instance(node, instance.instance_id)
    until(lambda: not [1 for _, each in client.instances() if each.state in ("ready", "draining")], "everything is stopped")
    names = [f"{family}{sibling}" for sibling in range(2) for family in FAMILIES]
    return {name: client.infer(f"{name}@1/aten-fp32", {"x": GIVEN}, timeout_s=30) for name in names}


def test_models_of_one_structure_live_on_one_node_and_start_there(two: Platform) -> None:
    with two.client() as client:

        def at_home() -> dict[str, Any]:
            found = started(client)
            nodes = [{found[f"{family}{sibling}"].node for sibling in range(2)} for family in FAMILIES]
            return found if [len(each) for each in nodes] == [1, 1] and nodes[0] != nodes[1] else {}

        answers = until(at_home, "each family has a node of its own")
        homes = {name: answer.node for name, answer in answers.items()}
        assert set(homes.values()) == {"node-0", "node-1"}
        for _ in range(2):
            answers = started(client)
            assert {name: answer.node for name, answer in answers.items()} == homes, "and stays there"
    for name, answer in answers.items():
        account = two.json("explain", answer.request_id)
        (chosen,) = [option for option in account["start_options"] if option["chosen"]]
        others = [option for option in account["start_options"] if option["node"] != homes[name]]
        assert "lives elsewhere" not in chosen["reason"]
        assert others
        assert all("1000 ms because it lives elsewhere" in option["reason"] for option in others)
