"""An idle model becomes another one on a real platform, where that is the cheapest start; who asks sees right answers alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import e2e_models
import numpy as np
import pytest
from e2e_platform import Platform, until

from tessera.sdk import Client

IDLE_S = 1.0
REPORT_S = 1.0
"""The scheduler decides by the last report of a node, which is as old at most; by more where the machine is busy."""
NETS = {"narrow": (1, 64), "sibling": (2, 64), "wide": (3, 96)}
"""Head seed and width: the first two have one graph."""


@pytest.fixture(scope="module")
def changing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("changing")
    found = Platform(folder / "state", store="64M", env={"TESSERA_TRANSFORM_IDLE_S": str(IDLE_S), "TESSERA_LEARN_START_TIMES": "false"})
    try:
        found.up()
        with found.client() as client:
            for name, (seed, width) in NETS.items():
                path = e2e_models.save(e2e_models.Net(seed, width), e2e_models.IMAGE, folder / f"{name}.pt2")
                client.register(name, path, wait=True)
        yield found
        found.check_stores()
    finally:
        found.end()


def ask(client: Client, name: str, given: np.ndarray) -> Any:
    """Of the flat program, by name: alone it can be transformed."""
    return client.infer(f"{name}@1/aten-fp32", {"image": given}, timeout_s=30)


def until_idle(client: Client, name: str) -> None:
    def idle() -> bool:
        found = [i for _, i in client.instances() if (i.variant.model, i.state) == (name, "ready")]
        return bool(found) and all(instance.idle_s > IDLE_S + 2 * REPORT_S for instance in found)

    until(idle, f"{name} is idle", 20.0)


def test_models_become_each_other_in_one_runtime(changing: Platform) -> None:
    images = e2e_models.images(3)
    eager = {name: e2e_models.Net(*shape).eager(images) for name, shape in NETS.items()}
    with changing.client() as client:
        first = ask(client, "narrow", images)
        assert first.start_path in ("bind", "fork")
        before: str | None = "narrow"
        for name in ("wide", "sibling", "narrow"):
            assert before is not None
            until_idle(client, before)
            answer = ask(client, name, images)
            np.testing.assert_allclose(next(iter(answer.outputs.values())), eager[name], atol=1e-4)
            assert answer.start_path == "transform", json.dumps(changing.json("explain", answer.request_id)["start_options"])
            before = name
        account = changing.json("explain", answer.request_id)
        spans = {span["name"] for span in changing.json("trace", "show", answer.request_id)}
        ready = [i for _, i in client.instances() if i.state == "ready"]
        assert [(i.variant.model, i.start_path) for i in ready] == [("narrow", "transform")]
    options = {option["start_path"]: option for option in account["start_options"]}
    assert options["transform"]["chosen"]
    assert "out of i-" in options["transform"]["reason"]
    assert "which comes back with a chance of" in options["transform"]["reason"]
    assert "more than transform" in options["bind"]["reason"]
    assert {"tessera.node_agent.map", "tessera.node_agent.transform"} <= spans
    stages = account["stages_ms"]
    assert stages["transform"] > 0, json.dumps(stages)


@pytest.mark.parametrize("planner", ["tessera", "group", "munkres"])
def test_a_plan_is_shown_with_its_operators_and_costs(changing: Platform, planner: str) -> None:
    shown = changing.json("plan", "show", "narrow", "wide@1/aten-fp32", "--planner", planner)
    assert (shown["source"], shown["target"], shown["planner"]) == ("narrow@1/aten-fp32", "wide@1/aten-fp32", planner)
    steps = shown["steps"]
    operators = {step["operator"] for step in steps}
    if planner == "group":  # keeps whatever is of one kind; the others may find that adding costs no more
        assert shown["source_operations"] == shown["target_operations"] == shown["kept"]
        assert operators == {"reshape"}
    assert {"aten.conv2d.default", "aten.linear.default"} <= {step["kind"] for step in steps}
    assert operators <= {"reduce", "replace", "reshape", "add", "edge"}
    assert all(step["cost_ms"] > 0 and {step["source"], step["target"]} != {None} for step in steps)
    assert shown["expected_ms"] == pytest.approx(shown["base_ms"] + sum(step["cost_ms"] for step in steps), abs=1e-3)
    sibling = changing.json("plan", "show", "narrow", "sibling", "--planner", planner)
    changed = {(step["operator"], step["kind"]) for step in sibling["steps"]}
    assert changed == {("replace", "aten.linear.default")}, "the trunk is the same bytes"
    told = changing.tessera("plan", "show", "narrow", "wide", "--planner", planner, "--steps")
    assert (told.returncode, told.stdout.count("aten.conv2d.default")) == (0, sum(step["kind"] == "aten.conv2d.default" for step in steps))
    assert f"{shown['kept']} of {shown['source_operations']} operations stay" in told.stderr
    assert "assumed: no node class was measured" in told.stderr
    assert (shown["costs"], changing.json("plan", "costs")) == (None, [])


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("narrow", "nobody"), 1, "model 'nobody' is not registered"),
        (("narrow@7", "wide"), 1, "model 'narrow' has no version 7; it has 1"),
        (("narrow", "wide@1/int4"), 1, "variant 'wide@1/int4' does not exist; there are aten-fp32, ort-fp32"),
        (("narrow", "wide@1/ort-fp32"), 1, "is of backend ort: instances of aten alone become others"),
        (("narrow", "wide", "--planner", "best"), 2, "planner 'best': one of group, munkres, tessera"),
        (("narrow@x", "wide"), 2, "model version 'x'"),
        (("narrow", "wide", "--class", "odd"), 1, "transformations on profile class 'odd': not measured; measured are none"),
    ],
)
def test_what_cannot_be_planned_is_said(changing: Platform, words: tuple[str, ...], code: int, said: str) -> None:
    done = changing.tessera("plan", "show", *words)
    assert done.returncode == code, done.stderr
    assert said in done.stderr


def test_what_was_asked_just_now_is_left_alone(changing: Platform) -> None:
    images = e2e_models.images(1)
    with changing.client() as client:
        ask(client, "wide", images)
        before = {i.instance_id for _, i in client.instances() if (i.variant.model, i.state) == ("wide", "ready")}
        ask(client, "sibling", images)
        after = {i.instance_id for _, i in client.instances() if (i.variant.model, i.state) == ("wide", "ready")}
    assert before == after
