"""The gateway's front against a bare grpc.aio echo, both driven by h2load: make bench NAME=gateway

`identity` of 1 KiB and 600 kB, a closed loop of 32. h2load counts a failed call as a success, so answers are checked: before the rounds by
a client, after them by the gateway's own count of outcomes. Rounds alternate; the median of their ratios counts. CPU is the server
process's own.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import psutil

from benchmarks.echo import METHOD
from benchmarks.embedded import STATE, platform
from benchmarks.report import Report, median
from tessera.cli.embedded.state import load
from tessera.sdk import Client
from tessera.sdk._infer import infer_request, infer_result

ECHO_PORT = 19100
IN_FLIGHT = 32
ROUNDS = 5
SIZES = {"grpc_1k_vs_echo": (1024, 8000), "grpc_600k_vs_echo": (600_000, 800)}
"""Goal -> (bytes of tensor, requests a round)."""

GOAL = 0.85
MIB = 1 << 20


@dataclass
class Side:
    name: str
    address: str
    process: psutil.Process
    rates: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)


def _request(size: int) -> bytes:
    return infer_request("identity", {"INPUT0": np.zeros(size // 4, dtype=np.float32)})


def _load(side: Side, body: Path, requests: int) -> None:
    used = sum(side.process.cpu_times()[:2])
    command = ["h2load", f"-n{requests}", "-c1", f"-m{IN_FLIGHT}", "-t1", f"-w{24}", f"-W{26}", "-d", str(body)]
    headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    answer = subprocess.run([*command, *headers, f"http://{side.address}{METHOD}"], check=True, capture_output=True, text=True).stdout
    rate = re.search(r"([0-9.]+) req/s", answer)
    done = re.search(r"(\d+) succeeded", answer)
    if rate is None or done is None or int(done[1]) != requests:
        raise SystemExit(f"h2load did not finish against {side.name}:\n{answer}")
    side.rates.append(float(rate[1]))
    side.cpu_us.append((sum(side.process.cpu_times()[:2]) - used) / requests * 1e6)


def _served(client: Client, metrics: str) -> float:
    """Requests that the gateway answered with outcome ok, by its own count."""
    text = urllib.request.urlopen(f"http://{metrics}/metrics", timeout=5).read().decode()
    lines = [line for line in text.splitlines() if line.startswith("tessera_gateway_requests_total{") and 'outcome="ok"' in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def _check(address: str, request: bytes, read: Callable[[bytes], np.ndarray]) -> None:
    options = [("grpc.max_receive_message_length", 64 * MIB), ("grpc.max_send_message_length", 64 * MIB)]
    with grpc.insecure_channel(address, options=options) as channel:
        call: Callable[..., bytes] = channel.unary_unary(METHOD)
        answer = call(request, timeout=20)
    if read(answer).any():
        raise SystemExit(f"{address} answers wrongly")


def _echo_reader(answer: bytes) -> np.ndarray:
    from tessera.api.open_inference import inference_pb2 as oip

    return np.frombuffer(oip.ModelInferRequest.FromString(answer).raw_input_contents[0], dtype=np.float32)


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                grpc.channel_ready_future(channel).result(timeout=0.5)
            return
        except grpc.FutureTimeoutError:
            continue
    raise SystemExit("the echo server does not come up")


def _measure(client: Client, report: Report, goal: str, echo: Side, gateway: Side, metrics: str) -> None:
    size, requests = SIZES[goal]
    request = _request(size)
    with tempfile.NamedTemporaryFile(suffix=".grpc") as file:
        file.write(b"\0" + struct.pack(">I", len(request)) + request)
        file.flush()
        for side, reader in ((echo, _echo_reader), (gateway, lambda answer: infer_result(answer).outputs["OUTPUT0"])):
            side.rates, side.cpu_us = [], []
            _check(side.address, request, reader)
            _load(side, Path(file.name), requests // 4)  # warm
            side.rates, side.cpu_us = [], []
        before = _served(client, metrics)
        for _ in range(ROUNDS):
            _load(echo, Path(file.name), requests)
            _load(gateway, Path(file.name), requests)
        answered = _served(client, metrics) - before
    if answered != ROUNDS * requests:
        raise SystemExit(f"of {ROUNDS * requests} requests the gateway answered {answered:.0f} with ok")
    ratio = median([ours / theirs for ours, theirs in zip(gateway.rates, echo.rates, strict=True)])
    for side in (echo, gateway):
        report.row(
            server=side.name,
            size_bytes=size,
            in_flight=IN_FLIGHT,
            rounds=ROUNDS,
            rps=median(side.rates),
            cpu_us_per_request=median(side.cpu_us),
        )
    report.goal(goal, ratio, ">=", GOAL, "of the echo's requests per second")


def main() -> None:
    report = Report("gateway")
    if shutil.which("h2load") is None:
        report.row(
            server="none", note="h2load is not installed (Debian: nghttp2-client); grpc_1k_vs_echo and grpc_600k_vs_echo do not apply here"
        )
        report.finish()
        return
    echo_process = subprocess.Popen([sys.executable, "-m", "benchmarks.echo", str(ECHO_PORT)])
    try:
        _wait_for(ECHO_PORT)
        with platform() as client:
            found = load(STATE)
            assert found is not None
            gateway_pid = next(process.pid for process in found.processes if process.name == "gateway")
            echo = Side("bare grpc.aio echo", f"127.0.0.1:{ECHO_PORT}", psutil.Process(echo_process.pid))
            gateway = Side("gateway, identity", client.target.endpoint, psutil.Process(gateway_pid))
            client.infer("identity", {"INPUT0": np.zeros(4, np.float32)})
            for goal in SIZES:
                _measure(client, report, goal, echo, gateway, found.metrics_address)
    finally:
        echo_process.kill()
        echo_process.wait()
    report.finish()


if __name__ == "__main__":
    main()
