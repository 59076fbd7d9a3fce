"""Three networks of one task on a real platform: each objective has its network, whoever asks."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import e2e_models
import numpy as np
import pytest
import tritonclient.grpc as triton
from e2e_load import Load
from e2e_platform import Platform
from test_cli import KEYS

from tessera.sdk import Client, FailedPrecondition, InvalidInput, Objectives

NETWORKS = {"small": (4, 0.80), "middle": (64, 0.90), "large": (256, 0.97)}
"""Width and stated accuracy."""
THREADS = 4
LOAD_S = 5.0
EXPLAINED = 50


@pytest.fixture(scope="module")
def networks(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> dict[str, e2e_models.Net]:
    """Registered and measured at batch 1."""
    folder = tmp_path_factory.mktemp("networks")
    made = {}
    with platform.client() as client:
        for name, (width, accuracy) in NETWORKS.items():
            made[name] = e2e_models.Net(1, width)
            path = e2e_models.save(made[name], e2e_models.IMAGE, folder / f"{name}.pt2")
            client.register(name, path, task="sizes", dataset="made-up", accuracy=accuracy, wait=True)
            for _ in client.run_profile(name, quick=True):
                pass
    return made


@pytest.mark.parametrize(
    ("objectives", "network"),
    [
        ({"latency_ms": 500}, "small"),
        ({"latency_ms": 500, "min_accuracy": 0.85}, "middle"),
        ({"min_accuracy": 0.95, "strict": True}, "large"),
    ],
)
def test_each_objective_has_its_network(
    platform: Platform, networks: dict[str, e2e_models.Net], objectives: dict[str, Any], network: str
) -> None:
    """By an unmodified tritonclient."""
    images = e2e_models.images(2)
    with triton.InferenceServerClient(platform.endpoint) as client:
        described = client.get_model_metadata("task:sizes")
        given = triton.InferInput(described.inputs[0].name, list(images.shape), "FP32")
        given.set_data_from_numpy(images)
        answer = client.infer("task:sizes", [given], parameters=objectives)
        said = {name: value.string_param for name, value in answer.get_response().parameters.items()}
        assert said["model"] == f"{network}@1"
        assert "objective_missed" not in said
        assert e2e_models.agrees(answer.as_numpy(described.outputs[0].name), networks[network].eager(images))


def test_a_load_keeps_its_objective(platform: Platform, client: Client, networks: dict[str, e2e_models.Net]) -> None:
    """Closed loop. What a request may take: ten times as long as all of them one after another run by the profile, and what a busy machine
    does in between. The gateway's word on each counts as well as the client's."""
    run_ms = max(row.p50_ms for profile in client.profiles("large") for row in profile.rows)
    objectives = Objectives(latency_ms=100.0 + 10 * THREADS * run_ms, min_accuracy=0.95)
    with Load(platform, "task:sizes", networks["large"], threads=THREADS, batch=1, pause_s=0.0, objectives=objectives) as load:
        started = len(load.answers)
        time.sleep(LOAD_S)
    assert load.errors == []
    asked = load.answers[started:]
    assert len(asked) > EXPLAINED
    assert {answer.answered_by for _, answer in asked} == {"large@1"}
    assert share(ms <= objectives.latency_ms for ms, _ in asked) >= 0.95
    assert share(answer.objective_missed == "" for _, answer in asked) >= 0.95, "what the gateway expected"
    told = [client.explain(answer.request_id) for _, answer in asked[-EXPLAINED:]]
    assert all(each.outcome == "ok" and f"latency_ms={objectives.latency_ms}" in each.objectives for each in told)
    assert share(each.actual_ms <= objectives.latency_ms for each in told) >= 0.95, "what the gateway saw"
    assert share(each.predicted_ms <= objectives.latency_ms for each in told) >= 0.95


def share(kept: Iterable[bool]) -> float:
    found = list(kept)
    return sum(found) / len(found)


def test_what_nothing_meets(client: Client, networks: dict[str, e2e_models.Net]) -> None:
    inputs = {"image": e2e_models.images(1)}
    answer = client.infer("task:sizes", inputs, objectives=Objectives(min_accuracy=0.99))
    assert (answer.answered_by, answer.objective_missed) == ("large@1", "min_accuracy by 0.02")
    with pytest.raises(FailedPrecondition, match=r"the closest is large@1/.*, which misses min_accuracy by 0.02"):
        client.infer("task:sizes", inputs, objectives=Objectives(min_accuracy=0.99, strict=True))


def test_the_cli_asks_and_explains(platform: Platform, networks: dict[str, e2e_models.Net], tmp_path: Path) -> None:
    image = tmp_path / "image.npy"
    np.save(image, e2e_models.images(1))
    asked = platform.json("infer", "task:sizes", "-i", f"image={image}", "--min-accuracy", "0.85", "--latency-ms", "500")
    assert (asked["answered_by"], asked["objective_missed"]) == ("middle@1", "")
    told = platform.json("explain", asked["request_id"])
    assert (told["model"], told["objectives"], told["objective_missed"]) == ("task:sizes", "latency_ms=500.0, min_accuracy=0.85", "")
    assert all(set(option) == KEYS["option"] and option["reason"] for option in told["variants"])
    assert all(set(each) == KEYS["instance_option"] for option in told["variants"] for each in option["instances"])
    reasons = {option["variant"]: option["reason"] for option in told["variants"]}
    assert {reason for variant, reason in reasons.items() if variant.startswith("small")} == {"misses min_accuracy by 0.05"}
    would = platform.json("explain", "task:sizes", "--min-accuracy", "0.95")
    assert [option["variant"].partition("/")[0] for option in would["variants"] if option["chosen"]] == ["large@1"]
    shown = platform.tessera("explain", "task:sizes", "--latency-ms", "0.0001")
    assert shown.returncode == 0
    assert "nothing meets the objectives: the closest misses latency_ms by" in shown.stdout
    assert platform.tessera("infer", "task:sizes", "-i", f"image={image}", "--latency-ms", "-3").returncode == 2


def test_a_model_that_does_not_fit_the_task_is_refused(client: Client, networks: dict[str, e2e_models.Net], tmp_path: Path) -> None:
    path = e2e_models.save(e2e_models.Wide(1), (1024,), tmp_path / "wide.pt2")
    with pytest.raises(InvalidInput, match="task 'sizes': its inputs are 'x', and they are 'image' in model 'large'"):
        client.register("wide", path, task="sizes")
    assert "wide" not in {model.name for model in client.models()}
