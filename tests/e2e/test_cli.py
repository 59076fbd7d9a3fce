"""The `tessera` command on a running platform: what it prints in each form, its stable JSON keys."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import e2e_models
import numpy as np
import pytest
import yaml
from e2e_platform import Platform, free_port_base, tessera

from tessera.sdk import Client

pytestmark = pytest.mark.usefixtures("no_settings_of_ours")

STAGES = {"queue", "schedule", "fetch", "fork", "map", "load", "run"}
KEYS = {
    "status": {"kind", "id", "address", "ready", "detail"},
    "ps": {
        "id", "model", "version", "variant", "node", "runtime_id", "pid", "state", "start_path", "fetched", "start_ms", "parked", "served",
        "items_per_s", "run_items", "load", "load_reason",
        "shared_bytes", "private_bytes", "idle_s", "queue", "executing", "requests_per_s", "run_p50_ms", "run_p99_ms", "runtime", "error",
    },
    "node": {
        "id", "address", "cpu_count", "build_class", "profile_class", "flavours", "instances", "overloaded", "interfered", "cpu_cores",
        "memory_bytes", "memory_available_bytes", "memory_pressure", "runtimes", "stores",
    },
    "runtime": {
        "id", "kind", "pid", "flavour", "trust_domain", "threads", "instances", "cpu_cores", "private_bytes", "shared_bytes",
        "proportional_bytes",
    },
    "store": {
        "trust_domain", "used_bytes", "budget_bytes", "pinned_bytes", "unlinked_bytes", "files", "huge_pages", "sharing", "fetched_bytes",
        "quarantined",
    },
    "model": {"name", "trust_domain", "task", "dataset", "accuracy", "lossy", "aliases", "versions"},
    "alias": {"alias", "model", "version", "since_unix_s", "reason", "before"},
    "version": {
        "version", "source_kind", "source_digest", "created_unix_s", "metric", "evaluation", "calibration", "allow_loss", "batched",
        "inputs", "outputs", "variants",
    },
    "variant": {
        "name", "backend", "recipe", "precision", "state", "reason", "build_class", "max_batch", "tensor_bytes", "tensor_bytes_shared",
        "tensor_count", "artifact", "graph", "agreement", "lossy", "withheld", "notes", "progress",
    },
    "registration": {"model", "version", "unchanged", "tensor_bytes", "tensor_bytes_already_stored", "variants"},
    "batch": {
        "id", "trust_domain", "model", "input_url", "input_format", "output_url", "output_format", "batch_size", "objectives", "max_errors",
        "state", "cancelling", "reason", "rows", "rows_done", "rows_failed", "parts", "submitted_unix_s", "started_unix_s", "ended_unix_s",
    },
    "profile": {
        "variant", "profile_class", "quick", "measured_unix_s", "accuracy", "accuracy_source", "withheld", "usd_per_hour", "usd_per_1000",
        "load", "fits", "latency",
    },
    "row": {
        "batch", "threads", "concurrency", "repeats", "p50_ms", "p99_ms", "mean_ms", "spread", "items_per_s", "usd_per_1000",
        "peak_private_bytes",
    },
    "fit": {"threads", "concurrency", "slope_ms", "intercept_ms", "error", "saturation_items_per_s"},
    "compared": {
        "variant", "profile_class", "batch", "threads", "concurrency", "score", "perf_throughput", "perf_latency_avg", "perf_latency_p50",
        "perf_latency_p99", "cpu_used_ram", "accuracy", "usd_per_1000", "load_time", "reason",
    },
    "infer": {"model", "version", "variant", "node", "start_path", "request_id", "answered_by", "objective_missed", "outputs"},
    "explain": {
        "request_id", "model", "outcome", "objectives", "objective_missed", "snapshot", "variant_policy", "instance_policy", "variants",
        "node", "instance", "start_path", "start_policy", "start_options", "stages_ms", "predicted_ms", "actual_ms",
    },
    "option": {
        "variant", "expected_ms", "latency_ms", "load_ms", "accuracy", "by", "usd_per_1000", "work_ms", "load", "active_instances",
        "instances", "chosen", "reason",
    },
    "instance_option": {"node", "instance", "in_flight", "expected_ms", "load", "seen", "chosen"},
    "start_option": {"variant", "node", "start_path", "expected_ms", "bytes_to_fetch", "chosen", "reason"},
    "span": {"name", "service", "span_id", "parent_span_id", "start_unix_ns", "end_unix_ns", "ms", "status", "attributes"},
    "doctor": {"check", "status", "detail"},
}  # fmt: skip
"""What scripts rely on: written out here on purpose, not taken from the code."""
ROOT = Path(__file__).parents[2]


def test_the_documentation_lists_the_keys() -> None:
    listed = [set(words.split()) for words in re.findall(r"`([a-z0-9_ \n]+)`", (ROOT / "docs" / "cli.md").read_text())]
    assert [what for what, keys in KEYS.items() if keys not in listed] == []


@pytest.fixture(scope="module")
def asked(platform: Platform, image: Path) -> dict[str, Any]:
    """One request to `net`, as `tessera infer -o json` prints it."""
    found: dict[str, Any] = platform.json("infer", "net", "--input", f"image={image}")
    return found


def test_a_second_up_says_what_runs(platform: Platform) -> None:
    before = platform.recorded()
    done = tessera("up", "--detach", "--state", str(platform.state), "--port-base", str(free_port_base()))
    assert done.returncode == 0
    assert "a platform runs here already" in done.stderr
    assert platform.endpoint in done.stderr
    assert f"tessera down --state {platform.state}" in done.stderr
    assert platform.recorded() == before


def test_status_names_every_service(platform: Platform) -> None:
    rows = platform.json("status")
    assert all(set(row) == KEYS["status"] and row["ready"] for row in rows)
    assert sorted(row["kind"] for row in rows) == [
        "etcd", "gateway", "node-agent", "profiler", "registry", "scheduler", "scheduler",
    ]  # fmt: skip
    assert sorted(row["detail"] for row in rows if row["kind"] == "scheduler") == ["leader", "standby"]


def test_infer_answers_and_saves(platform: Platform, asked: dict[str, Any], image: Path, net: e2e_models.Net, tmp_path: Path) -> None:
    assert set(asked) == KEYS["infer"]
    (output,) = asked["outputs"].values()
    assert (output["shape"], output["datatype"]) == ([2, 10], "float32")
    assert e2e_models.agrees(np.array(output["data"], np.float32), net.eager(np.load(image)))
    done = platform.tessera("infer", "net", "-i", f"image={image}", "--save", str(tmp_path / "out"))
    assert (done.returncode, done.stderr) == (0, "")
    (saved,) = (tmp_path / "out").iterdir()
    assert e2e_models.agrees(np.load(saved), net.eager(np.load(image)))
    words = platform.json("infer", "identity", "-i", 'INPUT0=["a", "b"]')
    assert words["outputs"]["OUTPUT0"]["data"] == ["a", "b"]


def test_ps_shows_what_the_request_started(platform: Platform, asked: dict[str, Any]) -> None:
    rows = platform.json("ps")
    assert all(set(row) == KEYS["ps"] for row in rows)
    (row,) = [row for row in rows if (row["model"], row["variant"], row["state"]) == ("net", asked["variant"], "ready")]
    assert set(row["start_ms"]) - {"total"} <= STAGES
    assert row["start_ms"]["total"] > 0
    assert (row["version"], row["node"]) == (1, "node-0")
    assert row["served"] >= 1
    assert row["shared_bytes"] > 0
    command = Path(f"/proc/{row['pid']}/cmdline").read_bytes()
    assert b"tessera.runtime" in command
    assert str(platform.layout.run).encode() in command


def test_node_list_shows_store_and_runtimes(platform: Platform) -> None:
    (node,) = platform.json("node", "list")
    assert set(node) == KEYS["node"]
    (store,) = node["stores"]
    assert set(store) == KEYS["store"]
    assert all(set(runtime) == KEYS["runtime"] for runtime in node["runtimes"])
    assert (node["id"], store["budget_bytes"], store["quarantined"]) == ("node-0", 512 << 20, 0)
    assert 0 < store["pinned_bytes"] <= store["used_bytes"] <= store["budget_bytes"]
    assert {runtime["flavour"] for runtime in node["runtimes"]} == {"aten", "ort"}


def test_fsck_compares_every_store_and_says_what_differs(fragile: Platform) -> None:
    (sound,) = fragile.json("node", "fsck", "--deep")
    assert set(sound) == {"node", "stores", "blobs", "bytes", "unlinked_bytes", "findings"}
    assert (sound["node"], sound["stores"], sound["findings"]) == ("node-0", 1, [])
    stray = fragile.store_folder() / "blobs" / ("0" * 64)
    stray.write_bytes(b"not what its name says")
    try:
        done = fragile.tessera("node", "fsck")
        assert done.returncode == 1
        assert f"node-0, trust domain default: blobs/{stray.name} lies on disk, memory does not know it" in done.stdout
    finally:
        stray.unlink()
    assert fragile.tessera("node", "fsck", "--node", "node-0").returncode == 0
    unknown = fragile.tessera("node", "fsck", "--node", "elsewhere")
    assert unknown.returncode == 1
    assert "node 'elsewhere' is not there" in unknown.stderr


def test_models_are_listed_and_shown(platform: Platform) -> None:
    listed = {model["name"]: model for model in platform.json("model", "list")}
    assert {"net", "bert", "identity"} <= set(listed)
    assert [model["name"] for model in platform.json("model", "list", "--task", "shapes")] == ["net"]
    shown = platform.json("model", "show", "net")
    assert shown == listed["net"]
    assert set(shown) == KEYS["model"]
    assert (shown["task"], shown["dataset"], shown["accuracy"]) == ("shapes", "made-up", 0.5)
    (version,) = shown["versions"]
    assert set(version) == KEYS["version"]
    assert (version["source_kind"], version["batched"]) == ("pt2", True)
    assert version["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    assert all(set(variant) == KEYS["variant"] for variant in version["variants"])
    assert {variant["name"] for variant in version["variants"]} == {"aten-fp32", "ort-fp32"}
    assert platform.json("model", "show", "bert")["versions"][0]["source_kind"] == "builder"


def test_registering_the_same_again_changes_nothing(platform: Platform, sources: Path) -> None:
    words = ("model", "register", "net", str(sources / "net.pt2"), "--task", "shapes", "--dataset", "made-up", "--wait")
    told = platform.tessera(*words)
    assert told.returncode == 0
    assert "net@1 was registered before with the same content; nothing changed" in told.stderr
    result = platform.json(*words)
    assert set(result) == KEYS["registration"]
    assert (result["model"], result["version"], result["unchanged"]) == ("net", 1, True)
    assert [version["version"] for version in platform.json("model", "show", "net")["versions"]] == [1]


def test_a_sibling_shares_its_trunk_and_can_be_deleted(platform: Platform, sources: Path, image: Path) -> None:
    """Registered, aliased, asked by the alias, not deleted while the alias points there, deleted afterwards."""
    done = platform.tessera("model", "register", "sibling", str(sources / "sibling.pt2"), "--wait", "-o", "json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["model"], result["version"], result["unchanged"]) == ("sibling", 1, False)
    assert 0.5 * result["tensor_bytes"] < result["tensor_bytes_already_stored"] < result["tensor_bytes"]
    try:
        assert platform.tessera("model", "alias", "favourite", "sibling@1").returncode == 0
        (named,) = platform.json("model", "show", "favourite")["aliases"]
        assert set(named) == KEYS["alias"]
        assert (named["alias"], named["model"], named["version"], named["reason"]) == ("favourite", "sibling", 1, "set")
        answer = platform.json("infer", "favourite", "-i", f"image={image}")
        (output,) = answer["outputs"].values()
        assert e2e_models.agrees(np.array(output["data"], np.float32), e2e_models.Net(2).eager(np.load(image)))
        refused = platform.tessera("model", "delete", "sibling", "--yes")
        assert refused.returncode == 1
        assert "favourite" in refused.stderr
        assert platform.json("model", "show", "sibling")["versions"]
        assert platform.tessera("model", "alias", "favourite", "net").returncode == 0, "an alias moves"
        assert platform.json("model", "show", "favourite")["name"] == "net"
    finally:
        platform.tessera("model", "alias", "favourite", "--delete")
        deleted = platform.tessera("model", "delete", "sibling", "--yes")
    assert deleted.returncode == 0, deleted.stderr
    assert "the repository got" in deleted.stderr
    for name in ("sibling", "favourite"):
        gone = platform.tessera("model", "show", name)
        assert (gone.returncode, gone.stdout) == (1, "")
        assert name in gone.stderr


def test_profiles_are_measured_once_and_shown(platform: Platform) -> None:
    done = platform.tessera("profile", "run", "net", "--quick", "--variant", "ort-fp32")
    assert done.returncode == 0, done.stderr
    assert "net@1/ort-fp32: b1" in done.stderr
    (profile,) = [each for each in platform.json("profile", "show", "net") if each["variant"] == "net@1/ort-fp32"]
    assert set(profile) == KEYS["profile"]
    assert profile["quick"] is True
    assert all(set(row) == KEYS["row"] and row["p50_ms"] <= row["p99_ms"] for row in profile["latency"])
    assert [row["batch"] for row in profile["latency"]] == [1]
    assert all(
        set(cost) == {"start_path", "ms", "peak_private_bytes"} and set(cost["ms"]) - {"total"} <= STAGES for cost in profile["load"]
    )
    assert all(set(fit) == KEYS["fit"] for fit in profile["fits"])
    assert [(fit["concurrency"], fit["slope_ms"]) for fit in profile["fits"]] == [(1, None)], "one batch makes no line"
    assert (profile["accuracy"], profile["accuracy_source"]) == (0.5, "stated"), "as it was registered"
    assert profile["usd_per_hour"] > 0, "by the catalogue that comes with the node agent"
    assert profile["usd_per_1000"] == profile["latency"][0]["usd_per_1000"] > 0
    again = platform.tessera("profile", "run", "net", "--quick", "--variant", "ort-fp32")
    assert again.returncode == 0
    shown = platform.json("profile", "show", "net")
    assert [each["measured_unix_s"] for each in shown if each["variant"] == profile["variant"]] == [profile["measured_unix_s"]]


def test_profiles_are_compared_and_exported(platform: Platform, tmp_path: Path) -> None:
    done = platform.tessera("profile", "run", "net", "--variant", "ort-fp32")
    assert done.returncode == 0, done.stderr
    (shown,) = [each for each in platform.json("profile", "show", "net") if each["variant"] == "net@1/ort-fp32"]
    assert shown["quick"] is False
    assert {row["concurrency"] for row in shown["latency"]} >= ({1, 2} if (os.cpu_count() or 1) > 1 else {1})
    assert any(fit["slope_ms"] is not None and fit["error"] >= 0 for fit in shown["fits"])
    compared = platform.json("profile", "compare", "net", "--objective", "perf_throughput", "--constraint", "perf_latency_p99:max=10000")
    assert all(set(each) == KEYS["compared"] for each in compared)
    best = next(each for each in compared if each["variant"] == "net@1/ort-fp32")
    assert best["perf_throughput"] == max(row["items_per_s"] for row in shown["latency"])
    nothing = platform.tessera("profile", "compare", "net", "--constraint", "perf_latency_p99:max=0.000001")
    assert nothing.returncode == 1
    assert "no configuration meets the constraints" in nothing.stderr
    assert "is above max" in nothing.stdout
    wrong = platform.tessera("profile", "compare", "net", "--objective", "speed")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "there are perf_throughput" in wrong.stderr
    assert json.loads(platform.tessera("profile", "export", "net").stdout) == platform.json("profile", "show", "net")
    rows = tmp_path / "rows.csv"
    assert platform.tessera("profile", "export", "net", "--format", "csv", "--to", str(rows)).returncode == 0
    lines = [line.split(",") for line in rows.read_text().splitlines()]
    assert KEYS["row"] < set(lines[0])
    assert [line[0] for line in lines[1:]].count("net@1/ort-fp32") == len(shown["latency"])
    page = tmp_path / "report.html"
    assert platform.tessera("profile", "show", "net", "--html", str(page)).returncode == 0
    assert "net@1/ort-fp32" in page.read_text()
    for options in (("--html", str(tmp_path / "no" / "report.html")),):
        refused = platform.tessera("profile", "show", "net", *options)
        assert refused.returncode == 2
        assert "No such file" in refused.stderr


def test_a_request_is_explained_and_drawn(platform: Platform, asked: dict[str, Any]) -> None:
    told = platform.json("explain", asked["request_id"])
    assert set(told) == KEYS["explain"]
    assert (told["request_id"], told["model"], told["outcome"], told["start_path"]) == (
        asked["request_id"], "net@1", "ok", asked["start_path"],
    )  # fmt: skip
    assert all(set(option) == KEYS["option"] and option["reason"] for option in told["variants"])
    assert [option["variant"] for option in told["variants"] if option["chosen"]] == [f"net@1/{asked['variant']}"]
    assert all(set(option) == KEYS["start_option"] for option in told["start_options"])
    assert set(told["stages_ms"]) - {"total"} <= STAGES
    spans = platform.json("trace", "show", asked["request_id"])
    assert all(set(span) == KEYS["span"] and span["name"].startswith("tessera.") for span in spans)
    assert any(span["service"] == "gateway" for span in spans)
    drawn = platform.tessera("trace", "show", asked["request_id"])
    assert drawn.returncode == 0
    assert all(span["name"] in drawn.stdout for span in spans)


def test_doctor_and_config_know_the_platform(platform: Platform) -> None:
    findings = {finding["check"]: finding for finding in platform.json("doctor")}
    assert all(set(finding) == KEYS["doctor"] for finding in findings.values())
    assert "fail" not in {finding["status"] for finding in findings.values()}
    assert "a platform is running" in findings["state"]["detail"]
    config = platform.json("config", "show")
    assert set(config) == {"etcd", "registry", "scheduler", "scheduler-standby", "profiler", "node-agent-0", "gateway"}
    assert config["node-agent-0"]["stores"][0]["budget_bytes"] == 512 << 20
    assert config["node-agent-0"]["report_s"] > 0, "defaults are shown too"
    assert config["etcd"]["data-dir"] == str(platform.layout.etcd_data)
    assert config["gateway"]["address"] == platform.endpoint
    assert "token" not in config["gateway"], "only the file with the token is named"


# One interpreter for all forms of all reads: what differs is only how the answer is printed.


@pytest.fixture(scope="module")
def reads(asked: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    return {
        "status": ("status",),
        "ps": ("ps",),
        "nodes": ("node", "list"),
        "fsck": ("node", "fsck", "--node", "node-0"),
        "models": ("model", "list"),
        "model": ("model", "show", "net"),
        "profiles": ("profile", "show", "net"),
        "explain": ("explain", asked["request_id"]),
        "trace": ("trace", "show", asked["request_id"]),
        "doctor": ("doctor",),
        "config": ("config", "show"),
        "infer": ("infer", "identity", "-i", "INPUT0=[1, 2]"),
    }


@pytest.mark.parametrize("form", ["json", "yaml", "name", "table"])
def test_every_read_comes_in_every_form(platform: Platform, reads: dict[str, tuple[str, ...]], form: str) -> None:
    from typer.testing import CliRunner

    from tessera.cli.__main__ import app

    for what, words in reads.items():
        result = CliRunner().invoke(app, [*words, "--state", str(platform.state), "-o", form])
        assert result.exit_code == 0, (what, result.output)
        if form == "json":
            json.loads(result.stdout)
        elif form == "yaml":
            assert yaml.safe_load(result.stdout) is not None
        elif form == "name":
            lines = result.stdout.splitlines()
            assert what == "profiles" or lines, what
            assert all(line and (what == "doctor" or " " not in line) for line in lines), (what, lines)
        else:
            assert result.stdout.strip(), what


def test_the_admin_door_wants_the_token(platform: Platform) -> None:
    from tessera.sdk import Unauthenticated

    assert (platform.state / "token").stat().st_mode & 0o777 == 0o600
    assert platform.state.stat().st_mode & 0o777 == 0o700
    with Client(platform.endpoint, admin_endpoint=platform.layout.admin_endpoint, token="wrong") as stranger:
        assert stranger.is_live()
        with pytest.raises(Unauthenticated):
            stranger.models()
