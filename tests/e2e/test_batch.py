"""`tessera batch` on a running platform: real models, real files, what is printed, and what a kill and Ctrl-C leave."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import e2e_models
import numpy as np
import pytest
from e2e_platform import Platform, environment, until

pytestmark = pytest.mark.slow

ROWS = 300


def jobs_folder(platform: Platform) -> Path:
    return platform.state / "batch" / "default"


def save(platform: Platform, name: str, rows: int) -> tuple[str, np.ndarray]:
    images = e2e_models.images(rows)
    path = jobs_folder(platform) / name
    np.savez(path, image=images)
    return str(path), images


def output_of(platform: Platform, images: np.ndarray) -> str:
    """The name of net's only output, as a plain request has it."""
    with platform.client() as client:
        (name,) = client.infer("net", {"image": images[:1]}).outputs
    return name


@pytest.mark.parametrize("kind", ["npz", "jsonl", "parquet"])
def test_every_format_answers_as_the_model_does(platform: Platform, net: e2e_models.Net, kind: str) -> None:
    source, images = save(platform, f"in-{kind}.npz", ROWS)
    target = jobs_folder(platform) / f"out.{kind}"
    found = platform.json("batch", "submit", "net", source, str(target), "--watch", "--max-errors", "0")
    assert (found["state"], found["rows"], found["rows_done"], found["rows_failed"]) == ("done", ROWS, ROWS, 0)
    name = output_of(platform, images)
    if kind == "npz":
        with np.load(target) as saved:
            answers = saved[name]
    elif kind == "jsonl":
        answers = np.array([json.loads(line)[name] for line in target.read_text().splitlines()], np.float32)
    else:
        import pyarrow.parquet as pq

        answers = np.array(pq.read_table(target).column(name).to_pylist(), np.float32)
    assert e2e_models.agrees(answers, net.eager(images))


def test_list_and_show_know_the_jobs(platform: Platform) -> None:
    source, _ = save(platform, "in-shown.npz", 20)
    target = str(jobs_folder(platform) / "shown")
    submitted = platform.json("batch", "submit", "net@1", source, target, "--batch-size", "4", "--output-format", "jsonl", "--watch")
    assert (submitted["model"], submitted["batch_size"], submitted["output_format"]) == ("net@1", 4, "jsonl")
    assert platform.json("batch", "show", submitted["id"])["state"] == "done"
    newest = platform.json("batch", "list")[0]
    assert newest["id"] == submitted["id"]
    done = platform.tessera("batch", "list")
    assert submitted["id"] in done.stdout
    assert "20/20" in done.stdout
    assert platform.tessera("batch", "list", "-o", "name").stdout.splitlines()[0] == submitted["id"]


def test_what_is_wrong_is_said_with_its_exit_code(platform: Platform, tmp_path: Path) -> None:
    source, _ = save(platform, "in-wrong.npz", 4)
    target = str(jobs_folder(platform) / "wrong.npz")
    np.savez(tmp_path / "outside.npz", image=e2e_models.images(2))
    cases: list[tuple[tuple[str, ...], int, str]] = [
        (("net", str(tmp_path / "outside.npz"), target), 1, "must lie below one of the profiler's batch roots"),
        (("net", "http://127.0.0.1/in.npz", target), 1, "must lie below one of the profiler's batch roots"),
        (("nobody", source, target), 1, "model 'nobody' is not registered"),
        (("net", str(jobs_folder(platform) / "absent.npz"), target), 1, "there is no such file"),
        (("bert", source, target), 2, "input arrays"),
        (("net", source, target, "--batch-size", "1000"), 2, "batch_size 1000: must be 1 to"),
        (("net", source, target, "--min-accuracy", "2"), 2, "parameter min_accuracy 2.0"),
        (("net", source, target, "--resume", "--overwrite"), 2, "only one of them can be meant"),
    ]
    for words, code, said in cases:
        done = platform.tessera("batch", "submit", *words)
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert platform.tessera("batch", "show", "b0").returncode == 1
    assert not Path(target).exists()


def submit_watching(platform: Platform, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tessera.cli", "batch", "submit", *words, "--watch", "--state", str(platform.state), "-o", "json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), cwd="/")


def running(platform: Platform, target: Path, parts: int) -> Any:
    """The job that writes there, when it has written so many parts."""

    def look() -> Any:
        found = next((job for job in platform.json("batch", "list") if job["output_url"] == f"file://{target}"), None)
        return found if found is not None and found["parts"] >= parts else None

    return until(look, f"{target} has {parts} parts")


def test_ctrl_c_ends_the_watching_and_not_the_job(platform: Platform, net: e2e_models.Net) -> None:
    source, images = save(platform, "in-long.npz", 5_000)
    target = jobs_folder(platform) / "long.npz"
    watching = submit_watching(platform, "net", source, str(target), "--batch-size", "1")
    job = running(platform, target, 1)
    watching.send_signal(signal.SIGINT)
    _, said = watching.communicate(timeout=30)
    assert watching.returncode == 130
    assert f"job {job['id']} goes on" in said
    found = platform.json("batch", "show", job["id"], "--watch")
    assert (found["state"], found["rows_done"]) == ("done", 5_000)
    with np.load(target) as saved:
        assert e2e_models.agrees(saved[output_of(platform, images)], net.eager(images))


def test_cancel_ends_a_job_and_resume_goes_on(platform: Platform) -> None:
    source, _ = save(platform, "in-cancel.npz", 12_000)
    target = jobs_folder(platform) / "cancel.npz"
    watching = submit_watching(platform, "net", source, str(target), "--batch-size", "1")
    job = running(platform, target, 1)
    done = platform.tessera("batch", "cancel", job["id"])
    assert (done.returncode, done.stderr) == (0, f"cancelled {job['id']}\n")
    printed, _ = watching.communicate(timeout=60)
    assert (watching.returncode, json.loads(printed)["state"]) == (1, "cancelled")
    assert "had ended before: cancelled" in platform.tessera("batch", "cancel", job["id"]).stderr
    refused = platform.tessera("batch", "submit", "net", source, str(target))
    assert "exists already; say resume or overwrite" in refused.stderr
    again = platform.json("batch", "submit", "net", source, str(target), "--resume", "--watch")
    assert (again["state"], again["rows_done"], again["rows_failed"]) == ("done", 12_000, 0)


def test_a_killed_profiler_goes_on_with_the_job_and_who_watches_hears_the_end(fragile: Platform, net: e2e_models.Net) -> None:
    source, images = save(fragile, "in-kill.npz", 5_000)
    target = jobs_folder(fragile) / "kill.npz"
    watching = submit_watching(fragile, "net", source, str(target), "--batch-size", "1")
    running(fragile, target, 1)
    pid = fragile.kill("profiler")
    fragile.until_restarted("profiler", pid)
    printed, said = watching.communicate(timeout=120)
    assert watching.returncode == 0, said
    found = json.loads(printed)
    assert (found["state"], found["rows_done"], found["rows_failed"]) == ("done", 5_000, 0)
    with np.load(target) as saved:
        answers = saved[output_of(fragile, images)]
    assert e2e_models.agrees(answers, net.eager(images))
